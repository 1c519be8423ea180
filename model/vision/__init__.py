# SPDX-License-Identifier: Apache-2.0
"""The vision tower: pictures to soft tokens, a MobileNetV5 encoder."""
