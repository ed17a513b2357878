"""Can a merged model be compiled without a graph break, and exported with a dynamic batch?

The tests ask for every way in which timm writes attention.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import zeroi2v
from tests.tower_checks import FRAMES, IMPLEMENTATIONS, SLOW_IMPLEMENTATIONS, randomise, small_tower
from zeroi2v import VideoClassifier

SLOW = (
    *SLOW_IMPLEMENTATIONS,
    "hiera_tiny_224",
    "tiny_vit_5m_224",
    "mvitv2_tiny",
    "vit_base_patch16_siglip_224",
    "vit_relpos_small_patch16_224",
    "naflexvit_base_patch16_gap",
    "samvit_base_patch16",
    "vitamin_small_224",
    "sam2_hiera_tiny",
    "caformer_s18",
    "maxxvit_rmlp_nano_rw_256",
    "fastvit_sa12",
    "swinv2_cr_tiny_224",
    "swinv2_tiny_window8_256",
    "pit_ti_224",
    "efficientformer_l1",
)
# Windows, shifted windows, and the merging of patches between two stages.
TWO_STAGES = {"depths": (2, 1), "num_heads": (3, 6)}
FAST = tuple(name for name in IMPLEMENTATIONS if name not in SLOW)

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # timm's own, of small versions
    pytest.mark.parametrize(
        "merged",
        [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)],
        indirect=True,
    ),
]


@pytest.fixture
def merged(request: pytest.FixtureRequest) -> Iterator[VideoClassifier]:
    """A small merged model on a tower, with every weight made to matter."""
    torch.manual_seed(0)
    with small_tower(request.param) as (options, size):
        if request.param.startswith("swin"):
            options = {**options, **TWO_STAGES}
        model = zeroi2v.create_model(
            request.param,
            num_classes=5,
            frames=FRAMES,
            heads="-1*1/2, 1*1/2",
            tower_options=options,
        )
        yield randomise(model.eval(), torch.randn(2, FRAMES, 3, size, size)).merge()


def clips(model: VideoClassifier) -> tuple[Tensor, Tensor]:
    """A batch of two clips, and a batch of three."""
    size = model.image_size
    return torch.randn(2, FRAMES, 3, size, size), torch.randn(3, FRAMES, 3, size, size)


@torch.no_grad()
def test_a_merged_model_exports_with_a_dynamic_batch(merged: VideoClassifier) -> None:
    two, three = clips(merged)
    exported = torch.export.export(
        merged, (two,), dynamic_shapes={"clip": {0: torch.export.Dim("batch")}}
    ).module()
    for clip in (two, three):
        torch.testing.assert_close(exported(clip), merged(clip))


@torch.no_grad()
def test_a_merged_model_compiles_without_a_graph_break(merged: VideoClassifier) -> None:
    torch._dynamo.reset()
    # The backend "eager" needs no C++ compiler: only the tracer of torch.compile runs.
    compiled = torch.compile(merged, fullgraph=True, backend="eager")
    for clip in clips(merged):
        torch.testing.assert_close(compiled(clip), merged(clip))
