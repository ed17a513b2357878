"""Are motion videos deterministic, and does only the order of their frames tell the class?"""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
import torch

from zeroi2v.data.datasets import open_dataset
from zeroi2v.data.decode import read_clip
from zeroi2v.data.sampling import segment_indices
from zeroi2v.data.synthetic import (
    MOTIONS,
    PAIRS,
    REVERSE,
    Scene,
    motion_frames,
    random_scene,
    render,
    write_motion_videos,
)
from zeroi2v.errors import DatasetError


def write(folder: Path, seed: int = 0, workers: int = 0) -> dict[str, bytes]:
    assert list(
        write_motion_videos(folder, {"train": 32, "val": 16}, seed=seed, workers=workers)
    ) == [
        *MOTIONS,
        *MOTIONS,
        *MOTIONS,
    ]
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.mp4"))
    }


def test_the_same_seed_gives_the_same_bytes_whatever_the_workers(tmp_path: Path) -> None:
    first = write(tmp_path / "a")
    assert len(set(first.values())) == 48
    assert write(tmp_path / "b", workers=2) == first
    other = write(tmp_path / "c", seed=1)
    assert other.keys() == first.keys()
    assert all(other[name] != first[name] for name in first)


def test_every_video_has_its_reversal_in_the_other_class_and_the_same_split(tmp_path: Path) -> None:
    write(tmp_path / "videos")
    originals = [
        path for path in (tmp_path / "videos").rglob("*.mp4") if "reversed" not in path.stem
    ]
    assert len(originals) == 24
    for path in originals:
        backwards = path.parents[1] / REVERSE[path.parent.name] / f"{path.stem}_reversed.mp4"
        one, other = (read_clip(file, range).float() for file in (path, backwards))
        assert (one - other.flip(0)).abs().mean() < 4, "but for what H.264 loses"
        assert (one - other).abs().mean() > (one - other.flip(0)).abs().mean()
    dataset = open_dataset(tmp_path / "videos")
    assert {name: len(videos) for name, videos in dataset.splits.items()} == {
        "train": 32,
        "val": 16,
    }
    assert dataset.classes == tuple(sorted(MOTIONS))


def test_a_video_and_its_reversal_show_the_evaluation_the_same_frames() -> None:
    frames = len(motion_frames("left", torch.Generator().manual_seed(0)))
    shown = segment_indices(frames, 8)
    assert [frames - 1 - index for index in shown[::-1]] == shown
    starts = [
        segment_indices(frames, 8, rng=_Lowest()),
        [frames - 1 - i for i in segment_indices(frames, 8, rng=_Highest())][::-1],
    ]
    assert starts[0] == starts[1], "and so do the segments that training draws from"


class _Lowest(Random):
    def randint(self, a: int, b: int) -> int:
        return a


class _Highest(Random):
    def randint(self, a: int, b: int) -> int:
        return b


def centre(scene_cover: torch.Tensor) -> torch.Tensor:
    """Centre of mass (x, y) of a cover (S, S)."""
    grid = torch.arange(scene_cover.shape[-1]).float()
    return (
        torch.stack([(scene_cover.sum(0) * grid).sum(), (scene_cover.sum(1) * grid).sum()])
        / scene_cover.sum()
    )


@pytest.mark.parametrize("motion", MOTIONS)
def test_the_main_object_does_what_the_class_says(
    motion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    covers: list[torch.Tensor] = []
    angles: list[torch.Tensor] = []

    def spying(scene, size, generator):  # type: ignore[no-untyped-def]
        picture, cover = render(scene, size, generator)
        covers.append(cover)
        angles.append(scene.angle[:, 0])
        return picture, cover

    monkeypatch.setattr("zeroi2v.data.synthetic.render", spying)
    for seed in range(8):
        motion_frames(motion, torch.Generator().manual_seed(seed))
        first, last = covers[-1][0], covers[-1][-1]
        moved = centre(last) - centre(first)
        grown = last.sum() / first.sum()
        turned = angles[-1][-1] - angles[-1][0]
        match motion:
            case "left" | "right":
                assert moved[0].abs() > 10
                assert (moved[0] > 0) == (motion == "right")
            case "up" | "down":
                assert moved[1].abs() > 10
                assert (moved[1] > 0) == (motion == "down")
            case "nearer" | "farther":
                assert (grown > 1.5) if motion == "nearer" else (grown < 0.7)
            case _:
                assert turned.abs() > 1
                assert (turned > 0) == (motion == "clockwise")


@pytest.mark.parametrize("motion", MOTIONS)
def test_distractors_and_background_drift_steadily_each_its_own_way(
    motion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that motion somewhere in the picture tells nothing.

    They drift by at most a fifth of the side, or of a period, in any direction.
    """
    scenes: list[Scene] = []

    def spying(
        scene: Scene, size: int, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        scenes.append(scene)
        return render(scene, size, generator)

    monkeypatch.setattr("zeroi2v.data.synthetic.render", spying)
    for seed in range(12):
        motion_frames(motion, torch.Generator().manual_seed(seed))
    drifts = []
    for scene in scenes:
        series = torch.cat(
            [scene.place[:, 1:].flatten(1), scene.phase], 1
        ).double()  # (T, 2 distractors' x and y, 2 phases)
        steps = series.diff(dim=0)
        torch.testing.assert_close(steps, steps.mean(0).expand_as(steps), rtol=0, atol=1e-6)
        drifts.append(series[-1] - series[0])
    drift = torch.stack(drifts)  # (videos, 6)
    assert drift.abs().min() > 1e-4
    assert drift.abs().max() <= 0.2
    assert (drift.abs().amax(0) > 0.12).all(), "far enough to be seen, in each of the six"
    assert (drift.amax(0) > 0).all()
    assert (drift.amin(0) < 0).all()
    assert len(drift.unique()) == drift.numel(), "none moves like another"
    assert drift.T.corrcoef().fill_diagonal_(0).abs().max() < 0.95


def test_clockwise_is_clockwise_on_the_screen() -> None:
    generator = torch.Generator().manual_seed(0)
    scene = random_scene(1, generator)
    bar = {
        **vars(scene),
        "shape": torch.full_like(scene.shape, 4),
        "noise": torch.zeros(1),
        "place": torch.full_like(scene.place, 0.5),
    }
    bar["radius"] = torch.tensor([[0.3, 0.01, 0.01]])
    bar["angle"] = torch.full_like(
        scene.angle, 0.5
    )  # a bar along x, turned by 0.5 clockwise: its right end points down
    _, cover = render(type(scene)(**bar), 64, generator)
    x, y = torch.meshgrid(torch.arange(64) - 31.5, torch.arange(64) - 31.5, indexing="xy")
    assert (cover[0] * x * y).sum() > 0  # y grows downwards


def test_pairs_are_each_others_reversal() -> None:
    assert all(REVERSE[one] == other and REVERSE[other] == one for one, other in PAIRS)
    assert {name for pair in PAIRS for name in pair} == set(MOTIONS)


@pytest.mark.parametrize("count", [0, 15, 17])
def test_a_count_that_cannot_be_balanced_is_refused(count: int, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="an even number, at least 16"):
        list(write_motion_videos(tmp_path / "videos", {"train": count}, seed=0))


def test_an_interrupted_call_leaves_nothing(tmp_path: Path) -> None:
    writing = write_motion_videos(tmp_path / "videos", {"train": 32}, seed=0)
    next(writing)
    writing.close()
    assert not list(tmp_path.iterdir())
    (tmp_path / "videos").mkdir()
    with pytest.raises(DatasetError, match="already there"):
        next(write_motion_videos(tmp_path / "videos", {"train": 32}, seed=0))
