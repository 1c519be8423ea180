# SPDX-License-Identifier: Apache-2.0
"""What optimizers are made of: groups of parameters, states by name, and those that torch does not have."""
