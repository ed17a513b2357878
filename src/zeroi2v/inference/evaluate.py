"""How good is a model? Scores of every video, averaged over its views, and what follows from them.

Shapes: n videos, V views each (clips * crops), K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import torch
from torch import Tensor

from zeroi2v.config import ClipConfig, DataConfig, ViewsConfig
from zeroi2v.data.datasets import Video
from zeroi2v.data.loader import targets, view_loader
from zeroi2v.errors import ConfigError, DatasetError, VideoError
from zeroi2v.inference.scores import BATCH, average_precision, clip_logits, view_scores
from zeroi2v.log import Log
from zeroi2v.machine import from_all, rank_and_size
from zeroi2v.models.video import VideoClassifier

FIGURE_NAMES: Final = {"top1": "top-1", "top5": "top-5", "mAP": "mAP"}  # for people


@dataclass(frozen=True)
class Evaluation:
    """Logits of the videos that could be read, in their order, and the errors of those that could not."""

    logits: Tensor  # (n, V, K) float32
    labels: (
        Tensor  # (n,) int64; (n, K) float32, 1 where a video has the label, if it may have several
    )
    videos: tuple[Video, ...]
    skipped: tuple[VideoError, ...]

    @property
    def multi_label(self) -> bool:
        """Whether a video may have several labels."""
        return self.labels.ndim == 2

    @cached_property
    def scores(self) -> Tensor:
        """Of every class, averaged over views: (n, K)."""
        return view_scores(self.logits, multi_label=self.multi_label)

    @cached_property
    def figures(self) -> dict[str, float]:
        """How good the answers are: numbers of 0..1, by the names of FIGURE_NAMES. The first is what to choose a model by."""
        if self.multi_label:
            known = [precision for precision in self.per_class() if precision is not None]
            return {"mAP": sum(known) / len(known)}
        return {"top1": self.top(1), "top5": self.top(5)}

    def top(self, k: int) -> float:
        """Share of the videos whose label is among the k highest scores (all of them where there are fewer classes)."""
        best = self.scores.topk(min(k, self.scores.shape[1])).indices
        return (best == self.labels[:, None]).any(1).double().mean().item()

    def between(self, one: int, other: int) -> float:
        """Share of these two classes' videos that are told apart when only these two answers are allowed."""
        chosen = (self.labels == one) | (self.labels == other)
        answers = torch.where(self.scores[chosen, one] > self.scores[chosen, other], one, other)
        return (answers == self.labels[chosen]).double().mean().item()

    def confusion(self) -> Tensor:
        """How many videos of each class (rows) were taken for each class (columns): (K, K) int64."""
        classes = self.scores.shape[1]
        cells = self.labels * classes + self.scores.argmax(1)
        return torch.bincount(cells, minlength=classes * classes).view(classes, classes)

    def per_class(self) -> list[float | None]:
        """Top-1 of each class's own videos, or with several labels its average precision; None for a class without any."""
        if self.multi_label:
            return [
                average_precision(scores, has)
                for scores, has in zip(self.scores.T, self.labels.T, strict=True)
            ]
        cells = self.confusion()
        return [
            right / total if total else None
            for right, total in zip(cells.diag().tolist(), cells.sum(1).tolist(), strict=True)
        ]

    def to_dict(self) -> dict[str, Any]:
        """What `zeroi2v eval --json` prints of it."""
        skipped = [{"video": error.path, "error": error.reason} for error in self.skipped]
        return {**self.figures, "videos": len(self.videos), "skipped": skipped}


def data_for(model: VideoClassifier, config: DataConfig) -> DataConfig:
    """The settings to open the videos of a model by: with several labels a video where the model knows such.

    ConfigError if the settings ask for several labels and the model knows one.
    """
    if config.multi_label and not model.spec.multi_label:
        raise ConfigError("data.multi_label: the model was trained with one label a video")
    return replace(config, multi_label=model.spec.multi_label)


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
    """Score every video in full precision, never more than `batch_size` clips in one pass.

    `clip` and `views` say how views are cut out of a video; None: as the model was trained. A video that cannot be read is
    listed in `skipped`, never dropped silently. DatasetError if none can be read. The processes of a group share the batches,
    and each returns the results of all.
    """
    log = log or Log(quiet=True)
    clip, views = clip or model.clip, views or model.views
    model.eval()
    logits: dict[int, Tensor] = {}
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
        if not batch.indices:
            continue
        count = batch.clips.shape[1]
        of_views = clip_logits(model, batch.clips.flatten(0, 1), batch_size=batch_size)
        logits |= dict(zip(batch.indices, of_views.unflatten(0, (-1, count)), strict=True))
    for others_logits, others_broken in from_all([(logits, broken)]):
        logits |= others_logits
        broken |= others_broken
    skipped = [broken[index] for index in sorted(broken)]
    if not logits:
        first = skipped[0] if skipped else "there is none"
        raise DatasetError(f"none of the {len(videos)} videos can be read; the first: {first}")
    order = sorted(logits)
    several_of = len(model.labels) if model.spec.multi_label else None
    return Evaluation(
        logits=torch.stack([logits[index] for index in order]),
        labels=torch.stack([targets(videos[index].labels, several_of) for index in order]),
        videos=tuple(videos[index] for index in order),
        skipped=tuple(skipped),
    )
