"""How good is a model? The scores of every video, averaged over views, and their figures.

Shapes: n videos, V views of each (clips * crops), K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import torch
from torch import Tensor

from zeroi2v.config import ClipConfig, DataConfig, ViewsConfig
from zeroi2v.data.datasets import Video
from zeroi2v.data.directions import sharpness
from zeroi2v.data.loader import targets, view_loader
from zeroi2v.errors import ConfigError, DatasetError, VideoError, how_many
from zeroi2v.inference.directions import direction_by_sharpness, reading, right_within_pairs
from zeroi2v.inference.scores import BATCH, average_precision, clip_logits, view_scores
from zeroi2v.log import Log
from zeroi2v.machine import from_all, rank_and_size
from zeroi2v.models.video import VideoClassifier

# key -> text
FIGURE_NAMES: Final = {
    "top1": "top-1",
    "top5": "top-5",
    "mAP": "mAP",
    "within_pairs": "within pairs",
    "sharpness": "by sharpness alone",
}


@dataclass(frozen=True)
class Evaluation:
    """The logits of the videos that could be read, and the errors of the other videos."""

    logits: Tensor  # (n, V, K) float32
    # (n,) int64; (n, K) float32 if a video may have several labels: 1 for each label of the video
    labels: Tensor
    videos: tuple[Video, ...]  # n videos, in the order in which they were given
    # the error of each video that cannot be read, in the order of the videos; a video in both
    # directions has one error
    skipped: tuple[VideoError, ...]
    # (n, T) float64: `sharpness` of each frame, mean over views. None if no video is there twice,
    # forwards and backwards.
    sharpness: Tensor | None = None

    @property
    def video_count(self) -> int:
        """How many videos could be read. A video in both directions counts once."""
        is_doubled = self.sharpness is not None
        return len({video.path for video in self.videos} if is_doubled else self.videos)

    @property
    def multi_label(self) -> bool:
        """Whether a video may have several labels."""
        return self.labels.ndim == 2

    @cached_property
    def scores(self) -> Tensor:
        """The score of every class, averaged over views: (n, K)."""
        return view_scores(self.logits, multi_label=self.multi_label)

    @cached_property
    def figures(self) -> dict[str, float]:
        """The figures of the model, from 0 to 1, by their keys in FIGURE_NAMES.

        Training compares epochs by the first figure. Where every video is there forwards and
        backwards, two more figures say how often the direction is right: "within_pairs" of the
        model (`right_within_pairs`), and, if there are enough videos, "sharpness" of a reader that
        sees no motion (`direction_by_sharpness`).
        """
        if self.multi_label:
            known = [precision for precision in self.per_class() if precision is not None]
            return {"mAP": sum(known) / len(known)}
        return {"top1": self.top(1), "top5": self.top(5), **self._direction_figures()}

    def _direction_figures(self) -> dict[str, float]:
        if self.sharpness is None:
            return {}
        figures = {"within_pairs": right_within_pairs(self.logits, self.labels).mean().item()}
        paths = [video.path for video in self.videos]
        by_sharpness = direction_by_sharpness(self.sharpness, self.labels, paths)
        return figures if by_sharpness is None else {**figures, "sharpness": by_sharpness}

    def within_pairs_per_class(self) -> list[float | None]:
        """`right_within_pairs` of the videos of each class that is not played backwards.

        A class has the mean of its videos in both directions; None for a class without videos.
        """
        right = right_within_pairs(self.logits, self.labels)
        of_class = (right[self.labels // 2 == label] for label in range(self.scores.shape[1] // 2))
        return [answers.mean().item() if len(answers) else None for answers in of_class]

    def direction_answer(self) -> dict[str, Any]:
        """How many videos are judged in both directions, and how to read the accuracies.

        Empty if the videos are judged as they are.
        """
        if self.sharpness is None:
            return {}
        figures, pairs = self.figures, self.video_count
        sentence = reading(figures["within_pairs"], figures.get("sharpness"), pairs)
        return {"pairs": pairs, "reading": sentence}

    def top(self, k: int) -> float:
        """The share of the videos whose label is among the k highest scores.

        If there are fewer than k classes, every score is among them.
        """
        best = self.scores.topk(min(k, self.scores.shape[1])).indices
        return (best == self.labels[:, None]).any(1).double().mean().item()

    def between(self, first: int, second: int) -> float:
        """The share of right answers for the videos of two classes, with only these two answers.

        Equal scores count as the answer `second`.
        """
        chosen = (self.labels == first) | (self.labels == second)
        is_first = self.scores[chosen, first] > self.scores[chosen, second]
        answers = torch.where(is_first, first, second)
        return (answers == self.labels[chosen]).double().mean().item()

    def confusion(self) -> Tensor:
        """How many videos of each class (rows) got each answer (columns): (K, K) int64."""
        classes = self.scores.shape[1]
        cells = self.labels * classes + self.scores.argmax(1)
        return torch.bincount(cells, minlength=classes * classes).view(classes, classes)

    def per_class(self) -> list[float | None]:
        """The figure of each class; None for a class without videos.

        The figure is the top-1 of the videos of the class, or the average precision of the class if
        a video may have several labels.
        """
        if self.multi_label:
            columns = zip(self.scores.T, self.labels.T, strict=True)
            return [average_precision(scores, has_label) for scores, has_label in columns]
        cells = self.confusion()
        counts = zip(cells.diag().tolist(), cells.sum(1).tolist(), strict=True)
        return [right / total if total else None for right, total in counts]

    def to_dict(self) -> dict[str, Any]:
        """The score figures, the number of videos and the skipped videos, as plain values.

        `zeroi2v eval --json` prints them.
        """
        skipped = [{"video": error.path, "error": error.reason} for error in self.skipped]
        videos = {"videos": self.video_count, "skipped": skipped}
        return {**self.figures, **self.direction_answer(), **videos}


def mean_figures(figures_of_models: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each figure over several models, such as the models of three official splits.

    ConfigError if the models have no figure in common.
    """
    names = [name for name in FIGURE_NAMES if all(name in figures for figures in figures_of_models)]
    if not names:
        raise ConfigError(
            "some models give a video one label and others several, so their figures have no mean; "
            "evaluate these models apart"
        )
    count = len(figures_of_models)
    return {name: sum(figures[name] for figures in figures_of_models) / count for name in names}


def data_for(model: VideoClassifier, config: DataConfig) -> DataConfig:
    """The settings by which to open videos for a model.

    `multi_label` and `directions` are as in the model's training. ConfigError if the settings ask
    for one of the two, and the model was trained without it.
    """
    if config.multi_label and not model.spec.multi_label:
        raise ConfigError(
            "data.multi_label: the model was trained with one label a video; leave "
            "data.multi_label out"
        )
    if config.directions and not model.spec.directions:
        raise ConfigError(
            "data.directions: the model knows no label of clips played backwards; train a model "
            "with data.directions, or leave the setting out"
        )
    spec = model.spec
    return replace(config, multi_label=spec.multi_label, directions=spec.directions)


def evaluate(
    model: VideoClassifier,
    videos: Sequence[Video],
    *,
    clip: ClipConfig | None = None,
    views: ViewsConfig | None = None,
    batch_size: int = BATCH,
    workers: int = 0,
    log: Log | None = None,
) -> Evaluation:
    """Score every video in the precision of the model's weights, `batch_size` clips at once.

    `clip` and `views` say how views are cut out of a video; None: the `clip` or `views` of the
    model. A video that cannot be read is listed in `skipped`. DatasetError if no video can be read.
    The processes of a group share the batches, and every process returns the results of all videos.
    """
    model.eval()
    clip, views = clip or model.clip, views or model.views
    log = log or Log(quiet=True)
    logits: dict[int, Tensor] = {}
    sharp: dict[int, Tensor] = {}
    has_directions = any(video.direction for video in videos)
    broken: dict[int, VideoError] = {}
    videos_per_batch = max(1, batch_size // (views.clips * views.crops))
    loader = view_loader(
        videos,
        clip=clip,
        views=views,
        size=model.image_size,
        batch_size=videos_per_batch,
        workers=workers,
        share=rank_and_size(),
    )
    for batch in log.track(
        loader, total=len(loader), title="evaluate", unit="videos", per_item=videos_per_batch
    ):
        broken |= dict(batch.broken)
        if batch.indices:
            views_of_videos = clip_logits(model, batch.clips.flatten(0, 1), batch_size=batch_size)
            by_video = views_of_videos.unflatten(0, batch.clips.shape[:2])
            logits |= dict(zip(batch.indices, by_video, strict=True))
            if has_directions:
                of_frames = sharpness(batch.clips).mean(1)
                sharp |= dict(zip(batch.indices, of_frames, strict=True))
    for logits_of_process, sharp_of_process, broken_of_process in from_all(
        [(logits, sharp, broken)]
    ):
        logits |= logits_of_process
        sharp |= sharp_of_process
        broken |= broken_of_process
    return _evaluation(model, videos, logits, sharp, broken)


def _evaluation(
    model: VideoClassifier,
    videos: Sequence[Video],
    logits: Mapping[int, Tensor],
    sharp: Mapping[int, Tensor],
    broken: Mapping[int, VideoError],
) -> Evaluation:
    """The evaluation of all videos. `logits`, `sharp` and `broken` are by a video's number.

    `sharp` is empty if no video is there forwards and backwards.
    """
    # A video that is there forwards and backwards is listed once.
    skipped = [*{broken[index].path: broken[index] for index in sorted(broken)}.values()]
    if not logits:
        first = f"; the first error: {skipped[0]}" if skipped else ""
        raise DatasetError(
            f"none of the videos can be read ({how_many(len(videos), 'video')} tried){first}"
        )
    order = sorted(logits)
    class_count = len(model.labels) if model.spec.multi_label else None  # None: one label a video
    return Evaluation(
        logits=torch.stack([logits[index] for index in order]),
        labels=torch.stack([targets(videos[index].labels, class_count) for index in order]),
        videos=tuple(videos[index] for index in order),
        skipped=tuple(skipped),
        sharpness=torch.stack([sharp[index] for index in order]) if sharp else None,
    )
