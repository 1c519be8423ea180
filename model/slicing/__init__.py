# SPDX-License-Identifier: Apache-2.0
"""Sub-models: one description, one table of cuts, and what it is applied to."""
