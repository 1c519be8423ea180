# SPDX-License-Identifier: Apache-2.0
"""Which sub-models of a parent are the best ones under a budget, found by measuring as few of them as possible."""
