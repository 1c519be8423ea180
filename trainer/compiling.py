# SPDX-License-Identifier: Apache-2.0
"""Whether the decoder's layers can be compiled here, which is to be known before weights are read."""

from __future__ import annotations

import torch

from model.errors import ConfigError
from trainer.config import Device, TrainerConfig
from trainer.runtime import SHARDING, is_sharded

REMEDY = "or set trainer.compile=false"


def refuse_uncompilable(config: TrainerConfig) -> None:
    """Raise ConfigError if the layers are to be compiled, but the model is divided up or no compiler is there."""
    if not config.compile:
        return
    if is_sharded():
        raise ConfigError(
            f"trainer.compile is on, but the model is divided up among processes ({SHARDING}), where layers are not"
            f" compiled; launch with 'accelerate launch --multi_gpu', {REMEDY}"
        )
    if config.device is not Device.cpu and torch.cuda.is_available():
        from torch.utils._triton import has_triton  # takes a second to import

        if not has_triton():
            raise ConfigError(
                "trainer.compile is on, but torch compiles for this GPU by Triton, which is missing or does not know"
                f" it; install torch with triton, {REMEDY}"
            )
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise ConfigError(
            "trainer.compile is on, but torch compiles for a processor by a C++ compiler, and finds none; install g++"
            f" (Debian: apt-get install g++), name one by the environment variable CXX, {REMEDY}"
        ) from error
