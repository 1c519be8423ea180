# SPDX-License-Identifier: Apache-2.0
"""What is measured rather than tested; run by hand."""
