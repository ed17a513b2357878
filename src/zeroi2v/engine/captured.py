"""How does a GPU take a training step without waiting for Python? The step is captured once.

A CUDA graph holds all kernels of a step: forward pass, backward pass, and the move of the weights.
A replay starts all kernels at once, on clips and labels that are copied to where the graph reads
them. The
learning rate is a tensor. Only batches of the shape of the first full batch are replayed; all other
batches are taken step by step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from zeroi2v.engine.step import (
    Learner,
    Step,
    follow_gradient,
    move_weights,
    set_learning_rate,
    take_step,
)
from zeroi2v.errors import one_line
from zeroi2v.log import Log

WARMUP: Final = 3  # steps before a capture: they choose algorithms and make the optimiser's state


def can_capture(learner: Learner) -> bool:
    """Whether the steps of a learner can be captured.

    With fp16 the gradient decides whether the weights move. Several processes wait for each other.
    A graph can hold neither.
    """
    processes = learner.processes
    return (
        learner.settings.compile
        and processes.device.type == "cuda"
        and processes.accelerator is None
        and not learner.scaler.is_enabled()
    )


@dataclass(frozen=True)
class _Graph:
    """A captured step, and the tensors that a replay reads and writes."""

    graph: torch.cuda.CUDAGraph
    clips: Tensor
    labels: Tensor
    loss: Tensor


class CapturedSteps:
    """`take_step` for a learner on a GPU, replayed where the shape of the batch allows it."""

    def __init__(self, learner: Learner, log: Log) -> None:
        self.learner, self.log = learner, log
        self.captured: _Graph | None = None
        self.failed = False

    def __call__(self, clips: Tensor, labels: Tensor, learning_rate: float) -> Step:
        """Take a step, like `take_step` with the learner."""
        learner = self.learner
        is_full = len(labels) == learner.settings.batch_size
        is_whole = clips.shape[1] == learner.spec.clip.frames
        if self.captured is None and is_full and is_whole and not self.failed:
            self._capture(clips, labels)
        captured = self.captured
        if captured is None or captured.clips.shape != clips.shape:
            return take_step(learner, clips, labels, learning_rate)
        captured.clips.copy_(clips, non_blocking=True)
        captured.labels.copy_(labels, non_blocking=True)
        set_learning_rate(learner.optimizer, learning_rate)
        captured.graph.replay()
        return Step(captured.loss.clone(), len(labels))

    def _capture(self, clips: Tensor, labels: Tensor) -> None:
        """Capture a step on a batch of this shape. Weights and moments stay as they are."""
        learner, device = self.learner, self.learner.processes.device
        for group in learner.optimizer.param_groups:
            group["lr"] = torch.tensor(float(group["lr"]), device=device)
        kept = _Kept(learner, device)
        clips, labels = clips.to(device, copy=True), labels.to(device, copy=True)
        graph = torch.cuda.CUDAGraph()
        try:
            stream = torch.cuda.Stream(device)
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                for _ in range(WARMUP):
                    self._step(clips, labels)
            torch.cuda.current_stream(device).wait_stream(stream)
            learner.optimizer.zero_grad(set_to_none=True)
            with torch.cuda.graph(graph):
                loss = self._step(clips, labels)
            self.captured = _Graph(graph, clips, labels, loss)
        except RuntimeError as error:
            self.failed = True
            self.log.warn(
                f"steps are taken operation by operation, because a CUDA graph cannot hold them: "
                f"{one_line(error)}"
            )
        finally:
            kept.restore()

    def _step(self, clips: Tensor, labels: Tensor) -> Tensor:
        """One step, without the learning rate: the sum of the losses."""
        loss = follow_gradient(self.learner, clips, labels, share=1 / len(labels))
        move_weights(self.learner)
        return loss


class _Kept:
    """Copies of all that the steps before a capture change.

    These are weights, buffers, the moments of the optimiser, and the random generator.
    """

    def __init__(self, learner: Learner, device: torch.device) -> None:
        self.learner, self.device = learner, device
        model = learner.model
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        self.tensors = [
            (tensor, tensor.detach().clone()) for tensor in (*trained, *model.buffers())
        ]
        self.moments: dict[Tensor, dict[str, Any]] = {
            weight: {name: _copy(value) for name, value in state.items()}
            for weight, state in learner.optimizer.state.items()
        }
        self.random = torch.cuda.get_rng_state(device)

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back. Moments that did not exist before become zero, in place."""
        for tensor, before in self.tensors:
            tensor.copy_(before)
        for weight, state in self.learner.optimizer.state.items():
            for name, value in state.items():
                if isinstance(value, Tensor):
                    moment = self.moments.get(weight, {}).get(name)
                    value.zero_() if moment is None else value.copy_(moment)
        torch.cuda.set_rng_state(self.random, self.device)


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value
