"""What does `bench` promise? Figures of memory that are right, and a result that nothing loses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor, nn

from benchmarks import bench as script
from tests.measure.conftest import Clock
from tests.towers_for_tests import small_model
from zeroi2v.config import Recipe
from zeroi2v.errors import ConfigError
from zeroi2v.log import Log
from zeroi2v.machine import free_bytes
from zeroi2v.measure import bench_table
from zeroi2v.measure.bench import bench
from zeroi2v.measure.bench_table import write_bench
from zeroi2v.measure.memory import peak_bytes
from zeroi2v.measure.subjects import Subject, build_subjects
from zeroi2v.models.peers import settings_to_reset
from zeroi2v.recipes import override

CPU = torch.device("cpu")
QUIET = Log(quiet=True)


def subject(name: str, run: Callable[[Tensor], object]) -> Subject:
    return Subject(name=name, run=run, shape=(1,), weight_bytes=0, facts={}, timed=run)


def add_one(clips: Tensor) -> Tensor:
    return clips + 1


def measured(*subjects: Subject, **settings: Any) -> dict[str, Any]:
    return bench(subjects, device=CPU, dtype="fp32", log=QUIET, **settings)


def test_a_defect_is_not_taken_for_a_lack_of_memory() -> None:
    def broken(clips: Tensor) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        measured(subject("one", broken))


def test_one_clip_that_does_not_fit_is_an_error_that_names_the_model() -> None:
    def allocate(clips: Tensor) -> Tensor:
        return clips.new_empty(2**20)

    with pytest.raises(ConfigError, match="large: one clip does not fit"):
        measured(subject("large", allocate), memory=1e-3)


def test_an_interrupt_leaves_the_finished_rounds(clock: Clock) -> None:
    left = [20]

    def run(clips: Tensor) -> None:
        clock.spend(0.001)
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    two = [subject("a", run), subject("b", run)]
    result = measured(*two, rounds=100, warmup=1)
    assert result["interrupted"]
    # Not timed of the 20 calls are the last one, two for the memory and two of the warm-up:
    assert result["rounds"] == (20 - 1 - 2 - 2) // 2
    assert [len(model["ms"]) for model in result["models"]] == [result["rounds"]] * 2
    left[0] = 4
    with pytest.raises(KeyboardInterrupt):
        measured(*two, warmup=1)


def test_a_failure_after_the_latency_loses_no_latency(clock: Clock) -> None:
    def broken_in_fours(clips: Tensor) -> None:
        clock.spend(1)
        if len(clips) == 4:
            raise RuntimeError("an illegal memory access was encountered")

    kept: list[dict[str, Any]] = []
    with pytest.raises(RuntimeError, match="illegal"):
        measured(subject("one", broken_in_fours), rounds=4, on_progress=kept.append)
    assert [result["interrupted"] for result in kept] == [True, True]
    (model,) = kept[-1]["models"]
    assert model["ms"] == [1000] * 4
    assert [batch["batch"] for batch in model["throughput"]["tried"]] == [1, 2]


def test_the_whole_result_is_kept_before_anything_is_done_with_it() -> None:
    kept: list[dict[str, Any]] = []
    result = measured(subject("one", add_one), rounds=2, max_batch=2, on_progress=kept.append)
    assert kept[-1] == result
    assert not result["interrupted"]


def test_a_picture_that_cannot_be_drawn_loses_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no font")

    result = measured(subject("one", add_one), rounds=2, max_batch=1)
    monkeypatch.setattr(bench_table, "bench_plot", fail)
    with pytest.raises(RuntimeError, match="no font"):
        write_bench(result, tmp_path / "bench.json", tmp_path / "bench.svg")
    assert json.loads((tmp_path / "bench.json").read_text(encoding="utf-8")) == result
    assert [path.name for path in tmp_path.iterdir()] == ["bench.json"]


def test_the_peak_is_that_of_the_tensors_that_are_alive_at_once() -> None:
    rows, wide = 64, 256
    layers = nn.Sequential(nn.Linear(32, wide), nn.ReLU(), nn.Linear(wide, 32), nn.Flatten(0))
    inputs = torch.randn(rows, 32)
    floats = 2 * rows * wide  # the output of the first linear, and of its ReLU
    assert peak_bytes(lambda: layers(inputs), CPU) == 4 * floats
    layers[1] = nn.ReLU(inplace=True)  # then the wide output, and the narrow one made of it
    assert peak_bytes(lambda: layers(inputs), CPU) == 4 * (rows * wide + rows * 32)
    assert peak_bytes(lambda: inputs.T.reshape(32, rows)[:4], CPU) == 0  # views


def test_twice_the_clips_take_twice_the_memory() -> None:
    model = small_model("vit_tiny_patch16_224").eval()
    clips = torch.randn(4, model.frames, 3, model.image_size, model.image_size)
    half, whole = peak_bytes(lambda: model(clips[:2]), CPU), peak_bytes(lambda: model(clips), CPU)
    assert whole == pytest.approx(2 * half, rel=0.01)


def test_free_memory_is_less_than_all_memory() -> None:
    described = Path("/proc/meminfo")
    if not described.exists():
        pytest.skip("needs Linux, which says how much memory there is")
    total = int(described.read_text().split()[1]) * 1024
    assert 0 < free_bytes() < total


def test_a_peer_is_built_where_the_settings_are_of_temporal_heads() -> None:
    recipe = override(Recipe(), ["heads=[-1, 1]", "adapter_ratio=0.5"])
    subjects = build_subjects(
        ["plain", "zeroi2v:merged", "joint"], [], recipe, device=CPU, dtype="fp32", log=QUIET
    )
    assert [subject.facts["strategy"] for subject in subjects] == [None, "zeroi2v", "joint"]
    assert set(settings_to_reset(recipe.model, "joint")) == {"heads", "adapter_ratio"}
    plain, merged, _ = subjects
    assert plain.facts["params"] < merged.facts["params"] < 1.1 * plain.facts["params"]


def test_the_picture_shows_every_model_and_the_same_figures_give_the_same_files(
    tmp_path: Path,
) -> None:
    names = ["plain", "a:merged", "runs/$5_and_$6 <new>"]
    result = measured(*(subject(name, add_one) for name in names))
    for folder in ("one", "two"):
        write_bench(result, tmp_path / folder / "bench.json", tmp_path / folder / "bench.svg")
    picture = (tmp_path / "one" / "bench.svg").read_text(encoding="utf-8")
    assert picture == (tmp_path / "two" / "bench.svg").read_text(encoding="utf-8")
    texts = ElementTree.fromstring(picture).iter("{http://www.w3.org/2000/svg}text")
    shown = [element.text for element in texts]
    assert all(shown.count(name) == 2 for name in names)  # latency and throughput
    assert json.loads((tmp_path / "one" / "bench.json").read_text(encoding="utf-8")) == result


def test_the_page_quotes_the_committed_results() -> None:
    page = (script.DOCS / "speed.md").read_text(encoding="utf-8")
    assert script.with_tables(page) == page


def test_the_readme_quotes_the_committed_ratios() -> None:
    ratios = script.ratios("bench-cpu", "bench-cpu-again")
    merged = ratios["zeroi2v:merged"]
    others = (
        f"{ratios[name]['fast']:.3f}" for name in ("st_adapter_published", "zeroi2v", "evl", "aim")
    )
    interval = f"95 %: {merged['low']:.3f} to {merged['high']:.3f}"
    row = f"| {merged['fast']:.3f} ({interval}) | {' | '.join(others)} |"
    assert row in (script.DOCS.parent / "README.md").read_text(encoding="utf-8")
