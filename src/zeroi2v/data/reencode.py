"""How does a data set become one that decodes fast? A copy of all its videos: small, in H.264, with many key frames.

OUT/...           the videos, in folders as in the source; each appears when it is whole
OUT/manifest.csv  path, label and split of each: opens as the same data set; written last
OUT/.reencode.json  what the videos are made with, so that a second run goes on with the same
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from torch.utils.data import DataLoader, Dataset

from zeroi2v.config import ReencodeConfig
from zeroi2v.data.datasets import VideoDataset
from zeroi2v.data.decode import all_frames
from zeroi2v.data.encode import write_frames
from zeroi2v.data.formats.labels import LABEL_SEPARATOR
from zeroi2v.data.loader import start_worker
from zeroi2v.data.output_folder import require_outside
from zeroi2v.errors import DatasetError, VideoError
from zeroi2v.files import claimed, write_text

MANIFEST_FILE = "manifest.csv"
_SETTINGS_FILE = ".reencode.json"


def reencode(
    dataset: VideoDataset, out: Path, settings: ReencodeConfig, *, workers: int
) -> Iterator[tuple[Path, VideoError | None]]:
    """Copy every video, and give each with what is wrong with it; then write the manifest of those that could be copied.

    A video whose copy is there is not copied again. VideoError that names the copy if it cannot be written, for instance on a full
    disk; DatasetError if OUT holds something else, or two videos would have one name.

    ConfigError if another process is copying into OUT now.
    """
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
    broken = set()
    tasks = DataLoader(
        _Copies(pairs, settings),
        batch_size=None,
        num_workers=workers,
        worker_init_fn=start_worker,
        in_order=workers == 0,
    )
    for index, error in tasks:
        source, copy = pairs[index]
        if error is not None:
            if error.path == str(copy):
                raise VideoError(
                    copy,
                    f"{error.reason}; what is finished stays: mend that and give the same command again",
                )
            broken.add(source)
        yield source, error
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("path", "label", "split"))
    for split, videos in dataset.splits.items():
        for video in videos:
            if video.path not in broken:
                labels = LABEL_SEPARATOR.join(dataset.classes[label] for label in video.labels)
                rows.writerow((copies[video.path].relative_to(out), labels, split))
    write_text(out / MANIFEST_FILE, text.getvalue())


@dataclass(frozen=True)
class _Copies(Dataset[tuple[int, VideoError | None]]):
    pairs: list[tuple[Path, Path]]
    settings: ReencodeConfig

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[int, VideoError | None]:
        source, copy = self.pairs[index]
        if copy.exists():
            return index, None
        try:
            copy.parent.mkdir(parents=True, exist_ok=True)
            write_frames(copy, all_frames(source), **asdict(self.settings))
        except VideoError as error:
            return index, error
        except OSError as error:
            return index, VideoError(copy, f"cannot be written: {error.strerror}")
        return index, None


def _copies(dataset: VideoDataset, out: Path) -> dict[Path, Path]:
    """Where each video goes: its path below the data set's folder, or below the folder that all of them share, as .mp4."""
    sources = {video.path: Path(os.path.abspath(video.path)) for video in dataset.for_check}
    root = Path(
        os.path.abspath(dataset.source if dataset.source.is_dir() else dataset.source.parent)
    )
    if not all(path.is_relative_to(root) for path in sources.values()):
        root = Path(os.path.commonpath([path.parent for path in sources.values()]))
    if dataset.source.is_dir():
        require_outside(out, root)
    copies: dict[Path, Path] = {}
    taken: dict[Path, Path] = {}
    for source, path in sources.items():
        inner = path.relative_to(root)
        name = (
            inner.name if path.is_dir() else inner.stem
        )  # a folder of images may have a dot in its name
        copy = out / inner.with_name(f"{name}.mp4")
        if copy in taken:
            raise DatasetError(f"{taken[copy]} and {source} would both become {copy}; rename one")
        taken[copy] = source
        copies[source] = copy
    return copies


def _claim(out: Path, settings: ReencodeConfig) -> None:
    """Make the folder, or make sure that an earlier run with the same settings did."""
    made = out / _SETTINGS_FILE
    wanted = asdict(settings)
    try:
        if made.exists():
            earlier = json.loads(made.read_text(encoding="utf-8"))
            if earlier != wanted:
                raise DatasetError(
                    f"{out}: holds copies made with {earlier}, not {wanted}; choose another folder"
                )
        elif out.exists() and any(out.iterdir()):
            raise DatasetError(f"{out}: already there and not empty; choose another folder")
        else:
            out.mkdir(parents=True, exist_ok=True)
            write_text(made, json.dumps(wanted))
        for leftover in out.rglob(".*.partial"):  # of a run that was killed
            leftover.unlink()
    except OSError as error:
        raise DatasetError(f"{out}: cannot be used: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise DatasetError(
            f"{made}: not what an earlier run wrote; choose another folder"
        ) from error
