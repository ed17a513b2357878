"""How fast are models, and how much memory do they take? All are measured in turn, in one run.

Latency is the time of one clip. Throughput is clips per second at the best of the batches 1, 2, 4
... that fit into memory.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch

from zeroi2v.errors import ConfigError, how_many
from zeroi2v.log import Log
from zeroi2v.machine import free_bytes, provenance
from zeroi2v.measure.calls import Clips, peak_of_call, timed_call
from zeroi2v.measure.compiled import CompiledCall
from zeroi2v.measure.memory import MEANING
from zeroi2v.measure.subjects import MIB, SEED, Subject
from zeroi2v.measure.throughput import Throughput, double_batches
from zeroi2v.measure.timing import balanced_orders, fast_ratio, spread, timed_rounds
from zeroi2v.models.compiled import DTYPES

ROUNDS: Final = 20
WARMUP: Final = 3


@dataclass
class Measurements:
    """The measurements so far."""

    peaks: Mapping[str, int]  # bytes of a call on one clip, by subject
    rounds: list[dict[str, float]] = field(default_factory=list)  # milliseconds, by subject
    throughputs: dict[str, Throughput] = field(default_factory=dict)  # by subject
    interrupted: bool = True  # until everything is measured


def bench(
    subjects: Sequence[Subject],
    *,
    device: torch.device,
    dtype: str,
    rounds: int = ROUNDS,
    warmup: int = WARMUP,
    max_batch: int | None = None,
    memory: float | None = None,
    on_progress: Callable[[dict[str, Any]], object] = lambda _: None,
    log: Log,
) -> dict[str, Any]:
    """Measure latency, throughput and memory of all subjects. The result is what bench.json holds.

    The first subject is the reference of all ratios. `rounds` is raised to whole cycles of the
    orders of `timing.balanced_orders`. `memory`: GiB that a batch may take on a CPU; None: half of
    the free memory.
    `on_progress` gets the result so far when latency is measured, again after each size of a batch,
    and at the end. So the result can be kept, whatever fails later. ConfigError if not even one
    clip fits. After an interrupt (Ctrl-C) the result holds the measurements until then;
    KeyboardInterrupt where not even one round is measured.
    """
    limit = None if device.type == "cuda" else int(memory * 2**30) if memory else free_bytes() // 2
    facts = _facts(subjects, device, dtype, warmup, limit)
    rounds = _whole_cycles(rounds, len(subjects), log)
    torch.manual_seed(SEED)
    clips = Clips(device, DTYPES[dtype])
    measured = Measurements(_peaks_of_one_clip(subjects, clips, limit))

    def result() -> dict[str, Any]:
        return {**facts, **_figures(subjects, measured)}

    try:
        _measure_latency(subjects, clips, measured, rounds=rounds, warmup=warmup, log=log)
        on_progress(result())
        double_batches(
            subjects,
            clips,
            measured.throughputs,
            limit=limit,
            max_batch=max_batch,
            on_progress=lambda: on_progress(result()),
            log=log,
        )
        measured.interrupted = False
    except KeyboardInterrupt:
        if not measured.rounds:
            raise
        log.warn(
            f"interrupted: {len(measured.rounds)} of {how_many(rounds, 'round')}, "
            "and the throughput measured so far, are kept"
        )
    complete = result()
    on_progress(complete)
    return complete


def _facts(
    subjects: Sequence[Subject], device: torch.device, dtype: str, warmup: int, limit: int | None
) -> dict[str, Any]:
    """The part of the result that is known before anything is measured."""
    return {
        **provenance(),
        "seeds": [SEED],
        "device": device.type,
        "dtype": dtype,
        "compiled": any(subject.is_compiled for subject in subjects),
        "warmup": warmup,
        "peak_mib_is": MEANING[device.type],
        "batch_limit_mib": None if limit is None else limit // MIB,
        "reference": subjects[0].name,
    }


def _whole_cycles(rounds: int, subjects: int, log: Log) -> int:
    """The number of rounds, raised to whole cycles of the balanced orders."""
    cycle = len(balanced_orders(subjects))
    raised = -(-rounds // cycle) * cycle
    if raised != rounds:
        log.say(
            f"{how_many(raised, 'round')} instead of {rounds}: whole cycles of "
            f"{how_many(cycle, 'order')}, "
            "so that each model follows each other model equally often"
        )
    return raised


def _peaks_of_one_clip(
    subjects: Sequence[Subject], clips: Clips, limit: int | None
) -> dict[str, int]:
    """The peak bytes of a call on one clip, by subject.

    ConfigError names a subject whose clip does not fit into the memory.
    """
    device = clips.device.type
    peaks: dict[str, int | None] = {}
    for _ in range(2 if device == "cuda" else 1):  # on a GPU the first call loads libraries too
        peaks = {subject.name: peak_of_call(subject, 1, clips) for subject in subjects}
    fitting: dict[str, int] = {}
    for name, peak in peaks.items():
        if peak is None or (limit is not None and peak > limit):
            raise ConfigError(
                f"{name}: one clip does not fit into the memory of the {device}; name fewer models"
            )
        fitting[name] = peak
    return fitting


def _measure_latency(
    subjects: Sequence[Subject],
    clips: Clips,
    measured: Measurements,
    *,
    rounds: int,
    warmup: int,
    log: Log,
) -> None:
    """Time one clip, round by round. The medians give the throughput of batches of one clip."""
    calls = {subject.name: timed_call(subject, clips(subject, 1)) for subject in subjects}
    for subject in subjects:
        if subject.is_compiled:
            log.say(f"compiling {subject.name}")
            calls[subject.name]()
    timed = timed_rounds(calls, rounds=rounds, warmup=warmup)
    for times in log.track(timed, total=rounds, title="latency", unit="rounds"):
        measured.rounds.append(times)
    for name, peak in measured.peaks.items():
        median = statistics.median(times[name] for times in measured.rounds)
        measured.throughputs[name] = Throughput(
            [{"batch": 1, "clips_per_second": 1000 / median, "peak_mib": peak / MIB}]
        )


def _figures(subjects: Sequence[Subject], measured: Measurements) -> dict[str, Any]:
    """The part of the result that is measured."""
    series = {
        subject.name: [times[subject.name] for times in measured.rounds] for subject in subjects
    }
    entries = []
    for subject in subjects:
        name = subject.name
        entry = {
            "name": name,
            **subject.facts,
            "weights_mib": subject.weight_bytes / MIB,
            "peak_mib": measured.peaks[name] / MIB,
            "latency_ms": spread(series[name]),
            "ratio": fast_ratio(series, name, subjects[0].name),
        }
        if isinstance(subject.timed, CompiledCall):
            entry["compile_seconds"] = subject.timed.seconds
            entry["graphs"] = subject.timed.graphs
        if name in measured.throughputs:
            entry["throughput"] = measured.throughputs[name].to_dict()
        entries.append({**entry, "ms": [round(time, 3) for time in series[name]]})
    return {
        "rounds": len(measured.rounds),
        "interrupted": measured.interrupted,
        "models": entries,
    }
