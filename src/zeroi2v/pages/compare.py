"""What did a comparison measure? A table for a terminal, and one page with the table and charts.

`result` is what `zeroi2v compare` writes to compare.json: a line for each row of the comparison,
the budget that all rows share, and the machines and versions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from rich.console import Group
from rich.table import Table
from rich.text import Text

from zeroi2v.errors import how_many
from zeroi2v.pages.charts import Point, scatter
from zeroi2v.pages.page import duration, in_one_line, percent, render

Result: TypeAlias = Mapping[str, Any]

DOES_NOT_MERGE: Final = "does not merge"


def compare_page(result: Result) -> str:
    """The page as one HTML file."""
    lines = best_first(result)
    used = [
        line["adapted_over_tower" if line["merged_ms"] is None else "merged_over_tower"]
        for line in lines
    ]
    seconds = [line["seconds"] for line in lines]
    return render(
        "compare.html",
        result=result,
        best=lines[0]["row"],
        best_accuracy=accuracy(lines[0]["scores"]),
        figure_name=figure_name(result),
        reading=reading(result),
        columns=_columns(result),
        rows=[_cells(line) for line in lines],
        inference=scatter(
            _points(lines, used), "time for a clip / time of the tower", "{:g}".format
        ),
        training=scatter(_points(lines, seconds), "time of one training", duration),
        facts=_facts(result),
        settings={line["row"]: " ".join(line["settings"]) for line in result["rows"]},
    )


def terminal(result: Result) -> Group:
    """The table for a terminal of 80 columns, and what the table leaves open."""
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("row", no_wrap=True)
    names = ("seeds", "trains", "time", "GiB", "ms", "merged", "/ tower")
    for name in (figure_name(result), *names):
        table.add_column(name, justify="right")
    lines = best_first(result)
    for line in lines:
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
    all_merge = all(line["merged_ms"] is not None for line in lines)
    note = (
        " trains: parameters that train. time: of one training. GiB: its peak memory. ms, merged: "
        "milliseconds of one clip, as trained and merged. / tower: merged time / time of the tower."
    )
    note += "" if all_merge else f" -: {DOES_NOT_MERGE}."
    return Group(table, Text(f"\n{reading(result)}{note}"))


# What the numbers are, in words


def figure_name(result: Result) -> str:
    """What the score is called on a page: "top-1" or "mAP".

    A compare.json of an older version has no `figure_name`; then the key of the score is shown.
    """
    return str(result.get("figure_name", result["figure"]))


def best_first(result: Result) -> list[Mapping[str, Any]]:
    """The lines of the table in the order in which they are shown."""
    return sorted(result["rows"], key=lambda line: -line["mean_score"])


def extent(scores: Sequence[float]) -> str:
    """The lowest and the highest score of several seeds, in per cent; '' for one seed."""
    return "" if len(scores) == 1 else f"{100 * min(scores):.1f}-{100 * max(scores):.1f}"


def accuracy(scores: Sequence[float]) -> str:
    """The mean score over the seeds, with the lowest and the highest score of several seeds."""
    mean = percent(sum(scores) / len(scores))
    return mean if len(scores) == 1 else f"{mean} ({extent(scores)})"


def chance(result: Result) -> float:
    """How far chance can move a score: half of the widest 95 % interval (Wilson's) of a row.

    The interval follows from the number of videos and the row's mean score.
    """
    videos, z = int(result["videos"]["judged"]), 1.96
    widest = max(line["mean_score"] * (1 - line["mean_score"]) for line in result["rows"])
    return z * math.sqrt(widest / videos + (z / videos) ** 2 / 4) / (1 + z * z / videos)


def reading(result: Result) -> str:
    """How to read the scores: the seeds, the videos, what chance leaves open, and what failed."""
    seeds, judged, done = len(result["seeds"]), result["videos"]["judged"], result["trainings"]
    sentences = []
    if done["finished"] < done["planned"]:
        planned = how_many(done["planned"], "training")
        sentences.append(f"Finished so far: {done['finished']} of {planned}.")
    name = figure_name(result)
    if seeds > 1:
        sentences.append(f"The {name} of a row is the mean over {seeds} seeds.")
    else:
        sentences.append("One seed, so no spread between seeds is known.")
    videos = how_many(judged, "validation video")
    sentences.append(f"The model of the last epoch is judged on {videos}.")
    if result["figure"] == "top1":
        points = f"{100 * chance(result):.1f} points"
        sentences.append(
            f"With this number of videos, chance can move the {name} of a row by {points} "
            "up or down (95 % interval)."
        )
    if left_out := len(result["left_out"]):
        sentences.append(f"Videos that could not be read and were left out: {left_out}.")
    sentences += [f"Failed: {reason}." for reason in result["failed"].values()]
    return " ".join(sentences)


# The parts of the page


def _columns(result: Result) -> list[str]:
    spread = " (lowest to highest)" if len(result["seeds"]) > 1 else ""
    score = figure_name(result) + spread
    costs = ["trainable parameters", "training", "peak memory"]
    return ["", score, *costs, "adapted, ms", "merged, ms", "merged / tower"]


def _cells(line: Mapping[str, Any]) -> list[str]:
    merges = line["merged_ms"] is not None
    return [
        line["row"],
        accuracy(line["scores"]),
        f"{line['trainable_params']:,}",
        duration(line["seconds"]),
        f"{line['peak_memory'] / 2**30:.2f}\u00a0GiB",
        f"{line['adapted_ms']:.1f}",
        f"{line['merged_ms']:.1f}" if merges else DOES_NOT_MERGE,
        f"{line['merged_over_tower']:.2f}" if merges else "",
    ]


def _points(lines: Iterable[Mapping[str, Any]], costs: Iterable[float]) -> list[Point]:
    return [
        Point(line["row"], cost, line["scores"], filled=line["merged_ms"] is not None)
        for line, cost in zip(lines, costs, strict=True)
    ]


def _facts(result: Result) -> dict[str, str]:
    videos, machines = result["videos"], result["machines"]
    return {
        "Videos": f"{videos['train']:,} to train on, {videos['val']:,} to judge by",
        "Left out": "; ".join(f"{path}: {reason}" for path, reason in result["left_out"].items()),
        "Seeds": ", ".join(map(str, result["seeds"])),
        "Machine": "; ".join(map(in_one_line, machines)),
        "Versions": in_one_line(result["versions"]),
    }
