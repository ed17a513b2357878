"""Is the memory that is counted the memory that is taken?"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

import zeroi2v
from tests.towers_for_tests import small_model
from zeroi2v.measure.memory import LiveBytes, activation_memory

MEASURE = """
import sys, torch, zeroi2v
from pathlib import Path
strategy, clips, backward = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "True"
torch.manual_seed(0)
model = zeroi2v.create_model("zeroi2v_tiny", num_classes=5, frames=8, strategy=strategy)
model.train(backward)
def step(clip):
    with torch.set_grad_enabled(backward):
        out = model(clip)
        if backward:
            out.sum().backward()
step(torch.randn(1, 8, 3, 48, 48))
model.zero_grad()
clip = torch.randn(clips, 8, 3, 48, 48)
def kilobytes(name):
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1])
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = kilobytes("VmRSS")
step(clip)
print((kilobytes("VmHWM") - before) * 1024)
"""


def measured(strategy: str, clips: int, *, backward: bool) -> int:
    """How far a pass raises the peak memory of a fresh process, whose allocator gives back at once what is freed."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    command = [sys.executable, "-c", MEASURE, strategy, str(clips), str(backward)]
    return int(
        subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    )


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK),
    reason="Linux alone tells a process's memory so",
)
@pytest.mark.parametrize(
    ("strategy", "backward"),
    [
        ("zeroi2v", True),
        pytest.param("evl", True, marks=pytest.mark.slow),
        pytest.param("zeroi2v", False, marks=pytest.mark.slow),
    ],
)
def test_the_estimate_is_what_a_process_takes(strategy: str, backward: bool) -> None:
    clips = 64
    model = zeroi2v.create_model("zeroi2v_tiny", num_classes=5, frames=8, strategy=strategy)
    found = activation_memory(model, clips)
    estimate = found.training if backward else found.inference
    assert measured(strategy, clips, backward=backward) == pytest.approx(estimate, rel=0.1)


def test_a_chain_of_layers_keeps_what_its_backward_pass_needs() -> None:
    layers = nn.Sequential(
        nn.Linear(64, 64, bias=False), nn.ReLU(), nn.Linear(64, 64, bias=False), nn.ReLU()
    )
    x = torch.empty(1024, 64)
    size = x.nbytes
    with torch.no_grad(), LiveBytes() as counted:
        layers(x)
    assert counted.peak == 2 * size  # an output and the input it is made of
    with LiveBytes() as counted:
        out = layers(x)
    assert counted.live == 2 * size  # each ReLU keeps what it gave
    assert counted.peak == 3 * size  # the second product beside them
    del out
    assert counted.live == 0


def test_a_frozen_tower_takes_little_to_train_and_counting_changes_nothing() -> None:
    evl, full = (
        small_model("zeroi2v_tiny", strategy=strategy, frames=8) for strategy in ("evl", "full")
    )
    found = activation_memory(evl), activation_memory(full)
    assert found[0].training < found[1].training / 2
    assert all(one.inference < one.training for one in found)
    assert all(parameter.grad is None for parameter in full.parameters())
    assert not evl.training or evl.tower.training is False
