"""Does the GPU benchmark keep its order, lose only what fails, and run dry on a CPU?"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.gpu_inference import Case, Row
from benchmarks.gpu_place import Place

DRY = Place(dry=True)


def arguments(**settings: object) -> argparse.Namespace:
    defaults = {"parts": [], "out": Path("out"), "dry": False, "work": None, "tower": None}
    return argparse.Namespace(**{**defaults, **settings})


def test_the_parts_come_in_the_order_of_the_page() -> None:
    page = [line.split()[0] for line in (gpu.__doc__ or "").splitlines() if " (" in line[:20]]
    names = [name for name, _, _ in gpu.commands(arguments(work=Path("w"), tower=Path("t")))]
    assert names == page
    assert names[:5] == ["inference", "compiled", "training", "tests", "evidence"]
    assert [name for name, _, _ in gpu.commands(arguments(parts=["moves"]))] == ["moves"]


def test_evidence_is_trained_where_its_files_are_named() -> None:
    assert all(name != "evidence" for name, _, _ in gpu.commands(arguments()))
    command = gpu.evidence_command(arguments(work=Path("/w"), tower=Path("/t.pth")))
    words = "-m benchmarks.evidence confirm --work /w --tower /t.pth --device cuda --workers 6"
    assert " ".join(command[1:]) == words


def test_a_case_that_fails_costs_only_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows(number: int) -> Iterator[Row]:
        if number == 1:
            raise RuntimeError("out of memory\nmore lines")
        yield {"number": number}

    def cases(place: Place) -> Iterator[Case]:
        for number in range(3):
            yield {"case": number}, lambda number=number: rows(number)  # type: ignore[misc]

    monkeypatch.setattr(gpu, "PARTS", {"made": (1, cases)})
    assert not gpu.measure("made", DRY, tmp_path)
    result = json.loads((tmp_path / "gpu-made.json").read_text())
    assert result["rows"] == [
        {"case": 0, "number": 0},
        {"case": 1, "error": "out of memory"},
        {"case": 2, "number": 2},
    ]
    assert result["matrix_tflops"] > 0


def test_a_part_that_takes_too_long_is_stopped_with_all_that_it_started(tmp_path: Path) -> None:
    beat = tmp_path / "beat"
    grandchild = (
        f"import pathlib, time\nwhile True: pathlib.Path({str(beat)!r}).touch(); time.sleep(.1)"
    )
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}])"
    assert gpu.exit_status([sys.executable, "-c", child], {}, 3.0) is None
    beat.unlink()  # the grandchild lived
    time.sleep(0.5)
    assert not beat.exists()
    assert gpu.exit_status([sys.executable, "-c", "raise SystemExit(3)"], {}, 60) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dry"], "name another folder"),
        (["--work", "w"], "belong together"),
        (["tile"], "unknown part tile"),
    ],
)
def test_a_wrong_argument_is_named(
    words: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu", *words])
    with pytest.raises(SystemExit):
        gpu.main()
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_every_part_runs_dry(tmp_path: Path) -> None:
    """A slip in a script costs no GPU's time."""
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=gpu.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for part in gpu.PARTS:
        result = json.loads((tmp_path / f"gpu-{part}.json").read_text())
        assert result["rows"], part
        assert not [row for row in result["rows"] if row.get("errors") or "error" in row]
