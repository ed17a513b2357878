"""Do the statistics of the evidence say what exact slow routes say, and does the page follow?"""

from __future__ import annotations

import copy
import itertools
import json
import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from benchmarks import evidence, evidence_page
from benchmarks.evidence_clips import FOLDS
from benchmarks.evidence_page import DOCS, page, results_of, write
from benchmarks.evidence_plan import CONFIRMED, TESTS, Job, jobs
from benchmarks.evidence_statistics import (
    Cell,
    cells_of,
    comparisons_of,
    holm,
    sign_flip_interval,
    sign_flip_p,
)
from zeroi2v.errors import ConfigError

CLIPS = 6  # of each recording
REGIME = "whole, 28 pixels, 1 epochs"
# Test, row, recording -> how likely an answer is right
Skill = Callable[[str, str, str], float]


def groups() -> dict[str, str]:
    return {
        str(fold): " ".join(name for name in names for _ in range(CLIPS))
        for fold, names in enumerate(FOLDS["gestures"])
    }


def shortcuts(**changed: float) -> dict[str, Any]:
    readers = {"sharpness": 0.5, "brightness": 0.45, "contrast": 0.55, "thumbnail": 0.9} | changed
    found = {"samples": 9 * CLIPS, "shortcuts": readers, "groups": groups()}
    return {"tests": dict.fromkeys(TESTS, found)}


def line(job: Job, skill: Skill) -> dict[str, Any]:
    """The line of a training that answers by chance as well as its skill says."""
    dice = random.Random(repr(job))
    folds = {}
    for fold in map(str, job.held_out):
        names = groups()[fold].split()
        right = [dice.random() < skill(job.test, job.row, name) for name in names]
        folds[fold] = {
            "loss": abs(job.rate - 1e-3),
            "right": "".join(str(int(one)) for one in right),
            "shuffled": "10" * (len(names) // 2),
            "merged_answers_otherwise": 1,
        }
    return {
        "job": asdict(job),
        "folds": folds,
        "steps": 300,
        "seconds": 7.5,
        "device": "cuda",
        "date": "2026-01-01",
        "machine": {"processor": "a processor", "gpu": "a card"},
        "versions": {"torch": "2.0"},
    }


def plan_of(skill: Skill, regime: str = REGIME, seeds: int = 3) -> list[dict[str, Any]]:
    """The lines of the whole plan, in the order in which trainings begin."""
    lines: list[dict[str, Any]] = []
    while waiting := jobs(regime, range(seeds), lines):
        lines += [line(job, skill) for job in waiting]
    return lines


def planted(test: str, row: str, name: str) -> float:
    """HR KV is far above no time, far below HR V, and as good as shift KV."""
    return {"no time": 0.2, "HR V": 0.95}.get(row, 0.6)


@pytest.fixture(scope="module")
def lines() -> list[dict[str, Any]]:
    return plan_of(planted)


def test_the_p_value_is_the_share_of_flips_that_are_as_far_out() -> None:
    dice = random.Random(0)
    for _ in range(20):
        sums = [dice.randint(-9, 9) for _ in range(dice.randint(1, 7))]
        totals = [0]
        for one in sums:  # the totals of all flips, grown group by group
            totals = [total + sign * one for total in totals for sign in (1, -1)]
        counts = Counter(map(abs, totals))
        far = sum(count for total, count in counts.items() if total >= abs(sum(sums)))
        assert sign_flip_p(sums) == far / len(totals)
    assert sign_flip_p([1] * 9) == 2 / 512, "the smallest of nine recordings"
    assert sign_flip_p([0] * 9) == 1


def test_p_values_of_exchangeable_rows_are_uniform() -> None:
    """All flips of sums without ties are equally likely: each p-value comes up twice."""
    sizes = [2**power for power in range(9)]
    flips = itertools.product((1, -1), repeat=9)
    found = Counter(
        sign_flip_p([sign * size for sign, size in zip(signs, sizes, strict=True)])
        for signs in flips
    )
    assert found == {number / 256: 2 for number in range(1, 257)}


@pytest.mark.parametrize("count", [6, 7, 9])
def test_the_interval_holds_exactly_the_differences_that_the_test_keeps(count: int) -> None:
    dice = random.Random(count)
    sums = [dice.randint(-20, 40) for _ in range(count)]
    sizes = [dice.randint(20, 60) for _ in range(count)]
    low, high = sign_flip_interval(sums, sizes)
    assert low < sum(sums) / sum(sizes) < high
    for bound, outwards in ((low, -1), (high, 1)):
        for step, is_kept in ((-1, True), (1, False)):
            shift = Fraction(bound) + Fraction(outwards * step, 10**9)
            rest = [one - shift * size for one, size in zip(sums, sizes, strict=True)]
            scale = 10**9 * Fraction(bound).denominator
            assert (sign_flip_p([int(one * scale) for one in rest]) > 0.05) == is_kept


def test_five_recordings_can_reject_nothing() -> None:
    assert sign_flip_interval([9] * 5, [10] * 5) == (-1, 1)
    assert sign_flip_p([9] * 5) > 0.05


def test_holm_by_hand() -> None:
    values = [0.01, 0.04, 0.03, 0.005, 0.9, 1.0]
    assert holm(values) == pytest.approx([0.05, 0.12, 0.12, 0.03, 1.0, 1.0])
    assert holm([0.02, 0.02]) == [0.04, 0.04]


def test_the_interval_of_an_accuracy_is_that_of_all_draws_of_recordings() -> None:
    right = torch.tensor([[1, 1, 1, 0, 0, 1, 0, 0], [1, 1, 1, 1, 0, 1, 0, 0]])
    names = ("a", "a", "a", "b", "b", "c", "c", "c")
    cell = Cell(right, right, None, names, (1e-3,))
    sums, sizes = [6, 1, 2], [6, 4, 6]
    shares = sorted(
        sum(sums[one] for one in drawn) / sum(sizes[one] for one in drawn)
        for drawn in itertools.product(range(3), repeat=3)
    )
    assert cell.sizes == sizes
    assert cell.accuracy == 9 / 16
    low, high = cell.interval_over_groups()
    assert (low, high) == (shares[0], shares[-1]), "each has a chance of 1 in 27"


def test_a_planted_difference_is_found_and_equal_rows_are_not(lines: list[dict[str, Any]]) -> None:
    cells = cells_of(lines, REGIME, {test: groups() for test in TESTS})
    assert cells.keys() == {(test, row) for test in TESTS for row in CONFIRMED}
    found = comparisons_of(cells)
    assert len(found) == 6
    for test in TESTS:
        assert found[test, "no time"].corrected == pytest.approx(6 * 2 / 512)
        assert found[test, "no time"].low > 0
        assert found[test, "HR V"].high < 0
        assert found[test, "shift KV"].corrected > 0.05
        assert found[test, "shift KV"].low < 0 < found[test, "shift KV"].high


def test_a_cell_holds_each_answer_of_each_seed_beside_its_recording(
    lines: list[dict[str, Any]],
) -> None:
    cell = cells_of(lines, REGIME, {test: groups() for test in TESTS})["gestures", "HR KV"]
    for seed in range(3):
        for fold in range(5):
            job = Job(REGIME, "gestures", "HR KV", (fold,), 1e-3, seed)
            right = next(one for one in lines if Job.of(one) == job)["folds"][str(fold)]["right"]
            own = [name in FOLDS["gestures"][fold] for name in cell.groups]
            assert cell.right[seed][torch.tensor(own)].tolist() == [int(one) for one in right]
    assert cell.merged_otherwise == 15
    assert cell.rates == (1e-3,)


def test_a_row_that_cannot_merge_has_no_merged_answers(lines: list[dict[str, Any]]) -> None:
    lines = copy.deepcopy(lines)
    for fold in (fold for entry in lines for fold in entry["folds"].values()):
        fold["merged_answers_otherwise"] = None
    cell = cells_of(lines, REGIME, {test: groups() for test in TESTS})["gestures", "HR KV"]
    assert cell.merged_otherwise is None


def test_a_training_at_a_rate_that_was_not_chosen_does_not_count(
    lines: list[dict[str, Any]],
) -> None:
    other = line(Job(REGIME, "gestures", "HR KV", (0,), 3e-3, 0), lambda *_: 0.0)
    by_test = {test: groups() for test in TESTS}
    before, after = (cells_of(one, REGIME, by_test) for one in (lines, [*lines, other]))
    assert before["gestures", "HR KV"].accuracy == after["gestures", "HR KV"].accuracy


def test_groups_of_other_clips_are_refused(lines: list[dict[str, Any]]) -> None:
    with pytest.raises(ConfigError, match="pack the data sets"):
        cells_of(lines, REGIME, {})


def test_the_page_says_what_follows(lines: list[dict[str, Any]], tmp_path: Path) -> None:
    write(tmp_path, lines, shortcuts(), "Tests. A plan.")
    text = (tmp_path / "evidence.md").read_text(encoding="utf-8")
    parts = re.split(r"^\*\*(.+)\*\*$|^## .*$", text, flags=re.MULTILINE)
    under = {name: said for name, said in zip(parts[1::2], parts[2::2], strict=True) if name}
    assert under[evidence_page.AGREES].count("HR KV against no time") == 2
    assert under[evidence_page.DIFFERS].strip() == "- Nothing."
    assert under[evidence_page.NEW].count("HR KV against HR V") == 2
    assert under[evidence_page.NOISY].count("HR KV against shift KV") == 2
    assert f"The plan is done, with {len(lines)} trainings." in text
    assert "| 72 | 120 | 300 | cuda: 24 min 0 s |" in text.replace("\u00a0", " ")
    assert "Tests. A plan." in text
    assert all(len(row) <= 100 for row in text.splitlines() if not row.startswith(("|", "!")))
    chart = ElementTree.fromstring((tmp_path / "pictures/evidence-1.svg").read_text("utf-8"))
    bars = [one for one in chart.iter() if one.get("class") in ("bar", "reference")]
    assert len(bars) == 2 * (4 + 4)
    assert all(float(one.attrib["width"]) <= 240 for one in bars)


@pytest.mark.parametrize("reader", ["sharpness", "brightness", "contrast"])
def test_nothing_is_claimed_where_a_number_of_each_frame_tells_the_direction(
    lines: list[dict[str, Any]], reader: str
) -> None:
    found = shortcuts(**{reader: 0.8})
    text = page(results_of(lines, found), found, "")
    agreeing = text.partition(evidence_page.AGREES)[2].partition("**")[2].partition("**")[0]
    assert agreeing.count("HR KV against no time") == 1, "the labels of gestures"
    betrayed = text.partition(evidence_page.BETRAYED)[2].partition("## ")[0]
    assert betrayed.count("`gestures-direction`") == 2
    assert f"On `gestures-direction` {reader} can tell the direction" in text
    assert "On `gestures-direction` none of the single numbers" in page([], shortcuts(), "")


@pytest.mark.parametrize("done", [0, 1, 40, 72, 100, 112, 150, 191])
def test_an_interrupted_plan_says_so_first_and_compares_nothing_unfinished(
    lines: list[dict[str, Any]], done: int
) -> None:
    results = results_of(lines[:done], shortcuts())
    text = page(results, shortcuts(), "")
    assert text.splitlines()[2].startswith("**The plan is not done**")
    finished = {Job.of(one) for one in lines[:done]}
    for test, other in itertools.product(TESTS, CONFIRMED[1:]):
        wanted = [job for job in map(Job.of, lines) if job.is_tested and job.test == test]
        is_done = all(job in finished for job in wanted if job.row in ("HR KV", other))
        assert any((test, other) in own.comparisons for own in results) == is_done
    for own in results:
        for (test, row), cell in own.cells.items():
            tested = [job for job in finished if job.is_tested]
            seeds = Counter(job.seed for job in tested if (job.test, job.row) == (test, row))
            assert cell.seeds == sum(count == 5 for count in seeds.values())


def test_two_regimes_are_two_tables(lines: list[dict[str, Any]], tmp_path: Path) -> None:
    second = plan_of(lambda test, row, name: 0.5, "upper 4 blocks, 28 pixels, 1 epochs", seeds=1)
    write(tmp_path, [*lines, *second], shortcuts(), "")
    text = (tmp_path / "evidence.md").read_text(encoding="utf-8")
    assert "40 of 120 trainings that are judged are finished in the regime upper 4 blocks" in (
        " ".join(text.split())
    )
    assert text.count("## All rows: ") == 2
    assert {path.name for path in tmp_path.glob("pictures/*")} == {
        "evidence-1.svg",
        "evidence-2.svg",
    }
    alone = results_of(lines, shortcuts())[0].comparisons
    assert results_of([*second, *lines], shortcuts())[1].comparisons == alone
    assert results_of(second, shortcuts())[0].comparisons == {}


@pytest.mark.skipif(not (DOCS / "evidence.md").exists(), reason="no training is finished")
def test_the_page_holds_what_the_lines_hold() -> None:
    found = json.loads(evidence.SHORTCUTS.read_text(encoding="utf-8"))
    plan = evidence.plan()
    results = results_of(evidence.finished(), found)
    assert (DOCS / "evidence.md").read_text(encoding="utf-8") == page(results, found, plan)
