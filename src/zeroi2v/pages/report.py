"""What did the quickstart find? One HTML page that needs nothing but itself, and the same essentials for a terminal.

`result` is what `zeroi2v quickstart` writes to result.json. Shapes: T frames, H x W pixels.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Final, TypeAlias

from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from zeroi2v.files import write_text
from zeroi2v.pages.page import body_rows, duration, page, percent, picture

Result: TypeAlias = Mapping[str, Any]

MODELS: Final = {
    "tower": "image transformer",
    "adapted": "adapted, as trained",
    "merged": "merged, as used",
}
STRIP_SIDE: Final = 96  # pixels: the shorter side of a frame in a strip, at most


@dataclass(frozen=True)
class Look:
    """What one patch of one frame looks at through a temporal head."""

    caption: str
    own: Tensor  # uint8 (3, H, W): the frame that asks, its patch outlined
    read: Tensor  # uint8 (3, H, W): the frame that the head reads, under its attention


def write_report(
    path: Path, result: Result, *, strips: Sequence[tuple[str, Tensor]], looks: Sequence[Look]
) -> None:
    """Write the page, whole or not at all. `strips` holds one test video per class, its frames uint8 (T, 3, H, W)."""
    sections = (
        _verdict(result),
        _samples(result, strips),
        _curves(result),
        _answers(result),
        _looks(looks),
        _merging(result),
        _prediction(result),
        _making(result, path.parent),
    )
    body = "\n".join(filter(None, sections))
    write_text(path, page("zeroi2v quickstart: can an image transformer tell motion?", body))


def terminal_report(result: Result) -> Group:
    """The three numbers, accuracies per pair, cost and prediction, for a terminal of 80 columns."""
    verdict = Table.grid(padding=(0, 2))
    for number, meaning, explanation in three_numbers(result):
        verdict.add_row(
            Text(number, style="bold"), Text.assemble((meaning, "bold"), f". {explanation}\n")
        )
    answers = _terminal_table("correct", ["without order", "temporal heads"], pair_rows(result))
    prices = _terminal_table(
        "one clip", ["parameters", "multiply-adds", "time, ms", "ratio"], cost_rows(result)
    )
    guess, *_ = result["prediction"]["predictions"]
    difference = (
        f"The largest difference of a logit is {result['merge']['largest_logit_difference']:.1e}."
    )
    return Group(
        verdict,
        answers,
        Text("In a row with a pair, only its two classes compete; guessing gives 50\u00a0%.\n"),
        prices,
        Text(f"{timing(result)} {equality(result)} {difference}\n"),
        Text(
            f"{result['prediction']['video']}: {guess['label']} ({percent(guess['score'])}): {_judged(result)}."
        ),
    )


def _terminal_table(corner: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(corner)
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


# What the numbers are, in words


def three_numbers(result: Result) -> list[tuple[str, str, str]]:
    """What to remember: each number, what it is, and what that means to a newcomer."""
    classes, price, took = (
        len(result["classes"]),
        result["cost"],
        duration(result["seconds"]["train"]),
    )
    best, guessing = 1 - len(result["pairs"]) / classes, 1 / classes
    offsets = [offset for block in result["heads"] for offset in block]
    temporal = sum(offset != "0" for offset in offsets)
    params, macs = extra_cost(result)
    return [
        (
            percent(result["probe"]["top1"]),
            "correct: frozen tower, linear probe on a bag of frames",
            "The pretrained transformer sees each frame by itself and what it saw is averaged, so shuffling the frames "
            "would change nothing. Of a motion and its reversal it cannot tell which is which: whatever it learned, "
            f"about {percent(best, 0)} would be as far as it goes. Guessing gives {percent(guessing)}.",
        ),
        (
            percent(result["adapted"]["top1"]),
            "correct with temporal heads",
            f"{temporal} of the {len(offsets)} attention heads now read another frame than their own, and "
            f"small linear adapters learned from {result['videos']['train']:,} videos, in {took}, to use it.",
        ),
        (
            "0" if not params and not macs else f"+{params:,} and {macs:,}",
            "extra parameters and multiply-adds per clip",
            "The adapters are linear, so they were folded into the weights that were there already: what runs is the "
            "image transformer with other numbers in it. New are only the classifier "
            f"({price['classifier_params']:,} parameters) and one vector per frame "
            f"({price['temporal_embedding_params']:,}).",
        ),
    ]


def extra_cost(result: Result) -> tuple[int, int]:
    """What merged costs beyond tower, classifier and temporal embedding: parameters, and multiply-adds per clip."""
    price = result["cost"]
    added = price["classifier_params"] + price["temporal_embedding_params"]
    macs = round(1e9 * price["merged"]["extra_gmacs"])
    return price["merged"]["params"] - price["tower"]["params"] - added, macs


def pair_rows(result: Result) -> list[tuple[str, str, str]]:
    """Per pair and for all classes: the accuracy without and with the order of the frames."""
    probe, adapted = result["probe"], result["adapted"]
    rows = [
        (pair, share, adapted["within_pairs"][pair])
        for pair, share in probe["within_pairs"].items()
    ]
    rows.append((f"all {len(result['classes'])} classes", probe["top1"], adapted["top1"]))
    return [(name, percent(blind), percent(seeing)) for name, blind, seeing in rows]


def cost_rows(result: Result) -> list[tuple[str, str, str, str, str]]:
    """Per model: name, parameters, multiply-adds per clip, milliseconds, and these relative to the first row's."""
    price, latency = result["cost"], result["latency"]
    ratios = {name: latency[f"{name}_ms"] / latency["tower_ms"] for name in MODELS}
    ratios["merged"] = latency[
        "merged_over_tower"
    ]  # the median of ratios, which is steadier than the ratio of medians
    rows = []
    for name, title in MODELS.items():
        params, amount = f"{price[name]['params']:,}", f"{price[name]['gmacs']:.3f}\u00a0G"
        rows.append((title, params, amount, f"{latency[f'{name}_ms']:.1f}", f"{ratios[name]:.3f}"))
    return rows


def timing(result: Result) -> str:
    clips, rounds = result["latency"]["clips"], result["latency"]["rounds"]
    return f"Time: {clips} clips at once, the median of {rounds} rounds with the models in turn; ratio: to the first row."


def equality(result: Result) -> str:
    same, clips = result["merge"]["same_answers"], result["merge"]["clips"]
    return f"Merged and adapted model gave the same answer for {same:,} of {clips:,} test clips."


def _judged(result: Result) -> str:
    label = result["prediction"]["label"]
    return (
        "correct"
        if result["prediction"]["predictions"][0]["label"] == label
        else f"wrong: it is labelled {label}"
    )


# The sections of the page, and their parts


def _verdict(result: Result) -> str:
    videos = result["videos"]
    figures = "".join(
        f'<div><dt>{escape(meaning)}</dt><dd class="number">{escape(number)}</dd><dd>{escape(explanation)}</dd></div>'
        for number, meaning, explanation in three_numbers(result)
    )
    return f"""<header>
<p class="quiet">zeroi2v {escape(str(result["zeroi2v"]))} quickstart, {escape(str(result["date"]))}</p>
<h1>Can an image transformer tell motion?</h1>
<p class="lead">A small image transformer that had seen only still pictures, in which it learned to tell where, how large and how tilted a
thing is, was shown {videos["train"]:,} short videos
of {len(result["classes"])} motions, and then asked about {videos["test"]:,} others. Every motion is another one played
backwards, so single frames do not give the answer away: only their order does.</p>
</header>
<dl class="three">{figures}</dl>"""


def _samples(result: Result, strips: Sequence[tuple[str, Tensor]]) -> str:
    reverse = _reverse(result)
    figures = []
    for label, frames in strips:
        small = resize(frames, [STRIP_SIDE]) if min(frames.shape[-2:]) > STRIP_SIDE else frames
        backwards = f", backwards: {reverse[label]}" if label in reverse else ""
        spoken = f"{len(frames)} frames of a video of {label}"
        figures.append(
            f'<figure><div class="strip" role="img" aria-label="{escape(spoken)}">'
            + "".join(picture(frame, "") for frame in small)
            + f"</div><figcaption><b>{escape(label)}</b>{escape(backwards)}</figcaption></figure>"
        )
    return f"""<section><h2>What the videos show</h2>
<p>One test video of each class, its frames in order. Read a strip from right to left and it is a video of the other
class of its pair, made of the very same frames. A model that takes the frames as a bag, without their order, cannot
tell the two apart.</p>
<div class="strips">{"".join(figures)}</div></section>"""


def _curves(result: Result) -> str:
    curve, level = result["curve"], ("without order", result["probe"]["top1"])
    known = [(entry["epoch"], entry["top1"]) for entry in curve if entry.get("top1") is not None]
    drawn = _curve(known, "Accuracy on held-out videos", percent, level)
    drawn += _curve(
        [(entry["epoch"], entry["loss"]) for entry in curve], "Training loss", "{:.2f}".format, None
    )
    if not drawn:
        return ""
    return f"""<section><h2>How it learned</h2>
<p>One epoch is one pass over the training videos. The loss says how far the answers are from the labels: lower is
better.</p>
<div class="columns">{drawn}</div></section>"""


def _curve(
    points: Sequence[tuple[float, float]],
    title: str,
    text: Callable[[float], str],
    level: tuple[str, float] | None,
) -> str:
    """Values over epochs as a picture of lines, with a dashed line at a level that is named; '' without any point."""
    points = [point for point in points if math.isfinite(point[1])]
    if not points:
        return ""
    left, right, top, bottom = 64, 372, 16, 190
    first, last = points[0], points[-1]
    high = 1.0 if level else float(max(1, math.ceil(max(value for _, value in points))))

    def place(epoch: float, value: float) -> tuple[float, float]:
        along = (epoch - first[0]) / (last[0] - first[0]) if last[0] > first[0] else 0.5
        return round(left + along * (right - left), 1), round(
            bottom - value / high * (bottom - top), 1
        )

    grid, words = [], []
    for tick in (0.0, high / 2, high):
        y = place(first[0], tick)[1]
        grid.append(f'<path class="grid" d="M{left} {y}H{right}"/>')
        words.append(f'<text x="{left - 8}" y="{y + 4}" class="end">{text(tick)}</text>')
    for epoch in sorted({first[0], last[0]}):
        words.append(
            f'<text x="{place(epoch, 0)[0]}" y="{bottom + 20}" class="middle">epoch {epoch}</text>'
        )
    if level:
        y = place(first[0], level[1])[1]
        grid.append(f'<path class="level" d="M{left} {y}H{right}"/>')
        words.append(
            f'<text x="{right}" y="{y + 16}" class="end">{level[0]}: {text(level[1])}</text>'
        )
    spots = [place(*point) for point in points]
    line = f'<polyline points="{" ".join(f"{x},{y}" for x, y in spots)}"/>'
    dots = (f'<circle cx="{x}" cy="{y}" r="3"/>' for x, y in spots)
    spoken = (
        f"{title}: {text(first[1])} after epoch {first[0]}, {text(last[1])} after epoch {last[0]}"
    )
    drawing = f'<svg viewBox="0 0 400 220" role="img" aria-label="{spoken}">{"".join([*grid, line, *dots, *words])}</svg>'
    return f"<figure>{drawing}<figcaption><b>{title}</b>, at the end {text(last[1])}</figcaption></figure>"


def _answers(result: Result) -> str:
    tables = _confusion(result, "probe", "Without order") + _confusion(
        result, "adapted", "With temporal heads"
    )
    return f"""<section><h2>What it answered</h2>
<p>A row is what the test videos show, a column what the model said. The stronger the colour of a cell, the larger its
share of the row. Correct answers are bold. Outlined are those that took a motion for its own reversal, the mistake that
a model without order cannot avoid.</p>
<div class="columns">{tables}</div>
<div class="wide"><table class="numbers"><caption>Correct, when only the two classes of a pair compete: guessing
gives 50&nbsp;%. The last row counts all classes.</caption><thead><tr><th scope="col">Classes</th>
<th scope="col">Without order</th><th scope="col">With temporal heads</th></tr></thead>
<tbody>{body_rows(pair_rows(result))}</tbody></table></div></section>"""


def _confusion(result: Result, which: str, title: str) -> str:
    classes, reverse, found = result["classes"], _reverse(result), result[which]
    names = "".join(f'<th scope="col"><span>{escape(name)}</span></th>' for name in classes)
    rows = []
    for name, counts in zip(classes, found["confusion"], strict=True):
        cells = ""
        for answer, count in zip(classes, counts, strict=True):
            kind = (
                "correct"
                if answer == name
                else "swap"
                if answer == reverse.get(name)
                else "none"
                if not count
                else ""
            )
            cells += f'<td class="{kind}" style="--share:{count / max(1, sum(counts)):.2f}">{count:,}</td>'
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    return f"""<div class="wide"><table class="confusion">
<caption><b>{title}</b>: {percent(found["top1"])} correct</caption>
<thead><tr><td></td>{names}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>"""


def _looks(looks: Sequence[Look]) -> str:
    if not looks:
        return ""
    asks, reads = (
        "The frame that asks, one patch outlined",
        "The frame that the head reads, coloured where it looks",
    )
    figures = "".join(
        f'<figure><div class="look">{picture(look.own, asks)}{picture(look.read, reads)}</div>'
        f"<figcaption>{escape(look.caption)}</figcaption></figure>"
        for look in looks
    )
    return f"""<section><h2>Where a temporal head looks</h2>
<p>Left, a frame and the outlined patch in it that asks. Right, the other frame that the head reads: grey where it does
not look, then purple, orange and pale yellow where it looks most. Every picture is scaled to its own brightest
patch.</p>
<div class="columns">{figures}</div></section>"""


def _merging(result: Result) -> str:
    largest = result["merge"]["largest_logit_difference"]
    mantissa, _, exponent = f"{largest:.1e}".partition("e")
    difference = f"{mantissa} &times; 10<sup>{int(exponent)}</sup>" if largest else "0"
    exactly = "exactly" if result["cost"]["merged_keys_equal_tower"] else "not exactly"
    return f"""<section><h2>What merging changed</h2>
<p>{equality(result)} The largest difference of any logit, the score of a class before scores become shares, is
{difference}. Beside its classifier and temporal embedding, the one vector per frame, the merged model has {exactly} the
tensors of the image transformer.</p>
<div class="wide"><table class="numbers"><caption>{timing(result)}</caption><thead><tr><th scope="col">Model</th>
<th scope="col">Para&shy;meters</th><th scope="col">Multiply-adds per clip</th><th scope="col">Time, ms</th>
<th scope="col">Ratio</th></tr></thead><tbody>{body_rows(cost_rows(result))}</tbody></table></div></section>"""


def _prediction(result: Result) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(guess["label"])}</th><td>{percent(guess["score"])}</td>'
        f'<td class="bar"><div style="--share:{guess["score"]:.3f}"></div></td></tr>'
        for guess in result["prediction"]["predictions"]
    )
    return f"""<section><h2>One held-out video</h2>
<p><code>{escape(str(result["prediction"]["video"]))}</code></p>
<p>The merged model says <b>{escape(result["prediction"]["predictions"][0]["label"])}</b>:
{escape(_judged(result))}.</p>
<div class="wide"><table class="numbers">
<thead><tr><th scope="col">Label</th><th scope="col">Score</th><td></td></tr></thead><tbody>{rows}</tbody>
</table></div></section>"""


def _making(result: Result, folder: Path) -> str:
    facts = {
        "Seed": result["seed"],
        "Machine": ", ".join(f"{name} {value}" for name, value in result["machine"].items()),
        "Versions": ", ".join(f"{name} {value}" for name, value in result["versions"].items()),
        "Took": ", ".join(
            f"{stage} {duration(seconds)}" for stage, seconds in result["seconds"].items()
        ),
    }
    rows = "".join(f"<dt>{name}</dt><dd>{escape(str(value))}</dd>" for name, value in facts.items())
    merged = shlex.quote((folder / "merged").as_posix())
    commands = f"zeroi2v predict VIDEO --model {merged}\nzeroi2v train YOUR_VIDEOS --out RUN"
    return f"""<section><h2>How this was made</h2>
<dl class="facts">{rows}</dl>
<p>To go on: ask the merged model about a video, or train on videos of your own, one folder per class.</p>
<pre tabindex="0"><code>{escape(commands)}</code></pre></section>"""


def _reverse(result: Result) -> dict[str, str]:
    """The other class of each class's pair."""
    return {one: other for pair in result["pairs"] for one, other in (pair, pair[::-1])}
