"""How do pixels become scores, and how well do the scores of a label order the videos?

Clips become logits; logits become scores, averaged over the views of a video; scores have an
average precision.

Shapes: n clips or videos, V views of a video, T frames, S pixels a side, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor

from zeroi2v.models.video import VideoClassifier

BATCH: Final = 16  # clips in one pass through a model, unless the caller says otherwise


def video_scores(
    model: VideoClassifier, views: Tensor, *, compiled: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """The scores (K) of a video from its views of pixels, uint8 (V, T, 3, S, S).

    `compiled`: as in `clip_logits`.
    """
    logits = clip_logits(model, views, compiled=compiled)
    return view_scores(logits, multi_label=model.spec.multi_label)


@torch.no_grad()
def clip_logits(
    model: VideoClassifier,
    clips: Tensor,
    *,
    batch_size: int = BATCH,
    compiled: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """The logits of clips of pixels, uint8 (n, T, 3, S, S): (n, K), float32, on the CPU.

    At most `batch_size` clips pass through the model at once, in the precision of its weights.
    `compiled`, from `model.compiled`, takes the place of the model's forward pass.
    """
    run = compiled or model
    weight, spec = model.classifier.weight, model.spec
    logits: list[Tensor] = []
    for part in clips.split(batch_size):
        pixels = normalise(part.to(weight.device), spec.mean, spec.std, weight.dtype)
        logits.append(run(pixels).float().cpu())
    return torch.cat(logits)


def normalise(
    clip: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype = torch.float32
) -> Tensor:
    """(x / 255 - mean) / std per channel of uint8 (..., 3, S, S), in float32, rounded to `dtype`.

    The result is on the device of the clip. The function passes over the memory of the clip twice.
    """
    # A tensor of numbers would be copied to a GPU, and Python would wait for the copy.
    constants = torch.empty(6, device=clip.device)
    for number, value in zip(constants, (*mean, *std), strict=True):
        number.fill_(value)
    mean_255, std_255 = (255 * constants).view(2, 3, 1, 1)
    centred: Tensor = clip - mean_255
    if dtype == centred.dtype:
        return centred.div_(std_255)
    return torch.div(centred, std_255, out=torch.empty_like(centred, dtype=dtype))


def view_scores(logits: Tensor, *, multi_label: bool) -> Tensor:
    """The scores of a video from the logits of its views: (..., V, K) to (..., K).

    Softmax, or sigmoid if a video may have several labels, averaged over the views.
    """
    return (logits.double().sigmoid() if multi_label else logits.softmax(-1)).mean(-2)


def average_precision(scores: Tensor, has_label: Tensor) -> float | None:
    """The average precision of a label from the scores of n videos; None if no video has the label.

    `has_label` (n) is above 0 for the videos that have the label. For each of these videos,
    precision is the share of videos with the label among all videos that score as high or higher;
    the result is the mean of these shares. That is the area under the steps of precision over
    recall, where videos of equal score come in together.
    """
    own = scores[has_label > 0].sort().values
    if not len(own):
        return None
    as_high = len(scores) - torch.searchsorted(scores.sort().values, own)  # the video included
    own_as_high = len(own) - torch.searchsorted(own, own)
    return (own_as_high.double() / as_high).mean().item()
