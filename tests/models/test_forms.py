"""Which form of relocation does a model take on a device, and what does the form cost?"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd

from tests.models.test_calls import SHALLOW, WINDOWED, model_of
from tests.towers_for_tests import random_clip
from zeroi2v import VideoClassifier, create_model
from zeroi2v.measure.count import KernelCount, count_kernels
from zeroi2v.measure.pretended import pretended
from zeroi2v.method import kernels

TOWERS = ["zeroi2v_tiny", "vit_small_plus_patch16_dinov3_qkvb", *WINDOWED]
HALVES = "-1*1, 1*1/2"


def by_index(model: VideoClassifier) -> VideoClassifier:
    """The model, as it moves keys and values on a device that is no CPU."""
    model.moves_by_index = True
    return model


def counted(heads: Any, *, frames: int = 8, clips: int = 4, reads: bool = False) -> KernelCount:
    """The kernels of ViT-B/16 on a GPU, where attention itself reads other frames, or does not."""
    with torch.device("meta"):
        model = create_model("vit_base_patch16_224", num_classes=400, frames=frames, heads=heads)
    with pretended(model.eval(), "cuda") as on_gpu, torch.no_grad():
        assert on_gpu.moves_by_index
        on_gpu.attention_reads &= reads
        clip = torch.empty(clips, frames, 3, 224, 224, device="cuda")
        return count_kernels(lambda: on_gpu(clip))


@pytest.mark.parametrize(
    ("heads", "frames", "moved"),  # `moved`: how many channels of a head move how many frames
    [
        ([-1, 1], 8, 2 * 7),
        ("-1*1/2, 1*1/2", 8, 7),
        ([-1, 1, -2, 2, -3], 32, 2 * 31 + 2 * 30 + 29),
    ],
    ids=["whole heads", "split heads", "five offsets"],
)
def test_all_moves_of_a_block_are_two_kernels_off_the_cpu(
    heads: Any, frames: int, moved: int
) -> None:
    still, temporal = counted([], frames=frames), counted(heads, frames=frames)
    assert len(temporal.kernels) - len(still.kernels) == 2 * 12
    moved_bytes = 4 * moved * 197 * 2 * 64 * 4  # keys and values of four clips, in fp32
    difference = (temporal.moved - still.moved) / 12
    assert 4 * moved_bytes <= difference <= 4 * moved_bytes * 1.001  # the table is small


def test_attention_that_reads_other_frames_adds_nothing() -> None:
    pytest.importorskip("triton")
    still, temporal = counted([]), counted([-1, 1], reads=True)
    assert len(temporal.kernels) == len(still.kernels)
    offsets = 12 * 12 * 4  # bytes
    assert temporal.moved - still.moved == offsets


def test_our_kernel_makes_all_moves_of_a_block_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    still = counted([])
    monkeypatch.setattr(kernels, "MOVES", True)
    temporal = counted("-1*1, 1*1/2, -2*1/4")
    assert len(temporal.kernels) - len(still.kernels) == 12
    moved_bytes = 4 * 8 * 197 * 2 * (64 + 32 + 16) * 4  # keys and values of four clips, in fp32
    difference = (temporal.moved - still.moved) / 12
    assert 2 * moved_bytes <= difference <= 2 * moved_bytes * 1.001  # the table is small


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.filterwarnings("ignore")  # timm's own, of small versions
def test_an_index_moves_what_copies_move(tower: str) -> None:
    model = model_of(tower, heads=HALVES)
    clip = random_clip(model)
    loss = model(clip)
    loss.square().sum().backward()
    expected = [weight.grad for weight in model.parameters()]
    model.zero_grad()
    logits = by_index(model)(clip)
    logits.square().sum().backward()
    assert torch.equal(logits, loss)
    for weight, gradient in zip(model.parameters(), expected, strict=True):
        assert (weight.grad is None) == (gradient is None)
        assert gradient is None or torch.equal(weight.grad, gradient)  # type: ignore[arg-type]
    with torch.no_grad():
        assert torch.equal(model(clip[:, :2], fewer_frames=True), shorter(model, clip))


def shorter(model: VideoClassifier, clip: Tensor) -> Tensor:
    """What copies give for the first two frames of a clip."""
    model.moves_by_index = False
    logits: Tensor = model(clip[:, :2], fewer_frames=True)
    return logits


def operations_of(model: VideoClassifier, clips: Tensor) -> tuple[Tensor, list[str]]:
    """The logits of a compiled model, and the operations of its graph that write qkv's size.

    No compiler for C++ is needed: the graph is the one that torch.compile hands to its compiler.
    """
    size = clips.shape[0] * clips.shape[1] * 3 * model.tower.embed_dim  # type: ignore[operator]
    names: list[str] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        for node in graph.graph.nodes:
            value = node.meta.get("val")
            is_made = node.op == "call_function" and not getattr(node.target, "is_view", False)
            if is_made and isinstance(value, Tensor) and value.numel() % size == 0:
                names.append(str(node.target))
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=aot_autograd(fw_compiler=keep))
    return compiled(clips), names


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")  # PyTorch's own, of its compiler
def test_a_compiled_graph_copies_nothing_whole_off_the_cpu() -> None:
    model = model_of("vit_tiny_patch16_224", heads=HALVES, tower_options=SHALLOW).merge()
    clips = random_clip(model, clips=2)
    expected = model(clips)
    logits, names = operations_of(by_index(model), clips)
    torch.testing.assert_close(logits, expected)
    # The compiler writes what `index_put` gives where the product was: nothing else reads it.
    assert [name for name in names if "index_put" in name] == ["aten.index_put.default"] * 2
    assert not any(word in name for name in names for word in ("cat", "clone", "scatter", "copy"))


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.filterwarnings("ignore")
def test_the_compiler_moves_in_place() -> None:
    from torch._inductor.utils import run_and_get_code

    model = by_index(model_of("vit_tiny_patch16_224", heads=HALVES, tower_options=SHALLOW).merge())
    clips = random_clip(model, clips=2)
    torch._dynamo.reset()
    logits, codes = run_and_get_code(torch.compile(model, fullgraph=True), clips)
    torch.testing.assert_close(logits, model(clips))
    (code,) = codes
    calls = [
        line for line in code.splitlines() if re.search(r"^ +cpp_fused\w*index_put\w*\(", line)
    ]
    assert len(calls) == 2
    # The buffer that the kernel reads is also the buffer that the kernel writes.
    assert all(re.search(r"\b(buf\d+)\b.*\b\1\b", call) for call in calls), calls
