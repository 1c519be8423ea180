# SPDX-License-Identifier: Apache-2.0
"""How good a model is on what it was not trained on, per sub-model."""
