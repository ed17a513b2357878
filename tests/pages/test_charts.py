"""What does a chart promise? Every mark inside, every name readable, and a file that stands
alone."""

from __future__ import annotations

import json
import math
import re
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from zeroi2v.pages.charts import Point, Series, bench_plot, curve, lines_plot, scatter, ticks
from zeroi2v.pages.page import percent

RESULT = Path(__file__).parents[2] / "benchmarks" / "results" / "bench-cpu.json"
SVG = "{http://www.w3.org/2000/svg}"


def points(*scores: tuple[float, ...], cost: float = 1.0) -> list[Point]:
    return [
        Point(f"row {number}", cost + 0.1 * number, row, filled=number % 2 == 0)
        for number, row in enumerate(scores)
    ]


def inside(chart: str) -> None:
    """Every point and every text lies inside the chart."""
    root = ElementTree.fromstring(chart)
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for element in root.iter():
        for key, limit in (("cx", width), ("cy", height), ("x", width), ("y", height)):
            assert 0 <= float(element.get(key, 0)) <= limit, element.attrib


@pytest.mark.parametrize(
    "scores",
    [
        [(0.5,)],
        [(0.0, 0.0), (1.0, 1.0)],
        [(0.5, 0.6)] * 20,
        [(0.9, 0.1), (0.2, 0.3), (0.25,)],
        [(1.0,)] * 3,
    ],
    ids=str,
)
def test_no_name_of_a_scatter_covers_another(scores: list[tuple[float, ...]]) -> None:
    chart = scatter(points(*scores), "cost", "{:g}".format)
    inside(chart)
    root = ElementTree.fromstring(chart)
    names = {text.text: text for text in root.iter("text") if (text.text or "").startswith("row ")}
    assert len(names) == len(scores)
    heights = sorted(float(text.attrib["y"]) for text in names.values())
    assert all(lower - upper >= 12 for upper, lower in pairwise(heights))
    rings = sum(circle.get("class") == "ring" for circle in root.iter("circle"))
    assert rings == len(scores) // 2
    spoken = root.attrib["aria-label"]
    assert all(f"row {number}: " in spoken for number in range(len(scores)))


def test_a_point_lies_where_its_score_and_cost_say() -> None:
    chart = scatter(points((0.0,), (1.0,)), "cost", "{:g}".format)
    (low, high) = sorted(
        (float(circle.attrib["cy"]), float(circle.attrib["cx"]))
        for circle in ElementTree.fromstring(chart).iter("circle")
    )[::-1]
    assert low[0] > high[0], "the better score is higher up"
    assert low[1] < high[1], "the cheaper row is further left"


@pytest.mark.parametrize("epochs", [1, 2, 40])
@pytest.mark.parametrize("level", [None, ("guessing", 0.0), ("guessing", 0.125), ("best", 1.0)])
def test_a_curve_stays_inside_whatever_its_level(
    epochs: int, level: tuple[str, float] | None
) -> None:
    values = [(epoch, 1 - 1 / (epoch + 1)) for epoch in range(epochs)]
    chart = curve(values, "Accuracy", percent, level)
    inside(chart)
    root = ElementTree.fromstring(chart)
    assert len(list(root.iter("circle"))) == epochs
    assert (level is not None) == ('class="level"' in chart)


@pytest.mark.parametrize(
    ("low", "high"),
    [(0.0, 1.0), (3.0, 3.0), (0.0, 0.0), (1.03, 1.58), (35.1, 3601.0), (-2.0, 1e-3)],
)
def test_ticks_are_round_even_and_around_the_values(low: float, high: float) -> None:
    numbers = ticks(low, high)
    assert 2 <= len(numbers) <= 8
    assert numbers[0] <= low + 1e-6
    assert numbers[-1] >= high - 1e-6
    steps = [second - first for first, second in pairwise(numbers)]
    assert all(math.isclose(step, steps[0], rel_tol=1e-6) for step in steps)
    assert f"{steps[0]:.0e}"[0] in "125"


@pytest.fixture
def result() -> dict[str, Any]:
    """What a bench wrote."""
    value = json.loads(RESULT.read_text(encoding="utf-8"))
    assert isinstance(value, dict)
    return value


def drawn(result: dict[str, Any], folder: Path) -> str:
    bench_plot(result, folder / "bench.svg")
    return (folder / "bench.svg").read_text(encoding="utf-8")


def test_the_file_of_a_bench_stands_alone(result: dict[str, Any], tmp_path: Path) -> None:
    text = drawn(result, tmp_path)
    inside(text)
    root = ElementTree.fromstring(text)
    assert root.tag == f"{SVG}svg"
    background = root.find(f"{SVG}rect")
    assert background is not None
    assert background.attrib["class"] == "paper"
    assert "prefers-color-scheme: dark" in text
    rules = text.partition("<style>")[2].partition("</style>")[0]
    assert "var(" not in rules, "programs that are no browsers know no variables"
    assert not re.search(r"url\(|href|@import|<script", text)
    bars = [rect for rect in root.iter(f"{SVG}rect") if rect.get("class") in ("bar", "reference")]
    assert len(bars) == 2 * len(result["models"])
    widths = [float(bar.attrib["width"]) for bar in bars[: len(result["models"])]]
    medians = [model["latency_ms"]["median"] for model in result["models"]]
    ratios = [width / median for width, median in zip(widths, medians, strict=True)]
    assert ratios == pytest.approx([ratios[0]] * len(ratios), rel=2e-3)


def test_the_committed_picture_is_the_committed_result(
    result: dict[str, Any], tmp_path: Path
) -> None:
    committed = Path(__file__).parents[2] / "docs" / "pictures" / "bench-cpu.svg"
    assert committed.read_text(encoding="utf-8") == drawn(result, tmp_path)


def test_a_bench_without_throughput_has_one_panel_and_a_long_path_its_end(
    result: dict[str, Any], tmp_path: Path
) -> None:
    for model in result["models"]:
        del model["throughput"]
    result["models"][0]["name"] = "folder/" * 20 + "<run>:merged"
    text = drawn(result, tmp_path)
    assert "Throughput" not in text
    shown = [element.text or "" for element in ElementTree.fromstring(text).iter(f"{SVG}text")]
    (name,) = (line for line in shown if line.endswith("<run>:merged"))
    assert name.startswith("\N{HORIZONTAL ELLIPSIS}")
    assert len(name) == 56


def test_lines_that_meet_keep_their_names_apart_and_differ_in_their_dashes() -> None:
    rows = [
        Series(f"row {n}", [(0.25, (0.5, 0.6)), (1.0, (0.7, 0.8)), (4.0, (0.9, 0.9))])
        for n in range(4)
    ]
    chart = lines_plot({"first": rows, "second": rows[:2]}, "patches a frame")
    inside(chart)
    root = ElementTree.fromstring(chart)
    names = [text for text in root.iter(f"{SVG}text") if text.get("class") == "name"]
    assert [text.text for text in names] == [f"row {n}" for n in (0, 1, 2, 3, 0, 1)]
    heights = [float(text.attrib["y"]) for text in names]
    assert all(below - above >= 14 for above, below in pairwise(heights))
    lines = [line.get("stroke-dasharray") for line in root.iter(f"{SVG}polyline")]
    assert len({*lines[:4]}) == 4
    assert lines[4:] == lines[:2], "a row has the same dashes in every panel"
    assert len([*root.iter(f"{SVG}circle")]) == 6 * 3
    assert "second, row 1: 55.0\u00a0% at 0.25, 75.0\u00a0% at 1" in root.attrib["aria-label"]
    assert root.find(f"{SVG}style") is not None, "the file brings its own style"


def test_a_line_through_even_factors_lies_at_even_distances() -> None:
    row = Series("row", [(0.25, (0.5,)), (1.0, (0.6,)), (4.0, (0.7,))])
    root = ElementTree.fromstring(lines_plot({"one": [row]}, "axis"))
    left, middle, right = (float(mark.attrib["cx"]) for mark in root.iter(f"{SVG}circle"))
    assert middle - left == pytest.approx(right - middle, abs=0.2)
