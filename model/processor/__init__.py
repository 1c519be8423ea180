# SPDX-License-Identifier: Apache-2.0
"""Text in and out of token ids."""
