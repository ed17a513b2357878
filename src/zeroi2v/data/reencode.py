"""How does a data set become a copy that decodes fast? Small videos in H.264 with many key frames.

OUT/...             the videos, in folders as in the source; each appears when it is whole
OUT/manifest.csv    path, label, split and the source's further columns; it opens as the same data
                    set, and is written last
OUT/.reencode.json  the settings, so that a second run goes on with the same settings
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Collection, Generator, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from torch.utils.data import Dataset

from zeroi2v.config import ReencodeConfig
from zeroi2v.data.datasets import VideoDataset
from zeroi2v.data.decode import all_frames
from zeroi2v.data.encode import write_frames
from zeroi2v.data.formats.labels import LABEL_SEPARATOR
from zeroi2v.data.output_folder import require_outside
from zeroi2v.data.workers import worker_loader
from zeroi2v.errors import ConfigError, DatasetError, VideoError
from zeroi2v.files import claimed, is_partial, write_text

MANIFEST_FILE: Final = "manifest.csv"
_SETTINGS_FILE: Final = ".reencode.json"


def reencode(
    dataset: VideoDataset, out: Path, settings: ReencodeConfig, *, workers: int
) -> Generator[tuple[Path, VideoError | None], None, None]:
    """Copy every video and give its path, and the error if the video is broken.

    The manifest of the copies is written at the end. A video that has a copy is not copied again.
    VideoError, with the path of the copy, if a copy cannot be written, for instance on a full
    disk. DatasetError if OUT holds something else, or if two videos would have one name.
    ConfigError if another process is copying into OUT now, or if the data set has videos played
    backwards.
    """
    if dataset.directions:
        raise ConfigError(
            "data.directions: a copy is neither blurred nor played backwards; copy the videos "
            "without the setting, and train on the copies with it"
        )
    copies = _copies(dataset, out)
    with claimed(out, "another copying"):
        yield from _copy_all(dataset, copies, out, settings, workers)


def _copy_all(
    dataset: VideoDataset,
    copies: dict[Path, Path],
    out: Path,
    settings: ReencodeConfig,
    workers: int,
) -> Iterator[tuple[Path, VideoError | None]]:
    """Copy every video to its place in `copies`, and write the manifest in the end."""
    _claim(out, settings)
    pairs = [*copies.items()]
    broken: set[Path] = set()
    results = worker_loader(
        _Copies(pairs, settings), workers, batch_size=None, in_order=workers == 0
    )
    for index, error in results:
        source, copy = pairs[index]
        if error is not None:
            if error.path == str(copy):
                advice = "what is finished stays: mend the cause and give the same command again"
                raise VideoError(copy, f"{error.reason}; {advice}")
            broken.add(source)
        yield source, error
    write_text(out / MANIFEST_FILE, _manifest(dataset, copies, broken, out))


@dataclass(frozen=True)
class _Copies(Dataset[tuple[int, VideoError | None]]):
    """Item i makes the copy of the i-th video, and says what is wrong with the video."""

    pairs: list[tuple[Path, Path]]  # each video and its copy
    settings: ReencodeConfig

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[int, VideoError | None]:
        source, copy = self.pairs[index]
        if not copy.exists():
            try:
                write_frames(copy, all_frames(source), **asdict(self.settings))
            except VideoError as error:
                return index, error
        return index, None


def _copies(dataset: VideoDataset, out: Path) -> dict[Path, Path]:
    """The copy of each video: its path below the data set's folder, with the ending .mp4.

    If some videos lie elsewhere, the paths begin below the folder that all videos share.
    """
    sources = {video.path: Path(os.path.abspath(video.path)) for video in dataset.for_check}
    folder = dataset.source if dataset.source.is_dir() else dataset.source.parent
    root = Path(os.path.abspath(folder))
    if not all(path.is_relative_to(root) for path in sources.values()):
        root = Path(os.path.commonpath([path.parent for path in sources.values()]))
    if dataset.source.is_dir():
        require_outside(out, root)
    copies: dict[Path, Path] = {}
    source_of: dict[Path, Path] = {}
    for source, path in sources.items():
        inner = path.relative_to(root)
        # A dot in the name of a folder of images begins no ending.
        name = inner.name if path.is_dir() else inner.stem
        copy = out / inner.with_name(f"{name}.mp4")
        if copy in source_of:
            raise DatasetError(
                f"{source_of[copy]} and {source} would both become {copy}; rename one"
            )
        source_of[copy] = source
        copies[source] = copy
    return copies


def _manifest(
    dataset: VideoDataset, copies: Mapping[Path, Path], broken: Collection[Path], out: Path
) -> str:
    """The text of the manifest that lists the copies of the videos that are not broken."""
    further = [*dict.fromkeys(name for columns in dataset.columns.values() for name in columns)]
    text = io.StringIO()
    rows = csv.writer(text)  # ends lines by \r\n: so it puts a name that holds \r in quotes
    rows.writerow(("path", "label", "split", *further))
    for split, videos in dataset.splits.items():
        for video in videos:
            if video.path in broken:
                continue
            name = str(copies[video.path].relative_to(out))
            if name != name.lstrip():
                name = os.path.join(os.curdir, name)  # a reader drops spaces before a path
            labels = LABEL_SEPARATOR.join(dataset.classes[label] for label in video.labels)
            columns = dataset.columns.get(video.path, {})
            rows.writerow((name, labels, split, *(columns.get(column, "") for column in further)))
    return text.getvalue()


def _claim(out: Path, settings: ReencodeConfig) -> None:
    """Make the folder, or make sure that an earlier run with the same settings made it."""
    settings_file = out / _SETTINGS_FILE
    wanted = asdict(settings)
    try:
        if settings_file.exists():
            earlier = json.loads(settings_file.read_text(encoding="utf-8"))
            if earlier != wanted:
                raise DatasetError(
                    f"{out}: holds copies made with {earlier}, not {wanted}; choose another folder"
                )
        elif out.exists() and any(out.iterdir()):
            raise DatasetError(f"{out}: already there and not empty; choose another folder")
        else:
            write_text(settings_file, json.dumps(wanted))
        for leftover in filter(is_partial, out.rglob("*.partial")):  # of a run that was killed
            leftover.unlink()
    except OSError as error:
        raise DatasetError(f"{out}: cannot be used: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise DatasetError(
            f"{settings_file}: not what an earlier run wrote; choose another folder"
        ) from error
