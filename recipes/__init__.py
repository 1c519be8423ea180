# SPDX-License-Identifier: Apache-2.0
"""Programs: compose a config, build the parts, run."""
