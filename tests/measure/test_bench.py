"""What `bench` promises: balanced orders, the statistics it names, a search for the batch that ends where memory does."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import statistics
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor, nn

from benchmarks import bench as script
from tests.towers_for_tests import small_model
from zeroi2v.config import Recipe
from zeroi2v.errors import ConfigError
from zeroi2v.log import Log
from zeroi2v.machine import free_bytes
from zeroi2v.measure import timing
from zeroi2v.measure.bench import (
    Batches,
    Clips,
    Subject,
    bench,
    build_subjects,
    double_batches,
    write_bench,
)
from zeroi2v.measure.memory import peak_bytes
from zeroi2v.measure.timing import balanced_orders, fast_ratio, interleave, ratios, spread

CPU = torch.device("cpu")
QUIET = Log(quiet=True)


class Clock:
    """A clock that only `spend` moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def spend(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(timing, "time", made)
    return made


def subject(name: str, run: Callable[[Tensor], object], weights: int = 0) -> Subject:
    return Subject(name=name, run=run, shape=(1,), weights=weights, facts={}, timed=run)


@pytest.mark.parametrize("count", range(1, 10))
def test_each_has_every_place_and_follows_each_other_equally_often(count: int) -> None:
    orders = balanced_orders(count)
    assert all(sorted(order) == list(range(count)) for order in orders)
    places = Counter((place, call) for order in orders for place, call in enumerate(order))
    assert set(places.values()) == {len(orders) / count}
    assert len(places) == count**2
    followers = Counter(pair for order in orders for pair in itertools.pairwise(order))
    assert len(followers) == count * (count - 1)
    assert len(set(followers.values())) <= 1


def test_rounds_are_timed_in_those_orders_after_the_warm_up(clock: Clock) -> None:
    made: list[str] = []
    seconds = {"a": 1.0, "b": 2.0, "c": 4.0}

    def call(name: str) -> Callable[[], None]:
        def run() -> None:
            made.append(name)
            clock.spend(
                seconds[name] * (100 if len(made) <= 3 else len(made))
            )  # slower in the warm-up, then slower and slower

        return run

    times = interleave({name: call(name) for name in seconds}, rounds=6, warmup=1)
    orders = [
        tuple("abc".index(name) for name in made[start : start + 3]) for start in range(0, 21, 3)
    ]
    assert sorted(orders[1:]) == sorted(balanced_orders(3))
    places = {
        name: [index + 1 for index, one in enumerate(made) if one == name and index > 2]
        for name in seconds
    }
    assert times == {
        name: [seconds[name] * 1000 * place for place in places[name]] for name in seconds
    }
    assert ratios(times, "b", "a") == [
        2 * b / a for b, a in zip(places["b"], places["a"], strict=True)
    ]


def test_the_ratio_of_faster_halves_does_not_hear_of_disturbed_rounds() -> None:
    quiet = {"one": [30.0, 32.0, 31.0, 33.0], "other": [20.0, 24.0, 21.0, 22.0]}
    found = fast_ratio(quiet, "one", "other")
    assert math.isclose(found["fast"], (30 + 31) / (20 + 21))
    assert found["low"] < found["fast"] < found["high"]
    assert found["median"] == statistics.median([30 / 20, 32 / 24, 31 / 21, 33 / 22])
    disturbed = fast_ratio({**quiet, "one": [30.0, 90.0, 31.0, 500.0]}, "one", "other")
    assert disturbed["fast"] == found["fast"]
    assert set(fast_ratio({"one": [6.0], "other": [4.0]}, "one", "other").values()) == {1.5}
    assert fast_ratio({"one": [3.0, 9.0, 1.0], "other": [2.0, 4.0, 8.0]}, "one", "other")[
        "fast"
    ] == (1 + 3) / (2 + 4)


def test_the_interval_of_a_ratio_holds_the_ratio_as_often_as_it_says() -> None:
    """Two calls of the same speed, 40 rounds of noise, 300 times."""
    generator = torch.Generator().manual_seed(0)
    held = 0
    for _ in range(300):
        noise = torch.rand(2, 40, dtype=torch.double, generator=generator) + 9
        found = fast_ratio({"one": noise[0].tolist(), "other": noise[1].tolist()}, "one", "other")
        held += found["low"] <= 1 <= found["high"]
    assert 0.88 * 300 <= held <= 0.99 * 300


def test_median_quartiles_and_percentile_are_those_of_torch() -> None:
    series = torch.rand(31, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    found = spread(series.tolist())
    for name, share in {"q1": 0.25, "median": 0.5, "q3": 0.75, "p95": 0.95}.items():
        assert math.isclose(found[name], series.quantile(share).item()), name
    assert set(spread([3.0]).values()) == {3.0}


def tried(clock: Clock, limits: dict[str, int], **settings: Any) -> dict[str, Batches]:
    """A search among fakes, each of which takes a second and raises beyond its limit."""

    def fake(limit: int) -> Callable[[Tensor], object]:
        def run(clips: Tensor) -> None:
            clock.spend(1)
            if len(clips) > limit:
                raise torch.OutOfMemoryError("CUDA out of memory")

        return run

    batches = {
        name: Batches([{"batch": 1, "clips_per_second": 1.0, "peak_mib": 1.0}]) for name in limits
    }
    subjects = [subject(name, fake(limit)) for name, limit in limits.items()]
    limited = {"limit": None, "max_batch": None, **settings}
    double_batches(subjects, Clips(CPU, torch.float32), batches, log=QUIET, **limited)
    return batches


def test_batches_are_doubled_until_memory_ends_for_each(clock: Clock) -> None:
    found = tried(clock, {"small": 1, "middle": 5, "large": 24})
    assert [[one["batch"] for one in batches.tried] for batches in found.values()] == [
        [1],
        [1, 2, 4],
        [1, 2, 4, 8, 16],
    ]
    assert {batches.stopped_by for batches in found.values()} == {"memory"}
    assert found["large"].tried[-1]["clips_per_second"] == 16
    assert found["large"].to_dict()["largest_batch"] == 16


def test_a_batch_that_would_pass_the_limit_is_not_run(clock: Clock) -> None:
    found = tried(clock, {"one": 10**9}, limit=6 * 2**20)  # one clip takes 1 MiB at its peak
    assert [one["batch"] for one in found["one"].tried] == [1, 2, 4]
    assert found["one"].stopped_by == "memory"
    assert tried(clock, {"one": 10**9}, max_batch=8)["one"].stopped_by == "max_batch"


def test_with_a_limit_doubling_ends_when_it_gains_nothing(clock: Clock) -> None:
    def linear(clips: Tensor) -> None:
        clock.spend(len(clips))

    batches = {"one": Batches([{"batch": 1, "clips_per_second": 1.0, "peak_mib": 1.0}])}
    clips = Clips(CPU, torch.float32)
    double_batches([subject("one", linear)], clips, batches, limit=2**40, max_batch=None, log=QUIET)
    assert [one["batch"] for one in batches["one"].tried] == [1, 2]
    assert batches["one"].stopped_by == "no gain"


def test_memory_that_ends_while_a_batch_is_timed_costs_only_that_batch(clock: Clock) -> None:
    def run(clips: Tensor) -> None:
        clock.spend(1)

    def timed(clips: Tensor) -> None:
        run(clips)
        if len(clips) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    one = dataclasses.replace(subject("one", run), timed=timed)
    result = bench([one], device=CPU, dtype="fp32", memory=1, log=QUIET)["models"][0]["throughput"]
    assert [(batch["batch"], batch["clips_per_second"]) for batch in result["tried"]] == [
        (1, 1),
        (2, 2),
    ]
    assert result["stopped_by"] == "memory"


def test_a_defect_is_not_taken_for_a_lack_of_memory() -> None:
    def broken(clips: Tensor) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        bench([subject("one", broken)], device=CPU, dtype="fp32", log=QUIET)


def test_one_clip_that_does_not_fit_is_an_error_that_names_the_model() -> None:
    with pytest.raises(ConfigError, match="large: one clip does not fit"):
        bench(
            [subject("large", lambda clips: clips.new_empty(2**20))],
            device=CPU,
            dtype="fp32",
            memory=1e-3,
            log=QUIET,
        )


def test_an_interrupt_leaves_the_finished_rounds(clock: Clock) -> None:
    left = [20]

    def run(clips: Tensor) -> None:
        clock.spend(0.001)
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    two = [subject("a", run), subject("b", run)]
    result = bench(two, device=CPU, dtype="fp32", rounds=100, warmup=1, log=QUIET)
    assert result["interrupted"]
    assert (
        result["rounds"] == (20 - 1 - 2 - 2) // 2
    )  # calls: the last one, the two for memory and the two of the warm-up are not timed
    assert [len(model["ms"]) for model in result["models"]] == [result["rounds"]] * 2
    left[0] = 4
    with pytest.raises(KeyboardInterrupt):
        bench(two, device=CPU, dtype="fp32", warmup=1, log=QUIET)


@pytest.mark.gpu
def test_on_a_gpu_batches_end_where_its_memory_does() -> None:
    device, allowed = torch.device("cuda"), 2**30
    torch.cuda.set_per_process_memory_fraction(
        allowed / torch.cuda.get_device_properties(device).total_memory
    )
    try:
        subjects = build_subjects(
            ["plain", "zeroi2v:merged"], [], Recipe(), device=device, dtype="fp16", log=QUIET
        )
        result = bench(subjects, device=device, dtype="fp16", rounds=2, log=QUIET)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    for model in result["models"]:
        assert model["throughput"]["stopped_by"] == "memory"
        assert allowed / 8 < model["throughput"]["tried"][-1]["peak_mib"] * 2**20 < allowed


def test_the_peak_is_that_of_the_tensors_that_are_alive_at_once() -> None:
    rows, wide = 64, 256
    layers = nn.Sequential(nn.Linear(32, wide), nn.ReLU(), nn.Linear(wide, 32), nn.Flatten(0))
    inputs = torch.randn(rows, 32)
    floats = (
        2 * rows * wide
    )  # the first linear's output and its ReLU; by then nothing else is alive
    assert peak_bytes(lambda: layers(inputs), CPU) == 4 * floats
    layers[1] = nn.ReLU(inplace=True)  # then the wide one and the narrow one that is made of it
    assert peak_bytes(lambda: layers(inputs), CPU) == 4 * (rows * wide + rows * 32)
    assert peak_bytes(lambda: inputs.T.reshape(32, rows)[:4], CPU) == 0  # views


def test_twice_the_clips_take_twice_the_memory() -> None:
    model = small_model("vit_tiny_patch16_224").eval()
    clips = torch.randn(4, model.frames, 3, model.image_size, model.image_size)
    one, two = (peak_bytes(lambda batch=batch: model(clips[:batch]), CPU) for batch in (2, 4))
    assert two == pytest.approx(2 * one, rel=0.01)


def test_free_memory_is_less_than_all_memory() -> None:
    described = Path("/proc/meminfo")
    if not described.exists():
        pytest.skip("needs Linux, which says how much memory there is")
    total = int(described.read_text().split()[1]) * 1024
    assert 0 < free_bytes() < total


def test_the_picture_shows_every_model_and_the_same_figures_give_the_same_files(
    tmp_path: Path,
) -> None:
    names = ["plain", "a:merged", "runs/$5_and_$6 <new>"]
    result = bench(
        [subject(name, lambda clips: clips + 1) for name in names],
        device=CPU,
        dtype="fp32",
        log=QUIET,
    )
    for folder in ("one", "two"):
        write_bench(result, tmp_path / folder / "bench.json", tmp_path / folder / "bench.svg")
    picture = (tmp_path / "one" / "bench.svg").read_text(encoding="utf-8")
    assert picture == (tmp_path / "two" / "bench.svg").read_text(encoding="utf-8")
    shown = [
        element.text
        for element in ElementTree.fromstring(picture).iter("{http://www.w3.org/2000/svg}text")
    ]
    assert all(shown.count(name) == 2 for name in names)  # latency and throughput
    assert json.loads((tmp_path / "one" / "bench.json").read_text(encoding="utf-8")) == result


def test_the_page_quotes_the_committed_results() -> None:
    page = (script.DOCS / "speed.md").read_text(encoding="utf-8")
    assert script.with_tables(page) == page


def test_the_readme_quotes_the_committed_ratios() -> None:
    found = script.ratios("bench-cpu", "bench-cpu-again")
    merged = found["zeroi2v:merged"]
    others = (
        f"{found[name]['fast']:.3f}" for name in ("st_adapter_published", "zeroi2v", "evl", "aim")
    )
    row = f"| {merged['fast']:.3f} (95 %: {merged['low']:.3f} to {merged['high']:.3f}) | {' | '.join(others)} |"
    assert row in (script.DOCS.parent / "README.md").read_text(encoding="utf-8")
