# SPDX-License-Identifier: Apache-2.0
"""What can be wrong with what a user gave us. Everything else that fails is our own fault."""


class MatsliceError(ValueError):
    """Something a user can mend; the message says where, what was found, what is allowed, what to do."""


class ConfigError(MatsliceError):
    """A value in a config, a ``config.json`` or a command line."""


class SliceError(MatsliceError):
    """A sub-model description that does not fit its parent."""


class CheckpointError(MatsliceError):
    """A checkpoint or adapter directory that is missing, incomplete or of another model."""


class InputError(MatsliceError):
    """Data, a prompt or model inputs."""


class DivergenceError(MatsliceError):
    """A training run whose gradient is no longer finite."""


def counted(number: int, noun: str) -> str:
    """A number and what it counts, for a message: ``no images``, ``1 image``, ``2 images``."""
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"
