# SPDX-License-Identifier: Apache-2.0
"""Pictures to the pixels that the vision tower sees."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from model.processor.media import Picture
from model.processor.settings import RESAMPLING, ImageSettings, as_json


@dataclass(frozen=True)
class ImageProcessor:
    """Resizes a picture to the tower's one size, whatever its shape, and scales its values."""

    settings: ImageSettings = field(default_factory=ImageSettings)

    def __call__(self, picture: Picture) -> Float[Tensor, "3 height width_px"]:
        """The pixels of a picture, as published in [0, 1].

        Raises:
            InputError: The picture cannot be decoded.

        Source: transformers' ``SiglipImageProcessor``; resized in 8 bits, antialiased, like there.
        """
        settings = self.settings
        image = torch.from_numpy(np.array(picture.decode())).permute(2, 0, 1)[None].contiguous()
        size = (settings.height, settings.width)
        mode = RESAMPLING[settings.resample]
        pixels = F.interpolate(image, size, mode=mode, align_corners=False, antialias=True)[0].float()
        if settings.do_rescale:
            pixels = pixels * settings.rescale_factor
        if settings.do_normalize:
            mean, std = (torch.tensor(values)[:, None, None] for values in (settings.image_mean, settings.image_std))
            pixels = (pixels - mean) / std
        return pixels

    @property
    def fingerprint(self) -> str:
        """A hash of what is done to a picture: equal where the same picture gives the same pixels."""
        return hashlib.sha256(json.dumps(as_json(self.settings), sort_keys=True).encode()).hexdigest()
