"""Do temporal heads pay on real videos, with a real image transformer? The confirmatory trainings.

    python -m benchmarks.evidence pack FOLDER/gestures FOLDER/signs --work WORK
    python -m benchmarks.evidence confirm --work WORK --tower FILE --device cuda --workers 6
    python -m benchmarks.evidence confirm --work WORK --tower FILE --blocks 4 --size 84 --epochs 20

`pack` decodes the clips of data sets once (evidence_clips.py). `confirm` trains, and appends every
finished training as a line to results/evidence.jsonl. The script can be stopped at any time: the
next call goes on where the last call stopped. `--minutes` stops it in time.

The plan, written before the first training:

Tests. `gestures`: the label of a clip. `gestures-direction`: every clip as it is and backwards,
judged within pairs.
Contrasts, on each test: HR KV (STDHA) against no time, against HR V, and against shift KV at the
same share of channels, 1/3. So there are six comparisons, corrected by Holm's method.
Folds. Five, over recordings (`evidence_clips.FOLDS`). Three seeds.
Rates. From the grid `RATES`. For each fold, row and test, the rate with the lowest loss on another
fold, after training on the three folds that are left: so no clip of the tested fold has a part in
the choice. One training serves two folds. Where the best rate lies at an end of the grid, the next
rate beyond that end is tried, up to `FURTHER`. Every trial is a line of the results.
Test of a contrast. For each clip the mean over seeds of right (1) or wrong (0); differences summed
by recording; the exact two-sided test by all flips of the signs of the nine sums.
Everything else that the results hold is exploratory.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.evidence_clips import pack, shortcuts, tests_of, unpack
from benchmarks.evidence_training import Inputs, Regime, train
from benchmarks.job_queue import JobQueue, work_off
from zeroi2v.files import append_json, read_json_lines, write_json
from zeroi2v.machine import provenance

RESULTS: Final = Path(__file__).parent / "results"
LINES: Final = RESULTS / "evidence.jsonl"
CONFIRMED: Final = ("HR KV", "no time", "HR V", "shift KV")
TESTS: Final = ("gestures", "gestures-direction")
RATES: Final = (3e-4, 1e-3, 3e-3)
FURTHER: Final = (3e-5, 1e-4, 1e-2, 3e-2)
# Pairs of folds. A training of a rate leaves out both folds of a pair: the loss on the one chooses
# the rate for the other. Fold 4 takes the rate that fold 0 chooses.
PAIRS: Final = ((0, 1), (2, 3), (4, 0))
JUDGE: Final = {0: 1, 1: 0, 2: 3, 3: 2, 4: 0}  # tested fold -> the fold whose loss chooses its rate


@dataclass(frozen=True)
class Job:
    """One training."""

    regime: str  # which part of the tower, at which size, for how many epochs
    test: str
    row: str
    held_out: tuple[int, ...]  # folds
    rate: float
    seed: int

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> Job:
        """The training that a line of the results describes."""
        job = line["job"]
        return cls(**{**job, "held_out": tuple(job["held_out"])})


def jobs(regime: str, seeds: Sequence[int], lines: Sequence[Mapping[str, Any]]) -> list[Job]:
    """The trainings that can begin now: those that are not done, and whose rate is known."""
    done = {Job.of(line): line for line in lines}
    wanted: list[Job] = []
    for test in TESTS:
        for row in CONFIRMED:
            rates = [*_rate_jobs(regime, test, row, done)]
            wanted += rates
            if all(job in done for job in rates):
                for fold, judge in JUDGE.items():
                    pair = _pair_of(fold, judge)
                    tried = [job for job in rates if job.held_out == pair]
                    best = _best(tried, done, judge)
                    wanted += [Job(regime, test, row, (fold,), best.rate, seed) for seed in seeds]
    # Rates first; then all rows with one seed before another seed, so that an early end is fair.
    wanted.sort(key=lambda job: (len(job.held_out) == 1, job.seed))
    return [job for job in wanted if job not in done]


def _rate_jobs(
    regime: str, test: str, row: str, done: Mapping[Job, Mapping[str, Any]]
) -> Iterator[Job]:
    """The trainings that choose the rate: the grid, and beyond an end that is the best."""
    for pair in PAIRS:
        rates = [*RATES]
        while True:
            tried = [Job(regime, test, row, pair, rate, 0) for rate in rates]
            if any(job not in done for job in tried):
                break
            ends = {_best(tried, done, fold).rate for fold in pair} & {rates[0], rates[-1]}
            beyond = [rate for end in ends for rate in _beyond(end)]
            if not beyond:
                break
            rates = sorted({*rates, *beyond})
        yield from tried


def _beyond(end: float) -> list[float]:
    """The rate of `FURTHER` that comes next after an end of the rates tried, if there is any."""
    if end < 1e-3:
        return [rate for rate in FURTHER if rate < end][-1:]
    return [rate for rate in FURTHER if rate > end][:1]


def _pair_of(fold: int, judge: int) -> tuple[int, int]:
    return next(pair for pair in PAIRS if {*pair} == {fold, judge})


def _best(tried: Sequence[Job], done: Mapping[Job, Mapping[str, Any]], fold: int) -> Job:
    """The training with the lowest loss on a fold."""
    losses = [_loss(done[job], fold) for job in tried]
    return tried[losses.index(min(losses))]


def _loss(line: Mapping[str, Any], fold: int) -> float:
    loss: float = line["folds"][str(fold)]["loss"]
    return loss


def work(queue: JobQueue[Job], arguments: argparse.Namespace) -> None:
    """Do the jobs of a queue. Every worker is a process of its own."""
    torch.set_num_threads(arguments.threads)
    regime, name = regime_of(arguments)
    inputs: dict[str, Inputs] = {}
    tests = tests_of([unpack(arguments.work / "gestures.npz")])
    while job := queue.next():
        if job.test not in inputs:
            inputs[job.test] = Inputs(tests[job.test], regime)
        result = train(job.row, inputs[job.test], job.held_out, rate=job.rate, seed=job.seed)
        with queue.lock:
            append_json(LINES, {"job": asdict(job), **result, **provenance()})
        right = [fold["right"] for fold in result["folds"].values()]
        shares = ", ".join(f"{text.count('1') / len(text):.1%}" for text in right)
        print(f"{job.test}, {job.row}, {job.rate:g}, seed {job.seed}: {shares} {name}", flush=True)


def regime_of(arguments: argparse.Namespace) -> tuple[Regime, str]:
    """The regime of a call, and its name in the results."""
    device = torch.device(arguments.device)
    regime = Regime(arguments.tower, arguments.blocks, arguments.size, arguments.epochs, device)
    part = "whole" if regime.is_whole else f"upper {arguments.blocks} blocks"
    return regime, f"{part}, {arguments.size} pixels, {arguments.epochs} epochs"


def confirm(arguments: argparse.Namespace) -> None:
    """Train until the plan is done or the minutes are over."""
    end = time.time() + 60 * arguments.minutes
    name = regime_of(arguments)[1]
    while time.time() < end:
        lines = read_json_lines(LINES) if LINES.exists() else []
        waiting = jobs(name, range(arguments.seeds), lines)
        if not waiting:
            return
        work_off(waiting, work, arguments, workers=arguments.workers, end=end)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="decode data sets once")
    packing.add_argument("folders", type=Path, nargs="+", help="each with an index.csv")
    confirming = commands.add_parser("confirm", help="train what the plan says")
    confirming.add_argument("--tower", type=Path, required=True, help="weights in timm's layout")
    confirming.add_argument("--device", default="cpu")
    confirming.add_argument("--workers", type=int, default=1, help="trainings at a time")
    confirming.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    confirming.add_argument("--blocks", type=int, default=12, help="upper blocks that train")
    confirming.add_argument("--size", type=int, default=140, help="pixels a side")
    confirming.add_argument("--epochs", type=int, default=30)
    confirming.add_argument("--seeds", type=int, default=3)
    confirming.add_argument("--minutes", type=float, default=1e6)
    for command in (packing, confirming):
        command.add_argument("--work", type=Path, required=True, help="folder of packed data sets")
    arguments = parser.parse_args()
    if arguments.command == "confirm":
        confirm(arguments)
        return
    arguments.work.mkdir(parents=True, exist_ok=True)
    found = {}
    for folder in arguments.folders:
        pack(folder, arguments.work)
        clips = unpack(arguments.work / f"{folder.name}.npz")
        for test in tests_of([clips]).values():
            found[test.name] = {"samples": len(test.labels), "shortcuts": shortcuts(test)}
    write_json(RESULTS / "evidence-shortcuts.json", {**provenance(), "seeds": [0], "tests": found})


if __name__ == "__main__":
    main()
