# SPDX-License-Identifier: Apache-2.0
"""Records as curves for TensorBoard, in the directory of the run. Needs the extra ``tensorboard``."""

from __future__ import annotations

from pathlib import Path

from model.errors import ConfigError
from trainer.metrics import Record, numbers_of

TENSORBOARD_DIRECTORY = "tensorboard"


class TensorBoardSink:
    """Event files below the run's directory; a resumed run hides what was told of steps that are made again.

    Raises:
        ConfigError: TensorBoard is not installed.
    """

    def __init__(self, directory: Path, *, resumed_step: int) -> None:
        check_installed()
        from torch.utils.tensorboard import SummaryWriter  # heavy, and most runs do without

        self.writer = SummaryWriter(directory / TENSORBOARD_DIRECTORY, purge_step=resumed_step + 1)

    def write(self, record: Record) -> None:
        """Add a point to each curve."""
        for name, value in numbers_of(record).items():
            self.writer.add_scalar(name, value, global_step=record["step"])
        self.writer.flush()

    def tick(self, step: int, loss: float) -> None:
        """There are records only."""

    def close(self) -> None:
        """Close the files."""
        self.writer.close()


def check_installed(key: str = "trainer.tensorboard") -> None:
    """Raise ConfigError if TensorBoard is missing, which ``key`` asks for: before anything expensive happens."""
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        raise ConfigError(
            f"{key} is true, but TensorBoard is not installed; run pip install 'matslice[tensorboard]', or leave it out"
        ) from None
