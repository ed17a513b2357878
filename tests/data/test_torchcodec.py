"""Does torchcodec give the frames that PyAV gives, and is its absence named?"""

import csv
import sys
from pathlib import Path

import pytest
import torch

from tests.videos_for_tests import GOP, encode
from zeroi2v.config import ClipConfig, ViewsConfig
from zeroi2v.data import decode
from zeroi2v.data.datasets import Video
from zeroi2v.data.decode import read_clip
from zeroi2v.data.encode import write_video
from zeroi2v.data.loader import view_loader
from zeroi2v.data.torchcodec_frames import require_decoder, torchcodec_clip
from zeroi2v.errors import ConfigError


@pytest.fixture
def usable() -> None:
    try:
        require_decoder("torchcodec")
    except ConfigError as error:
        pytest.skip(str(error))


@pytest.mark.usefixtures("usable")
@pytest.mark.slow
def test_frames_of_real_videos_are_those_of_pyav(
    shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unscaled frames of 8 bits are equal to rounding, the others on the average.

    The two interpolate colours in different ways.
    """
    by_torchcodec = 0

    def counting(*arguments: object, **options: object) -> torch.Tensor | None:
        nonlocal by_torchcodec
        found = torchcodec_clip(*arguments, **options)  # type: ignore[arg-type]  # passed on as they came
        by_torchcodec += found is not None
        return found

    monkeypatch.setattr(decode, "torchcodec_clip", counting)
    folder = shared_data / "varied_clips"
    with (folder / "index.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["frames_decoded"] not in ("", "0")]
    for row in rows:
        path, given = folder / row["path"], []

        def choose(frames: int, given: list[list[int]] = given) -> list[int]:
            given.append([frames // 2, 0, frames - 1, frames // 3, 0])
            return given[-1]

        for short_side in (None, 100):
            expected = read_clip(path, choose, short_side=short_side)
            found = read_clip(path, choose, short_side=short_side, decoder="torchcodec")
            assert given[-1] == given[0]
            assert found.shape == expected.shape, path
            difference = (found.int() - expected.int()).abs()
            if short_side is None and "10" not in row["pix_fmt"]:
                assert difference.max() <= 1, path
            else:
                assert difference.float().mean() < 8, path
    assert by_torchcodec > 1.5 * len(rows)  # of two reads of each; or the test would prove nothing


@pytest.mark.usefixtures("usable")
def test_the_loader_decodes_with_what_the_settings_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.mp4"
    level = (12 * torch.arange(20)).to(torch.uint8)
    write_video(path, level.view(20, 1, 1, 1).expand(20, 3, 32, 32), fps=8)
    used = []

    def noting(*arguments: object, **options: object) -> torch.Tensor | None:
        used.append(arguments)
        return torchcodec_clip(*arguments, **options)  # type: ignore[arg-type]  # passed on as they came

    monkeypatch.setattr(decode, "torchcodec_clip", noting)
    found = []
    for clip in (ClipConfig(frames=4), ClipConfig(frames=4, decoder="torchcodec")):
        (batch,) = view_loader(
            [Video(path, 0)], clip=clip, views=ViewsConfig(), size=32, batch_size=1, workers=0
        )
        found.append(batch.clips)
    assert len(used) == 1
    assert (found[0].int() - found[1].int()).abs().max() <= 1


@pytest.mark.parametrize(
    ("name", "flips", "used"),
    [
        ("indexed.mp4", False, True),
        ("indexed.mkv", False, True),
        ("indexed.avi", False, True),
        ("sought_by_bytes.ts", False, False),
        ("sought_by_bytes.mpg", False, False),
        ("mirrored.mp4", True, False),
        ("mirrored.mkv", True, False),
    ],
)
def test_pyav_decodes_what_torchcodec_would_show_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, flips: bool, used: bool
) -> None:
    """Key frames that torchcodec does not find, since it seeks by bytes, and mirrored frames."""
    codec = {"avi": "mpeg4", "mpg": "mpeg2video"}.get(name.rpartition(".")[2], "libx264")
    path = encode(
        tmp_path / name,
        codec,
        GOP if codec == "libx264" else {"g": "12"},
        prepare=lambda stream: stream.set_display_rotation(0, hflip=flips),
    )
    calls = []

    def noting(*arguments: object, **options: object) -> None:
        calls.append(arguments)

    monkeypatch.setattr(decode, "torchcodec_clip", noting)
    order = [59, 0, 30]
    by_torchcodec = read_clip(path, lambda _: order, decoder="torchcodec")
    assert bool(calls) == used
    assert torch.equal(by_torchcodec, read_clip(path, lambda _: order))


@pytest.mark.usefixtures("usable")
@pytest.mark.parametrize("name", ["hevc.ts", "h264.ts", "mpeg2.mpg", "h264.mkv", "mirrored.mp4"])
def test_every_frame_is_pyavs_in_any_container(tmp_path: Path, name: str) -> None:
    stem = name.partition(".")[0]
    codec = {"hevc": "libx265", "mpeg2": "mpeg2video"}.get(stem, "libx264")
    hevc = {"x265-params": "keyint=12:log-level=none", "preset": "ultrafast"}
    path = encode(
        tmp_path / name,
        codec,
        hevc if codec == "libx265" else {"g": "12", "bf": "2"},
        prepare=lambda stream: stream.set_display_rotation(0, vflip=stem == "mirrored"),
    )
    for number in range(0, 60, 3):
        expected = read_clip(path, lambda _, number=number: [number])
        frame = read_clip(path, lambda _, number=number: [number], decoder="torchcodec")
        assert (frame.int() - expected.int()).abs().max() <= 1, number


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (None, "torchcodec is not installed: pip install torchcodec, or choose pyav"),
        ("raise RuntimeError('Could not load libtorchcodec.\\n' * 50)", "install FFmpeg"),
    ],
)
def test_a_decoder_that_cannot_be_used_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str | None, message: str
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchcodec"]:
        monkeypatch.delitem(sys.modules, name)
    if module is None:
        monkeypatch.setattr(
            sys, "path", [path for path in sys.path if not (Path(path) / "torchcodec").is_dir()]
        )
    else:
        (tmp_path / "torchcodec.py").write_text(module)
        monkeypatch.syspath_prepend(tmp_path)
    clip = ClipConfig(decoder="torchcodec")
    with pytest.raises(ConfigError, match=message) as caught:
        view_loader([], clip=clip, views=ViewsConfig(), size=32, batch_size=1, workers=0)
    assert "\n" not in str(caught.value)
