# SPDX-License-Identifier: Apache-2.0
"""What a sweep found, to look at: a page that needs nothing beside it, a picture, and tables for programs."""
