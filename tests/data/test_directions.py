"""Every clip also played backwards: which videos, labels, frames and pixels does that give?"""

from __future__ import annotations

import io
import shutil
import tarfile
import unicodedata
from pathlib import Path
from random import Random

import pytest
import torch

from tests.videos_for_tests import every
from zeroi2v.config import ClipConfig, DataConfig, PixelsConfig, Recipe, ViewsConfig
from zeroi2v.data.datasets import Video, open_dataset, relabel
from zeroi2v.data.decode import read_clip
from zeroi2v.data.directions import (
    BLUR,
    Direction,
    blurred,
    blurred_alike,
    random_deviations,
    sharpness,
)
from zeroi2v.data.encode import write_video
from zeroi2v.data.flip_pairs import point_out_reversals
from zeroi2v.data.formats.listing import Entry, Listing
from zeroi2v.data.loader import train_loader
from zeroi2v.data.mirror_names import reversed_names
from zeroi2v.data.sampling import clip_indices, from_the_end
from zeroi2v.data.synthetic import MOTIONS, PAIRS
from zeroi2v.data.views import read_views
from zeroi2v.errors import ConfigError, DatasetError
from zeroi2v.log import Log
from zeroi2v.recipes import override

BOTH = DataConfig(directions=True)
DIRECTIONS: tuple[Direction, Direction] = ("forwards", "backwards")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of five videos of 9 frames without splits; the frames get brighter."""
    folder = tmp_path_factory.mktemp("videos") / "data"
    noise = torch.rand(10, 9, 3, 24, 32, generator=torch.Generator().manual_seed(0)) * 100
    brighter = torch.arange(9).view(9, 1, 1, 1) * 15
    for number, frames in enumerate((noise + brighter).to(torch.uint8)):
        path = folder / ("bounce", "wave")[number % 2] / f"{number}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, frames, fps=8)
    return folder


def test_every_video_is_there_in_both_directions_in_one_split(videos: Path) -> None:
    plain, both = open_dataset(videos), open_dataset(videos, BOTH)
    assert both.classes == ("bounce", "bounce, backwards", "wave", "wave, backwards")
    for split in ("train", "val"):
        expected = [
            Video(video.path, 2 * video.label + number, direction=direction)
            for video in plain.splits[split]
            for number, direction in enumerate(DIRECTIONS)
        ]
        assert [*both.splits[split]] == expected
    assert {video.path for video in both.train}.isdisjoint(video.path for video in both.val)
    assert plain == open_dataset(videos, DataConfig())
    assert not any(video.direction for video in plain.for_check)


def test_a_model_with_other_numbers_keeps_the_directions(videos: Path) -> None:
    both = open_dataset(videos, BOTH)
    again = relabel(both, ("wave", "wave, backwards", "bounce", "bounce, backwards"))
    pairs = zip(both.train, again.train, strict=True)
    assert all(one.direction == other.direction for one, other in pairs)
    assert [video.label for video in again.train] == [video.label ^ 2 for video in both.train]


def test_classes_are_left_out_with_their_videos(tmp_path: Path, videos: Path) -> None:
    shutil.copytree(videos / "wave", tmp_path / "data" / "up")
    shutil.copytree(videos, tmp_path / "data", dirs_exist_ok=True)
    found = open_dataset(tmp_path / "data", DataConfig(leave_out=("up",)))
    assert found.classes == ("bounce", "wave")
    assert "up" not in {video.path.parent.name for video in found.for_check}
    with pytest.raises(DatasetError, match="no class is called 'wav'"):
        open_dataset(tmp_path / "data", DataConfig(leave_out=("wav",)))
    with pytest.raises(DatasetError, match="leaves out every video"):
        open_dataset(tmp_path / "data", DataConfig(leave_out=("wave", "up", "bounce")))
    absent = DataConfig(leave_out=("up", "gone"))
    assert open_dataset(tmp_path / "data", absent, absent_classes="skip").classes == found.classes
    everything = DataConfig(leave_out=("gone", "wave", "up", "bounce"))
    with pytest.raises(DatasetError, match="leaves out every video"):
        open_dataset(tmp_path / "data", everything, absent_classes="skip")


def test_a_flip_pair_of_a_left_out_class_goes_however_its_letters_are_composed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["h\u00e9 left", "h\u00e9 right", "clap"]
    entries = [
        Entry(str(tmp_path / f"{name}.mp4"), name, "train", f"line {number}", True)
        for number, name in enumerate(names)
    ]
    listing = Listing(entries, flip_pairs=((names[0], names[1]),))
    monkeypatch.setattr("zeroi2v.data.datasets.read_source", lambda *_: ("folder", listing))
    assert open_dataset(tmp_path).flip_pairs == ((names[0], names[1]),)
    for name in names[:2]:
        for form in ("NFC", "NFD"):
            config = DataConfig(leave_out=(unicodedata.normalize(form, name),))
            assert open_dataset(tmp_path, config).flip_pairs == ()


def test_a_class_that_has_the_name_already_is_refused(tmp_path: Path, videos: Path) -> None:
    shutil.copytree(videos, tmp_path / "data")
    (tmp_path / "data" / "bounce").rename(tmp_path / "data" / "wave, backwards")
    with pytest.raises(DatasetError, match="'wave, backwards', and there is one of this name"):
        open_dataset(tmp_path / "data", BOTH)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data.directions=1"], "true or false"),
        (["data.directions=yes"], "true or false"),
        (["data.directions=true", "data.multi_label=true"], "one label a video"),
        (["data.directions=true", "clip.frames=1"], "at least 2 frames"),
        (
            ["data.directions=true", "few_frames=1", "few_frames_epochs=1"],
            "at least 2 frames",
        ),
        (["data.direction=true"], "directions"),
        (["data.leave_out=up"], "a list of text"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        override(Recipe(), settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("views", [ViewsConfig(), ViewsConfig(clips=3, crops=3)], ids=str)
@pytest.mark.parametrize("frames", [4, 8, 12])
def test_views_backwards_are_the_same_blurred_frames_in_reverse_order(
    views: ViewsConfig, frames: int, videos: Path
) -> None:
    """With 12 frames a clip repeats some of the 9 frames of the video."""
    path = videos / "wave" / "1.mp4"
    plain, forwards, backwards = (
        read_views(path, clip=ClipConfig(frames=frames), views=views, size=24, direction=direction)
        for direction in (None, "forwards", "backwards")
    )
    assert torch.equal(backwards, forwards.flip(1))
    assert not torch.equal(plain, forwards)
    assert sharpness(forwards).mean() < sharpness(plain).mean()


def test_frames_are_blurred_by_a_gaussian_of_the_deviation() -> None:
    """A point of light becomes the kernel: its variance is the deviation's square."""
    point = torch.zeros(2, 3, 41, 41, dtype=torch.uint8)
    point[:, :, 16:25, 16:25] = 250  # a square of 9 pixels: its variance is (81 - 1) / 12
    spread = blurred(point, [0.3, 2.0]).double().mean(1)
    places = torch.arange(41.0, dtype=torch.float64) - 20
    for frame, deviation in zip(spread, (0.3, 2.0), strict=True):
        for side in (0, 1):
            profile = frame.sum(side)
            variance = (profile * places.square()).sum() / profile.sum()
            assert variance.item() == pytest.approx(80 / 12 + deviation**2, rel=0.03)


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (5, 3), (7, 30)], ids=str)
def test_frames_smaller_than_the_kernel_are_blurred_too(size: tuple[int, int]) -> None:
    flat = torch.full((3, 3, *size), 90, dtype=torch.uint8)
    assert torch.equal(blurred(flat, [0.3, 1.0, 2.0]), flat)


def test_the_same_frames_are_blurred_alike_and_other_frames_differently() -> None:
    clips = torch.randint(256, (2, 8, 3, 20, 20), dtype=torch.uint8)
    assert torch.equal(blurred_alike(clips[0]), blurred_alike(clips[0].clone()))
    orders = [sharpness(blurred_alike(clip)).argsort().tolist() for clip in clips]
    assert orders[0] != orders[1]
    deviations = random_deviations(1000, Random(0))
    assert BLUR[0] <= min(deviations) < max(deviations) <= BLUR[1]


def test_sharpness_is_the_variance_of_the_laplacian() -> None:
    clip = torch.randint(256, (2, 3, 3, 9, 9), dtype=torch.uint8)
    found = sharpness(clip)
    for number, frame in enumerate(clip.flatten(0, 1).double().mean(1)):
        laplacian = [
            sum(frame[y + dy, x + dx] for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)))
            - 4 * frame[y, x]
            for y in range(1, 8)
            for x in range(1, 8)
        ]
        expected = (1 + torch.tensor(laplacian).double().var()).log()
        assert found.flatten()[number].item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("sampling", ["segment", "dense"])
@pytest.mark.parametrize("num_frames", [5, 9, 40])
def test_counting_from_the_end_is_the_sampling_of_the_reversed_video(
    sampling: str, num_frames: int
) -> None:
    clip = override(Recipe(), [f"clip.sampling={sampling}", "clip.stride=2"]).clip
    (indices,) = clip_indices(num_frames, clip)
    reversed_video = [*range(num_frames)][::-1]
    assert from_the_end(indices, num_frames) == [reversed_video[i] for i in indices][::-1]


def loaded(videos: Path, workers: int = 0, **pixels: object) -> list[tuple[torch.Tensor, int]]:
    """The training clips of an epoch, and their labels, in the order of the data set."""
    dataset = open_dataset(videos, BOTH)
    loader = train_loader(
        dataset.train,
        clip=ClipConfig(frames=4),
        pixels=override(
            Recipe(), [f"pixels.{key}={value}" for key, value in pixels.items()]
        ).pixels,
        size=24,
        labels=dataset.classes,
        batch_size=3,
        seed=0,
        workers=workers,
        broken="stop",
    )
    return [
        (clip, label)
        for clips, labels in loader.epoch(1)
        for clip, label in zip(clips, labels.tolist(), strict=True)
    ]


def test_training_clips_run_in_the_direction_of_their_label(videos: Path) -> None:
    clips = loaded(videos)
    assert len(clips) == 2 * len(open_dataset(videos).train)
    for clip, label in clips:
        light = clip.float().mean((1, 2, 3)).tolist()
        in_order = sorted(light, reverse=label % 2 == 1)
        assert light == pytest.approx(in_order, abs=0.5), "the same frame may be there twice"
        assert abs(light[0] - light[-1]) > 30


def test_workers_give_the_same_clips(videos: Path) -> None:
    pairs = zip(loaded(videos), loaded(videos, workers=2), strict=True)
    assert all(torch.equal(one, other) and a == b for (one, a), (other, b) in pairs)


def test_a_flip_exchanges_labels_in_both_directions(videos: Path) -> None:
    labels = [label for _, label in loaded(videos)]
    flipped = loaded(videos, flip=1.0, flip_pairs='[["bounce", "wave"]]')
    assert [label for _, label in flipped] == [label ^ 2 for label in labels]


def test_clips_without_the_setting_are_neither_blurred_nor_reversed(videos: Path) -> None:
    """The frames of a clip that takes every frame, from whole frames, are the decoded frames."""
    (video, *_) = open_dataset(videos).train
    whole = PixelsConfig(crop_area=(1.0, 1.0), crop_aspect=(4 / 3, 4 / 3))
    loader = train_loader(
        [video],
        clip=ClipConfig(frames=9, sampling="dense", stride=1),
        pixels=whole,
        size=24,
        labels=("bounce", "wave"),
        batch_size=1,
        seed=0,
        workers=0,
        broken="stop",
    )
    ((clips, _),) = loader.epoch(1)
    light = read_clip(video.path, every).float().mean((1, 2, 3))
    torch.testing.assert_close(clips[0].float().mean((1, 2, 3)), light, atol=1.0, rtol=0)


REVERSALS = [
    ("up", "down"),
    ("opening", "closing"),
    ("open the door", "close the door"),
    ("Opened", "closed"),
    ("open_door", "shut_door"),
    ("sitting down", "standing up"),
    ("ZoomIn", "zoom out"),
    ("turn on", "turn off"),
    ("put on hat", "take off hat"),
    ("putting something into something", "taking something out of something"),
    ("pick up", "put down"),
    ("pushing", "pulling"),
    ("folding", "unfolding"),
    ("entering", "leaving"),
    ("appear", "disappear"),
    ("raising hand", "lowering hand"),
    ("walking towards camera", "walking away from camera"),
    ("pan left", "pan right"),
    ("forward", "backwards"),
    ("clockwise", "anticlockwise"),
    ("Moving something from left to right", "Moving something from right to left"),
    ("upstairs", "downstairs"),
]


@pytest.mark.parametrize(("one", "other"), REVERSALS)
def test_names_that_look_like_time_reversals_are_a_pair(one: str, other: str) -> None:
    assert reversed_names([one, "walk", other]) == ((one, other),)


@pytest.mark.parametrize(
    "names", [("indoor", "outdoor"), ("in", "on"), ("clap", "wave"), ("closeup", "openair")]
)
def test_other_names_are_no_pair(names: tuple[str, str]) -> None:
    assert reversed_names(names) == ()


def test_time_reversals_are_pointed_out_with_the_setting(
    capsys: pytest.CaptureFixture[str],
) -> None:
    point_out_reversals(MOTIONS, DataConfig(), Log(quiet=True))
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    setting = line.partition("--set '")[2].partition("'")[0]
    assert {*override(Recipe(), [setting]).data.leave_out} == {*MOTIONS}
    assert {*reversed_names(MOTIONS)} == {*PAIRS}
    point_out_reversals(["clap", "wave"], DataConfig(), Log(quiet=True))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kind", ["manifest", "shards"])
def test_lists_and_tar_files_give_both_directions_too(
    kind: str, tmp_path: Path, videos: Path
) -> None:
    files = sorted(videos.glob("*/*.mp4"))
    source = tmp_path / "train-000000.tar"
    if kind == "manifest":
        source = tmp_path / "list.csv"
        rows = [
            f"{path},{path.parent.name},{('train', 'val')[number % 3 == 0]}"
            for number, path in enumerate(files)
        ]
        source.write_text("\n".join(["path,label,split", *rows]))
    else:
        with tarfile.open(source, "w") as archive:
            for path in files:
                archive.add(path, f"{path.stem}.mp4")
                label = tarfile.TarInfo(f"{path.stem}.cls")
                label.size = len(path.parent.name)
                archive.addfile(label, io.BytesIO(path.parent.name.encode()))
    dataset = open_dataset(source, BOTH)
    assert dataset.classes == ("bounce", "bounce, backwards", "wave", "wave, backwards")
    assert len(dataset.for_check) == 2 * len(files)
    for forwards, backwards in zip(dataset.val[::2], dataset.val[1::2], strict=True):
        assert forwards.path == backwards.path
        assert forwards.label + 1 == backwards.label
        clips = [
            read_views(
                video.path,
                clip=ClipConfig(frames=4),
                views=ViewsConfig(),
                size=24,
                direction=video.direction,
            )
            for video in (forwards, backwards)
        ]
        assert torch.equal(clips[0], clips[1].flip(1))
