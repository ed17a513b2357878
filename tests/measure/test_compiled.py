"""Is a model compiled once for all sizes of a batch, and is it said how long that took?"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from tests.towers_for_tests import noisy
from zeroi2v import create_model
from zeroi2v.config import Recipe
from zeroi2v.log import Log
from zeroi2v.measure import throughput
from zeroi2v.measure.bench import bench
from zeroi2v.measure.bench_table import bench_table
from zeroi2v.measure.compiled import CompiledCall
from zeroi2v.measure.subjects import build_subjects
from zeroi2v.recipes import override

CPU = torch.device("cpu")
QUIET = Log(quiet=True)
SMALL = {"img_size": 32, "depth": 1}


@pytest.fixture(autouse=True)
def graphs_alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Graphs are found, and run as they are: no kernels are made of them, which takes a minute."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "tower",
    [
        "vit_tiny_patch16_224",
        pytest.param("vit_small_patch16_dinov3", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("merged", [False, True])
def test_two_graphs_serve_batches_of_all_sizes(tower: str, merged: bool) -> None:
    model = noisy(create_model(tower, num_classes=5, frames=2, tower_options=SMALL))
    model = model.merge() if merged else model
    call, sizes = CompiledCall(model), (1, 2, 4, 3, 8, 1, 5)
    with torch.inference_mode():
        for size in sizes:
            clips = torch.randn(size, 2, 3, model.image_size, model.image_size)
            torch.testing.assert_close(call(clips), model(clips), rtol=1e-4, atol=1e-4)
    assert call.graphs == 2
    seconds = call.seconds
    assert seconds > 0
    call(clips)
    assert (call.graphs, call.seconds) == (2, seconds)


def test_models_of_one_class_do_not_share_the_limit_of_graphs() -> None:
    calls = [CompiledCall(nn.Sequential(nn.Linear(3, width), nn.ReLU())) for width in range(1, 12)]
    with torch.inference_mode():
        for size in (1, 2, 4):
            for call in calls:
                call(torch.randn(size, 3))
    assert [call.graphs for call in calls] == [2] * len(calls)


def test_bench_says_what_compiling_took(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "GAIN", 0.0)
    names = ["plain", "zeroi2v:merged"]

    recipe = override(Recipe(), ["model.tower_options={depth=1}"])

    def measured(*, compiled: bool) -> tuple[list[dict[str, Any]], str]:
        subjects = build_subjects(
            names, [], recipe, device=CPU, dtype="fp32", compiled=compiled, log=QUIET
        )
        result = bench(
            subjects, device=CPU, dtype="fp32", rounds=2, warmup=1, max_batch=8, log=QUIET
        )
        console = Console(width=100)
        with console.capture() as capture:
            console.print(bench_table(result))
        return result["models"], capture.get()

    models, shown = measured(compiled=True)
    assert "compile s" in shown
    for model in models:
        assert model["graphs"] == 2
        assert model["compile_seconds"] > max(model["ms"]) / 1000  # no timed call compiles
    models, shown = measured(compiled=False)
    assert "compile s" not in shown
    assert all("compile_seconds" not in model for model in models)
