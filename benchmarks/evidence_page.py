"""How do the results of the evidence become docs/evidence.md and its pictures?"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from benchmarks.ablations import points, student, wrapped
from benchmarks.evidence_plan import CONFIRMED, JUDGE, RATES, SEEDS, TESTS, Job, jobs
from benchmarks.evidence_statistics import (
    LEVEL,
    Cell,
    Cells,
    Comparison,
    Comparisons,
    Lines,
    cells_of,
    comparisons_of,
)
from benchmarks.evidence_training import BATCH, ROWS, WARMUP, WEIGHT_DECAY
from zeroi2v.errors import how_many
from zeroi2v.files import write_files, write_text
from zeroi2v.pages.charts import Bar, shares_plot
from zeroi2v.pages.page import duration

DOCS: Final = Path(__file__).parents[1] / "docs"

# Row that HR KV is compared with -> the question, what the paper says, and whether the paper has
# the row and puts HR KV above it.
QUESTIONS: Final[Mapping[str, tuple[str, str, bool]]] = {
    "no time": (
        "Do temporal heads help?",
        "Temporal heads are how the paper brings time into a tower. It prints no row without them.",
        True,
    ),
    "HR V": (
        "Must keys move together with values?",
        "The paper has no HR V.",
        False,
    ),
    "shift KV": (
        "Are whole heads better than a share of every head?",
        "The paper's Table 1a says so, on Something-Something V2: HR KV 66.0 and shift KV 64.6 "
        "with 1/6 of the channels, 65.8 and 64.0 with 1/4.",
        True,
    ),
}
AGREES: Final = "What agrees with the paper"
DIFFERS: Final = "What does not agree with the paper"
NEW: Final = "What the paper does not say"
NOISY: Final = "What is too noisy to say"
BETRAYED: Final = "What is not claimed, because a single number of each frame tells the direction"
PROBES: Final = ("sharpness", "brightness", "contrast")  # readers of a single number of each frame


@dataclass(frozen=True)
class Results:
    """What the trainings of a regime say."""

    regime: str
    picture: str  # path below docs/
    lines: Lines
    cells: Cells
    comparisons: Comparisons


def results_of(lines: Lines, shortcuts: Mapping[str, Any]) -> list[Results]:
    """The results of each regime, in the order of the first lines."""
    groups = {test: found["groups"] for test, found in shortcuts["tests"].items()}
    results = []
    for number, regime in enumerate(dict.fromkeys(Job.of(line).regime for line in lines), start=1):
        own = [line for line in lines if Job.of(line).regime == regime]
        cells = cells_of(own, regime, groups)
        picture = f"pictures/evidence-{number}.svg"
        results.append(Results(regime, picture, own, cells, comparisons_of(cells)))
    return results


def write(docs: Path, lines: Lines, shortcuts: Mapping[str, Any], plan: str) -> None:
    """Write evidence.md and a picture for each regime into the folder of the docs."""
    results = results_of(lines, shortcuts)
    note = "Share of right answers; 95 % interval over recordings."
    for own in results:
        charts = {test: _bars(test, own.cells, shortcuts) for test in _tests(own.cells)}
        if charts:
            write_files({docs / own.picture: partial(shares_plot, charts, note)})
    write_text(docs / "evidence.md", page(results, shortcuts, plan))


def page(results: list[Results], shortcuts: Mapping[str, Any], plan: str) -> str:
    """The text of docs/evidence.md."""
    text = ["# Evidence on real videos, with a real image transformer", "", _state(results), ""]
    text += [HEAD, "", "## What follows", "", *_conclusions(results, shortcuts)]
    for other, (question, paper, _) in QUESTIONS.items():
        text += [f"## {question} HR KV against {other}", "", paper, ""]
        text += [*_question(other, results, shortcuts), ""]
    for own in results:
        text += [f"## All rows: {own.regime}", "", *_rows(own.cells, shortcuts), ""]
        if own.cells:
            text += [f"![Share of right answers of each row]({own.picture})", ""]
    text += ["## Readers that see no motion", "", *_probe(shortcuts), ""]
    text += ["## How the trainings were done", "", *_trainings(results), ""]
    text += [
        "## The plan, written before the first training",
        "",
        "```text",
        plan.strip(),
        "```",
        "",
    ]
    return "\n".join(map(wrapped, text))


def _state(results: list[Results]) -> str:
    """Whether the plan is done."""
    if not results:
        return "**The plan is not done**: no training is finished."
    asked = len(TESTS) * len(CONFIRMED) * len(JUDGE) * SEEDS
    missing = [
        f"{_judged(own)} of {asked} trainings that are judged are finished in the regime "
        f"{own.regime}"
        for own in results
        if jobs(own.regime, range(SEEDS), own.lines)
    ]
    if missing:
        return f"**The plan is not done**: {'; '.join(missing)}. Only what is complete is shown."
    return f"The plan is done, with {how_many(sum(len(own.lines) for own in results), 'training')}."


HEAD: Final = f"""\
[`benchmarks/evidence.py`](../benchmarks/evidence.py) trains rows on real gestures, and writes this
page from [`evidence.jsonl`](../benchmarks/results/evidence.jsonl) and
[`evidence-shortcuts.json`](../benchmarks/results/evidence-shortcuts.json). Rows differ only in how
time comes into the tower. HR KV is STDHA, the operator of the paper: whole heads read keys and
values of another frame. In HR V the heads read only values of another frame. In shift KV every head
does so for a share of its channels. In no time all heads read their own frame, and only the trained
temporal embedding tells the order.

The test `gestures` asks for the label of a clip. The test `gestures-direction` asks whether a clip
is played as it is or backwards; a model that cannot tell the order of frames is right in half of
the answers. "Confirmed" and "refuted" mean that the p-value is below {LEVEL} after Holm's
correction for the six comparisons of a regime. Intervals of differences hold the differences that
the same test does not reject at 95 %, without a correction."""


def outcome(
    test: str, other: str, comparison: Comparison, shortcuts: Mapping[str, Any]
) -> tuple[str, str]:
    """The heading under which a comparison stands, and the result in words."""
    if comparison.corrected >= LEVEL:
        return NOISY, "undecided"
    is_better = comparison.difference > 0
    result = "confirmed: HR KV is better" if is_better else "refuted: HR KV is worse"
    if names := betraying(test, shortcuts):
        return BETRAYED, f"{result}, but {' and '.join(names)} can tell the direction"
    if not QUESTIONS[other][2]:
        return NEW, result
    return (AGREES if is_better else DIFFERS), result


def betraying(test: str, shortcuts: Mapping[str, Any]) -> list[str]:
    """The readers of `PROBES` that are further from half than chance brings a reader (95 %).

    Both directions of a clip count as a single answer. None in a test that has no directions.
    """
    if not test.endswith("-direction"):
        return []
    found = shortcuts["tests"][test]
    chance = 1.96 * math.sqrt(0.25 / (found["samples"] / 2))
    shares = found["shortcuts"]
    return [name for name in PROBES if name in shares and abs(shares[name] - 0.5) > chance]


def _conclusions(results: list[Results], shortcuts: Mapping[str, Any]) -> list[str]:
    """What the comparisons say, by the rule of `outcome`: a list below each heading."""
    under: dict[str, list[str]] = {AGREES: [], DIFFERS: [], NEW: [], NOISY: [], BETRAYED: []}
    for own in results:
        for (test, other), comparison in own.comparisons.items():
            heading, result = outcome(test, other, comparison, shortcuts)
            under[heading].append(
                f"- HR KV against {other}, `{test}` ({own.regime}): {_difference(comparison)} "
                f"points, corrected p = {comparison.corrected:.3f}, {result}."
            )
    text = []
    for heading, said in under.items():
        if said or heading != BETRAYED:
            text += [f"**{heading}**", "", *(said or ["- Nothing."]), ""]
    return text


def _question(other: str, results: list[Results], shortcuts: Mapping[str, Any]) -> list[str]:
    """The table of a question: a line for each regime and test."""
    text = _head_of_table(
        "regime", "test", "HR KV, %", f"{other}, %", "points (95 %)", "p", "corrected p", "result"
    )
    for own in results:
        for test in TESTS:
            both = [_percent(own.cells.get((test, row))) for row in (CONFIRMED[0], other)]
            rest = ["", "", "", "not done"]
            if comparison := own.comparisons.get((test, other)):
                numbers = f"{comparison.p:.3f}", f"{comparison.corrected:.3f}"
                said = outcome(test, other, comparison, shortcuts)[1]
                rest = [_difference(comparison), *numbers, said]
            text.append(_line(own.regime, test, *both, *rest))
    return text


def _rows(cells: Cells, shortcuts: Mapping[str, Any]) -> list[str]:
    """The table of all rows of a regime, with the readers that see no motion below each test."""
    text = _head_of_table(
        "test",
        "row",
        "right, % (95 % over recordings)",
        f"seed by seed, of {SEEDS} (95 % over seeds)",
        "frames shuffled, %",
        "merged model answers otherwise",
        "learning rates",
    )
    for test in _tests(cells):
        for row, cell in _rows_of(test, cells).items():
            is_planned = test in TESTS and row in CONFIRMED
            over_seeds = f" ({_range(student(cell.by_seed))})" if cell.seeds > 1 else ""
            merged = f"{cell.merged_otherwise} of {cell.right.numel():,}"
            text.append(
                _line(
                    test,
                    row if is_planned else f"{row} (exploratory)",
                    f"{_percent(cell)} ({_range(cell.interval_over_groups())})",
                    ", ".join(f"{100 * share:.1f}" for share in cell.by_seed) + over_seeds,
                    f"{100 * cell.shuffled.double().mean().item():.1f}",
                    "does not merge" if cell.merged_otherwise is None else merged,
                    ", ".join(f"{rate:g}" for rate in cell.rates),
                )
            )
        for name, share in shortcuts["tests"][test]["shortcuts"].items():
            text.append(_line(test, f"reader of {name}", f"{100 * share:.1f}", *[""] * 4))
    return text


def _probe(shortcuts: Mapping[str, Any]) -> list[str]:
    """The table of the readers that see no motion, and which of them tell the direction."""
    tests = shortcuts["tests"]
    readers = [*dict.fromkeys(name for found in tests.values() for name in found["shortcuts"])]
    text = [
        f"The readers of {', '.join(PROBES)} know a single number of each frame: logistic "
        "regression. In a test of the direction they are asked for the direction alone. "
        "Compression makes some frames sharper than others, so sharpness can betray the place of a "
        "frame. Thumbnail: the nearest clip by its middle frame. Thumbnails: the nearest clip by "
        "all frames in their order.",
        "",
        *_head_of_table("test", "samples", *(f"{reader}, %" for reader in readers)),
    ]
    verdicts = []
    for test, found in tests.items():
        shares = [f"{100 * found['shortcuts'][reader]:.1f}" for reader in readers]
        text.append(_line(test, f"{found['samples']:,}", *shares))
        if test.endswith("-direction"):
            names = " and ".join(betraying(test, shortcuts)) or "none of the single numbers"
            verdicts += ["", f"On `{test}` {names} can tell the direction beyond chance (95 %)."]
    return text + verdicts


def _trainings(results: list[Results]) -> list[str]:
    """What all trainings share, how many there were, and how long they took."""
    text = [
        f"AdamW, batches of {BATCH} clips, weight decay {WEIGHT_DECAY}, a warm-up over "
        f"{100 * WARMUP:.0f} % of the steps and a cosine after the warm-up. The grid of learning "
        f"rates is {', '.join(f'{rate:g}' for rate in RATES)}. In the regime `whole` all blocks "
        "train, from pixels. In a regime `upper` the tokens of the blocks below are computed once, "
        "and the heads of these blocks are spatial. The times are those of all trainings, added "
        "up; several trainings may have shared a machine.",
        "",
        *_head_of_table("regime", "trials of a rate", "trainings judged", "steps", "time", "where"),
    ]
    for own in results:
        seconds: Counter[str] = Counter()
        for line in own.lines:
            seconds[line["device"]] += line["seconds"]
        steps = sorted({line["steps"] for line in own.lines})
        text.append(
            _line(
                own.regime,
                str(len(own.lines) - _judged(own)),
                str(_judged(own)),
                ", ".join(map(str, steps)),
                ", ".join(f"{device}: {duration(total)}" for device, total in seconds.items()),
                "; ".join(dict.fromkeys(map(_origin, own.lines))),
            )
        )
    return text


def _judged(own: Results) -> int:
    return sum(Job.of(line).is_tested for line in own.lines)


def _origin(line: Mapping[str, Any]) -> str:
    machine = line["machine"]
    card = machine["gpu"] if line["device"] == "cuda" else machine["processor"]
    return f"{card}, torch {line['versions']['torch']}, {line['date']}"


def _bars(test: str, cells: Cells, shortcuts: Mapping[str, Any]) -> list[Bar]:
    """The bars of a test: its rows, then the readers that see no motion."""
    bars = []
    for row, cell in _rows_of(test, cells).items():
        whisker = cell.interval_over_groups()
        bars.append(Bar(row, cell.accuracy, f"{_percent(cell)} ({_range(whisker)})", whisker))
    for name, share in shortcuts["tests"][test]["shortcuts"].items():
        bars.append(Bar(f"reader of {name}", share, f"{100 * share:.1f}", is_reference=True))
    return bars


def _tests(cells: Cells) -> list[str]:
    return sorted({test for test, _ in cells})


def _rows_of(test: str, cells: Cells) -> dict[str, Cell]:
    return {row: cells[test, row] for row in ROWS if (test, row) in cells}


def _percent(cell: Cell | None) -> str:
    return f"{100 * cell.accuracy:.1f}" if cell else "not done"


def _range(bounds: tuple[float, float]) -> str:
    """An interval of shares of one, in per cent, without what no share can be."""
    return " to ".join(f"{100 * min(max(bound, 0.0), 1.0):.1f}" for bound in bounds)


def _difference(comparison: Comparison) -> str:
    mean, low, high = (
        points([100 * share]) for share in (comparison.difference, comparison.low, comparison.high)
    )
    return f"{mean} ({low} to {high})"


def _head_of_table(*columns: str) -> list[str]:
    return [_line(*columns), _line(*["---"] * len(columns))]


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
