"""How do videos become batches of clips? For training, for evaluation, and to check every video.

Shapes: B videos, V views of a video (clips * crops), T frames, S pixels a side, K classes. Clips
are uint8.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from random import Random
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler, default_collate

from zeroi2v.config import ClipConfig, PixelsConfig, ViewsConfig
from zeroi2v.data.datasets import Video
from zeroi2v.data.decode import VideoInfo, read_clip, scan
from zeroi2v.data.directions import BACKWARDS, blurred, random_deviations
from zeroi2v.data.sampling import clip_indices, from_the_end
from zeroi2v.data.torchcodec_frames import require_decoder
from zeroi2v.data.transforms import train_pixels
from zeroi2v.data.views import read_views
from zeroi2v.data.workers import WorkerLoader, worker_loader
from zeroi2v.errors import ConfigError, VideoError, nearest_class

_RESIZED = 256 / 224  # shorter side of a decoded training frame / S, as in the official code


def train_loader(
    videos: Sequence[Video],
    *,
    clip: ClipConfig,
    pixels: PixelsConfig,
    size: int,
    labels: Sequence[str],
    batch_size: int,
    seed: int,
    workers: int,
    broken: Literal["stop", "skip"],
    multi_label: bool = False,
    share: tuple[int, int] = (0, 1),
    pinned: bool = False,
) -> TrainLoader:
    """Batches of random clips.

    `labels` are the names of the classes. `workers` processes decode; with 0 the calling process
    decodes. With `pinned`, batches lie in memory from which a GPU copies them while the host goes
    on. `share` (k, n): the loader gives every n-th sample of a batch, beginning with sample k, from
    0. So n processes share each batch; a share of a small batch may be empty.

    A flip that exchanges two labels also exchanges the labels of the clips played backwards.
    ConfigError if a flip is to exchange a label that is none of `labels`, or if the decoder of the
    clip cannot be used.
    """
    require_decoder(clip.decoder)
    for name in chain.from_iterable(pixels.flip_pairs):
        if name not in labels:
            raise ConfigError(
                f"flip_pairs: no class is called {name!r}{nearest_class(name, labels)}"
            )
    flip_pairs = [*pixels.flip_pairs]
    if any(video.direction for video in videos):
        backwards = [(one + BACKWARDS, other + BACKWARDS) for one, other in flip_pairs]
        flip_pairs += [pair for pair in backwards if {*pair} <= {*labels}]
    flipped = {
        labels.index(before): labels.index(after)
        for pair in flip_pairs
        for before, after in (pair, pair[::-1])
    }
    samples = _TrainSamples(
        videos, clip, pixels, size, seed, flipped, len(labels) if multi_label else None
    )
    return TrainLoader(
        samples,
        _EpochBatches(len(videos), batch_size, seed, share),
        workers=workers,
        stop=broken == "stop",
        pinned=pinned,
    )


def targets(labels: Iterable[int], class_count: int | None) -> Tensor:
    """The labels of a video as a tensor: the label, int64; or (K,) float32, 1.0 at every label.

    `class_count` is K if a video may have several labels, else None.
    """
    if class_count is None:
        (label,) = labels
        return torch.tensor(label)
    has_label = torch.zeros(class_count)
    has_label[[*labels]] = 1.0
    return has_label


class TrainLoader:
    """Batches of clips and labels, for one epoch after another.

    Clips are (B, T, 3, S, S). Labels are (B,) int64, or (B, K) float32 where a video may have
    several labels. The pixels of a sample depend only on seed, epoch and index. The last batch
    may be smaller. Where broken videos are left out, any batch may be smaller, even empty.
    """

    def __init__(
        self,
        samples: _TrainSamples,
        batches: _EpochBatches,
        *,
        workers: int,
        stop: bool,
        pinned: bool,
    ) -> None:
        self.broken: dict[str, str] = {}  # path -> reason of each video that was left out
        self.clip = samples.clip
        self._batches, self._stop = batches, stop
        self._loader = worker_loader(
            samples,
            workers,
            batch_sampler=batches,
            collate_fn=_batch,
            persistent_workers=workers > 0,
            pin_memory=pinned,
        )

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self._batches)

    def epoch(self, number: int, *, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch from `start` on.

        A video that cannot be read raises its VideoError, or is left out and listed in `broken`.
        """
        self._batches.epoch, self._batches.start = number, start
        for clips, labels, errors in self._loader:
            for error in errors:
                if self._stop:
                    raise error
                self.broken[error.path] = error.reason
            yield clips, labels


@dataclass(frozen=True)
class _TrainSamples(Dataset[tuple[Tensor, Tensor] | VideoError]):
    videos: Sequence[Video]
    clip: ClipConfig
    pixels: PixelsConfig
    size: int
    seed: int
    flipped: dict[int, int]  # label -> label after a flip, where it is another
    class_count: int | None  # K where a video may have several labels

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor] | VideoError:
        epoch, index = key
        video = self.videos[index]
        rng = Random(f"{self.seed}/{epoch}/{index}")
        short_side = round(self.size * _RESIZED)
        # Distances between frames must not tell the direction. A short video repeats some frames.
        # Which frames depends on whether frames are counted from the start or from the end. So half
        # of the clips count from the end.
        is_mirrored = video.direction is not None and rng.random() < 0.5

        def choose(num_frames: int) -> list[int]:
            (indices,) = clip_indices(num_frames, self.clip, rng=rng)
            return from_the_end(indices, num_frames) if is_mirrored else indices

        try:
            frames = read_clip(video.path, choose, short_side=short_side, decoder=self.clip.decoder)
        except VideoError as error:
            return error
        if video.direction is not None:
            frames = blurred(frames, random_deviations(len(frames), rng))
        pixels, is_flipped = train_pixels(frames, self.size, self.pixels, rng)
        if video.direction == "backwards":
            pixels = pixels.flip(0)
        labels = (self.flipped.get(label, label) if is_flipped else label for label in video.labels)
        return pixels, targets(labels, self.class_count)


@dataclass
class _EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index). The epoch travels with the index to the worker processes."""

    count: int
    batch_size: int
    seed: int
    share: tuple[int, int]
    epoch: int = 0
    start: int = 0

    def __len__(self) -> int:
        return -(-self.count // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = list(range(self.count))
        Random(f"{self.seed}/{self.epoch}").shuffle(order)
        own, shares = self.share
        for start in range(self.start * self.batch_size, self.count, self.batch_size):
            yield [
                (self.epoch, index) for index in order[start : start + self.batch_size][own::shares]
            ]


def _batch(
    samples: Sequence[tuple[Tensor, Tensor] | VideoError],
) -> tuple[Tensor, Tensor, list[VideoError]]:
    errors = [sample for sample in samples if isinstance(sample, VideoError)]
    read = [sample for sample in samples if not isinstance(sample, VideoError)]
    if not read:
        return torch.empty(0, dtype=torch.uint8), torch.empty(0, dtype=torch.int64), errors
    clips, labels = default_collate(read)
    return clips, labels, errors


@dataclass(frozen=True)
class Views:
    """A batch for evaluation. Each video of the batch is either in `indices` or in `broken`."""

    indices: list[int]  # positions, in the given list, of the B videos that could be read
    clips: Tensor  # (B, V, T, 3, S, S)
    broken: list[tuple[int, VideoError]]


def view_loader(
    videos: Sequence[Video],
    *,
    clip: ClipConfig,
    views: ViewsConfig,
    size: int,
    batch_size: int,
    workers: int,
    share: tuple[int, int] = (0, 1),
) -> WorkerLoader[Views]:
    """All views of every video, in order: an iterable of `Views`, with a length.

    `batch_size` counts videos. `share` (k, n): the loader gives every n-th batch, beginning with
    batch k, from 0, so that n processes share the videos. ConfigError if the decoder of the clip
    cannot be used.
    """
    require_decoder(clip.decoder)
    own, shares = share
    batches = [
        [*range(start, min(start + batch_size, len(videos)))]
        for start in range(0, len(videos), batch_size)
    ]
    return worker_loader(
        _ViewSamples(videos, clip, views, size),
        workers,
        batch_sampler=batches[own::shares],
        collate_fn=_views,
    )


@dataclass(frozen=True)
class _ViewSamples(Dataset[tuple[int, Tensor | VideoError]]):
    videos: Sequence[Video]
    clip: ClipConfig
    views: ViewsConfig
    size: int

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> tuple[int, Tensor | VideoError]:
        try:
            video = self.videos[index]
            return index, read_views(
                video.path,
                clip=self.clip,
                views=self.views,
                size=self.size,
                direction=video.direction,
            )
        except VideoError as error:
            return index, error


def _views(samples: Sequence[tuple[int, Tensor | VideoError]]) -> Views:
    broken = [(index, sample) for index, sample in samples if isinstance(sample, VideoError)]
    read = [(index, sample) for index, sample in samples if isinstance(sample, Tensor)]
    clips = torch.empty(0, dtype=torch.uint8)
    if read:
        clips = default_collate([sample for _, sample in read])
    return Views([index for index, _ in read], clips, broken)


def check_videos(
    paths: Sequence[Path], *, workers: int
) -> Iterator[tuple[Path, VideoInfo | VideoError]]:
    """Decode every video, in order. Gives its path, and its VideoInfo or its VideoError."""
    yield from zip(paths, worker_loader(_Scans(paths), workers, batch_size=None), strict=True)


@dataclass(frozen=True)
class _Scans(Dataset[VideoInfo | VideoError]):
    paths: Sequence[Path]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> VideoInfo | VideoError:
        try:
            return scan(self.paths[index])
        except VideoError as error:
            return error
