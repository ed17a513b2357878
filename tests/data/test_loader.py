"""Seed, epoch and videos decide a batch, whoever decodes it; a broken video is never replaced."""

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from tests.videos_for_tests import DAMAGED
from zeroi2v.config import ClipConfig, PixelsConfig, ViewsConfig
from zeroi2v.data.datasets import Video
from zeroi2v.data.decode import VideoInfo, read_clip
from zeroi2v.data.encode import write_video
from zeroi2v.data.loader import TrainLoader, check_videos, train_loader, view_loader
from zeroi2v.data.sampling import clip_indices
from zeroi2v.data.transforms import train_pixels
from zeroi2v.data.views import read_views, view_pixels
from zeroi2v.errors import ConfigError, VideoError

LABELS = ("left", "right", "up")
CLIP = ClipConfig(frames=4)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Video]:
    """Seven videos of 20 frames, 64 by 48. Frame t has grey level 12 t left, and less right."""
    folder = tmp_path_factory.mktemp("videos")
    found = []
    for number in range(7):
        level = 12 * torch.arange(20).view(20, 1, 1, 1) - torch.linspace(0, 20 + number, 64).long()
        path = folder / f"{number}.mp4"
        write_video(path, level.clamp(0, 255).to(torch.uint8).expand(20, 3, 48, 64), fps=8)
        found.append(Video(path, number % 3))
    return found


@pytest.fixture
def with_broken(videos: list[Video], tmp_path: Path) -> list[Video]:
    """The videos, with one that is missing in second and one that is no video in fifth place."""
    (tmp_path / "text.mp4").write_text("not a video")
    bad = [Video(tmp_path / name, 0) for name in ("missing.mp4", "text.mp4")]
    return [videos[0], bad[0], videos[1], videos[2], bad[1], *videos[3:]]


def training(videos: list[Video], **changes: Any) -> TrainLoader:
    settings: dict[str, Any] = {
        "clip": CLIP,
        "pixels": PixelsConfig(),
        "size": 16,
        "labels": LABELS,
        "batch_size": 3,
    }
    return train_loader(videos, **settings | {"seed": 0, "workers": 0, "broken": "stop"} | changes)


def nth_clip(num_frames: int, *, clip: int) -> list[int]:
    """The numbers of the frames of one of two evaluation clips."""
    return clip_indices(num_frames, CLIP, clips=2)[clip]


def test_an_epoch_is_every_sample_once_as_its_seed_epoch_and_index_say(videos: list[Video]) -> None:
    loader = training(videos, seed=5)
    batches = [*loader.epoch(2)]
    assert [clips.shape for clips, _ in batches] == [
        (3, 4, 3, 16, 16),
        (3, 4, 3, 16, 16),
        (1, 4, 3, 16, 16),
    ]
    assert len(loader) == 3
    order = list(range(7))
    Random("5/2").shuffle(order)
    for (clip, label), index in zip(
        ((c, y) for clips, ys in batches for c, y in zip(clips, ys, strict=True)),
        order,
        strict=True,
    ):
        rng = Random(f"5/2/{index}")
        numbers: list[int] = []

        def choose(n: int, rng: Random = rng, numbers: list[int] = numbers) -> list[int]:
            numbers += clip_indices(n, CLIP, rng=rng)[0]
            return numbers

        frames = read_clip(videos[index].path, choose, short_side=18)  # 16 * 256 / 224
        assert torch.equal(clip, train_pixels(frames, 16, PixelsConfig(), rng)[0])
        assert label == videos[index].label
        assert numbers == sorted(numbers)


def same(one: list[tuple[Tensor, Tensor]], other: list[tuple[Tensor, Tensor]]) -> bool:
    return all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(one, other, strict=True)
    )


def test_workers_change_nothing_and_live_on(videos: list[Video]) -> None:
    alone, helped = training(videos), training(videos, workers=2)
    assert same([*training(videos, workers=1).epoch(1)], [*alone.epoch(1)])
    torch.manual_seed(0)
    state = torch.get_rng_state()
    epochs = [[*helped.epoch(number)] for number in (1, 2, 1)]
    assert same(epochs[0], [*alone.epoch(1)])
    assert same(epochs[1], [*alone.epoch(2)])
    assert same(epochs[2], epochs[0])
    assert not same(epochs[0], epochs[1])
    assert not same(epochs[0], [*training(videos, seed=1).epoch(1)])
    assert torch.equal(
        state, torch.get_rng_state()
    )  # or dropout would depend on the number of workers


def test_an_epoch_left_early_does_not_disturb_the_next(videos: list[Video]) -> None:
    loader = training(videos, workers=1)
    next(loader.epoch(1))
    assert same([*loader.epoch(2)], [*training(videos).epoch(2)])


def test_a_flip_exchanges_the_labels_that_the_settings_name(videos: list[Video]) -> None:
    pairs = (("left", "right"),)
    flipped = [
        label
        for _, labels in training(videos, pixels=PixelsConfig(flip=1, flip_pairs=pairs)).epoch(0)
        for label in labels
    ]
    plain = [
        label
        for _, labels in training(videos, pixels=PixelsConfig(flip=0, flip_pairs=pairs)).epoch(0)
        for label in labels
    ]
    assert [{0: 1, 1: 0, 2: 2}[int(label)] for label in plain] == [int(label) for label in flipped]


def test_a_flip_pair_that_is_no_label_is_refused(videos: list[Video]) -> None:
    with pytest.raises(ConfigError, match=r"no class is called 'rihgt', did you mean 'right'\?"):
        training(videos, pixels=PixelsConfig(flip_pairs=(("left", "rihgt"),)))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_video_stops_the_training(with_broken: list[Video], workers: int) -> None:
    with pytest.raises(VideoError) as caught:
        list(training(with_broken, workers=workers).epoch(0))
    assert caught.value.path in (str(with_broken[1].path), str(with_broken[4].path))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_video_is_left_out_and_listed(with_broken: list[Video], workers: int) -> None:
    loader = training(with_broken, broken="skip", workers=workers)
    for epoch in (0, 1):
        batches = [*loader.epoch(epoch)]
        assert sum(len(labels) for _, labels in batches) == 7
        assert all(len(clips) == len(labels) > 0 for clips, labels in batches)
    assert loader.broken == {
        str(with_broken[1].path): "no such file",
        str(with_broken[4].path): DAMAGED,
    }


def test_a_batch_of_broken_videos_only_is_empty(tmp_path: Path) -> None:
    loader = training([Video(tmp_path / str(number), 0) for number in range(4)], broken="skip")
    assert [len(labels) for _, labels in loader.epoch(0)] == [0, 0]
    assert len(loader.broken) == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_an_evaluation_sees_every_view_and_every_broken_video(
    with_broken: list[Video], workers: int
) -> None:
    views = ViewsConfig(clips=2, crops=3)
    batches = [
        *view_loader(with_broken, clip=CLIP, views=views, size=16, batch_size=4, workers=workers)
    ]
    assert [batch.indices for batch in batches] == [[0, 2, 3], [5, 6, 7], [8]]
    broken = [(index, error.path) for batch in batches for index, error in batch.broken]
    assert broken == [(index, str(with_broken[index].path)) for index in (1, 4)]
    for batch in batches:
        assert batch.clips.shape == (len(batch.indices), 6, 4, 3, 16, 16)
        for index, clips in zip(batch.indices, batch.clips, strict=True):
            assert torch.equal(
                clips, read_views(with_broken[index].path, clip=CLIP, views=views, size=16)
            )


@pytest.mark.parametrize("sampling", ["segment", "dense"])
def test_workers_change_no_view(videos: list[Video], sampling: Literal["segment", "dense"]) -> None:
    clip, views = ClipConfig(frames=4, sampling=sampling, stride=3), ViewsConfig(clips=2, crops=3)
    found = [
        [*view_loader(videos, clip=clip, views=views, size=16, batch_size=2, workers=workers)]
        for workers in (0, 1, 2)
    ]
    for others in found[1:]:
        assert [batch.indices for batch in others] == [batch.indices for batch in found[0]]
        assert all(
            torch.equal(one.clips, other.clips) for one, other in zip(found[0], others, strict=True)
        )


def test_a_batch_without_a_readable_video_lists_them_all(tmp_path: Path) -> None:
    videos = [Video(tmp_path / "x.mp4", 0)]
    (batch,) = view_loader(videos, clip=CLIP, views=ViewsConfig(), size=16, batch_size=4, workers=0)
    assert (batch.indices, len(batch.clips)) == ([], 0)
    assert [index for index, _ in batch.broken] == [0]


def test_views_are_clips_times_crops_of_one_decoding(
    videos: list[Video], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = videos[0].path
    calls = []

    def once(*arguments: Any, **options: Any) -> Tensor:
        calls.append(arguments)
        return read_clip(*arguments, **options)

    monkeypatch.setattr("zeroi2v.data.views.read_clip", once)
    found = read_views(path, clip=CLIP, views=ViewsConfig(clips=2, crops=3), size=16)
    assert len(calls) == 1
    expected = []
    for clip in range(2):
        frames = read_clip(path, partial(nth_clip, clip=clip), short_side=16)
        expected += [*view_pixels(frames, 16, 3)]
    assert torch.equal(found, torch.stack(expected))
    assert found.is_contiguous()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_check_tells_of_every_video_in_order(with_broken: list[Video], workers: int) -> None:
    paths = [video.path for video in with_broken]
    found = [*check_videos(paths, workers=workers)]
    assert [path for path, _ in found] == paths
    good = VideoInfo(frames=20, seconds=2.5, width=64, height=48)
    assert [result == good for _, result in found] == [index not in (1, 4) for index in range(9)]
    assert [str(result) for _, result in found if isinstance(result, VideoError)] == [
        f"{paths[1]}: no such file",
        f"{paths[4]}: {DAMAGED}",
    ]


PROGRAM = """
import itertools, multiprocessing, sys
from pathlib import Path
from zeroi2v.config import ClipConfig, PixelsConfig
from zeroi2v.data.datasets import Video
from zeroi2v.data.loader import train_loader

videos = [Video(Path(sys.argv[1]), 0)] * 100
loader = train_loader(videos, clip=ClipConfig(frames=4), pixels=PixelsConfig(), size=16,
                      labels=("a",), batch_size=3, seed=0, workers=2, broken="stop")
try:
    for epoch in itertools.count():
        for batch in loader.epoch(epoch):
            print(*(worker.pid for worker in multiprocessing.active_children()), flush=True)
except KeyboardInterrupt:
    sys.exit(130)
"""


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_ctrl_c_ends_the_workers_without_a_word_from_them(videos: list[Video]) -> None:
    command = [sys.executable, "-c", PROGRAM, str(videos[0].path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        workers = [int(pid) for pid in process.stdout.readline().split()]
        assert len(workers) == 2
        assert all(map(is_alive, workers))
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors == ""
    assert not any(map(is_alive, workers))
