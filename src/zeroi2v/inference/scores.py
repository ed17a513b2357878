"""How do pixels become scores? Logits of clips, scores averaged over the views of a video, and average precision.

Shapes: n clips or videos, V views of a video, T frames, S pixels a side, K classes.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from zeroi2v.data.transforms import normalise
from zeroi2v.models.video import VideoClassifier

BATCH: Final = 16  # clips in one pass through the model, if nobody says otherwise


@torch.no_grad()
def clip_logits(model: VideoClassifier, clips: Tensor, *, batch_size: int = BATCH) -> Tensor:
    """Logits (n, K), float32 on the CPU, of clips of pixels, uint8 (n, T, 3, S, S); never more than `batch_size` in one pass."""
    device, (mean, std) = model.classifier.weight.device, model.normalisation
    return torch.cat(
        [
            model(normalise(part.to(device), mean, std)).float().cpu()
            for part in clips.split(batch_size)
        ]
    )


def view_scores(logits: Tensor, *, multi_label: bool) -> Tensor:
    """Softmax, or sigmoid where a video may have several labels, averaged over views: (..., V, K) to (..., K)."""
    return (logits.double().sigmoid() if multi_label else logits.softmax(-1)).mean(-2)


def average_precision(scores: Tensor, has: Tensor) -> float | None:
    """Of the videos that have a label (n), the mean of the share that has it among all that score as high or higher; None without any.

    That is the area under the steps of precision over recall; videos of equal score come in together.
    """
    own = scores[has > 0].sort().values
    if not len(own):
        return None
    higher = len(scores) - torch.searchsorted(scores.sort().values, own)  # itself included
    higher_own = len(own) - torch.searchsorted(own, own)
    return (higher_own.double() / higher).mean().item()
