"""Is the merged model the same model? Fold a saved model's adapters, compare the two, and only then write the folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch

from zeroi2v.config import DataConfig
from zeroi2v.data.datasets import open_dataset, relabel
from zeroi2v.errors import ConfigError, MergeError
from zeroi2v.inference.evaluate import data_for, evaluate
from zeroi2v.log import Log
from zeroi2v.machine import best_device, worker_count
from zeroi2v.models.loading import load
from zeroi2v.models.video import VideoClassifier

RANDOM_CLIPS: Final = 16
TOLERANCE: Final = (
    1e-4  # of the largest logit; rounding the folded weights once to float32 costs about 1e-6
)


def merge_folder(
    model: str,
    out: Path,
    *,
    data: Path | None = None,
    config: DataConfig | None = None,
    log: Log | None = None,
) -> dict[str, Any]:
    """Merge the model in a folder into `out`, compared on the evaluation videos of `data`, opened by `config`, or on random clips.

    Gives the largest difference of logits, and for how many clips both models answer the same. ConfigError if `out` is there
    already, MergeError if the two models differ by more than rounding and VideoError if a
    video cannot be read; then nothing is written.
    """
    if out.exists():
        raise ConfigError(f"{out}: already there; choose another --out, or remove it")
    adapted = load(model).to(best_device())
    merged = adapted.merge()
    if data is None:
        before, after = random_logits(adapted), random_logits(merged)
    else:
        config = data_for(adapted, config or DataConfig())
        videos = relabel(open_dataset(data, config), adapted.labels).for_evaluation()
        found = [
            evaluate(one, videos, workers=worker_count(-1), log=log) for one in (adapted, merged)
        ]
        if found[0].skipped:
            raise found[0].skipped[0]
        before, after = (one.logits.flatten(0, 1) for one in found)
    proof = {
        **difference(before, after),
        "compared_on": "random clips" if data is None else f"clips of {data}",
    }
    largest = proof["largest_logit_difference"]
    if not largest <= TOLERANCE * max(1.0, before.abs().max().item()):  # a NaN is refused too
        raise MergeError(f"{model}: merging moved a logit by {largest:.1e}; nothing was written")
    merged.save_pretrained(out)
    return proof


@torch.no_grad()
def random_logits(model: VideoClassifier) -> torch.Tensor:
    """The model's logits on always the same clips of normal noise: (n, K)."""
    size = (RANDOM_CLIPS, model.frames, 3, model.image_size, model.image_size)
    clips = torch.randn(size, generator=torch.Generator().manual_seed(0))
    logits: torch.Tensor = model(clips.to(next(model.parameters()).device))
    return logits


def difference(before: torch.Tensor, after: torch.Tensor) -> dict[str, Any]:
    """How far two models' logits (n, K) on the same clips lie apart, and for how many clips their answers agree."""
    same = int((before.argmax(-1) == after.argmax(-1)).sum())
    return {
        "clips": len(before),
        "largest_logit_difference": (before - after).abs().max().item(),
        "same_answers": same,
    }
