"""What do the finished trainings of the evidence say? Accuracies, and differences between rows.

Shapes: S seeds, m samples of a test, G groups (recordings or persons).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Final

import torch
from torch import Tensor

from benchmarks.evidence_plan import CONFIRMED, SEEDS, TESTS, Job, planned
from zeroi2v.errors import ConfigError

LEVEL: Final = 0.05  # an interval of 95 %, and a corrected p-value below it counts
DRAWS: Final = 10_000  # of the bootstrap

Lines = Sequence[Mapping[str, Any]]
# Test -> fold -> the group of each sample of the fold, in order, with spaces between
Groups = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Cell:
    """The answers of a row to a test, with every seed whose folds are all done."""

    right: Tensor  # (S, m) int64, 1 for a right answer
    shuffled: Tensor  # (S, m) int64, the same with the frames in random order
    merged_otherwise: int | None  # answers that the merged model gives otherwise; None: no merging
    groups: tuple[str, ...]  # (m,)
    rates: tuple[float, ...]  # all that were chosen, each once

    @property
    def seeds(self) -> int:
        """The number of seeds whose folds are all done."""
        return len(self.right)

    @property
    def accuracy(self) -> float:
        """The share of right answers, mean over the seeds."""
        return self.right.double().mean().item()

    @property
    def by_seed(self) -> list[float]:
        """The share of right answers of each seed."""
        shares: list[float] = self.right.double().mean(1).tolist()
        return shares

    @property
    def sizes(self) -> list[int]:
        """The number of answers of each group, over all seeds."""
        return _by_group([self.seeds] * len(self.groups), self.groups)

    def interval_over_groups(self) -> tuple[float, float]:
        """The middle 95 % of the accuracy over groups drawn anew from the groups (bootstrap)."""
        right = _by_group(self.right.sum(0).tolist(), self.groups)
        totals = torch.tensor([right, self.sizes], dtype=torch.double)
        count = totals.shape[1]
        draws = torch.randint(count, (DRAWS, count), generator=torch.Generator().manual_seed(0))
        drawn = totals[:, draws].sum(-1)
        bounds = torch.tensor([LEVEL / 2, 1 - LEVEL / 2], dtype=torch.double)
        low, high = (drawn[0] / drawn[1]).quantile(bounds).tolist()
        return low, high


def cells_of(lines: Lines, regime: str, groups: Groups) -> dict[tuple[str, str], Cell]:
    """Every test and row of a regime for which all folds are done with at least one seed.

    A training counts if its rate is the rate that the plan chooses for its fold.
    """
    done = {Job.of(line): line for line in lines}
    names = dict.fromkeys((job.test, job.row) for job in done if job.regime == regime)
    cells = {}
    for test, row in names:
        wanted = planned(regime, range(SEEDS), lines, [(test, row)])
        tested = [job for job in wanted if job.is_tested]
        by_seed = [[job for job in tested if job.seed == seed] for seed in range(SEEDS)]
        complete = [
            [done[job] for job in folds]
            for folds in by_seed
            if folds and all(job in done for job in folds)
        ]
        if complete:
            cells[test, row] = _cell(complete, groups.get(test, {}))
    return cells


def _cell(by_seed: Sequence[Lines], groups: Mapping[str, str]) -> Cell:
    """The answers in lines: for each seed one line a fold, with the folds in the same order."""
    answers = [
        {fold: own for line in folds for fold, own in line["folds"].items()} for folds in by_seed
    ]
    order = [*answers[0]]
    names = tuple(name for fold in order for name in groups.get(fold, "").split())

    def digits(key: str) -> Tensor:
        return torch.tensor(
            [[int(digit) for fold in order for digit in folds[fold][key]] for folds in answers]
        )

    right = digits("right")
    if right.shape[1] != len(names):
        raise ConfigError(
            f"evidence-shortcuts.json: groups of {len(names)} samples, but a training answered "
            f"{right.shape[1]}; pack the data sets that the trainings saw"
        )
    merged = [
        fold["merged_answers_otherwise"]
        for folds in answers
        for fold in folds.values()
        if fold.get("merged_answers_otherwise") is not None
    ]
    rates = sorted({line["job"]["rate"] for folds in by_seed for line in folds})
    return Cell(right, digits("shuffled"), sum(merged) if merged else None, names, tuple(rates))


def _by_group(counts: Sequence[int], groups: Sequence[str]) -> list[int]:
    """The sums of the counts of samples over each group, in the order of the groups' names."""
    sums = dict.fromkeys(sorted({*groups}), 0)
    for group, count in zip(groups, counts, strict=True):
        sums[group] += count
    return [*sums.values()]


Cells = Mapping[tuple[str, str], Cell]  # by test and row


@dataclass(frozen=True)
class Comparison:
    """How much better a row is than another row on the same test, as shares of one."""

    difference: float
    low: float  # the 95 % interval of the difference
    high: float
    p: float
    corrected: float  # by Holm's method


Comparisons = Mapping[tuple[str, str], Comparison]  # by test and the row HR KV is compared with


def comparisons_of(cells: Cells) -> Comparisons:
    """The planned comparisons whose trainings are all done: (test, other row) -> HR KV against it.

    A comparison that is not done counts as p = 1 in Holm's correction. So a corrected p-value can
    only become smaller when more trainings are done.
    """
    first, *others = CONFIRMED
    keys = [*product(TESTS, others)]
    sums: dict[tuple[str, str], list[int]] = {}
    for test, other in keys:
        ours, theirs = cells.get((test, first)), cells.get((test, other))
        if ours and theirs and ours.seeds == theirs.seeds == SEEDS:
            difference = (ours.right - theirs.right).sum(0).tolist()
            sums[test, other] = _by_group(difference, ours.groups)
    values = [sign_flip_p(sums[key]) if key in sums else 1.0 for key in keys]
    found = {}
    for key, p, corrected in zip(keys, values, holm(values), strict=True):
        if key in sums:
            sizes = cells[key].sizes
            low, high = sign_flip_interval(sums[key], sizes)
            found[key] = Comparison(sum(sums[key]) / sum(sizes), low, high, p, corrected)
    return found


def sign_flip_p(sums: Sequence[int]) -> float:
    """The exact two-sided p-value of sums (G,), by all 2^G flips of their signs.

    It is the share of flips whose total is at least as far from 0 as the total of the sums.
    """
    total = abs(sum(sums))
    flips = product((1, -1), repeat=len(sums))
    far = sum(
        abs(sum(sign * one for sign, one in zip(signs, sums, strict=True))) >= total
        for signs in flips
    )
    return far / (1 << len(sums))


def sign_flip_interval(sums: Sequence[int], sizes: Sequence[int]) -> tuple[float, float]:
    """The 95 % interval of the difference per answer: what the test of `sign_flip_p` lets stand.

    To test a difference, the difference times the sizes (G,) is taken from the sums (G,). Every
    non-empty set of groups has a mean: its sums divided by its sizes. The test rejects a difference
    exactly if the difference is below the k-th lowest or above the k-th highest of these means; k
    is LEVEL / 2 of the number of flips, rounded down. The interval is exact if the difference is
    the same in all groups. So few groups that nothing is rejected give -1 to 1.
    """
    sets = [members for members in product((0, 1), repeat=len(sums)) if any(members)]
    means = sorted(
        sum(one for one, member in zip(sums, members, strict=True) if member)
        / sum(size for size, member in zip(sizes, members, strict=True) if member)
        for members in sets
    )
    k = int(LEVEL / 2 * (1 << len(sums)))
    return (means[k - 1], means[-k]) if k else (-1.0, 1.0)


def holm(values: Sequence[float]) -> list[float]:
    """p-values corrected by Holm's method, in the order of the p-values."""
    corrected = [0.0] * len(values)
    highest = 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        highest = max(highest, min(1.0, (len(values) - rank) * values[place]))
        corrected[place] = highest
    return corrected
