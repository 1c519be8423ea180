# SPDX-License-Identifier: Apache-2.0
"""How annotations are checked while tests run: by beartype, with an int where a float is asked for, as in PEP 484."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
