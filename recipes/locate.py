# SPDX-License-Identifier: Apache-2.0
"""Where the checkpoint lies that a user names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from model.errors import CheckpointError

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model")


def find_checkpoint(written: str, files: Sequence[str] = HUB_FILES) -> Path:
    """The directory that ``checkpoint=`` means: one on this machine, or a model on the Hugging Face hub.

    Args:
        written: What a user gave.
        files: Patterns of the files to fetch from the hub.

    Raises:
        CheckpointError: There is no such directory, and no such model can be fetched.
    """
    if not is_on_the_hub(written):
        path = Path(written).expanduser()
        if not path.is_dir():
            raise CheckpointError(f"checkpoint: no directory '{written}' (relative names start at {Path.cwd()})")
        return path
    import huggingface_hub  # late: it takes half a second, and a directory needs none of it
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    try:
        return Path(huggingface_hub.snapshot_download(written, allow_patterns=list(files)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise CheckpointError(
            f"checkpoint: no directory '{written}' (relative names start at {Path.cwd()}), and the hub gave no model"
            f" of that name ({str(error).splitlines()[0]}); give a directory, or check name, licence and network"
        ) from None


def is_on_the_hub(written: str) -> bool:
    """Whether ``checkpoint=`` means a model on the hub, and no directory on this machine."""
    path = Path(written).expanduser()
    # A folder that is there is meant, also if what should be in it is not: a mistyped path asks no hub.
    return HUB_NAME.fullmatch(written) is not None and not path.exists() and not path.parent.exists()
