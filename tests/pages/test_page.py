"""What does every page promise? It needs no other file, and text from a result stays text."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from jinja2 import UndefinedError

from zeroi2v.pages.compare import compare_page
from zeroi2v.pages.page import duration, percent, render

RESULT = Path(__file__).parents[2] / "benchmarks" / "results" / "compare-motion.json"
EVIL = '"><script>alert("1")</script>'


@pytest.fixture
def result() -> dict[str, Any]:
    """What a comparison wrote."""
    value = json.loads(RESULT.read_text(encoding="utf-8"))
    assert isinstance(value, dict)
    return value


def test_the_browser_is_told_to_load_nothing(result: dict[str, Any]) -> None:
    text = compare_page(result)
    policy = re.search(r'Content-Security-Policy"\s+content="(.*?)"', text)
    assert policy is not None
    assert policy[1] == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert "://" not in text
    assert not re.search(r"url\(|@import|<script|<link", text)


def test_a_page_has_colours_for_a_light_and_for_a_dark_screen(result: dict[str, Any]) -> None:
    light, dark = compare_page(result).split("@media (prefers-color-scheme: dark)")
    for part in (light, dark):
        assert "--ink: #" in part
        assert re.search(r"svg text \{ fill: #", part)


def test_text_from_a_comparison_stays_text(result: dict[str, Any]) -> None:
    evil = copy.deepcopy(result)
    evil["date"] = evil["rows"][0]["row"] = evil["budget"]["model"]["tower"] = EVIL
    evil["rows"][0]["settings"] = [EVIL]
    evil["figure_name"] = evil["versions"]["torch"] = evil["machines"][0]["processor"] = EVIL
    evil["left_out"], evil["failed"] = {EVIL: EVIL}, {"one": EVIL}
    text = compare_page(evil)
    assert "<script" not in text
    assert text.count("&lt;script&gt;") >= 12


def test_the_score_is_called_by_its_name_for_people(result: dict[str, Any]) -> None:
    assert "The top-1 of a row" in compare_page({**result, "figure_name": "top-1"})
    assert "The top1 of a row" in compare_page(result), "of a result that has no such name yet"


def test_a_value_that_a_template_misses_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="marks"):
        render("chart.svg", width=1, height=1, spoken="", standalone=False)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10.0 s"), (59.4, "59 s"), (59.6, "1 min 0 s")],
)
def test_a_duration_is_written_as_people_say_it(seconds: float, text: str) -> None:
    assert duration(seconds).replace("\u00a0", " ") == text


def test_a_share_is_written_in_per_cent() -> None:
    assert percent(0.5) == "50.0\u00a0%"
    assert percent(2 / 3, 0) == "67\u00a0%"
