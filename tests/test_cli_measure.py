"""What the commands that measure promise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import zeroi2v
from zeroi2v.cli import main


def test_towers_lists_what_the_library_lists(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["towers", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == zeroi2v.supported_towers()
    assert main(["towers", "--partly", "--quiet"]) == 0
    assert capsys.readouterr().out.split() == zeroi2v.partly_covered_towers()


def test_towers_takes_a_pattern_and_names_the_nearest_where_none_matches(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["towers", "vit_base_patch16_clip*", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "vit_base_patch16_clip_quickgelu_224" in found
    assert all(name.startswith("vit_base_patch16_clip") for name in found)
    assert main(["towers", "vit_base_patch16_cli_224"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "did you mean 'vit_base_patch16_clip_224'" in error


def test_show_draws_into_a_folder_and_refuses_in_one_line(
    motion_videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = tmp_path / "model", tmp_path / "drawn"
    zeroi2v.create_model("zeroi2v_tiny", num_classes=2, frames=4).save_pretrained(model)
    video = str(next(motion_videos.glob("val/left/*.mp4")))
    assert main(["show", video, "--model", str(model), "--block", "1", "--out", str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["block"] == 1
    assert [Path(name) for name in said["files"]] == [out / name for name in ("show.png", "show.mp4", "show.html")]
    assert all(Path(name).stat().st_size for name in said["files"])
    for wrong, complaint in (
        (["--block", "9"], "block must be 1 to 6"),
        (["--label", "10"], "no class is called '10'"),
    ):
        assert main(["show", video, "--model", str(model), "--out", str(tmp_path / "no"), *wrong]) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert complaint in error
    assert not (tmp_path / "no").exists()
