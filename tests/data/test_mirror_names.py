"""Are classes that a left-right flip exchanges recognised by their names, and pointed out?"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from zeroi2v.config import PixelsConfig, Recipe
from zeroi2v.data.datasets import Video, VideoDataset
from zeroi2v.data.flip_pairs import point_out_mirror_names, with_flip_pairs
from zeroi2v.data.mirror_names import mirror_names
from zeroi2v.data.synthetic import MIRROR, MOTIONS
from zeroi2v.log import Log
from zeroi2v.recipes import override

PAIRS = [
    ("left", "right"),
    ("turn_left", "Turn-Right"),
    ("turnLeft", "turnRight"),
    ("lefthand", "righthand"),
    ("leftwards", "rightwards"),
    ("left-hand wave", "right_hand_wave"),
    ("pan left fast", "pan right fast"),
    ("Pulling something from left to right", "Pulling something from right to left"),
    ("left2right", "right2left"),
    ("clockwise", "anticlockwise"),
    ("clockwise", "counter-clockwise"),
    ("rotateClockwise", "rotateCounterClockwise"),
    ("rotate cw", "rotate ccw"),
    ("turn CW", "turn anti-clockwise"),
    ("acw", "cw"),
    ("swipe_l", "swipe_r"),
    ("pan_lr", "pan_rl"),
    ("eastbound", "westbound"),
    ("northeast", "northwest"),
    ("up left", "up right"),
    ("links abbiegen", "rechts abbiegen"),
    ("tourner à gauche", "tourner à droite"),
    ("girar a la izquierda", "girar a la derecha"),
    ("向左", "向右"),
    ("left clockwise", "right anticlockwise"),
]


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_names_that_differ_by_their_side_are_a_pair(one: str, other: str) -> None:
    assert mirror_names([one, "walk", other]).pairs == ((one, other),)
    assert mirror_names([other, one]).pairs == ((other, one),)
    assert mirror_names([one, other]).alone == ()


@pytest.mark.parametrize(
    "names",
    [
        ["cleft", "bright"],
        ["leftover", "overright"],
        ["up", "down"],
        ["open", "close"],
        ["cwm", "ccwm"],
        ["turn left", "pan right"],
        ["left clockwise", "right clockwise"],
        ["upright", "down"],
        ["roll", "lorr"],
    ],
    ids=str,
)
def test_other_names_are_no_pair(names: list[str]) -> None:
    assert mirror_names(names).pairs == ()


def test_a_side_whose_mirror_image_is_no_class_is_known() -> None:
    names = ["turn right", "upright", "copyright", "spin counterclockwise", "left", "right"]
    assert mirror_names(names) == ((("left", "right"),), ("turn right", "spin counterclockwise"))


def test_the_pairs_of_motion_videos_are_found() -> None:
    assert {*map(frozenset, mirror_names(MOTIONS).pairs)} == {*map(frozenset, MIRROR)}


def said(capsys: pytest.CaptureFixture[str], classes: list[str], **pixels: object) -> list[str]:
    """The lines of the log about the names of classes."""
    point_out_mirror_names(classes, PixelsConfig(**pixels), Log())  # type: ignore[arg-type]
    return capsys.readouterr().err.splitlines()


def settings_in(line: str) -> list[str]:
    """The values of `--set` in a line, as a shell would read them."""
    return [shlex.split(part)[0].rstrip(";") for part in re.split("--set ", line)[1:]]


def test_the_line_that_points_out_a_pair_holds_the_settings(
    capsys: pytest.CaptureFixture[str],
) -> None:
    classes = ["go left", "go right", "it's", "stop"]
    (line,) = said(capsys, classes)
    assert "no clip is flipped" in line
    pixels = override(Recipe(), settings_in(line)).pixels
    assert (pixels.flip, pixels.flip_pairs) == (0.5, (("go left", "go right"),))
    (line,) = said(capsys, classes, flip=0.5)
    assert line.startswith("warning: a flip turns these classes into each other, ")
    exchange, off = settings_in(line)
    assert override(Recipe(), [exchange]).pixels.flip_pairs == (("go left", "go right"),)
    assert override(Recipe(), [off]).pixels.flip == 0
    assert said(capsys, classes, flip=0.5, flip_pairs=(("go left", "go right"),)) == []
    assert said(capsys, ["stop", "go"], flip=0.5) == []


def test_pairs_that_a_recipe_has_are_kept_in_the_setting(
    capsys: pytest.CaptureFixture[str],
) -> None:
    (line,) = said(capsys, [*MOTIONS], flip=0.5, flip_pairs=(MIRROR[1],))
    setting, _ = settings_in(line)
    assert {*override(Recipe(), [setting]).pixels.flip_pairs} == {*MIRROR}


def test_a_flip_without_a_mirror_image_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = said(capsys, ["turn right", "walk"], flip=0.5)
    assert line.startswith("warning: a flip mirrors the side that these classes show, ")
    assert ", and keeps the label: turn right; " in line
    assert said(capsys, ["turn right", "walk"]) == []
    assert said(capsys, ["turn right", "left", "right"]) == [], "no flip would help"


def test_pairs_without_a_flip_are_pointed_out(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = said(capsys, ["a", "b"], flip_pairs=(("a", "b"),))
    assert "no effect" in line
    assert "--set flip=0.5" in line


def test_pairs_of_a_data_set_come_before_names() -> None:
    video = Video(Path("x.mp4"), 0)
    dataset = VideoDataset(
        Path(),
        ("a", "b", "left", "right"),
        {"train": (video,), "val": ()},
        flip_pairs=(("a", "b"),),
    )
    found = with_flip_pairs(Recipe(), dataset, Log(quiet=True))
    assert found.pixels == PixelsConfig(flip_pairs=(("a", "b"),))
