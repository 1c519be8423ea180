# SPDX-License-Identifier: Apache-2.0
"""What Gemma 3n is and computes."""
