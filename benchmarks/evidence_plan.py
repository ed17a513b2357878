"""Which trainings does the plan of the evidence want, and with which learning rates?

The plan itself stands in evidence.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

CONFIRMED: Final = ("HR KV", "no time", "HR V", "shift KV")
TESTS: Final = ("gestures", "gestures-direction")
SEEDS: Final = 3
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

    @property
    def is_tested(self) -> bool:
        """Whether the answers of the training count; else the training helps to choose a rate."""
        return len(self.held_out) == 1

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> Job:
        """The training that a line of the results describes."""
        job = line["job"]
        return cls(**{**job, "held_out": tuple(job["held_out"])})


def jobs(regime: str, seeds: Sequence[int], lines: Sequence[Mapping[str, Any]]) -> list[Job]:
    """The trainings that can begin now: those that are not done, and whose rate is known."""
    done = {Job.of(line) for line in lines}
    cells = [(test, row) for test in TESTS for row in CONFIRMED]
    wanted = [job for job in planned(regime, seeds, lines, cells) if job not in done]
    # Rates first, then seed by seed. All rows of a fold follow each other: an early end is fair.
    return sorted(wanted, key=lambda job: (job.is_tested, job.seed, job.test, job.held_out))


def planned(
    regime: str,
    seeds: Sequence[int],
    lines: Sequence[Mapping[str, Any]],
    cells: Sequence[tuple[str, str]],
) -> list[Job]:
    """The trainings of some cells (test, row), done or not, as far as their rates are known."""
    done = {Job.of(line): line for line in lines}
    wanted: list[Job] = []
    for test, row in cells:
        choices = {fold: _rate_jobs(regime, test, row, fold, done) for fold in JUDGE}
        rates = [job for tried in choices.values() for job in tried]
        wanted += rates
        if all(job in done for job in rates):
            for fold, tried in choices.items():
                best = _best(tried, done, JUDGE[fold])
                wanted += [Job(regime, test, row, (fold,), best.rate, seed) for seed in seeds]
    return [*dict.fromkeys(wanted)]


def _rate_jobs(
    regime: str, test: str, row: str, fold: int, done: Mapping[Job, Mapping[str, Any]]
) -> list[Job]:
    """The trainings that choose the rate for a tested fold.

    The rates are those of the grid, and rates beyond an end of the grid that is the best. Only the
    loss on the judging fold says which rate is the best: the tested fold has no part in the choice,
    although the same trainings may have tried more rates for the other fold of the pair.
    """
    judge = JUDGE[fold]
    pair, rates = _pair_of(fold, judge), [*RATES]
    while True:
        tried = [Job(regime, test, row, pair, rate, 0) for rate in rates]
        if any(job not in done for job in tried):
            return tried
        best = _best(tried, done, judge).rate
        beyond = _beyond(best) if best in (rates[0], rates[-1]) else []
        if not beyond:
            return tried
        rates = sorted({*rates, *beyond})


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
    loss: float | None = line["folds"][str(fold)]["loss"]
    return math.inf if loss is None else loss
