# SPDX-License-Identifier: Apache-2.0
"""The audio tower: log-mel frames to soft tokens."""
