"""How many clips per second does a subject of `zeroi2v bench` take, at its best batch?

The batches that are tried have 1, 2, 4, 8 ... clips, until a batch does not fit into the memory.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypedDict

from zeroi2v.log import Log
from zeroi2v.measure.calls import Clips, is_lack_of_memory, peak_of_call, timed_call
from zeroi2v.measure.subjects import MIB, Subject
from zeroi2v.measure.timing import interleave

ROUNDS: Final = 3  # of each size of a batch
# On a CPU, a batch is doubled again only if the last doubling multiplied clips per second by at
# least this factor.
GAIN: Final = 1.05


class Batch(TypedDict):
    """The measurements of a batch of one size."""

    batch: int
    clips_per_second: float
    peak_mib: float


@dataclass
class Throughput:
    """The batches of a subject, the smallest first, and the reason why there is no larger batch."""

    tried: list[Batch]
    stopped_by: str = "interrupt"

    def to_dict(self) -> dict[str, Any]:
        """The fastest batch, the size of the largest batch, and all batches."""
        fastest = max(self.tried, key=lambda batch: batch["clips_per_second"])
        return {
            **fastest,
            "largest_batch": self.tried[-1]["batch"],
            "stopped_by": self.stopped_by,
            "tried": self.tried,
        }


def double_batches(
    subjects: Sequence[Subject],
    clips: Clips,
    throughputs: Mapping[str, Throughput],
    *,
    limit: int | None,
    max_batch: int | None,
    on_progress: Callable[[], object] = lambda: None,
    log: Log,
) -> None:
    """Time batches of 2, 4, 8 ... clips, and add them to the `throughputs`.

    The throughputs hold the batch of one clip already. A subject is not measured with a batch that
    is larger than `max_batch`, or that does not fit into the memory. If there is a `limit` of
    bytes, a subject is not measured with a batch that would need more than the limit, judged by the
    peak of one clip, nor with a larger batch after a doubling that gained too little. `on_progress`
    is called after each size.
    """
    running = list(subjects)
    per_clip = {
        subject.name: throughputs[subject.name].tried[0]["peak_mib"] * MIB
        + clips(subject, 1).nbytes
        for subject in subjects
    }
    # without compiling, the call that measures the peak is warm-up enough
    warmup = int(any(subject.is_compiled for subject in subjects))
    for batch in (2**power for power in itertools.count(1)):
        if max_batch and batch > max_batch:
            _stop(running, throughputs, "max_batch")
            return
        peaks: dict[str, int] = {}
        for subject in running:
            too_large = limit is not None and batch * per_clip[subject.name] > limit
            peak = None if too_large else peak_of_call(subject, batch, clips)
            if peak is None:
                _stop([subject], throughputs, "memory")
            else:
                peaks[subject.name] = peak
        running = [subject for subject in running if subject.name in peaks]
        if not running:
            return
        log.say(f"batch {batch}: {', '.join(peaks)}")
        series = _times(running, batch, clips, warmup=warmup)
        if series is None:  # the batch fitted, but not beside what the other subjects hold
            _stop(running, throughputs, "memory")
            return
        for subject in list(running):
            tried = throughputs[subject.name].tried
            rate = batch * 1000 / statistics.median(series[subject.name])
            if limit is not None and rate < GAIN * tried[-1]["clips_per_second"]:
                _stop([subject], throughputs, "no gain")
                running.remove(subject)
            peak_mib = peaks[subject.name] / MIB
            tried.append({"batch": batch, "clips_per_second": rate, "peak_mib": peak_mib})
        on_progress()


def _stop(subjects: Sequence[Subject], throughputs: Mapping[str, Throughput], reason: str) -> None:
    for subject in subjects:
        throughputs[subject.name].stopped_by = reason


def _times(
    subjects: Sequence[Subject], batch: int, clips: Clips, *, warmup: int
) -> dict[str, list[float]] | None:
    """Milliseconds of the calls of each subject on a batch; None where memory does not suffice."""
    try:
        calls = {subject.name: timed_call(subject, clips(subject, batch)) for subject in subjects}
        return interleave(calls, rounds=ROUNDS, warmup=warmup)
    except RuntimeError as error:
        if not is_lack_of_memory(error):
            raise
        return None
