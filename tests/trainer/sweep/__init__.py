# SPDX-License-Identifier: Apache-2.0
"""Sweeps: their rows, their directory, and what is left of them after they were killed."""
