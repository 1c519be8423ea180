# SPDX-License-Identifier: Apache-2.0
"""lm-evaluation-harness asks our models: as its model ``matslice``, and by its tasks in our own measurements."""
