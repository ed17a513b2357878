"""--json is valid JSON on every standard output, whatever labels and files are called."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import zeroi2v
from zeroi2v.cli.main import main

LABELS = ["öffnen", "走る"]


def printed(monkeypatch: pytest.MonkeyPatch, encoding: str, *words: str) -> tuple[int, object]:
    """The exit status of a command and the value that it prints on an output of this encoding."""
    bytes_written = io.BytesIO()
    with monkeypatch.context() as patch:
        output = io.TextIOWrapper(bytes_written, encoding=encoding, errors="strict")
        patch.setattr(sys, "stdout", output)
        status = main([*words])
        output.flush()
    return status, json.loads(bytes_written.getvalue().decode(encoding))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model") / "model"
    model = zeroi2v.create_model("zeroi2v_tiny", num_classes=2, frames=2, pretrained=True)
    model.with_labels(LABELS).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1", "cp1252"])
def test_labels_and_names_come_back_from_every_encoding(
    encoding: str,
    model: str,
    motion_videos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    good = tmp_path / os.fsdecode(b"caf\xe9 \xff.mp4")  # bytes that are no UTF-8
    good.symlink_to(next(motion_videos.glob("val/left/*.mp4")))
    missing = [str(tmp_path / name) for name in ("nö.mp4", "走る.mp4", 'a "b".mp4', "\\x41.mp4")]
    words = ["predict", str(good), *missing, "--model", model, "--json", "--quiet"]
    status, answers = printed(monkeypatch, encoding, *words)
    assert status == 1
    assert isinstance(answers, list)
    assert [answer["video"] for answer in answers] == [str(good), *missing]
    assert {one["label"] for one in answers[0]["predictions"]} == {*LABELS}


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252"])
def test_other_commands_print_valid_json_too(
    encoding: str,
    model: str,
    motion_videos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = tmp_path / "Dätä"
    for label, name in zip(LABELS, ("left", "right"), strict=True):
        (data / label).mkdir(parents=True)
        for video in sorted(motion_videos.glob(f"val/{name}/*.mp4")):
            (data / label / video.name).symlink_to(video)
    (data / LABELS[0] / os.fsdecode(b"br\xf6ken.mp4")).write_bytes(b"nothing")
    words = ["data", "check", str(data), "--workers", "0", "--json", "--quiet"]
    status, value = printed(monkeypatch, encoding, *words)
    assert status == 1
    assert isinstance(value, dict)
    broken = [one["video"] for one in value["broken"]]
    assert broken == [str(data / LABELS[0] / os.fsdecode(b"br\xf6ken.mp4"))]
    words = ["eval", str(data), "--model", model, "--workers", "0", "--json", "--quiet"]
    status, value = printed(monkeypatch, encoding, *words)
    assert status == 1
    assert isinstance(value, dict)
    assert [*value["per_class"]] == LABELS
    assert [one["video"] for one in value["skipped"]] == broken


@pytest.mark.parametrize(
    "variables",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1:backslashreplace"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_json_is_valid_where_python_is_told_another_encoding(variables: dict[str, str]) -> None:
    program = "import sys; from zeroi2v.cli.options import print_json; print_json(sys.argv[1:])"
    names = [b"n\xff.mp4", "ö.mp4".encode(), b"plain.mp4"]
    done = subprocess.run(
        [os.fsencode(sys.executable), b"-X", b"utf8=0", b"-c", program.encode(), *names],
        env={**os.environ, **variables},
        capture_output=True,
        check=True,
    )
    read = json.loads(done.stdout.decode("latin-1"))
    assert [os.fsencode(name) for name in read] == names
