"""Merged models are clean graphs: torch.compile without a break, torch.export with a dynamic batch."""

from __future__ import annotations

import pytest
import torch

from tests.towers_for_tests import TOWERS, noisy, random_clip, small_model
from zeroi2v import VideoClassifier

GRAPHS = [
    "zeroi2v_tiny",
    "vit_small_plus_patch16_dinov3_qkvb",
    "vit_base_patch16_siglip_224",
]  # each family: benchmarks


def merged(tower: str) -> VideoClassifier:
    return noisy(small_model(tower, heads="-1*1, 1*1/2")).merge()


@torch.no_grad()
@pytest.mark.parametrize(
    "tower", [*GRAPHS, *(pytest.param(name, marks=pytest.mark.slow) for name in TOWERS if name not in GRAPHS)]
)
def test_a_merged_model_exports_with_a_dynamic_batch(tower: str) -> None:
    model = merged(tower)
    one, three = random_clip(model, 2), random_clip(model, 3, seed=5)
    exported = torch.export.export(model, (one,), dynamic_shapes={"clip": {0: torch.export.Dim("batch")}}).module()
    for clip in (one, three):
        torch.testing.assert_close(exported(clip), model(clip))


@torch.no_grad()
@pytest.mark.parametrize(
    "tower", [*GRAPHS, *(pytest.param(name, marks=pytest.mark.slow) for name in TOWERS if name not in GRAPHS)]
)
def test_a_merged_model_compiles_without_a_graph_break(tower: str) -> None:
    model = merged(tower)
    torch._dynamo.reset()
    compiled = torch.compile(
        model, fullgraph=True, dynamic=True, backend="eager"
    )  # the tracer; no C++ compiler is asked for
    for clip in (random_clip(model, 2), random_clip(model, 3, seed=5)):
        torch.testing.assert_close(compiled(clip), model(clip))
