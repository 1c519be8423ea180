# SPDX-License-Identifier: Apache-2.0
"""What the sources look like."""
