"""What happens in a video? A saved model answers from the views that its `Spec` names.

Shapes: V views of a video, T frames, S pixels a side, K classes.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from zeroi2v.data.views import read_views
from zeroi2v.errors import ConfigError, VideoError
from zeroi2v.inference.scores import BATCH, video_scores
from zeroi2v.machine import best_device
from zeroi2v.models.compiled import compiled as compiled_model
from zeroi2v.models.compiled import dtype_of
from zeroi2v.models.loading import load

VideoPath: TypeAlias = str | os.PathLike[str]


@dataclass(frozen=True)
class Prediction:
    """A label and its score: softmax, or sigmoid if a video may have several labels.

    The score is averaged over the views.
    """

    label: str
    score: float


class Predictor:
    """`Predictor(folder).predict("video.mp4")`. The folder is a run, a merged model or a Hub name.

    `dtype`, "fp32", "bf16" or "fp16", is the precision of weights and arithmetic; scores stay in
    full precision. With `compiled`, the model is compiled for the views of a video when the
    predictor is made (`VideoClassifier.compiled`): that takes time once, and less time for each
    video. The compiled model uses the weights of `model`, which must then stay as they are. Several
    threads may use one predictor. ConfigError for an unknown `dtype`.
    """

    def __init__(
        self,
        folder: VideoPath,
        *,
        device: str | torch.device | None = None,
        dtype: str = "fp32",
        compiled: bool = False,
    ) -> None:
        weight_dtype = dtype_of(dtype)  # before the folder is read
        self.device = best_device() if device is None else torch.device(device)
        self.model = load(os.fspath(folder)).to(self.device, weight_dtype).eval()
        self._compiled: Callable[[Tensor], Tensor] | None = None
        if compiled:
            model = self.model.requires_grad_(False)
            views = model.views.clips * model.views.crops
            self._compiled = compiled_model(model, model.blank_clips(min(views, BATCH)))

    def predict(self, video: VideoPath, *, top_k: int = 5) -> list[Prediction]:
        """The `top_k` most likely labels, best first. VideoError if the video cannot be read."""
        _require_top_k(top_k)
        views = self._views(video)
        scores = video_scores(self.model, views, compiled=self._compiled)
        return self._best(scores, top_k)

    def predict_each(
        self, videos: Sequence[VideoPath], *, top_k: int = 5, workers: int = 0
    ) -> Iterator[list[Prediction] | VideoError]:
        """For each video, in order, its predictions, or the error if the video cannot be read.

        While the model computes, `workers` threads read the videos that follow.
        """
        _require_top_k(top_k)
        if not workers:
            for video in videos:
                try:
                    yield self.predict(video, top_k=top_k)
                except VideoError as error:
                    yield error
            return
        for views in self._views_ahead(videos, workers):
            if isinstance(views, VideoError):
                yield views
                continue
            scores = video_scores(self.model, views, compiled=self._compiled)
            yield self._best(scores, top_k)

    def _views(self, video: VideoPath) -> Tensor:
        """The views of a video, as the model's `Spec` cuts them out: uint8 (V, T, 3, S, S)."""
        if not os.fspath(video):
            raise VideoError("''", "an empty path; give a video file or a folder of frames")
        spec = self.model.spec
        return read_views(
            Path(video),
            clip=spec.clip,
            views=spec.views,
            size=spec.image_size,
            direction="forwards" if spec.directions else None,
        )

    def _best(self, scores: Tensor, top_k: int) -> list[Prediction]:
        """The `top_k` labels with the highest scores (K), best first."""
        spec = self.model.spec
        best = scores.topk(min(top_k, len(spec.labels)))
        return [
            Prediction(spec.labels[index], score)
            for score, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    def _views_ahead(
        self, videos: Sequence[VideoPath], workers: int
    ) -> Iterator[Tensor | VideoError]:
        """The views of each video, in order; at most `workers` + 1 videos are held at once."""
        pool = ThreadPoolExecutor(workers)
        ahead: deque[Future[Tensor]] = deque()
        try:
            for video in videos:
                ahead.append(pool.submit(self._views, video))
                if len(ahead) > workers:
                    yield _result(ahead.popleft())
            while ahead:
                yield _result(ahead.popleft())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _require_top_k(top_k: int) -> None:
    if top_k < 1:
        raise ConfigError(f"top_k must be at least 1, got {top_k}")


def _result(future: Future[Tensor]) -> Tensor | VideoError:
    try:
        return future.result()
    except VideoError as error:
        return error
