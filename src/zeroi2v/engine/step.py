"""How does a model learn from one batch? By a forward pass, a backward pass and an optimiser step.

The processes of a group share every batch: each process has a part of the clips of the batch.

Shapes: b clips of this process, F frames, S pixels a side.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zeroi2v.config import TrainConfig
from zeroi2v.engine.cast import CastWeights
from zeroi2v.engine.optim import autocast_dtype, set_learning_rate, summed_loss
from zeroi2v.engine.processes import Processes
from zeroi2v.inference.scores import normalise
from zeroi2v.models.spec import Spec


@dataclass(frozen=True)
class Learner:
    """A model in training, and the objects that move its weights."""

    processes: Processes
    model: nn.Module  # the VideoClassifier, wrapped where several processes train it
    spec: Spec  # of the VideoClassifier
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    settings: TrainConfig
    # The weights for steps in bfloat16 without autocast; None: autocast casts, or nothing does.
    cast: CastWeights | None = None

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype of matrix products; None for fp32."""
        return autocast_dtype(self.settings.precision, self.processes.device)


@dataclass(frozen=True)
class Step:
    """The result of one training step, over all processes."""

    # Sum of the losses of the clips. On a GPU the sum may still be on the device; reading the sum
    # then waits for the step.
    loss: float | Tensor
    clips: int
    skipped: bool = False  # whether the weights did not move, because gradients of fp16 overflowed


def take_step(learner: Learner, clips: Tensor, labels: Tensor, learning_rate: float) -> Step:
    """Take one training step. `clips`, uint8 (b, F, 3, S, S), are this process's part of the batch.

    The step follows the gradient of the mean loss over the clips of all processes. Apart from
    rounding, this gradient depends neither on the number of processes nor on `train.accumulate`,
    the number of parts in which a process takes its clips.
    """
    processes = learner.processes
    count = round(processes.sum(len(labels)))
    if not count:  # no video of the batch can be read
        return Step(0.0, 0)
    set_learning_rate(learner.optimizer, learning_rate)
    weight = 1.0
    if not len(labels):  # all processes must take part: this process takes a clip of weight 0
        clips, labels, weight = _black_clip(learner.spec), torch.zeros(1).long(), 0.0
    device = processes.device
    clips, labels = clips.to(device, non_blocking=True), labels.to(device, non_blocking=True)
    total = follow_gradient(learner, clips, labels, share=weight * processes.size / count)
    skipped = move_weights(learner)
    loss = weight * total
    if device.type == "cuda" and processes.size == 1:
        return Step(loss, count, skipped)
    return Step(processes.sum(loss.item()), count, skipped)


def follow_gradient(learner: Learner, clips: Tensor, labels: Tensor, *, share: float) -> Tensor:
    """Compute the gradient of `share` times the sum of the losses, and give this sum (float64).

    The clips are taken in `train.accumulate` parts.
    """
    learner.optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), dtype=torch.float64, device=clips.device)
    size = -(-len(labels) // learner.settings.accumulate)
    parts = list(zip(clips.split(size), labels.split(size), strict=True))
    for number, (pixels, targets) in enumerate(parts, start=1):
        is_last = number == len(parts)
        # The last backward pass averages the gradients over the processes.
        with nullcontext() if is_last else learner.processes.keep_gradients(learner.model):
            total += _learn_part(learner, pixels, targets, share).double()
    return total


def _learn_part(learner: Learner, pixels: Tensor, targets: Tensor, share: float) -> Tensor:
    """Add the gradients of the clips `pixels`, uint8 (b, F, 3, S, S), times `share`.

    The result is the sum of the losses of the clips.
    """
    spec, dtype, device = learner.spec, learner.dtype, pixels.device
    options = {"fewer_frames": True} if pixels.shape[1] < spec.clip.frames else {}
    cast = learner.cast
    autocasts = dtype is not None and cast is None
    input_dtype = torch.float32 if cast is None else cast.dtype

    def learn(model: nn.Module) -> Tensor:
        clips = normalise(pixels, spec.mean, spec.std, input_dtype)
        with torch.autocast(device.type, dtype or torch.bfloat16, enabled=autocasts):
            logits = model(clips, **options)
        smoothing = learner.settings.label_smoothing
        loss = summed_loss(logits.float(), targets, label_smoothing=smoothing)
        learner.scaler.scale(loss * share).backward()
        return loss.detach()

    return learn(learner.model) if cast is None else cast.call(learn)


def move_weights(learner: Learner) -> bool:
    """Let the optimiser take a step, and return whether the scaler of fp16 skipped the step."""
    settings, scaler = learner.settings, learner.scaler
    if settings.gradient_clip:
        scaler.unscale_(learner.optimizer)
        nn.utils.clip_grad_norm_(learner.model.parameters(), settings.gradient_clip)
    scale_before = scaler.get_scale()
    scaler.step(learner.optimizer)
    scaler.update()
    return scaler.is_enabled() and scaler.get_scale() < scale_before


def _black_clip(spec: Spec) -> Tensor:
    """One black clip (1, F, 3, S, S) uint8."""
    size = spec.image_size
    return torch.zeros(1, spec.clip.frames, 3, size, size, dtype=torch.uint8)
