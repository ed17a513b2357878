"""What happens in this video? A saved model, applied to one file by the protocol that it was trained with."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from zeroi2v.data.loader import read_views
from zeroi2v.errors import ConfigError, VideoError
from zeroi2v.inference.scores import clip_logits, view_scores
from zeroi2v.machine import best_device
from zeroi2v.models.loading import load


@dataclass(frozen=True)
class Prediction:
    """A label and its score, averaged over the views: softmax, or sigmoid of a model for several labels a video."""

    label: str
    score: float


class Predictor:
    """`Predictor(folder).predict("video.mp4")`. The folder is a run, a merged model or a Hub name."""

    def __init__(
        self, folder: str | os.PathLike[str], *, device: str | torch.device | None = None
    ) -> None:
        self.device = best_device() if device is None else torch.device(device)
        self.model = load(os.fspath(folder)).to(self.device)

    def predict(self, video: str | os.PathLike[str], *, top_k: int = 5) -> list[Prediction]:
        """The `top_k` most likely labels, best first. VideoError if the video cannot be read."""
        if top_k < 1:
            raise ConfigError(f"top_k must be at least 1, got {top_k}")
        if not os.fspath(video):
            raise VideoError("''", "an empty path; give a video file or a folder of frames")
        model = self.model
        views = read_views(
            Path(video), clip=model.clip, views=model.views, size=model.image_size
        )  # (V, T, 3, S, S)
        scores = view_scores(clip_logits(model, views), multi_label=model.spec.multi_label)
        best = scores.topk(min(top_k, len(model.labels)))
        return [
            Prediction(model.labels[index], score)
            for score, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
