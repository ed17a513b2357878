"""What runs from a checkout whose package is not installed, on a machine without PyAV?"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import zeroi2v

ROOT = Path(__file__).resolve().parents[1]
# In a fresh process: two packages tell no version, `import av` fails, and then other code runs.
BARE = """
import importlib.metadata, runpy, sys
installed = importlib.metadata.distribution
def distribution(name):
    if name in ("zeroi2v", "av"):
        raise importlib.metadata.PackageNotFoundError(name)
    return installed(name)
importlib.metadata.distribution = distribution
sys.modules["av"] = None
def bare_main(*words):
    from zeroi2v.cli.main import main
    try:
        status = main([str(word) for word in words])
    except SystemExit as error:  # --help
        status = error.code
    print("status", status, flush=True)
"""
SMALL = ("--rounds", "2", "--warmup", "1", "--max-batch", "1", "--json", "--quiet")


def bare(code: str, *arguments: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a process that has neither the package's metadata nor PyAV."""
    words = [sys.executable, "-W", "error", "-c", f"{BARE}{code}", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    return subprocess.run(
        words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def test_commands_that_open_no_video_run(tmp_path: Path) -> None:
    saved, merged, out = tmp_path / "saved", tmp_path / "merged", tmp_path / "out"
    done = bare(
        f"""
import zeroi2v
saved, merged, out = sys.argv[1:]
model = zeroi2v.create_model("zeroi2v_tiny", num_classes=3, frames=2)
model.save_pretrained(saved)
zeroi2v.Predictor(saved)
bare_main("--version")
bare_main("bench", "plain", "--model", saved, *{SMALL}, "--out", out)
bare_main("bench", "plain", "--count", "--quiet", "--out", out)
bare_main("cost", "--model", saved)
bare_main("towers", "zeroi2v_tiny")
bare_main("merge", saved, "--out", merged)
bare_main("train", "--help")
""",
        saved,
        merged,
        out,
    )
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^status (.+)$", done.stdout, re.MULTILINE) == ["0"] * 7, done.stderr
    assert done.stdout.startswith(f"{zeroi2v.__version__}\n")
    for name in ("bench.json", "count.json"):
        versions = json.loads((out / name).read_text(encoding="utf-8"))["versions"]
        assert versions["zeroi2v"] == zeroi2v.__version__
        assert versions["av"] is None
    assert (merged / "config.json").exists()


@pytest.mark.parametrize(
    "words",
    [
        "predict VIDEO --model SAVED",
        pytest.param("data check VIDEO", marks=pytest.mark.slow),
    ],
)
def test_a_command_that_opens_a_video_says_what_to_install(words: str, tmp_path: Path) -> None:
    video, saved = tmp_path / "video" / "class" / "one.mp4", tmp_path / "saved"
    video.parent.mkdir(parents=True)
    video.write_bytes(b"no matter what")
    zeroi2v.create_model("zeroi2v_tiny", num_classes=3, frames=2).save_pretrained(saved)
    source = video if "predict" in words else video.parents[1]
    command = words.replace("VIDEO", str(source)).replace("SAVED", str(saved)).split()
    done = bare(f"bare_main(*{command}, '--quiet')")
    assert "status 1" in done.stdout
    assert done.stderr.startswith("error: PyAV reads and writes videos, but cannot be loaded (")
    assert done.stderr.endswith("pip install av\n")
    assert done.stderr.count("\n") == 1


def test_every_benchmark_begins() -> None:
    scripts = sorted((ROOT / "benchmarks").glob("*.py"))
    names = [str(path) for path in scripts if 'if __name__ == "__main__"' in path.read_text()]
    assert len(names) > 5
    done = bare(
        f"""
sys.path.insert(0, "benchmarks")
for name in {names}:
    sys.argv = [name, "--help"]
    try:
        runpy.run_path(name, run_name="__main__")
    except SystemExit as error:
        print("status", error.code)
"""
    )
    assert re.findall(r"^status (.+)$", done.stdout, re.MULTILINE) == ["0"] * len(names), (
        done.stderr
    )


def test_the_version_of_a_built_package_is_that_of_the_code() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert settings["project"]["dynamic"] == ["version"]
    text = (ROOT / settings["tool"]["hatch"]["version"]["path"]).read_text(encoding="utf-8")
    # the pattern with which hatchling finds a version
    match = re.search(r"""^__version__ *= *(['"])v?(?P<version>.+?)\1""", text, re.MULTILINE)
    assert match
    assert match["version"] == zeroi2v.__version__
