# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from model.inputs import Inputs
from model.layers.kernel import WINDOWS_IN_ONE, AttentionKernel, DenseKernel, DocumentKernel, FlexKernel, Kernel
from model.layers.mask import attention_mask
from model.text.context import kernel_of
from tests.tiny import tiny_config, tiny_inputs

WINDOW = 8
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without")  # which is slow, but true
# Documents of each row: within the window, beyond it, and so long that they are computed in blocks.
CASES = {
    "alone": ((50,), (50,)),
    "one_row": ((3, 1, 12, WINDOWS_IN_ONE * WINDOW, 2),),
    "many": ((5, 45), (8, 9, 33), (1, 16, 1, 32)),
    "long": ((2 * WINDOWS_IN_ONE * WINDOW + 3, 1), (1, 2 * WINDOWS_IN_ONE * WINDOW + 3)),
}


def numbers(lengths: Sequence[Sequence[int]]) -> Tensor:
    return torch.stack([torch.arange(len(row)).repeat_interleave(torch.tensor(row)) for row in lengths])


def kernels(lengths: tuple[tuple[int, ...], ...], window: int | None, *, device: str = "cpu") -> dict[str, Kernel]:
    documents = numbers(lengths).to(device)
    mask = torch.ones_like(documents, dtype=torch.bool)
    return {
        "dense": DenseKernel(attention_mask(mask, documents.shape[1], window, documents=documents)),
        "documents": DocumentKernel(lengths, window),
        "flex": FlexKernel.of(mask, window, documents=documents),
    }


def results(kernel: Kernel, given: Sequence[Tensor]) -> list[Tensor]:
    """What a kernel gives, and the gradients of something that all of it takes part in, where there are any."""
    if isinstance(kernel, FlexKernel) and given[0].device.type == "cpu":
        return [kernel(*given)]
    leaves = [each.clone().requires_grad_() for each in given]
    attended = kernel(*leaves)
    (attended * torch.linspace(-1, 2, attended.numel(), dtype=attended.dtype).view_as(attended)).sum().backward()
    return [attended.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


@pytest.mark.parametrize("window", [None, WINDOW])
@pytest.mark.parametrize("lengths", CASES.values(), ids=CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_kernels_give_the_same_and_the_same_gradients(
    lengths: tuple[tuple[int, ...], ...], window: int | None, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(1)
    seq = sum(lengths[0])
    given = [
        torch.randn(len(lengths), heads, seq, 16, generator=generator, dtype=dtype) * 0.5 for heads in (4, 2, 2)
    ]  # fmt: skip
    found = {name: results(kernel, given) for name, kernel in kernels(lengths, window).items()}
    for name in ("documents", "flex"):
        assert len(found[name]) == (4 if name == "documents" else 1)
        for ours, dense in zip(found[name], found["dense"], strict=False):
            assert (ours - dense).abs().max() <= (1e-6 if dtype is torch.float32 else 1e-13) * dense.abs().max(), name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("window", [None, WINDOW])
@pytest.mark.parametrize("lengths", CASES.values(), ids=CASES)
def test_all_kernels_give_the_same_gradients_on_a_gpu(lengths: tuple[tuple[int, ...], ...], window: int | None) -> None:
    generator = torch.Generator().manual_seed(1)
    seq = sum(lengths[0])
    given = [torch.randn(len(lengths), heads, seq, 256, generator=generator) * 0.06 for heads in (8, 2, 2)]
    exact = results(kernels(lengths, window)["dense"], [each.double() for each in given])
    low = [each.to("cuda", torch.bfloat16) for each in given]
    for name, kernel in kernels(lengths, window, device="cuda").items():
        for ours, true in zip(results(kernel, low), exact, strict=True):
            assert (ours.double().cpu() - true).norm() <= 0.02 * true.norm(), name


@pytest.mark.parametrize("name", ["dense", "documents", "flex"])
@pytest.mark.parametrize("window", [None, WINDOW])
def test_nothing_of_another_document_reaches_a_token(name: str, window: int | None) -> None:
    lengths = CASES["many"]
    generator = torch.Generator().manual_seed(2)
    given = [torch.randn(3, heads, 50, 16, generator=generator) for heads in (4, 2, 2)]
    kernel, changed = kernels(lengths, window)[name], numbers(lengths) == 1
    other = [each.masked_fill(changed[:, None, :, None], 7.0) for each in given]
    before, after = kernel(*given).transpose(1, 2), kernel(*other).transpose(1, 2)
    assert torch.equal(before[~changed], after[~changed])
    assert not torch.equal(before[changed], after[changed])


def test_which_kernel_is_taken_depends_on_where_padding_stands() -> None:
    config = tiny_config()
    taken = {}
    for padding in ("none", "right", "left"):
        inputs = tiny_inputs(config, padding=padding)
        for kernel in AttentionKernel:
            taken[padding, kernel.value] = type(kernel_of(kernel, inputs, inputs.mask, None))
    for padding, of_documents in (("none", DocumentKernel), ("right", DocumentKernel), ("left", DenseKernel)):
        expected = {"auto": of_documents, "dense": DenseKernel, "documents": of_documents, "flex": FlexKernel}
        assert {name: taken[padding, name] for name in expected} == expected


def test_lengths_of_documents_are_known_wherever_the_inputs_go() -> None:
    ids = torch.arange(1, 11).view(2, 5)
    mask = torch.tensor([[True, True, True, False, False], [True, True, True, True, False]])
    documents = torch.tensor([[0, 0, 1, 1, 2], [0, 1, 2, 3, 3]])
    inputs = Inputs(ids=ids, mask=mask, documents=documents)
    assert inputs.to("meta").known_lengths() == inputs.known_lengths() == ((2, 2, 1), (1, 1, 1, 2))
    assert Inputs(ids=ids, mask=mask).to("meta").document_lengths == ((5,), (5,))
    assert Inputs(ids=ids, mask=mask.flip(1)).known_lengths() is None  # padding before tokens
    assert Inputs.of(torch.ones(1, 3, dtype=torch.long, device="meta"), ids_below=2).known_lengths() is None


def test_auto_is_told_by_what_it_stands_for() -> None:
    assert {kernel: kernel.used.value for kernel in AttentionKernel} == {
        "auto": "documents", "dense": "dense", "documents": "documents", "flex": "flex",
    }  # fmt: skip
