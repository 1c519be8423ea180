# SPDX-License-Identifier: Apache-2.0
"""The pieces a decoder layer is made of."""
