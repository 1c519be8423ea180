# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from model.vision.attention import MobileAttention
from model.vision.blocks import EdgeResidual, InvertedBottleneck, convolution
from model.vision.norm import ChannelNorm
from model.vision.stages import AttentionRow, BottleneckRow, EdgeRow


@pytest.mark.parametrize("size", range(1, 12))
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (5, 1), (3, 2), (5, 2)])
def test_a_convolution_puts_out_size_over_stride_rounded_up(kernel: int, stride: int, size: int) -> None:
    conv = convolution(2, 4, kernel=kernel, stride=stride)
    steps = -(-size // stride)
    assert conv(torch.rand(1, 2, size, size + 1)).shape == (1, 4, steps, -(-(size + 1) // stride))


def test_of_an_odd_amount_of_padding_the_larger_half_is_at_the_end() -> None:
    conv = convolution(1, 1, kernel=3, stride=2)
    torch.nn.init.ones_(conv.weight)
    # Even: one row and column of padding, at the end; odd: one at either end.
    assert torch.equal(conv(torch.ones(1, 1, 4, 4))[0, 0], torch.tensor([[9.0, 6.0], [6.0, 4.0]]))
    assert torch.equal(conv(torch.ones(1, 1, 3, 3))[0, 0], torch.tensor([[4.0, 4.0], [4.0, 4.0]]))


def test_the_norm_brings_every_place_to_a_root_mean_square_of_one() -> None:
    normed = ChannelNorm(8, 1e-6)(torch.randn(2, 8, 3, 5) * 7)
    torch.testing.assert_close(normed.square().mean(1), torch.ones(2, 3, 5))


@pytest.mark.parametrize(
    "block",
    [
        EdgeResidual(8, EdgeRow(channels=8)),
        InvertedBottleneck(8, BottleneckRow(channels=8, start_kernel=3)),
        MobileAttention(8, AttentionRow(channels=8, heads=2, head_dim=4, kv_stride=2)),
    ],
    ids=lambda block: type(block).__name__,
)
def test_a_block_that_keeps_shapes_adds_its_input(block: torch.nn.Module) -> None:
    last = "bn2.weight" if isinstance(block, EdgeResidual) else "layer_scale.gamma"
    torch.nn.init.zeros_(block.get_parameter(last))
    x = torch.randn(2, 8, 5, 6)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("kv_stride", [1, 2])
def test_heads_share_keys_and_values_and_each_gives_its_own_part(kv_stride: int) -> None:
    row = AttentionRow(channels=6, heads=3, head_dim=4, kv_stride=kv_stride)
    attention = MobileAttention(6, row).attn
    x = torch.randn(2, 6, 5, 4)
    keys, values = (part(x).flatten(2) for part in (attention.key, attention.value))  # images head_dim places
    queries = attention.query(x).unflatten(1, (3, 4)).flatten(3)  # images heads head_dim places
    shares = torch.einsum("nhdp,ndq->nhpq", queries, keys).div(2).softmax(-1)
    seen = torch.einsum("nhpq,ndq->nhdp", shares, values).flatten(1, 2).unflatten(2, (5, 4))
    torch.testing.assert_close(attention(x), attention.output(seen))


def test_a_convolution_of_the_class_of_another_pads_alike() -> None:
    # PEFT makes the first factor of a convolution's LoRA so.
    of = convolution(3, 8, kernel=3, stride=2)
    factor = type(of)(3, 2, 3, 2, 0, bias=False)
    x = torch.rand(1, 3, 7, 10)
    assert factor(x).shape[-2:] == of(x).shape[-2:]
