# SPDX-License-Identifier: Apache-2.0
"""Makes torchvision importable beside a torch that was built for processors only.

PyPI's torchvision is built for CUDA, and where torch is not, its compiled operators cannot be loaded; its
import then fails at the two it describes to torch. Nothing here calls them: their names are enough.
transformers imports torchvision wherever it is installed, and timm always, so this comes before either.
"""

import torch

try:
    import torchvision
except ModuleNotFoundError:
    LIBRARY = None
except RuntimeError:
    LIBRARY = torch.library.Library("torchvision", "DEF")  # kept: the operators live as long as this
    for name in ("nms", "qnms"):
        LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision  # noqa: F401 - before PEFT, while whose import it is hidden: transformers remembers what it finds
