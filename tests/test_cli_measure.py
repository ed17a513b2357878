"""What the commands that measure promise."""

from __future__ import annotations

import json

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
