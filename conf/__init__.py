# SPDX-License-Identifier: Apache-2.0
"""Values only: the YAML files the recipes are composed from."""
