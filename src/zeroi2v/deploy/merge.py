"""Does a merged model give the logits of the adapted model? Merge, compare, and only then write.

Shapes: n clips, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal, TypedDict

import torch
from torch import Tensor

from zeroi2v.config import DataConfig
from zeroi2v.data.datasets import Video, open_dataset, relabel
from zeroi2v.errors import ConfigError, MergeError
from zeroi2v.files import claimed
from zeroi2v.inference.evaluate import data_for, evaluate
from zeroi2v.log import Log
from zeroi2v.machine import best_device
from zeroi2v.models.loading import load
from zeroi2v.models.video import VideoClassifier

RANDOM_CLIPS: Final = 16
# share of the largest logit; rounding the folded weights to float32 moves a logit by about 1e-6
TOLERANCE: Final = 1e-4


class Difference(TypedDict):
    """How far the logits of two models on the same clips lie apart."""

    clips: int
    largest_logit_difference: float
    same_answers: int  # clips for which the highest logit belongs to the same class


class Proof(Difference):
    """The comparison which shows that a merged model gives the logits of the adapted model."""

    compared_on: str


def merge_folder(
    model: str,
    out: Path,
    *,
    data: Path | None = None,
    config: DataConfig | None = None,
    absent_classes: Literal["stop", "skip"] = "stop",
    workers: int = 0,
    log: Log | None = None,
) -> Proof:
    """Merge a saved model, compare both models, and write the merged model to the folder `out`.

    The models are compared on the evaluation videos of `data`, opened with the settings `config`
    and `absent_classes` (`open_dataset`), and decoded by `workers` processes. Without `data`, they
    are compared on random clips.

    ConfigError if `out` exists. MergeError if the logits differ by more than rounding. VideoError
    if a video cannot be read. After an error nothing is written.
    """
    if out.exists():
        raise ConfigError(f"{out}: already there; choose another --out, or remove it")
    adapted = load(model).to(best_device())
    try:
        merged = adapted.merge()
    except MergeError as error:
        raise MergeError(f"{model}: {error}") from error
    with claimed(out, "another merge"):
        if data is None:
            before, after = random_logits(adapted), random_logits(merged)
        else:
            settings = data_for(adapted, config or DataConfig())
            dataset = open_dataset(data, settings, absent_classes=absent_classes)
            videos = relabel(dataset, adapted.labels).for_evaluation()
            before, after = (
                _logits_of_videos(version, videos, workers, log) for version in (adapted, merged)
            )
        apart = difference(before, after)
        largest = apart["largest_logit_difference"]
        if not largest <= TOLERANCE * max(1.0, before.abs().max().item()):  # true for NaN too
            raise MergeError(
                f"{model}: merging changed a logit by {largest:.1e}, more than rounding explains; "
                "nothing was written; please report this model"
            )
        merged.save_pretrained(out)
    return {**apart, "compared_on": "random clips" if data is None else f"clips of {data}"}


@torch.no_grad()
def random_logits(model: VideoClassifier) -> Tensor:
    """The logits of a model on clips of normal noise, the same clips in every call: (n, K)."""
    size = (RANDOM_CLIPS, model.frames, 3, model.image_size, model.image_size)
    clips = torch.randn(size, generator=torch.Generator().manual_seed(0))
    logits: Tensor = model(clips.to(model.classifier.weight.device))
    return logits


def _logits_of_videos(
    model: VideoClassifier, videos: Sequence[Video], workers: int, log: Log | None
) -> Tensor:
    """The logits of all views of the videos: (n, K). VideoError if a video cannot be read."""
    evaluation = evaluate(model, videos, workers=workers, log=log)
    if evaluation.skipped:
        raise evaluation.skipped[0]
    return evaluation.logits.flatten(0, 1)


def difference(before: Tensor, after: Tensor) -> Difference:
    """How far the logits (n, K) of two models on the same clips lie apart."""
    return {
        "clips": len(before),
        "largest_logit_difference": (before - after).abs().max().item(),
        "same_answers": int((before.argmax(-1) == after.argmax(-1)).sum()),
    }
