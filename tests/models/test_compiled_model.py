"""Does a compiled model on a CPU give the model's logits? The captured form has tests on a GPU."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from torch import Tensor

import zeroi2v
from tests.models.test_exchange import clip_of, small_model
from zeroi2v import VideoClassifier
from zeroi2v.errors import ConfigError
from zeroi2v.models import compiled

# PyTorch 2.10 warns of its own code when it loads its compiler.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit")


@pytest.mark.slow
def test_on_a_cpu_torch_compile_gives_the_same_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether torch.compile is faster or not: here the trial always chooses it."""
    model = small_model().merge()
    monkeypatch.setattr(compiled, "faster_of", lambda model, other, clips: other)
    call = model.compiled(batch=2, dtype="fp32")
    with torch.no_grad():
        torch.testing.assert_close(call(clip_of(model)), model(clip_of(model)))


def test_the_trial_chooses_the_faster_form(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    clock = iter(range(100))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))

    def slow(clips: torch.Tensor) -> torch.Tensor:
        next(clock)
        logits: torch.Tensor = model(clips)
        return logits

    clips = clip_of(model)
    assert compiled.faster_of(model, slow, clips) is model
    calls = iter(range(100))
    monkeypatch.setattr(model, "forward", lambda clips: next(calls) and next(clock))
    assert compiled.faster_of(model, torch.relu, clips) is torch.relu


def test_without_a_compiler_the_model_stays_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object) -> NoReturn:
        raise RuntimeError("Failed to find C++ compiler\nmore lines")

    model = small_model()
    monkeypatch.setattr(torch, "compile", lambda model: fails)
    with caplog.at_level(logging.WARNING):
        call = model.compiled(dtype="fp32")
        with torch.no_grad():
            assert torch.equal(call(clip_of(model)), model(clip_of(model)))
    assert "C++ compiler" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"dtype": "fp8"}, "dtype must be one of fp32, bf16, fp16"), ({"batch": 0}, "at least 1")],
)
def test_a_wrong_setting_is_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small_model().compiled(**settings)  # type: ignore[arg-type]


def test_another_dtype_is_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    monkeypatch.setattr(compiled, "faster_of", lambda model, other, clips: model)
    call = model.compiled(dtype="bf16")
    assert model.classifier.weight.dtype == torch.float32
    assert call(clip_of(model)).dtype == torch.bfloat16  # of clips in fp32


def test_later_changes_of_the_model_leave_the_callable_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = small_model()
    monkeypatch.setattr(compiled, "faster_of", lambda model, other, clips: model)
    call = model.compiled(dtype="fp32")
    before = call(clip_of(model))
    assert not before.requires_grad
    torch.nn.init.zeros_(model.classifier.weight)
    model.train()
    assert torch.equal(call(clip_of(model)), before)


def test_a_predictor_can_be_compiled(
    motion_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = zeroi2v.create_model("zeroi2v_tiny", num_classes=3, frames=2, pretrained=True)
    model.save_pretrained(tmp_path)
    taken: list[tuple[int, object]] = []

    def spy(model: zeroi2v.VideoClassifier, other: object, clips: torch.Tensor) -> object:
        taken.append((len(clips), model))
        return model

    monkeypatch.setattr(compiled, "faster_of", spy)
    predictor = zeroi2v.Predictor(tmp_path, device="cpu", compiled=True)
    plain = zeroi2v.Predictor(tmp_path, device="cpu")
    video = next(motion_videos.rglob("*.mp4"))
    assert predictor.predict(video) == plain.predict(video)
    assert taken == [(1, predictor.model)]  # the weights are in memory once


class PretendedCapture:
    """Stands for `Captured`, which needs a GPU: it calls the function, and notes what is captured.

    `errors` holds the sizes at which a compiled function fails; `shift` is added to its logits.
    """

    errors: frozenset[int] = frozenset()
    shift = 0.0

    def __init__(
        self, run: Callable[[Tensor], Tensor], clips: Tensor, *, sizes: Iterable[int]
    ) -> None:
        self.run, self.sizes = run, list[int]()
        self.is_compiled = not isinstance(run, VideoClassifier)
        self.capture(sizes)

    def capture(self, sizes: Iterable[int]) -> None:
        for size in sizes:
            if self.is_compiled and size in self.errors:
                raise RuntimeError(f"{size} clips cannot be compiled")
            self.sizes.append(size)

    def __call__(self, clips: Tensor) -> Tensor:
        return self.run(clips) + (self.shift if self.is_compiled else 0.0)


@pytest.fixture
def pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> type[PretendedCapture]:
    """Nothing is captured or compiled: torch.compile gives a function that calls the model."""
    subclass = type("OneTest", (PretendedCapture,), {})
    monkeypatch.setattr(compiled, "Captured", subclass)
    monkeypatch.setattr(torch, "compile", lambda model: lambda clips: model(clips))
    return subclass


@pytest.mark.parametrize("is_faster", [False, True])
@torch.no_grad()
def test_the_faster_of_model_and_compiled_model_is_captured_for_all_sizes(
    is_faster: bool, pretended_gpu: type[PretendedCapture], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[list[int]] = []

    def trial(model: PretendedCapture, other: PretendedCapture, clips: Tensor) -> PretendedCapture:
        tried.append([*model.sizes, *other.sizes, len(clips)])
        return other if is_faster else model

    monkeypatch.setattr(compiled, "faster_of", trial)
    model = small_model().eval()
    chosen: Any = compiled.captured(model, model.blank_clips(6))
    assert chosen.is_compiled == is_faster
    assert tried == [[6, 6, 6]]  # the trial comes before the captures of smaller batches
    assert sorted(chosen.sizes) == [1, 2, 4, 6]


@pytest.mark.parametrize("size", [1, 6])
@torch.no_grad()
def test_the_model_itself_is_captured_where_the_compiler_fails(
    size: int,
    pretended_gpu: type[PretendedCapture],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pretended_gpu.errors = frozenset({size})
    monkeypatch.setattr(compiled, "faster_of", lambda model, other, clips: other)
    model = small_model().eval()
    with caplog.at_level(logging.WARNING):
        chosen: Any = compiled.captured(model, model.blank_clips(6))
    assert not chosen.is_compiled
    assert sorted(chosen.sizes) == [1, 2, 4, 6]
    assert f"{size} clips cannot be compiled" in caplog.text


@pytest.mark.parametrize(("shift", "is_kept"), [(1e-6, True), (0.5, False), (math.nan, False)])
@torch.no_grad()
def test_a_compiled_model_must_give_the_logits_of_the_model(
    shift: float,
    is_kept: bool,
    pretended_gpu: type[PretendedCapture],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pretended_gpu.shift = shift
    monkeypatch.setattr(compiled, "faster_of", lambda model, other, clips: other)
    model = small_model().eval()
    with caplog.at_level(logging.WARNING):
        chosen: Any = compiled.captured(model, model.blank_clips(2))
    assert chosen.is_compiled == is_kept
    assert ("changes logits" in caplog.text) != is_kept
