# SPDX-License-Identifier: Apache-2.0
"""Many sub-models on many tasks in one go: what was found, and going on after it was stopped."""
