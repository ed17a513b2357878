"""Does the search for the best batch end where the memory does, or where doubling gains nothing?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.measure.conftest import Clock
from zeroi2v.config import Recipe
from zeroi2v.log import Log
from zeroi2v.measure.bench import bench
from zeroi2v.measure.calls import Clips
from zeroi2v.measure.subjects import Subject, build_subjects
from zeroi2v.measure.throughput import Throughput, double_batches

CPU = torch.device("cpu")
QUIET = Log(quiet=True)


def subject(name: str, run: Callable[[Tensor], object]) -> Subject:
    return Subject(name=name, run=run, shape=(1,), weight_bytes=0, facts={}, timed=run)


def one_clip() -> Throughput:
    """The throughput where only a batch of one clip is measured."""
    return Throughput([{"batch": 1, "clips_per_second": 1.0, "peak_mib": 1.0}])


def searched(
    clock: Clock,
    largest: dict[str, int],
    *,
    limit: int | None = None,
    max_batch: int | None = None,
) -> dict[str, Throughput]:
    """A search among subjects whose call takes a second, and raises beyond their largest batch."""

    def limited(batch: int) -> Callable[[Tensor], object]:
        def run(clips: Tensor) -> None:
            clock.spend(1)
            if len(clips) > batch:
                raise torch.OutOfMemoryError("CUDA out of memory")

        return run

    throughputs = {name: one_clip() for name in largest}
    subjects = [subject(name, limited(batch)) for name, batch in largest.items()]
    clips = Clips(CPU, torch.float32)
    double_batches(subjects, clips, throughputs, limit=limit, max_batch=max_batch, log=QUIET)
    return throughputs


def sizes(throughput: Throughput) -> list[int]:
    return [batch["batch"] for batch in throughput.tried]


def test_batches_are_doubled_until_memory_ends_for_each(clock: Clock) -> None:
    throughputs = searched(clock, {"small": 1, "middle": 5, "large": 24})
    assert [sizes(throughput) for throughput in throughputs.values()] == [
        [1],
        [1, 2, 4],
        [1, 2, 4, 8, 16],
    ]
    assert {throughput.stopped_by for throughput in throughputs.values()} == {"memory"}
    assert throughputs["large"].tried[-1]["clips_per_second"] == 16
    assert throughputs["large"].to_dict()["largest_batch"] == 16


def test_a_batch_that_would_pass_the_limit_is_not_run(clock: Clock) -> None:
    limited = searched(clock, {"one": 10**9}, limit=6 * 2**20)["one"]  # a clip takes 1 MiB
    assert sizes(limited) == [1, 2, 4]
    assert limited.stopped_by == "memory"
    assert searched(clock, {"one": 10**9}, max_batch=8)["one"].stopped_by == "max_batch"


def test_with_a_limit_doubling_ends_when_it_gains_nothing(clock: Clock) -> None:
    def linear(clips: Tensor) -> None:
        clock.spend(len(clips))

    throughputs = {"one": one_clip()}
    subjects, clips = [subject("one", linear)], Clips(CPU, torch.float32)
    double_batches(subjects, clips, throughputs, limit=2**40, max_batch=None, log=QUIET)
    assert sizes(throughputs["one"]) == [1, 2]
    assert throughputs["one"].stopped_by == "no gain"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_memory_that_ends_while_a_batch_is_timed_costs_only_that_batch(
    error: RuntimeError, clock: Clock
) -> None:
    def run(clips: Tensor) -> None:
        clock.spend(1)

    def timed(clips: Tensor) -> None:
        run(clips)
        if len(clips) > 2:
            raise error

    one = dataclasses.replace(subject("one", run), timed=timed)
    result = bench([one], device=CPU, dtype="fp32", memory=1, log=QUIET)["models"][0]["throughput"]
    assert [(batch["batch"], batch["clips_per_second"]) for batch in result["tried"]] == [
        (1, 1),
        (2, 2),
    ]
    assert result["stopped_by"] == "memory"


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
