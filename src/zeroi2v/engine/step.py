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
from zeroi2v.data.transforms import normalise
from zeroi2v.engine.optim import autocast_dtype, summed_loss
from zeroi2v.engine.processes import Processes
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

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype of matrix products; None for fp32."""
        return autocast_dtype(self.settings.precision, self.processes.device)


@dataclass(frozen=True)
class Step:
    """The result of one training step, over all processes."""

    loss: float  # sum of the losses of the clips
    clips: int
    skipped: bool = False  # whether the weights did not move, because gradients of fp16 overflowed


def take_step(learner: Learner, clips: Tensor, labels: Tensor, learning_rate: float) -> Step:
    """Take one training step. `clips`, uint8 (b, F, 3, S, S), are this process's part of the batch.

    The step follows the gradient of the mean loss over the clips of all processes. Apart from
    rounding, this gradient depends neither on the number of processes nor on `train.accumulate`,
    the number of parts in which a process takes its clips.
    """
    processes, settings = learner.processes, learner.settings
    count = round(processes.sum(len(labels)))
    if not count:  # no video of the batch can be read
        return Step(0.0, 0)
    for group in learner.optimizer.param_groups:
        group["lr"] = learning_rate
    learner.optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), dtype=torch.float64)
    weight = 1.0
    if not len(labels):  # all processes must take part: this process takes a clip of weight 0
        clips, labels, weight = _black_clip(learner.spec), torch.zeros(1).long(), 0.0
    size = -(-len(labels) // settings.accumulate)
    parts = list(zip(clips.split(size), labels.split(size), strict=True))
    for number, (pixels, targets) in enumerate(parts, start=1):
        is_last = number == len(parts)
        with nullcontext() if is_last else processes.keep_gradients(learner.model):
            part_loss = _part_loss(learner, pixels, targets)
            # The backward pass averages the gradients over the processes, hence the factor `size`.
            share_of_mean = part_loss * (weight * processes.size / count)
            learner.scaler.scale(share_of_mean).backward()
            total += weight * part_loss.detach().double().cpu()
    skipped = _move_weights(learner)
    return Step(processes.sum(total.item()), count, skipped)


def _part_loss(learner: Learner, pixels: Tensor, targets: Tensor) -> Tensor:
    """The sum of the losses of the clips `pixels`, uint8 (b, F, 3, S, S)."""
    device, spec, dtype = learner.processes.device, learner.spec, learner.dtype
    options = {"fewer_frames": True} if pixels.shape[1] < spec.clip.frames else {}
    with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
        logits = learner.model(normalise(pixels.to(device), spec.mean, spec.std), **options)
    smoothing = learner.settings.label_smoothing
    return summed_loss(logits.float(), targets.to(device), label_smoothing=smoothing)


def _move_weights(learner: Learner) -> bool:
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
