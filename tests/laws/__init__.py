# SPDX-License-Identifier: Apache-2.0
"""What slicing promises, as equations between ways of getting at the same sub-model."""
