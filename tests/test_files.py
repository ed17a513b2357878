"""JSON is valid in every encoding, and a claimed folder is for one process at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from zeroi2v.errors import ConfigError
from zeroi2v.files import claimed, json_text, write_json

VALUE = {
    "label": "Türe öffnen",
    "video": os.fsdecode(b"a\xff.mp4"),
    "names": ["走る", "\N{GRINNING FACE}", 'a "b" \\xff', "line\nbreak"],
}


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1", "cp1252", "utf-16", "cp932"])
def test_json_can_be_carried_by_every_encoding(encoding: str) -> None:
    carried = json_text(VALUE, encoding=encoding).encode(encoding)  # strict: nothing is replaced
    assert json.loads(carried.decode(encoding)) == VALUE
    umlaut = json_text("ü", encoding=encoding)
    assert umlaut == ('"ü"' if encoding not in ("ascii", "cp932") else '"\\u00fc"')


def test_a_json_file_is_valid_utf_8_whatever_a_file_is_called(tmp_path: Path) -> None:
    write_json(tmp_path / "value.json", VALUE)
    assert json.loads((tmp_path / "value.json").read_bytes().decode("utf-8")) == VALUE


def test_json_has_no_infinity(tmp_path: Path) -> None:
    numbers = {"scores": [float("nan"), 0.5, (float("inf"), -float("inf"))]}
    expected = {"scores": [None, 0.5, [None, None]]}
    assert json.loads(json_text(numbers), parse_constant=pytest.fail) == expected
    write_json(tmp_path / "value.json", numbers)
    assert json.loads((tmp_path / "value.json").read_text(), parse_constant=pytest.fail) == expected


def claim_elsewhere(folder: Path) -> str:
    """What another process says when it claims a folder: "claimed", or its error."""
    program = (
        "import sys; from pathlib import Path; from zeroi2v.files import claimed\n"
        "with claimed(Path(sys.argv[1]), 'another task'): print('claimed')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=False
    )
    return (done.stdout + done.stderr).strip().splitlines()[-1]


def test_a_folder_is_claimed_once(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with claimed(out, "another task"):
        assert "another task is running there" in claim_elsewhere(out)
        with (
            pytest.raises(ConfigError, match="another task is running there"),
            claimed(out, "another task"),
        ):
            pytest.fail("the folder was claimed twice")
        (out / "result.txt").write_text("kept")
    assert claim_elsewhere(out) == "claimed"
    assert (out / "result.txt").read_text() == "kept"


def test_a_claimed_folder_in_which_nothing_was_written_goes_again(tmp_path: Path) -> None:
    with claimed(tmp_path / "new", "another task"):
        assert (tmp_path / "new").is_dir()
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    with claimed(tmp_path / "old", "another task"):
        pass
    assert (tmp_path / "old").is_dir()
