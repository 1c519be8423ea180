# SPDX-License-Identifier: Apache-2.0
"""The programs, from their command lines."""
