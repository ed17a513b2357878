"""How is a comparison shown? A table for a terminal, and one page: the same table, accuracy against cost, and what it took.

`result` is what `zeroi2v compare` writes to compare.json: `compare.table`'s lines in `rows`, the budget and the provenance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Final

from rich.console import Group
from rich.table import Table
from rich.text import Text

from zeroi2v.inference.evaluate import FIGURE_NAMES
from zeroi2v.pages.page import body_rows, duration, page, percent

DOES_NOT_MERGE: Final = "does not merge"


def best_first(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The lines of the table in the order in which they are shown."""
    return sorted(result["rows"], key=lambda line: -line["mean_score"])


def extent(scores: Sequence[float]) -> str:
    """The lowest and the highest of several seeds; '' for one."""
    return "" if len(scores) == 1 else f"{100 * min(scores):.1f}-{100 * max(scores):.1f}"


def accuracy(scores: Sequence[float]) -> str:
    """The mean over seeds, and the lowest and highest where there are several."""
    mean = percent(sum(scores) / len(scores))
    return mean if len(scores) == 1 else f"{mean} ({extent(scores)})"


def chance(result: Mapping[str, Any]) -> float:
    """What the number of videos alone leaves open: half of the widest 95 % interval (Wilson's) of a row's accuracy on them."""
    videos, z = int(result["videos"]["judged"]), 1.96
    widest = max(line["mean_score"] * (1 - line["mean_score"]) for line in result["rows"])
    return z * math.sqrt(widest / videos + (z / videos) ** 2 / 4) / (1 + z * z / videos)


def terminal(result: Mapping[str, Any]) -> Group:
    """The table, narrow, and what it leaves open."""
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("row", no_wrap=True)
    for name in (
        FIGURE_NAMES[result["figure"]],
        "seeds",
        "trains",
        "time",
        "GiB",
        "ms",
        "merged",
        "/ tower",
    ):
        table.add_column(name, justify="right")
    for line in best_first(result):
        merges = line["merged_ms"] is not None
        table.add_row(
            line["row"],
            percent(line["mean_score"]),
            extent(line["scores"]),
            f"{line['trainable_params']:,}",
            duration(line["seconds"]),
            f"{line['peak_memory'] / 2**30:.2f}",
            f"{line['adapted_ms']:.1f}",
            f"{line['merged_ms']:.1f}" if merges else "-",
            f"{line['merged_over_tower']:.2f}" if merges else "-",
        )
    note = (
        f" -: {DOES_NOT_MERGE}."
        if any(line["merged_ms"] is None for line in result["rows"])
        else ""
    )
    return Group(table, Text(f"\n{_reading(result)}{note}"))


def _reading(result: Mapping[str, Any]) -> str:
    seeds, judged, done = len(result["seeds"]), result["videos"]["judged"], result["trainings"]
    so_far = (
        ""
        if done["finished"] == done["planned"]
        else f"So far {done['finished']} of {done['planned']} trainings. "
    )
    of = f"Mean of {seeds} seeds" if seeds > 1 else "One seed, so no spread between seeds is known"
    text = f"{so_far}{of}; the last epoch's model, on {judged:,} validation videos"
    if result["figure"] == "top1":
        text += f", whose number alone leaves {100 * chance(result):.1f} points either way open in a row (95 %)"
    if result["left_out"]:
        text += f"; {len(result['left_out'])} videos were left out"
    return f"{text}.{''.join(f' Failed: {reason}.' for reason in result['failed'].values())}"


def compare_page(result: Mapping[str, Any]) -> str:
    """The page, whole."""
    return page(
        "zeroi2v compare",
        "\n".join((_header(result), _table(result), _plots(result), _making(result))),
    )


def _header(result: Mapping[str, Any]) -> str:
    best = max(result["rows"], key=lambda line: line["mean_score"])
    train, videos = result["budget"]["train"], result["videos"]
    return f"""<header>
<p class="quiet">zeroi2v {escape(str(result["versions"]["zeroi2v"]))} compare, {escape(str(result["date"]))}</p>
<h1>What does best on these videos, and at what cost?</h1>
<p class="lead">{len(result["rows"])} ways to adapt <code>{escape(result["budget"]["model"]["tower"])}</code>, each trained on the same
{videos["train"]:,} videos of {result["classes"]} classes for {train["epochs"]} epochs, with {len(result["seeds"])} seeds. Best:
<b>{escape(best["row"])}</b>, {escape(accuracy(best["scores"]))}.</p>
</header>"""


def _table(result: Mapping[str, Any]) -> str:
    columns = (
        FIGURE_NAMES[result["figure"]]
        + (" (lowest to highest)" if len(result["seeds"]) > 1 else ""),
        "trainable parameters",
        "training",
        "peak memory",
        "latency, ms",
        "merged, ms",
        "merged / tower",
    )
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    rows = [
        (
            line["row"],
            accuracy(line["scores"]),
            f"{line['trainable_params']:,}",
            duration(line["seconds"]),
            f"{line['peak_memory'] / 2**30:.2f}\u00a0GiB",
            f"{line['adapted_ms']:.1f}",
            DOES_NOT_MERGE if line["merged_ms"] is None else f"{line['merged_ms']:.1f}",
            "" if line["merged_ms"] is None else f"{line['merged_over_tower']:.2f}",
        )
        for line in best_first(result)
    ]
    return f"""<section><h2>All rows</h2>
<p>{escape(_reading(result))} Training: the epochs alone, without loading libraries and validating. Peak memory: of the training
process with its libraries, without those that decode; on a GPU, what the GPU held. Latency: one clip in full precision, as trained
and merged, each beside the plain tower in turn.</p>
<div class="wide"><table class="numbers"><thead><tr><td></td>{heads}</tr></thead>
<tbody>{body_rows(rows)}</tbody></table></div></section>"""


def _plots(result: Mapping[str, Any]) -> str:
    lines = result["rows"]
    used = [
        line["adapted_over_tower" if line["merged_ms"] is None else "merged_over_tower"]
        for line in lines
    ]
    inference = scatter(
        points(lines, used),
        "time for a clip, as used, in times of the plain tower's",
        "{:g}".format,
    )
    training = scatter(
        points(lines, [line["seconds"] for line in lines]), "training time", duration
    )
    return f"""<section><h2>Accuracy against cost</h2>
<p>The higher the better, and the further left the cheaper. A line spans the seeds; a ring is a model that does not merge.</p>
<div class="columns">
<figure>{inference}<figcaption><b>What using it costs</b>: merged if it merges</figcaption></figure>
<figure>{training}<figcaption><b>What training it costs</b></figcaption></figure>
</div></section>"""


@dataclass(frozen=True)
class Point:
    """One row in a plot."""

    name: str
    cost: float
    scores: Sequence[float]
    merges: bool

    @property
    def mean(self) -> float:
        return sum(self.scores) / len(self.scores)


def points(lines: Iterable[Mapping[str, Any]], costs: Iterable[float]) -> list[Point]:
    """The rows with the cost of each."""
    return [
        Point(line["row"], cost, line["scores"], line["merged_ms"] is not None)
        for line, cost in zip(lines, costs, strict=True)
    ]


def scatter(drawn: Sequence[Point], axis: str, text: Callable[[float], str]) -> str:
    """Accuracy over cost as a picture; the names stand beside their points and clear of each other."""
    left, right, top, gap = 48, 392, 12, 14
    bottom = top + max(190, gap * (len(drawn) + 1))
    lowest, highest = min(min(one.scores) for one in drawn), max(max(one.scores) for one in drawn)
    levels = ticks(max(0.0, lowest - 0.03), min(1.0, highest + 0.03))
    costs = ticks(min(one.cost for one in drawn), max(one.cost for one in drawn))

    def across(cost: float) -> float:
        return round(left + (cost - costs[0]) / (costs[-1] - costs[0]) * (right - left), 1)

    def down(share: float) -> float:
        return round(bottom - (share - levels[0]) / (levels[-1] - levels[0]) * (bottom - top), 1)

    lines = [f'<path class="grid" d="M{left} {down(level)}H{right}"/>' for level in levels]
    words = [
        f'<text x="{left - 8}" y="{down(level) + 4}" class="end">{percent(level, 0)}</text>'
        for level in levels
    ]
    for cost, side in ((costs[0], ""), (costs[-1], "end")):
        place = left if not side else right
        words.append(f'<text x="{place}" y="{bottom + 18}" class="{side}">{text(cost)}</text>')
    words.append(
        f'<text x="{(left + right) / 2}" y="{bottom + 36}" class="middle">{escape(axis)}</text>'
    )
    marks, free = [], float(top)
    ordered = sorted(drawn, key=lambda one: -one.mean)
    for rank, one in enumerate(ordered):
        x, y = across(one.cost), down(one.mean)
        latest = bottom - gap * (len(ordered) - 1 - rank)  # so that those below find room
        line = min(max(y + 4, free), latest)
        free = line + gap
        toward = -1 if x > (left + right) / 2 else 1
        side = "name end" if toward < 0 else "name"
        marks.append(
            f'<path class="spread" d="M{x} {down(min(one.scores))}V{down(max(one.scores))}"/>'
        )
        lines.append(f'<path class="grid" d="M{x} {y}L{x + 9 * toward} {line - 4}"/>')
        kind = "" if one.merges else ' class="ring"'
        marks.append(f'<circle cx="{x}" cy="{y}" r="4"{kind}/>')
        words.append(
            f'<text x="{x + 11 * toward}" y="{line}" class="{side}">{escape(one.name)}</text>'
        )
    spoken = "; ".join(f"{one.name}: {percent(one.mean)} at {text(one.cost)}" for one in ordered)
    height = bottom + 44
    return f'<svg viewBox="0 0 400 {height}" role="img" aria-label="{escape(spoken)}">{"".join([*lines, *words, *marks])}</svg>'


def ticks(low: float, high: float) -> list[float]:
    """At least two round numbers, evenly apart, from one at or below `low` to one at or above `high`."""
    span = max(high - low, 0.02 * abs(high), 1e-9)
    step = min(
        size * 10.0**power
        for power in (math.floor(math.log10(span)) - 1, math.floor(math.log10(span)))
        for size in (1, 2, 5)
        if span / (size * 10.0**power) <= 5
    )
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [number * step for number in range(first, last + 1)]


def _making(result: Mapping[str, Any]) -> str:
    budget = result["budget"]
    facts = {
        "Videos": f"{result['videos']['train']:,} to train on, {result['videos']['val']:,} to judge by",
        "Left out": "; ".join(f"{path}: {reason}" for path, reason in result["left_out"].items()),
        "Seeds": ", ".join(map(str, result["seeds"])),
        "Machine": "; ".join(
            ", ".join(f"{key} {value}" for key, value in one.items()) for one in result["machines"]
        ),
        "Versions": ", ".join(f"{name} {value}" for name, value in result["versions"].items()),
    }
    named = "".join(
        f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in facts.items() if value
    )
    sets = [(line["row"], " ".join(line["settings"])) for line in result["rows"]]
    rows = "".join(
        f"<dt>{escape(name)}</dt><dd><code>{escape(text)}</code></dd>" for name, text in sets
    )
    settings = "\n".join(
        f"{table}.{name} = {value!r}"
        for table, part in budget.items()
        for name, value in part.items()
    )
    return f"""<section><h2>How this was made</h2>
<dl class="facts">{named}</dl>
<p>What each row sets beside the budget:</p>
<dl class="facts">{rows}</dl>
<details><summary>The budget, every setting</summary><pre tabindex="0"><code>{escape(settings)}</code></pre></details></section>"""
