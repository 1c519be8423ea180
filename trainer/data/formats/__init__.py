# SPDX-License-Identifier: Apache-2.0
"""The ways in which rows say what was asked and answered."""
