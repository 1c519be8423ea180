# SPDX-License-Identifier: Apache-2.0
"""Directories of weights, in and out."""
