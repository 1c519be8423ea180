# SPDX-License-Identifier: Apache-2.0
"""How a model changes over time."""
