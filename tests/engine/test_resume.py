"""A run that stopped anywhere and was resumed ends, bit for bit, like a run that never stopped."""

from __future__ import annotations

import dataclasses
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest
import torch

from tests.training_for_tests import interrupted_after
from zeroi2v.config import ClipConfig, ModelConfig, Recipe, TrainConfig
from zeroi2v.data.datasets import VideoDataset, open_dataset
from zeroi2v.engine.run import train
from zeroi2v.errors import CheckpointError
from zeroi2v.files import read_json_lines
from zeroi2v.recipes import write_recipe

RECIPE = Recipe(
    model=ModelConfig(adapter_dropout=0.1),
    clip=ClipConfig(frames=4),
    train=TrainConfig(
        epochs=2,
        batch_size=8,
        warmup_epochs=0.5,
        workers=0,
        save_every_minutes=1e-6,
        token_share=0.5,  # drawn anew in every step
        few_frames=2,  # in the first of the two epochs
        few_frames_epochs=1,
        learning_rate_shares={"adapters": 0.5, "classifier": 2.0},
    ),
)


@pytest.fixture(scope="module")
def dataset(motion_videos: Path) -> VideoDataset:
    return open_dataset(motion_videos)


@pytest.fixture(scope="module")
def undisturbed(dataset: VideoDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(RECIPE, dataset, tmp_path_factory.mktemp("runs") / "run").folder


def assert_same(run: Path, expected: Path) -> None:
    """Two run folders hold the same weights and figures."""
    for name in ("last.safetensors", "model.safetensors"):
        assert (run / name).read_bytes() == (expected / name).read_bytes(), name
    log, expected_log = (
        [
            {**entry, "seconds": 0, "peak_memory": 0}
            for entry in read_json_lines(folder / "log.jsonl")
        ]
        for folder in (run, expected)
    )
    assert log == expected_log


@pytest.mark.parametrize("stop", [1, 4, 6, 9])
def test_a_run_stopped_after_any_batch_goes_on_to_the_same_weights(
    stop: int,
    undisturbed: Path,
    dataset: VideoDataset,
    tmp_path: Path,
) -> None:
    with interrupted_after(stop):
        train(RECIPE, dataset, tmp_path / "run")
    torch.manual_seed(99)  # whatever else the new process has done
    run = train(RECIPE, dataset, tmp_path / "run", resume=True)
    assert run.epochs == 2
    assert_same(run.folder, undisturbed)


def test_a_finished_run_that_is_resumed_stays_as_it_is(
    undisturbed: Path, dataset: VideoDataset, tmp_path: Path
) -> None:
    shutil.copytree(undisturbed, tmp_path / "run")
    assert train(RECIPE, dataset, tmp_path / "run", resume=True).epochs == 2
    assert_same(tmp_path / "run", undisturbed)


@pytest.mark.slow
def test_a_run_killed_at_twenty_moments_ends_with_the_weights_of_the_undisturbed_run(
    motion_videos: Path, dataset: VideoDataset, undisturbed: Path, tmp_path: Path
) -> None:
    write_recipe(RECIPE, tmp_path / "recipe.toml")
    random = Random(0)
    command = [sys.executable, "-m", "zeroi2v", "train", str(motion_videos), "--quiet"]
    start = time.perf_counter()
    subprocess.run(
        [*command, "--out", str(tmp_path / "timed"), "--recipe", str(tmp_path / "recipe.toml")],
        check=True,
    )
    longest = time.perf_counter() - start
    killed = attempt = 0
    while killed < 20:
        attempt += 1
        out = tmp_path / f"run-{attempt}"
        start = time.perf_counter()
        process = subprocess.Popen(
            [*command, "--out", str(out), "--recipe", str(tmp_path / "recipe.toml")]
        )
        try:
            process.wait(random.uniform(0.4, 1) * longest)
            # The run ended before it was killed: the timed run took longer than this run.
            longest = min(longest, time.perf_counter() - start)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
        if (out / "resume.pt").exists():
            subprocess.run([*command, "--out", str(out), "--resume"], check=True)
        else:  # killed before the first batch
            subprocess.run(
                [*command, "--out", str(out), "--recipe", str(tmp_path / "recipe.toml")], check=True
            )
        assert_same(out, undisturbed)


def test_other_videos_or_a_damaged_file_are_refused(
    undisturbed: Path, dataset: VideoDataset, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(undisturbed, out)
    fewer = dataclasses.replace(dataset, splits={**dataset.splits, "train": dataset.train[1:]})
    with pytest.raises(CheckpointError, match="other videos"):
        train(RECIPE, fewer, out, resume=True)
    state = (out / "resume.pt").read_bytes()
    for damaged in (state[: len(state) // 2], b"no state", b""):
        (out / "resume.pt").write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"resume\.pt"):
            train(RECIPE, dataset, out, resume=True)
    (out / "resume.pt").unlink()
    with pytest.raises(CheckpointError, match="not there"):
        train(RECIPE, dataset, out, resume=True)


@pytest.mark.slow
def test_a_full_disk_leaves_what_was_saved_and_says_so(
    undisturbed: Path,
    dataset: VideoDataset,
    motion_videos: Path,
    tmp_path: Path,
) -> None:
    """A limit on the size of files stands for the full disk.

    The limit is below the size of resume.pt and above the size of the model.
    """
    out = tmp_path / "run"
    with interrupted_after(8):
        train(RECIPE, dataset, out)
    saved = {path.name: path.read_bytes() for path in out.iterdir()}
    limit = len(saved["resume.pt"]) // 2
    assert limit > len(saved["model.safetensors"])
    words = ["train", str(motion_videos), "--out", str(out), "--resume", "--quiet"]
    program = (
        "import resource, sys; "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); "
        "from zeroi2v.cli.main import main; "
        f"sys.exit(main({words!r}))"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "resume.pt: cannot be written" in done.stderr
    assert {path.name: path.read_bytes() for path in out.iterdir()} == saved
    assert_same(train(RECIPE, dataset, out, resume=True).folder, undisturbed)
