"""What must the report hold, and what must it never do?"""

from __future__ import annotations

import base64
import copy
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from zeroi2v.data.synthetic import MOTIONS, motion_frames
from zeroi2v.errors import FileError
from zeroi2v.pages.report import Look, terminal_report, write_report

PAIRS = ("left/right", "up/down", "nearer/farther", "clockwise/anticlockwise")
SHARES = (0.611, 0.622, 0.633, 0.644)
EVIL = '<script>alert("1")</script>'
VOID = {"meta", "img"}


def accuracy(top1: float, shift: float) -> dict[str, Any]:
    confusion = [[100 * row + column for column in range(8)] for row in range(8)]
    within = {pair: share + shift for pair, share in zip(PAIRS, SHARES, strict=True)}
    return {"top1": top1, "within_pairs": within, "confusion": confusion}


RESULT: dict[str, Any] = {
    "zeroi2v": "0.1.0",
    "seed": 17,
    "date": "2026-11-22",
    "machine": {"processor": "A Processor", "cores": 2},
    "versions": {"torch": "2.9.0", "timm": "1.0.20"},
    "classes": list(MOTIONS),
    "pairs": [pair.split("/") for pair in PAIRS],
    "videos": {"train": 3210, "test": 1234},
    "seconds": {"videos": 4.04, "train": 200.2, "total": 3661.0},
    "curve": [{"epoch": 1, "loss": 2.04}, {"epoch": 2, "loss": 0.51, "top1": 0.861}],
    "probe": accuracy(0.482, 0.0),
    "adapted": accuracy(0.951, 0.3),
    "heads": [["-1", "1", "0", "0", "0", "0"], ["0"] * 6],
    "merge": {"clips": 1234, "largest_logit_difference": 2.4e-6, "same_answers": 1233},
    "cost": {
        "tower": {"params": 700608, "gmacs": 0.2136},
        "adapted": {"params": 932000, "gmacs": 0.2811},
        "merged": {"params": 702152, "gmacs": 0.2136 + 768e-9, "extra_gmacs": 0.0},
        "classifier_params": 776,
        "temporal_embedding_params": 768,
        "merged_keys_equal_tower": True,
    },
    "latency": {
        "clips": 16,
        "rounds": 30,
        "tower_ms": 101.23,
        "merged_ms": 101.71,
        "adapted_ms": 131.84,
        "merged_over_tower": 1.004,
    },
    "prediction": {
        "video": "videos/test/left/0.mp4",
        "label": "left",
        "predictions": [{"label": "left", "score": 0.973}, {"label": "right", "score": 0.021}],
    },
}
NUMBERS = (
    *(
        "48.2 %",
        "95.1 %",
        "about 50 %",
        "12.5 %",
        "2 of the 12 attention heads",
        "3,210",
        "1,234",
        "3 min 20 s",
    ),
    *(
        "61.1 %",
        "64.4 %",
        "91.1 %",
        "94.4 %",
        "700,608",
        "932,000",
        "702,152",
        "776",
        "768",
        "0.214 G",
        "0.281 G",
    ),
    *(
        "101.2",
        "131.8",
        "101.7",
        "1.302",
        "1.004",
        "16 clips",
        "30 rounds",
        "1,233 of 1,234",
        "97.3 %",
    ),
)
ON_THE_PAGE_ONLY = (
    "2.4 \u00d7 10-6",
    "2.1 %",
    "86.1 %",
    "0.51",
    "707",
    "17",
    "A Processor",
    "cores 2",
    "torch 2.9.0",
    "61 min 1 s",
    "4.0 s",
)


class Page(HTMLParser):
    """The words that a reader sees, what the page would load, and whether every element is closed
    in its place."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words += data.replace("\u00a0", " ")

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def frames(motion: str = "left") -> Tensor:
    return motion_frames(motion, torch.Generator().manual_seed(0), frames=8, size=48)


def written(folder: Path, result: dict[str, Any] = RESULT, **given: Any) -> str:
    strips = [(motion, frames(motion)) for motion in MOTIONS]
    looks = [Look("head 1 of frame 5 reads frame 4", frames()[0], frames()[1])]
    write_report(folder / "report.html", result, **{"strips": strips, "looks": looks, **given})
    return (folder / "report.html").read_text(encoding="utf-8")


def in_terminal(result: dict[str, Any]) -> str:
    console = Console(width=80, no_color=True)
    with console.capture() as capture:
        console.print(terminal_report(result))
    return capture.get().replace("\u00a0", " ")


def test_the_page_holds_every_number(tmp_path: Path) -> None:
    words = " ".join(Page(written(tmp_path)).words.split())
    assert [number for number in (*NUMBERS, *ON_THE_PAGE_ONLY) if number not in words] == []
    assert (
        "0extra parameters and multiply-adds per clip" in words
        or "extra parameters and multiply-adds per clip0" in words
    )
    assert list(tmp_path.iterdir()) == [tmp_path / "report.html"], "and nothing is left beside it"


def test_the_terminal_shows_the_essentials_in_80_columns() -> None:
    lines = in_terminal(RESULT).splitlines()
    assert max(map(len, lines)) <= 80
    words = " ".join(" ".join(lines).split())
    assert [
        number for number in (*NUMBERS, "2.4e-06") if number not in words and number != "1,234"
    ] == []
    assert "videos/test/left/0.mp4: left (97.3 %): correct." in words


def test_the_page_needs_nothing_else_and_is_small(tmp_path: Path) -> None:
    text = written(tmp_path)
    page = Page(text)
    assert "://" not in text
    assert not re.search(r"url\(|@import", text)
    assert {tag for tag, _ in page.tags}.isdisjoint(
        {"script", "link", "iframe", "object", "embed", "base"}
    )
    assert {str(image["src"]).partition(",")[0] for image in page.all("img")} == {
        "data:image/jpeg;base64"
    }
    assert len(text) < 1_500_000
    assert (
        len(written(tmp_path, strips=[("left", torch.zeros(8, 3, 720, 1280, dtype=torch.uint8))]))
        < 1_500_000
    )


def test_the_page_can_be_read_without_seeing_it(tmp_path: Path) -> None:
    page = Page(written(tmp_path))
    assert page.all("html") == [{"lang": "en"}]
    assert page.all("title")
    assert all(image.get("alt") is not None for image in page.all("img"))
    assert all(drawing["role"] == "img" and drawing["aria-label"] for drawing in page.all("svg"))
    assert all(header["scope"] in ("col", "row") for header in page.all("th"))
    assert "86.1\u00a0% after epoch 2" in str(page.all("svg")[0]["aria-label"])


def test_a_picture_is_the_frame_that_was_given(tmp_path: Path) -> None:
    page = Page(written(tmp_path, strips=[("left", frames())], looks=[]))
    sources = [str(image["src"]).partition(",")[2] for image in page.all("img")]
    assert len(sources) == 8
    for source, frame in zip(sources, frames(), strict=True):
        decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(source))), dtype=np.float32)
        assert np.abs(decoded - frame.movedim(0, -1).numpy()).mean() < 8


@pytest.mark.parametrize(
    "place",
    [
        ("prediction", "video"),
        ("prediction", "label"),
        ("machine", "processor"),
        ("classes", 0),
        ("zeroi2v",),
        ("date",),
    ],
    ids=str,
)
def test_text_from_data_stays_text(tmp_path: Path, place: tuple[Any, ...]) -> None:
    result = copy.deepcopy(RESULT)
    inner: Any = result
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = f"{EVIL}[bold]"
    strips = [(EVIL, frames())]
    looks = [Look(EVIL, frames()[0], frames()[1])]
    folder = tmp_path / EVIL.replace("/", "")
    folder.mkdir()
    page = Page(written(folder, result, strips=strips, looks=looks))
    assert not page.all("script")
    assert page.words.count(EVIL) >= 3
    if place[0] == "prediction":
        assert "[bold]" in in_terminal(result).replace("\n", "")


def test_labels_of_predictions_and_pairs_stay_text(tmp_path: Path) -> None:
    result = copy.deepcopy(RESULT)
    result["prediction"]["predictions"][0]["label"] = EVIL
    for which in ("probe", "adapted"):
        result[which]["within_pairs"] = {EVIL: 0.5}
    result["pairs"][0] = [EVIL, "left"]
    page = Page(written(tmp_path, result))
    assert not page.all("script")
    assert "wrong: it is labelled left" in page.words


@pytest.mark.parametrize(
    ("curve", "drawings"),
    [
        ([], 0),
        ([{"epoch": 1, "loss": 0.0}], 1),
        ([{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.0, "top1": None}], 1),
        ([{"epoch": 1, "loss": float("nan")}, {"epoch": 2, "loss": 1.0, "top1": 0.0}], 2),
        ([{"epoch": epoch, "loss": 300.0 / epoch, "top1": 1.0} for epoch in range(1, 200)], 2),
    ],
)
def test_a_curve_is_drawn_from_what_there_is(
    tmp_path: Path, curve: list[dict[str, Any]], drawings: int
) -> None:
    text = written(tmp_path, {**RESULT, "curve": curve})
    assert len(Page(text).all("svg")) == drawings
    assert "nan" not in "".join(re.findall(r"<svg.*?</svg>", text))
    for x, y in re.findall(r'<circle cx="(.*?)" cy="(.*?)"', text):
        assert 0 <= float(x) <= 400
        assert 0 <= float(y) <= 220


EARLY = {key: RESULT[key] for key in ("zeroi2v", "date", "classes", "pairs", "videos")}
HEADINGS = {
    "probe": ("What the models answered",),
    "adapted": ("What the models answered",),
    "curve": ("How the model with temporal heads learned",),
    "prediction": ("One test video",),
}


def headings(text: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", text)


def test_an_early_page_shows_what_is_known_and_says_what_is_still_running(tmp_path: Path) -> None:
    text = written(tmp_path, EARLY, looks=[], running="training, <b>epoch</b> 1 of 4")
    page = Page(text)
    assert headings(text) == ["What the videos show", "How this was made"]
    assert "Still running: training, <b>epoch</b> 1 of 4." in " ".join(page.words.split())
    assert {"http-equiv": "refresh", "content": "10"} in page.all("meta")
    assert "zeroi2v predict" not in page.words, "there is no merged model to ask yet"
    with_probe = written(
        tmp_path, {**EARLY, "probe": RESULT["probe"]}, looks=[], running="training"
    )
    assert "What the models answered" in headings(with_probe)
    words = Page(with_probe).words
    assert "48.2 %" in words
    assert "With temporal heads" not in words
    assert "95.1 %" not in words


def test_a_finished_page_does_not_load_itself_again(tmp_path: Path) -> None:
    text = written(tmp_path)
    assert "refresh" not in text
    assert "Still running" not in text
    assert len(headings(text)) == 7


@pytest.mark.parametrize("key", sorted(set(RESULT) - set(EARLY)))
def test_a_section_whose_measurements_are_missing_is_left_out(tmp_path: Path, key: str) -> None:
    without = {name: value for name, value in RESULT.items() if name != key}
    alone = {**EARLY, key: RESULT[key]}
    for result in (without, alone):
        Page(written(tmp_path, result, strips=[], looks=[]))
    for heading in HEADINGS.get(key, ()):
        assert heading in headings(written(tmp_path, alone, strips=[], looks=[]))


def test_the_note_on_the_layout_is_on_the_page_as_text(tmp_path: Path) -> None:
    note = f"This layout is not the paper's. {EVIL}"
    page = Page(written(tmp_path, {**RESULT, "layout_note": note}))
    assert note in page.words
    assert not page.all("script")


def test_a_cost_that_is_not_zero_is_not_called_zero(tmp_path: Path) -> None:
    result = copy.deepcopy(RESULT)
    result["cost"]["merged"] = {
        "params": 702152 + 4321,
        "gmacs": 0.2136 + 0.001,
        "extra_gmacs": 0.001,
    }
    result["cost"]["merged_keys_equal_tower"] = False
    words = Page(written(tmp_path, result)).words
    assert "+4,321 and 1,000,000" in words
    assert "has not exactly the" in words
    assert "+4,321 and 1,000,000" in " ".join(in_terminal(result).split())


def test_a_result_read_back_from_json_gives_the_same_page(tmp_path: Path) -> None:
    assert written(tmp_path, json.loads(json.dumps(RESULT))) == written(tmp_path)


def test_what_was_there_stays_if_the_page_cannot_be_made(tmp_path: Path) -> None:
    before = written(tmp_path)
    with pytest.raises(KeyError):
        written(tmp_path, {**RESULT, "cost": {}})
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == before
    (tmp_path / "folder" / "report.html").mkdir(parents=True)
    with pytest.raises(FileError, match=r"report\.html: cannot be written"):
        written(tmp_path / "folder")
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["report.html"]
