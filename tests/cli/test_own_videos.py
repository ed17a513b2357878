"""What does `train` do with a folder of videos and no settings?"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.cli_for_tests import said
from zeroi2v.config import REAL_TOWERS
from zeroi2v.data.synthetic import write_motion_videos
from zeroi2v.models.loading import load
from zeroi2v.models.towers import supported_towers
from zeroi2v.recipes import read_recipe

SHORT = ["--epochs", "1", "--set", "warmup_epochs=0.5", "--set", "clip.frames=2", "--workers", "0"]


def test_no_clip_is_flipped_and_names_that_look_like_mirror_images_are_pointed_out(
    motion_videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", motion_videos, "--out", tmp_path / "run", *SHORT]
    status, _, err = said(capsys, *words)
    assert status == 0
    pixels = read_recipe(tmp_path / "run" / "recipe.toml").pixels
    assert (pixels.flip, pixels.flip_pairs, pixels.augment_operations, pixels.erase) == (
        0,
        (),
        0,
        0,
    )
    assert pixels.crop_area[0] >= 0.5
    (line,) = (line for line in err.splitlines() if "mirror" in line)
    assert "'anticlockwise' and 'clockwise', 'left' and 'right'; no clip is flipped" in line
    status, _, err = said(capsys, *words[:3], tmp_path / "quiet", *SHORT, "--quiet")
    assert (status, err) == (0, "")


def test_a_recipe_that_flips_keeps_its_flip_and_is_warned_of(
    motion_videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text("[pixels]\nflip = 0.5\ncrop_area = [0.08, 1.0]\n")
    words = ["train", motion_videos, "--out", tmp_path / "run", "--recipe", recipe, *SHORT]
    status, _, err = said(capsys, *words, "--quiet")
    assert status == 0
    assert err.startswith(
        "warning: a flip turns these classes into each other, and keeps the label: "
    )
    assert err.count("\n") == 1
    pixels = read_recipe(tmp_path / "run" / "recipe.toml").pixels
    assert (pixels.flip, pixels.crop_area) == (0.5, (0.08, 1.0))


def test_the_log_says_that_the_embedded_tower_is_a_toy_and_which_towers_are_real(
    motion_videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, _, err = said(capsys, "train", motion_videos, "--out", tmp_path / "toy", *SHORT)
    (line,) = (line for line in err.splitlines() if "toy" in line)
    _, help_text, _ = said(capsys, "train", "--help")
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    for flags in REAL_TOWERS:
        assert flags in line
        assert flags in help_text
        assert flags in readme
        assert flags.split()[1].partition(".")[0] in supported_towers()
    tower = ["--tower", "vit_small_patch14_dinov2.lvd142m", "--set", "pretrained=false"]
    small = ["--set", "tower_options.img_size=28", "--set", "tower_options.depth=1"]
    status, _, err = said(
        capsys, "train", motion_videos, "--out", tmp_path / "real", *SHORT, *tower, *small
    )
    assert status == 0
    assert "toy" not in err


@pytest.mark.slow
@pytest.mark.parametrize("classes", [("left", "right"), ("up", "down")], ids=str)
def test_classes_are_learned_without_settings_whether_or_not_they_are_mirror_images(
    classes: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Within the pair, because the folder has no other classes; guessing is right half the time.

    With flip = 0.5, the videos of left and right stay at 50 %.
    """
    for _ in write_motion_videos(tmp_path / "all", {"train": 800, "val": 160}, seed=0, workers=1):
        pass
    for split in ("train", "val"):
        for name in classes:
            shutil.copytree(tmp_path / "all" / split / name, tmp_path / "two" / split / name)
    words = ["train", tmp_path / "two", "--out", tmp_path / "run", "--epochs", "15", "--quiet"]
    status, _, err = said(capsys, *words)
    assert (status, err) == (0, "")
    assert load(tmp_path / "run").spec.results["validation top-1"] > 0.9
