# SPDX-License-Identifier: Apache-2.0
"""The reference's word: transformers' Gemma 3n on the same weights."""
