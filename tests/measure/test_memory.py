"""Is the memory that is estimated the memory that a process takes?"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from torch import Tensor, nn

import zeroi2v
from tests.towers_for_tests import small_model
from zeroi2v import VideoClassifier
from zeroi2v.config import TrainConfig
from zeroi2v.engine.spare import spared
from zeroi2v.measure.memory import LiveBytes, inference_memory, peak_bytes, training_memory
from zeroi2v.method.relocate import FusedLayout, head_moves, relocate

CPU = torch.device("cpu")
# In a fresh process: how many bytes does a pass raise the peak of the resident memory?
MEASURE = """
import sys, torch, zeroi2v
from pathlib import Path
from zeroi2v.config import TrainConfig
from zeroi2v.engine.spare import spared
strategy, clips, backward = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "True"
torch.manual_seed(0)
model = zeroi2v.create_model("zeroi2v_tiny", num_classes=5, frames=8, strategy=strategy)
model.train(backward)
def train(clip):
    with spared(model, TrainConfig()):
        out = model(clip)
        out.sum().backward()
def infer(clip):
    with torch.no_grad():
        model(clip)
run = train if backward else infer
run(torch.randn(1, 8, 3, 48, 48))
model.zero_grad()
clip = torch.randn(clips, 8, 3, 48, 48)
def kilobytes(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(name))
    return int(line.split()[1])
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = kilobytes("VmRSS")
run(clip)
print((kilobytes("VmHWM") - before) * 1024)
"""


def in_training(model: VideoClassifier) -> AbstractContextManager[None]:
    return spared(model, TrainConfig())


def measured(strategy: str, clips: int, *, backward: bool) -> int:
    """The bytes of a pass in a fresh process, whose allocator returns freed memory at once."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    command = [sys.executable, "-c", MEASURE, strategy, str(clips), str(backward)]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return int(done.stdout)


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK),
    reason="only Linux tells the peak of a process's memory since a moment",
)
@pytest.mark.parametrize(
    ("strategy", "backward"),
    [
        ("zeroi2v", True),
        pytest.param("evl", True, marks=pytest.mark.slow),
        pytest.param("lora", True, marks=pytest.mark.slow),
        pytest.param("zeroi2v", False, marks=pytest.mark.slow),
    ],
)
def test_the_estimate_is_what_a_process_takes(strategy: str, backward: bool) -> None:
    clips = 64
    model = zeroi2v.create_model("zeroi2v_tiny", num_classes=5, frames=8, strategy=strategy)
    if backward:
        estimate = training_memory(model, in_training, clips=clips)
    else:
        estimate = inference_memory(model, clips=clips)
    assert measured(strategy, clips, backward=backward) == pytest.approx(estimate, rel=0.1)


def test_a_chain_of_layers_keeps_what_its_backward_pass_needs() -> None:
    layers = nn.Sequential(
        nn.Linear(64, 64, bias=False), nn.ReLU(), nn.Linear(64, 64, bias=False), nn.ReLU()
    )
    x = torch.empty(1024, 64)
    size = x.nbytes
    with torch.no_grad(), LiveBytes() as counter:
        layers(x)
    assert counter.peak == 2 * size  # an output and the input it is made of
    with LiveBytes() as counter:
        out = layers(x)
    assert counter.live == 2 * size  # each ReLU keeps what it gave
    assert counter.peak == 3 * size  # the second product beside them
    del out
    assert counter.live == 0


def test_a_frozen_tower_takes_little_to_train_and_counting_changes_nothing() -> None:
    evl, full = (
        small_model("zeroi2v_tiny", strategy=strategy, frames=8) for strategy in ("evl", "full")
    )
    evl_training, full_training = (training_memory(model, in_training) for model in (evl, full))
    assert evl_training < full_training / 2
    assert inference_memory(evl) < evl_training
    assert inference_memory(full) < full_training
    assert all(parameter.grad is None for parameter in full.parameters())
    assert not evl.training or evl.tower.training is False
    assert all(not module._forward_hooks for module in full.tower.modules() if is_norm(module))


def is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.LayerNorm)


def test_training_is_estimated_as_training_computes() -> None:
    model = small_model("vit_base_patch16_clip_quickgelu_224", strategy="zeroi2v")
    plainly = training_memory(model, lambda _: nullcontext())
    checkpointed = training_memory(
        model, lambda model: spared(model, TrainConfig(checkpointing=True))
    )
    assert checkpointed < training_memory(model, in_training) < plainly


@pytest.mark.parametrize("strategy", ["zeroi2v", "lora", "temporal_heads"])
def test_the_estimate_is_the_peak_of_the_same_step_with_numbers(strategy: str) -> None:
    model = small_model("zeroi2v_tiny", strategy=strategy, frames=8).train()
    clip = torch.randn(2, 8, 3, model.image_size, model.image_size)

    def step() -> None:
        logits = model(clip)
        logits.sum().backward()

    with in_training(model):
        peak = peak_bytes(step, CPU)
    assert training_memory(model, in_training, clips=2) == peak


def test_the_gradient_of_a_relocation_keeps_no_tensor() -> None:
    projection = nn.Linear(12, 12)
    layout, moves = FusedLayout(4, 1, 1), head_moves((-1, 1, 0, 0))
    frames = torch.randn(8, 5, 12)

    def relocated(projected: Tensor) -> Tensor:
        return relocate(projected, clips=2, frames=4, layout=layout, moves=moves)

    assert kept_bytes(lambda: relocated(projection(frames)).sum()) == 4


def kept_bytes(graph: Callable[[], Tensor]) -> int:
    """The bytes that a tensor and its graph keep."""
    with LiveBytes() as counter:
        result = graph()
    assert result.requires_grad
    return int(counter.live)
