"""How are measurements drawn? As SVG: lines, points over costs, a bar for each model.

Python says where each mark of a chart lies, the template `chart.svg` writes the marks, and
`colours.css` colours them. A chart is 400 units wide, its letters are 12 units high, and y grows
downwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, Final

from markupsafe import Markup

from zeroi2v.pages.page import percent, render

WIDTH: Final = 400
LONGEST_NAME: Final = 56  # letters that fit on a line of a chart
DASHES: Final = (None, "9 4", "2 3", "9 3 2 3")  # of lines, in turn: drawn and left out units
LONGEST_BAR: Final = 240  # units, which leaves room for the number beside the bar


@dataclass(frozen=True)
class Mark:
    """One element of an SVG file: its tag, its attributes, and the text in it."""

    tag: str
    attributes: Mapping[str, str | float | None]  # None: left out
    text: str = ""


def label(x: float, y: float, text: str, kind: str = "") -> Mark:
    """A text at (x, y). `kind` lists the classes of the text.

    With the class "end" the end of the text lies at x, with "middle" the middle of the text.
    """
    return Mark("text", {"x": x, "y": y, "class": kind or None}, text)


def stroke(kind: str, path: str) -> Mark:
    """A line of a kind along a path, in the language of SVG: M moves, H, V and L draw."""
    return Mark("path", {"class": kind, "d": path})


@dataclass(frozen=True)
class Area:
    """The area of a chart in which values lie: its edges, and the values that lie on the edges."""

    left: float
    right: float
    top: float
    bottom: float
    lowest: tuple[float, float]  # the values on the left and on the bottom edge
    highest: tuple[float, float]  # the values on the right and on the top edge

    def x(self, value: float) -> float:
        """Where a value lies from left to right."""
        share = (value - self.lowest[0]) / (self.highest[0] - self.lowest[0])
        return round(self.left + share * (self.right - self.left), 1)

    def y(self, value: float) -> float:
        """Where a value lies from top to bottom."""
        share = (value - self.lowest[1]) / (self.highest[1] - self.lowest[1])
        return round(self.bottom - share * (self.bottom - self.top), 1)

    def levels(self, values: Iterable[float], text: Callable[[float], str]) -> list[Mark]:
        """A line across the area at each value, with the value's text to the left."""
        marks = []
        for value in values:
            y = self.y(value)
            marks.append(stroke("grid", f"M{self.left} {y}H{self.right}"))
            marks.append(label(self.left - 8, y + 4, text(value), "end"))
        return marks


def curve(
    points: Sequence[tuple[int, float]],
    title: str,
    text: Callable[[float], str],
    level: tuple[str, float] | None = None,
) -> Markup:
    """A line through points (epoch, value), and a dashed line at a level that has a name.

    The points are finite, in the order of their epochs, and at least one. With a level, the values
    are shares of one; without a level, the chart ends at the next whole number.
    """
    epochs, values = [epoch for epoch, _ in points], [value for _, value in points]
    top = 1.0 if level else float(max(1, math.ceil(max(values))))
    one_epoch = 0.5 if epochs[0] == epochs[-1] else 0.0  # a single point lies in the middle
    lowest, highest = (epochs[0] - one_epoch, 0.0), (epochs[-1] + one_epoch, top)
    area = Area(64, 372, 16, 190, lowest, highest)
    marks = area.levels((0.0, top / 2, top), text)
    for epoch in sorted({epochs[0], epochs[-1]}):
        marks.append(label(area.x(epoch), area.bottom + 20, f"epoch {epoch}", "middle"))
    if level:
        y = area.y(level[1])
        below = y + 16 < area.bottom
        marks.append(stroke("level", f"M{area.left} {y}H{area.right}"))
        words = f"{level[0]}: {text(level[1])}"
        marks.append(label(area.right, y + 16 if below else y - 6, words, "name end"))
    places = [(area.x(epoch), area.y(value)) for epoch, value in points]
    marks.append(Mark("polyline", {"points": " ".join(f"{x},{y}" for x, y in places)}))
    marks += [Mark("circle", {"cx": x, "cy": y, "r": 3}) for x, y in places]
    spoken = (
        f"{title}: {text(values[0])} after epoch {epochs[0]}, "
        f"{text(values[-1])} after epoch {epochs[-1]}"
    )
    return _drawn(marks, area.bottom + 30, spoken)


@dataclass(frozen=True)
class Point:
    """One row of a comparison: its scores as shares of one, a score for each seed, and its cost."""

    name: str
    cost: float
    scores: Sequence[float]
    filled: bool  # a disc; otherwise a ring

    @property
    def mean(self) -> float:
        """The mean of the scores."""
        return sum(self.scores) / len(self.scores)


def scatter(points: Sequence[Point], axis: str, text: Callable[[float], str]) -> Markup:
    """Scores over costs. Each name stands beside its point, and no name covers another name.

    `axis` says what the cost is, `text` how a cost is written.
    """
    gap = 14  # units from one name to the next name below
    lowest_score = min(min(point.scores) for point in points)
    highest_score = max(max(point.scores) for point in points)
    scores = ticks(max(0.0, lowest_score - 0.03), min(1.0, highest_score + 0.03))
    costs = ticks(min(point.cost for point in points), max(point.cost for point in points))
    bottom = 12 + max(190, gap * (len(points) + 1))
    area = Area(48, 392, 12, bottom, (costs[0], scores[0]), (costs[-1], scores[-1]))
    marks = area.levels(scores, lambda score: percent(score, 0))
    marks += [
        label(area.left, bottom + 18, text(costs[0])),
        label(area.right, bottom + 18, text(costs[-1]), "end"),
        label((area.left + area.right) / 2, bottom + 36, axis, "middle"),
    ]
    free = area.top  # the highest place that no name has taken
    best_first = sorted(points, key=lambda point: -point.mean)
    for rank, point in enumerate(best_first):
        x, y = area.x(point.cost), area.y(point.mean)
        lowest_place = bottom - gap * (len(points) - 1 - rank)  # leaves room for the names below
        y_name = min(max(y + 4, free), lowest_place)
        free = y_name + gap
        side = -1 if x > (area.left + area.right) / 2 else 1  # of the point, where its name stands
        spread = f"M{x} {area.y(min(point.scores))}V{area.y(max(point.scores))}"
        kind = "name end" if side < 0 else "name"
        marks += [
            stroke("grid", f"M{x} {y}L{x + 9 * side} {y_name - 4}"),
            stroke("spread", spread),
            Mark("circle", {"cx": x, "cy": y, "r": 4, "class": None if point.filled else "ring"}),
            label(x + 11 * side, y_name, point.name, kind),
        ]
    spoken = (f"{point.name}: {percent(point.mean)} at {text(point.cost)}" for point in best_first)
    return _drawn(marks, bottom + 44, "; ".join(spoken))


@dataclass(frozen=True)
class Series:
    """The scores of a row, as shares of one, at each value of a setting."""

    name: str
    scores: Sequence[tuple[float, Sequence[float]]]  # (value, a score for each seed)

    @property
    def means(self) -> list[tuple[float, float]]:
        """Each value, and the mean of the scores there."""
        return [(value, sum(scores) / len(scores)) for value, scores in self.scores]


def lines_plot(panels: Mapping[str, Sequence[Series]], axis: str) -> Markup:
    """Mean scores over a setting as an SVG file: a panel for each title, a line for each row.

    The panels stand one above the other. The values are above 0 and lie on a logarithmic scale;
    `axis` names the setting. A bar through a point reaches from the lowest score to the highest.
    Lines differ in their dashes, and the name of a row stands at the right end of its line.
    """
    everything = [series for rows in panels.values() for series in rows]
    scores = [score for series in everything for _, row in series.scores for score in row]
    levels = ticks(max(0.0, min(scores) - 0.02), min(1.0, max(scores) + 0.02))
    values = sorted({value for series in everything for value, _ in series.scores})
    lowest, highest = math.log(values[0]), math.log(values[-1])
    marks, bottom, spoken = [], 0.0, []
    for title, rows in panels.items():
        ends = (lowest - 0.1, levels[0]), (highest + 0.1, levels[-1])
        area = Area(48, 306, bottom + 34, bottom + 210, *ends)
        bottom = area.bottom + 44
        marks.append(label(12, area.top - 14, title, "bold"))
        marks += area.levels(levels, lambda score: percent(score, 0))
        for value in values:
            marks.append(label(area.x(math.log(value)), area.bottom + 18, f"{value:g}", "middle"))
        marks.append(label((area.left + area.right) / 2, area.bottom + 36, axis, "middle"))
        marks += _lines(rows, area)
        for series in rows:
            told = ", ".join(f"{percent(mean)} at {value:g}" for value, mean in series.means)
            spoken.append(f"{title}, {series.name}: {told}")
    return _drawn(marks, bottom + 4, "; ".join(spoken), standalone=True)


def _lines(rows: Sequence[Series], area: Area) -> list[Mark]:
    """The lines of a panel, and their names, of which no name covers another name."""
    gap, marks = 14, []
    dashes = dict(zip((row.name for row in rows), cycle(DASHES), strict=False))
    free = area.top  # the highest place that no name has taken
    best_first = sorted(rows, key=lambda row: -row.means[-1][1])
    for rank, row in enumerate(best_first):
        shift = 3 * (rank - (len(rows) - 1) / 2)  # bars of several rows stand side by side
        places = [(area.x(math.log(value)) + shift, area.y(mean)) for value, mean in row.means]
        for (x, y), (_, scores) in zip(places, row.scores, strict=True):
            marks.append(stroke("spread", f"M{x} {area.y(min(scores))}V{area.y(max(scores))}"))
            marks.append(Mark("circle", {"cx": x, "cy": y, "r": 3}))
        line = " ".join(f"{x},{y}" for x, y in places)
        marks.append(Mark("polyline", {"points": line, "stroke-dasharray": dashes[row.name]}))
        x, y = places[-1]
        lowest_place = area.bottom - gap * (len(rows) - 1 - rank)
        y_name = min(max(y + 4, free), lowest_place)
        free = y_name + gap
        marks.append(stroke("grid", f"M{x} {y}L{area.right + 6} {y_name - 4}"))
        marks.append(label(area.right + 9, y_name, row.name, "name"))
    return marks


def ticks(low: float, high: float) -> list[float]:
    """Round numbers, evenly apart and at least two: from `low` or less to `high` or more."""
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


@dataclass(frozen=True)
class Bar:
    """One bar: whose it is, how long it is, its text, and the range that a whisker shows."""

    name: str
    length: float
    text: str
    whisker: tuple[float, float] | None = None
    is_reference: bool = False  # drawn in a quiet colour


def bench_plot(result: Mapping[str, Any], path: Path) -> None:
    """Write what `zeroi2v bench` measured as an SVG file: latency above, and throughput below it.

    The file brings its own style and background. The same result gives the same file.
    """
    models = result["models"]
    latency = [
        Bar(
            model["name"],
            model["latency_ms"]["median"],
            f"{model['latency_ms']['median']:,.1f} ms, {model['ratio']['fast']:.3f}x",
            (model["latency_ms"]["q1"], model["latency_ms"]["q3"]),
            is_reference=model is models[0],
        )
        for model in models
    ]
    note = "Median and quartiles; the ratio is to the first model."
    marks, bottom = _bars("Time for one clip", note, latency, 0)
    if all("throughput" in model for model in models):
        throughput = []
        for model in models:
            speed, batch = model["throughput"]["clips_per_second"], model["throughput"]["batch"]
            text = f"{speed:,.2f}/s, batch {batch:.0f}"
            throughput.append(Bar(model["name"], speed, text, is_reference=model is models[0]))
        note = "Clips per second at the batch size that gives the most."
        more, bottom = _bars("Throughput", note, throughput, bottom + 12)
        marks += more
    spoken = "; ".join(f"{bar.name}: {bar.text}" for bar in latency)
    path.write_text(_drawn(marks, bottom, spoken, standalone=True), encoding="utf-8")


def shares_plot(charts: Mapping[str, Sequence[Bar]], note: str, path: Path) -> None:
    """Write bars of shares of one as an SVG file. `charts` maps each title to the bars below it.

    A share of one has the same length in all charts. The note stands below each title.
    """
    marks: list[Mark] = []
    bottom = 0.0
    for title, bars in charts.items():
        more, bottom = _bars(title, note, bars, bottom + 12, longest=1.0)
        marks += more
    spoken = "; ".join(
        f"{title}, {bar.name}: {bar.text}" for title, bars in charts.items() for bar in bars
    )
    path.write_text(_drawn(marks, bottom, spoken, standalone=True), encoding="utf-8")


def _bars(
    title: str, note: str, bars: Sequence[Bar], top: float, longest: float | None = None
) -> tuple[list[Mark], float]:
    """The marks of a title, a note and bars, each below its name, and the y at which they end.

    `longest` is the value of the longest possible bar; None: the largest value of these bars.
    """
    longest = longest or max(end for bar in bars for end in (bar.length, *(bar.whisker or ())))
    left, height, row = 12, 12, 38
    marks = [label(left, top + 24, title, "bold"), label(left, top + 40, note)]
    for rank, bar in enumerate(bars):
        y_name = top + 68 + row * rank
        y, length = y_name + 6, round(bar.length / longest * LONGEST_BAR, 1)
        ends, kind = [length], "reference" if bar.is_reference else "bar"
        size = {"x": left, "y": y, "width": length, "height": height}
        marks += [label(left, y_name, _shortened(bar.name)), Mark("rect", {**size, "class": kind})]
        if bar.whisker:
            low, high = (round(left + end / longest * LONGEST_BAR, 1) for end in bar.whisker)
            ends.append(high - left)
            caps = f"M{low} {y + 2}V{y + 10}M{high} {y + 2}V{y + 10}"
            marks.append(stroke("whisker", f"M{low} {y + 6}H{high}{caps}"))
        marks.append(label(left + max(ends) + 6, y + 10, bar.text))
    return marks, top + 68 + row * len(bars)


def _shortened(name: str) -> str:
    """A name that fits on a line: the end of a long path tells more than its beginning."""
    if len(name) <= LONGEST_NAME:
        return name
    return "\N{HORIZONTAL ELLIPSIS}" + name[1 - LONGEST_NAME :]


def _drawn(
    marks: Sequence[Mark], height: float, spoken: str, *, standalone: bool = False
) -> Markup:
    """The marks as SVG. `spoken` is read to people who cannot see the chart."""
    return render(
        "chart.svg", marks=marks, width=WIDTH, height=height, spoken=spoken, standalone=standalone
    )
