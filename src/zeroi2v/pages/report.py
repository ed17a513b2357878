"""What did the quickstart measure? One HTML page, and the same essentials for a terminal.

`result` is what `zeroi2v quickstart` writes to result.json. The page can also be written while the
quickstart still runs: a section whose measurements are missing is left out.

Shapes: T frames, H x W pixels.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from markupsafe import Markup
from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from zeroi2v.errors import how_many
from zeroi2v.files import write_text
from zeroi2v.pages.charts import curve
from zeroi2v.pages.page import duration, in_one_line, percent, render

Result: TypeAlias = Mapping[str, Any]

MODELS: Final = {
    "tower": "image transformer",
    "adapted": "adapted, as trained",
    "merged": "merged, as used",
}
ANSWERS: Final = {"probe": "Without order", "adapted": "With temporal heads"}  # keys of a result
STRIP_SIDE: Final = 96  # pixels: the shorter side of a frame in a strip, at most


@dataclass(frozen=True)
class Look:
    """What one patch of one frame looks at through a temporal head."""

    caption: str
    own: Tensor  # uint8 (3, H, W): the frame that asks, its patch outlined
    read: Tensor  # uint8 (3, H, W): the frame that the head reads, under its attention


def write_report(
    path: Path,
    result: Result,
    *,
    strips: Sequence[tuple[str, Tensor]] = (),
    looks: Sequence[Look] = (),
    running: str = "",
) -> None:
    """Write the page as a whole file; if the page cannot be made, an earlier page stays.

    `strips` holds a test video for each class: the class and the frames, uint8 (T, 3, H, W).
    `running` names what the quickstart still does, such as "training". The page then says so and
    loads itself again every ten seconds. An early `result` may lack any key but "zeroi2v", "date",
    "classes", "pairs" and "videos".
    """
    page = render(
        "report.html",
        result=result,
        running=running,
        numbers=main_numbers(result),
        strips=[(label, _small(frames)) for label, frames in strips],
        reversals={label: other for pair in result["pairs"] for label, other in (pair, pair[::-1])},
        curves=_curves(result),
        answers=[(result[key], title) for key, title in ANSWERS.items() if key in result],
        pair_table=pair_rows(result),
        looks=looks,
        merging=_merging(result),
        judgement=_judgement(result),
        facts=_facts(result),
        layout_note=result.get("layout_note", ""),
        merged_folder=shlex.quote((path.parent / "merged").as_posix()),
    )
    write_text(path, page)


def terminal_report(result: Result) -> Group:
    """The main numbers, the accuracies within pairs, the cost and the prediction of a whole result.

    Every line fits a terminal of 80 columns.
    """
    verdict = Table.grid(padding=(0, 2))
    for number, meaning, explanation in main_numbers(result):
        verdict.add_row(
            Text(number, style="bold"), Text.assemble((meaning, "bold"), f". {explanation}\n")
        )
    answers = _terminal_table("correct", ["without order", "temporal heads"], pair_rows(result))
    columns = ["parameters", "multiply-adds", "time, ms", "ratio"]
    prices = _terminal_table("one clip", columns, cost_rows(result))
    difference = f"{result['merge']['largest_logit_difference']:.1e}"
    best = result["prediction"]["predictions"][0]
    answer = f"{best['label']} ({percent(best['score'])}): {_judgement(result)}."
    return Group(
        verdict,
        answers,
        Text("In a row with a pair, only its two classes compete; guessing gives 50\u00a0%.\n"),
        prices,
        Text(
            f"{timing(result)} {equality(result)} "
            f"The largest difference of a logit is {difference}.\n"
        ),
        Text(f"{result['prediction']['video']}: {answer}"),
    )


def _terminal_table(corner: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(corner)
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


# What the numbers are, in words, for the page and for the terminal


def main_numbers(result: Result) -> list[tuple[str, str, str]]:
    """The numbers to remember that are known: each number, what it counts, and what it means."""
    numbers = []
    if "probe" in result:
        best, guessing = (
            1 - len(result["pairs"]) / len(result["classes"]),
            1 / len(result["classes"]),
        )
        explanation = (
            "The image transformer stays as it is and sees each frame by itself. A linear "
            "classifier learns from the mean of its outputs for all frames, so shuffling the "
            "frames would change nothing. This model cannot tell a motion from its reversal: about "
            f"{percent(best, 0)} is the most it can reach. Guessing gives {percent(guessing)}."
        )
        top1 = percent(result["probe"]["top1"])
        numbers.append((top1, "correct without the order of the frames", explanation))
    seconds = result.get("seconds", {})
    if "adapted" in result and "heads" in result and "train" in seconds:
        offsets = [offset for block in result["heads"] for offset in block]
        temporal = sum(offset != "0" for offset in offsets)
        explanation = (
            f"{temporal} of the {len(offsets)} attention heads are now temporal heads: each reads "
            "another frame than its own. Small linear adapters learned to use what these heads "
            f"read, from {result['videos']['train']:,} videos in "
            f"{duration(seconds['train'])}."
        )
        numbers.append(
            (percent(result["adapted"]["top1"]), "correct with temporal heads", explanation)
        )
    if "cost" in result:
        params, macs = extra_cost(result)
        cost = result["cost"]
        explanation = (
            "The adapters are linear, so merging folds each of them into the weights beside it. "
            "The merged model is the image transformer with other numbers in its weights. New are "
            f"only the classifier ({cost['classifier_params']:,} parameters) and the temporal "
            f"embedding, one vector per frame ({cost['temporal_embedding_params']:,} parameters)."
        )
        number = f"+{params:,} and {macs:,}" if params or macs else "0"
        numbers.append((number, "extra parameters and multiply-adds per clip", explanation))
    return numbers


def extra_cost(result: Result) -> tuple[int, int]:
    """The merged model's cost beyond tower, classifier and temporal embedding.

    Two numbers: parameters, and multiply-adds for one clip.
    """
    cost = result["cost"]
    known = cost["tower"]["params"] + cost["classifier_params"] + cost["temporal_embedding_params"]
    return cost["merged"]["params"] - known, round(1e9 * cost["merged"]["extra_gmacs"])


def pair_rows(result: Result) -> list[list[str]]:
    """For each pair and for all classes: the name, and the accuracies without and with order.

    An accuracy that is not measured yet has no cell.
    """
    measured = [result[key] for key in ANSWERS if key in result]
    if not measured:
        return []
    pairs = measured[0]["within_pairs"]
    rows = [
        [pair, *(percent(answer["within_pairs"][pair]) for answer in measured)] for pair in pairs
    ]
    overall = (percent(answer["top1"]) for answer in measured)
    return [*rows, [f"all {how_many(len(result['classes']), 'class', 'classes')}", *overall]]


def cost_rows(result: Result) -> list[list[str]]:
    """A row for each model: name, parameters, multiply-adds for a clip, milliseconds, ratio."""
    cost, latency = result["cost"], result["latency"]
    ratios = {name: latency[f"{name}_ms"] / latency["tower_ms"] for name in MODELS}
    # the median of the rounds' ratios, which is steadier than the ratio of two medians
    ratios["merged"] = latency["merged_over_tower"]
    return [
        [
            title,
            f"{cost[name]['params']:,}",
            f"{cost[name]['gmacs']:.3f}\u00a0G",
            f"{latency[f'{name}_ms']:.1f}",
            f"{ratios[name]:.3f}",
        ]
        for name, title in MODELS.items()
    ]


def timing(result: Result) -> str:
    """How the milliseconds of `cost_rows` were measured."""
    clips, rounds = result["latency"]["clips"], result["latency"]["rounds"]
    return (
        f"Time: for {how_many(clips, 'clip')} in one call, the median of "
        f"{how_many(rounds, 'round')}; "
        "in each round the models take turns. Ratio: to the time in the first row."
    )


def equality(result: Result) -> str:
    """On how many test clips merging left the answer as it was."""
    same, clips = result["merge"]["same_answers"], result["merge"]["clips"]
    models = "The merged and the adapted model"
    return f"{models} gave the same answer for {same:,} of {clips:,} test clips."


def _judgement(result: Result) -> str:
    """Whether the prediction is right; '' while there is none."""
    if "prediction" not in result:
        return ""
    label = result["prediction"]["label"]
    right = result["prediction"]["predictions"][0]["label"] == label
    return "correct" if right else f"wrong: it is labelled {label}"


# The parts of the page


def _small(frames: Tensor) -> Tensor:
    """Frames uint8 (T, 3, H, W) of `STRIP_SIDE` pixels along the shorter side, or less."""
    if min(frames.shape[-2:]) <= STRIP_SIDE:
        return frames
    resized: Tensor = resize(frames, [STRIP_SIDE])
    return resized


def _curves(result: Result) -> list[tuple[str, Markup, str]]:
    """The charts of the training: title, chart and last value. Only finite values are drawn."""
    level = ("guessing", 1 / len(result["classes"]))
    if "probe" in result:
        level = ("without order", result["probe"]["top1"])
    kinds: list[tuple[str, str, Callable[[float], str], tuple[str, float] | None]] = [
        ("Accuracy on the validation videos", "top1", percent, level),
        ("Training loss", "loss", "{:.2f}".format, None),
    ]
    charts = []
    for title, key, text, dashed in kinds:
        entries = [entry for entry in result.get("curve", ()) if entry.get(key) is not None]
        points = [(entry["epoch"], entry[key]) for entry in entries if math.isfinite(entry[key])]
        if points:
            charts.append((title, curve(points, title, text, dashed), text(points[-1][1])))
    return charts


def _merging(result: Result) -> dict[str, Any]:
    """What the section on merging says; nothing while a part of it is not measured."""
    if not all(key in result for key in ("merge", "cost", "latency")):
        return {}
    mantissa, _, exponent = f"{result['merge']['largest_logit_difference']:.1e}".partition("e")
    return {
        "equality": equality(result),
        "difference": (mantissa, int(exponent)),
        "timing": timing(result),
        "rows": cost_rows(result),
    }


def _facts(result: Result) -> dict[str, str]:
    """What made the result: each fact's name and text, '' where it is unknown yet."""
    return {
        "Seed": str(result.get("seed", "")),
        "Machine": in_one_line(result.get("machine", {})),
        "Versions": in_one_line(result.get("versions", {})),
        "Took": in_one_line(result.get("seconds", {}), duration),
    }
