"""Does a checkpoint of the official ZeroI2V code give the features of that code?

And does an error name a damaged checkpoint?
"""

from __future__ import annotations

import functools
import os
import pickle
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

import zeroi2v
from tests.official_for_tests import (
    FOUR,
    SIX,
    State,
    official_features,
    official_logits,
    official_merge,
    random_official,
)
from zeroi2v.errors import CheckpointError, ConfigError, HeadsError
from zeroi2v.models.official import OFFICIAL

BASE = [(64, -1), (64, 1)]  # shift_div 12 of 768 channels
LARGE = [
    (96, -1),
    (96, 1),
    (48, -2),
    (48, 2),
    (48, -3),
]  # shift1_div 8, shift2_div 16, shift3_div 16
LARGE_HEADS = [-1, -1, 1, 1, -2, 2, -3]
assert_close = functools.partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5)


def clip_of(frames: int, image_size: int = 32) -> Tensor:
    return torch.randn(
        2, frames, 3, image_size, image_size, generator=torch.Generator().manual_seed(3)
    )


def saved(state: Any, path: Path) -> Path:
    torch.save(state, path)
    return path


@pytest.mark.parametrize("merged", [False, True], ids=["adapted", "merged"])
@pytest.mark.parametrize(
    ("folds", "heads", "head_count", "scale", "frames", "adapters"),
    [
        pytest.param(BASE, [-1, 1], None, 0.5, 4, FOUR, id="two temporal heads, scale 0.5"),
        pytest.param(LARGE, LARGE_HEADS, 16, 1.0, 5, FOUR, id="seven temporal heads, scale 1"),
        pytest.param([(32, -1), (32, 1)], "-1*1/2, 1*1/2", None, 0.5, 3, FOUR, id="half heads"),
        pytest.param(BASE, [-1, 1], None, 0.5, 3, SIX, id="an adapter each for q, k and v"),
        pytest.param(BASE, [-1, 1], None, 0.5, 3, FOUR[:3], id="num_tadapter 1"),
    ],
)
def test_features_and_logits_are_those_of_the_official_code(
    folds: list[tuple[int, int]],
    heads: Any,
    head_count: int | None,
    scale: float,
    frames: int,
    adapters: tuple[str, ...],
    merged: bool,
    tmp_path: Path,
) -> None:
    state = random_official(width=768, depth=2, frames=frames, adapters=adapters)
    path = saved({"state_dict": state, "meta": {"epoch": 40}}, tmp_path / "best.pth")
    model = zeroi2v.load_official(path, heads=heads, adapter_scale=scale, head_count=head_count)
    clip = clip_of(frames)
    model = model.merge() if merged else model
    theirs = official_features(state, clip, folds=folds, scale=scale, heads=head_count or 12)
    with torch.no_grad():
        assert_close(model.features(clip), theirs)
        assert_close(model(clip), official_logits(state, theirs))
    spatial = official_features(state, clip, folds=[], scale=scale, heads=head_count or 12)
    assert (spatial - theirs).abs().max() > 0.05, "the temporal heads matter"


def test_in_float64_they_are_the_same_but_for_rounding(tmp_path: Path) -> None:
    state = random_official(width=768, depth=2, frames=4)
    path = saved(state, tmp_path / "a.pth")
    model = zeroi2v.load_official(
        path, heads=LARGE_HEADS, adapter_scale=1.0, head_count=16
    ).double()
    precise, clip = {key: tensor.double() for key, tensor in state.items()}, clip_of(4).double()
    theirs = official_features(precise, clip, folds=LARGE, scale=1.0, heads=16)
    with torch.no_grad():
        for ours in (model, model.merge()):
            torch.testing.assert_close(ours.features(clip), theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("folds", "heads", "head_count", "scale"),
    [(BASE, [-1, 1], 12, 0.5), (LARGE, LARGE_HEADS, 16, 1.0)],
)
def test_a_file_that_the_official_script_merged_gives_the_same(
    folds: list[tuple[int, int]], heads: list[int], head_count: int, scale: float, tmp_path: Path
) -> None:
    state = random_official(width=768, depth=2, frames=4)
    path = saved(official_merge(state, scale), tmp_path / "best_eval.pth")
    model = zeroi2v.load_official(path, heads=heads, head_count=head_count)
    assert model.spec.merged
    assert not list(model.adapters.parameters())
    clip = clip_of(4)
    with torch.no_grad():
        theirs = official_features(state, clip, folds=folds, scale=scale, heads=head_count)
        assert_close(model.features(clip), theirs)


def test_sizes_come_from_the_tensors(tmp_path: Path) -> None:
    state = random_official(width=128, depth=3, frames=6, patch=8, image_size=40, classes=11)
    model = zeroi2v.load_official(saved(state, tmp_path / "a.pth"), heads=[-1], adapter_scale=0.5)
    assert (model.image_size, model.frames, model.classifier.out_features) == (40, 6, 11)
    assert model.heads == ((-1, 0),) * 3
    assert model.spec.model.adapter_ratio == 0.25
    assert model.spec.model.adapter_scale == 0.5
    assert model.dropout.p == 0.5
    assert not model.training
    for values, pixels in zip(
        model.normalisation, ([122.769, 116.74, 104.04], [68.493, 66.63, 70.321]), strict=True
    ):
        assert [255 * value for value in values] == pytest.approx(pixels, abs=0.06)
    with torch.no_grad():
        theirs = official_features(state, clip_of(6, 40), folds=[(64, -1)], scale=0.5, heads=2)
        assert_close(model.features(clip_of(6, 40)), theirs)


@pytest.mark.parametrize("merged", [False, True], ids=["adapted", "merged"])
def test_the_model_is_an_ordinary_one(merged: bool, tmp_path: Path) -> None:
    state = random_official(width=128, depth=2, frames=3)
    path = saved(official_merge(state, 0.5) if merged else state, tmp_path / "a.pth")
    model = zeroi2v.load_official(path, heads=[1], adapter_scale=0.5)
    model.save_pretrained(tmp_path / "model")
    path.unlink()
    again = zeroi2v.load(tmp_path / "model")
    assert torch.equal(again(clip_of(3)), model(clip_of(3)))
    assert (again.spec.model, again.heads, again.spec.merged) == (
        model.spec.model,
        model.heads,
        merged,
    )
    trained = {
        name.partition(".")[0]
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    assert trained == {"tower", "classifier", "temporal_embedding"} | (
        set() if merged else {"adapters"}
    )


@pytest.mark.parametrize(
    ("name", "heads", "scale"),
    [
        ("CLIP-B_k400_8x16x1", [-1, 1], 0.5),
        ("CLIP-L_k400_8x16x1", [-1, -1, 1, 1], 0.5),
        ("CLIP-L_k400_32x4x1", [-1, -1, 1, 1, -2, -2], 0.5),
        ("CLIP-L_sthv2_u32", LARGE_HEADS, 1.0),
    ],
)
def test_a_published_file_is_known_by_name(
    name: str, heads: list[int], scale: float, tmp_path: Path
) -> None:
    published = OFFICIAL[name]
    state = random_official(width=published.width, depth=1, frames=published.frames)
    path = saved(state, tmp_path / f"{name}.pth")
    model = zeroi2v.load_official(path)
    told = zeroi2v.load_official(path, heads=heads, adapter_scale=scale)
    assert model.heads == told.heads
    assert model.spec.model.adapter_scale == scale
    assert model.clip.frames == published.frames
    assert (model.clip.sampling, model.views.clips, model.views.crops) == (
        ("segment", 1, 3) if "sthv2" in name else ("dense", 3, 1)
    )
    assert zeroi2v.load_official(path, heads=[1], adapter_scale=2.0).heads == (
        (1, *[0] * (published.width // 64 - 1)),
    )


def test_a_published_name_on_another_model_is_refused(tmp_path: Path) -> None:
    path = saved(random_official(width=128, depth=1, frames=8), tmp_path / "CLIP-B_k400_8x16x1.pth")
    with pytest.raises(CheckpointError, match=r"width 768 and 8 frames, but .* 128 and 8"):
        zeroi2v.load_official(path)


@pytest.mark.parametrize("given", [{}, {"heads": [-1, 1]}, {"adapter_scale": 0.5}])
def test_what_no_tensor_tells_must_be_given(given: dict[str, Any], tmp_path: Path) -> None:
    path = saved(
        random_official(width=128, depth=1, frames=3), tmp_path / "best_acc_top1_epoch_38.pth"
    )
    lacking = " and ".join(name for name in ("heads", "adapter_scale") if name not in given)
    with pytest.raises(ConfigError, match=f"no tensor tells {lacking}; give {lacking}, ") as caught:
        zeroi2v.load_official(path, **given)
    assert str(path) in str(caught.value)


def test_more_temporal_heads_than_heads_are_refused(tmp_path: Path) -> None:
    path = saved(random_official(width=128, depth=1, frames=3), tmp_path / "a.pth")
    with pytest.raises(HeadsError):
        zeroi2v.load_official(path, heads=[-1, 1, 2], adapter_scale=0.5)
    with pytest.raises(ConfigError, match="3 heads do not divide a width of 128"):
        zeroi2v.load_official(path, heads=[-1, 1], adapter_scale=0.5, head_count=3)


BLOCK = "backbone.transformer.resblocks.1"


def changed(change: Callable[[State], object]) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        state = random_official(width=128, depth=2, frames=3)
        change(state)
        torch.save({"state_dict": state}, path)

    return write


def flipped(path: Path) -> None:
    changed(lambda state: None)(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        pytest.param(
            changed(lambda s: s.pop(f"{BLOCK}.ln_1.bias")),
            f"missing {BLOCK}.ln_1.bias",
            id="missing key",
        ),
        pytest.param(
            changed(lambda s: s.pop("backbone.conv1.weight")),
            "backbone.conv1.weight is missing",
            id="no stem",
        ),
        pytest.param(
            changed(lambda s: s.pop(f"{BLOCK}.S_Adapter.D_fc2.weight")),
            "S_Adapter.D_fc2.weight",
            id="half adapter",
        ),
        pytest.param(
            changed(lambda s: s.update(more=torch.ones(1))), "not known more", id="unknown key"
        ),
        pytest.param(
            changed(lambda s: s.update({f"{BLOCK}.mlp.c_fc.bias": torch.ones(3)})),
            f"{BLOCK}.mlp.c_fc.bias is (3,)",
            id="shape",
        ),
        pytest.param(
            changed(lambda s: s.update({f"{BLOCK}.mlp.c_fc.bias": torch.ones(512).long()})),
            "torch.int64",
            id="whole numbers",
        ),
        pytest.param(
            changed(lambda s: s.update({"backbone.positional_embedding": torch.ones(7, 128)})),
            "7 tokens",
            id="no square",
        ),
        pytest.param(
            changed(lambda s: s.update(note=cast(Tensor, "text"))),
            "note is no tensor",
            id="text among the tensors",
        ),
        pytest.param(flipped, "damaged: the checksum of", id="a flipped bit"),
        pytest.param(
            lambda path: path.write_text("no tensors here"),
            "not a file of weights",
            id="a text file",
        ),
        pytest.param(
            lambda path: path.write_bytes(b""), "not a file of weights", id="an empty file"
        ),
        pytest.param(lambda path: torch.save([1, 2], path), "holds no state_dict", id="a list"),
        pytest.param(
            lambda path: torch.save({"conv.weight": torch.ones(2)}, path),
            "not a checkpoint of the official",
            id="other",
        ),
        pytest.param(lambda path: None, "no such file", id="no file"),
        pytest.param(lambda path: path.mkdir(), "holds none of", id="an empty folder"),
    ],
)
def test_a_damaged_file_gives_one_line_that_names_it(
    write: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.pth"
    write(path)
    with pytest.raises(CheckpointError) as caught:
        zeroi2v.load_official(path, heads=[1], adapter_scale=0.5)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


class Attack:
    """Unpickled by Python's own reader, this writes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("kind", ["zip", "old torch", "pickle"])
def test_a_pickle_with_code_is_refused_and_nothing_of_it_runs(kind: str, tmp_path: Path) -> None:
    path, marker = tmp_path / "model.pth", tmp_path / "marker"
    content = {"state_dict": random_official(width=128, depth=1, frames=3), "meta": Attack(marker)}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content["meta"], protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(CheckpointError) as caught:
        zeroi2v.load_official(path, heads=[1], adapter_scale=0.5)
    assert not marker.exists()
    assert "\n" not in str(caught.value)
    if kind == "zip":
        assert "posix.system" in str(caught.value)
        assert "save only its state_dict" in str(caught.value)
    if kind != "pickle":
        torch.load(path, weights_only=False)
        assert marker.exists(), "Python's own reader runs the code"


def test_what_mmengine_logs_beside_the_weights_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = types.ModuleType("mmengine.logging.history_buffer")

    class HistoryBuffer:
        def __init__(self) -> None:
            self._log_history, self._count = np.arange(3.0), np.float64(2)

    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = module.__name__, "HistoryBuffer"
    vars(module)["HistoryBuffer"] = HistoryBuffer
    for name in ("mmengine", "mmengine.logging", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    state = random_official(width=128, depth=1, frames=3)
    path = saved(
        {"state_dict": state, "message_hub": {"log_scalars": {"loss": HistoryBuffer()}}},
        tmp_path / "epoch_40.pth",
    )
    monkeypatch.undo()
    model = zeroi2v.load_official(path, heads=[1], adapter_scale=0.5)
    assert torch.equal(model.classifier.weight, state["cls_head.fc_cls.weight"])
    assert not any(name.startswith("mmengine") for name in sys.modules)
    allowed = [str(entry) for entry in torch.serialization.get_safe_globals()]
    assert not any("_Nothing" in name for name in allowed)
