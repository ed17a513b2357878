"""How does a model learn from one batch? Forward, backward, and one step of the optimiser, shared among processes.

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
    """What takes a step."""

    processes: Processes
    model: nn.Module  # the VideoClassifier, or what shares its gradients among the processes
    spec: Spec  # of the VideoClassifier
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    settings: TrainConfig

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype of the matrix products; None for fp32."""
        return autocast_dtype(self.settings.precision, self.processes.device)


@dataclass(frozen=True)
class Step:
    """What came of one step, over all processes."""

    loss: float  # sum of the losses of the clips
    clips: int
    skipped: bool = False  # the optimiser took no step, because the gradients of fp16 overflowed


def take_step(learner: Learner, clips: Tensor, labels: Tensor, learning_rate: float) -> Step:
    """One step on this process's part of a batch, uint8 (b, F, 3, S, S).

    The loss is the mean over the clips of all processes, whatever the number of processes and of parts (`accumulate`).
    """
    processes, settings = learner.processes, learner.settings
    count = round(processes.sum(len(labels)))
    if not count:  # every video of the batch was broken
        return Step(0.0, 0)
    for group in learner.optimizer.param_groups:
        group["lr"] = learning_rate
    learner.optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), dtype=torch.float64)
    weight = 1.0
    if not len(labels):  # all processes must take part: a clip that counts nothing
        clips, labels, weight = _empty_part(learner.spec), torch.zeros(1).long(), 0.0
    size = -(-len(labels) // settings.accumulate)
    parts = list(zip(clips.split(size), labels.split(size), strict=True))
    for number, (pixels, targets) in enumerate(parts, start=1):
        is_last = number == len(parts)
        with nullcontext() if is_last else processes.keep_gradients(learner.model):
            losses = _losses(learner, pixels, targets)
            loss = losses * (
                weight * processes.size / count
            )  # gradients are averaged over processes
            learner.scaler.scale(loss).backward()
            total += weight * losses.detach().double().cpu()
    skipped = _move_weights(learner)
    return Step(processes.sum(total.item()), count, skipped)


def _losses(learner: Learner, pixels: Tensor, targets: Tensor) -> Tensor:
    """The sum of the losses of some clips."""
    device, spec, dtype = learner.processes.device, learner.spec, learner.dtype
    fewer = {"fewer_frames": True} if pixels.shape[1] < spec.clip.frames else {}
    with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
        logits = learner.model(normalise(pixels.to(device), spec.mean, spec.std), **fewer)
    smoothing = learner.settings.label_smoothing
    return summed_loss(logits.float(), targets.to(device), label_smoothing=smoothing)


def _move_weights(learner: Learner) -> bool:
    """Let the optimiser take its step; whether the scaler of fp16 skipped the step."""
    settings, scaler = learner.settings, learner.scaler
    if settings.gradient_clip:
        scaler.unscale_(learner.optimizer)
        nn.utils.clip_grad_norm_(learner.model.parameters(), settings.gradient_clip)
    before = scaler.get_scale()
    scaler.step(learner.optimizer)
    scaler.update()
    return scaler.is_enabled() and scaler.get_scale() < before


def _empty_part(spec: Spec) -> Tensor:
    size = spec.image_size
    return torch.zeros(1, spec.clip.frames, 3, size, size, dtype=torch.uint8)
