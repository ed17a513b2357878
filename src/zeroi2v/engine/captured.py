"""How does a GPU take a training step without waiting for Python? The step is captured once.

A CUDA graph holds all kernels of a step: forward pass, backward pass, and the move of the weights.
A replay starts all kernels at once, on clips and labels that are copied to where the graph reads
them. The learning rate is a tensor. Only full batches of whole clips are replayed; for all other
batches a step is computed operation by operation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from zeroi2v.engine.optim import set_learning_rate
from zeroi2v.engine.spare import replaced_forward
from zeroi2v.engine.step import Learner, Step, follow_gradient, move_weights, take_step
from zeroi2v.errors import how_many, one_line
from zeroi2v.log import Log

WARMUP: Final = 3  # steps before a capture: they choose algorithms and make the optimiser's state
# Whether torch.compile compiles the forward and backward pass of a step before the capture. No GPU
# has shown yet that a compiled step is faster; benchmarks/training_step.py has a row for it.
COMPILES: Final = False


def can_capture(learner: Learner) -> bool:
    """Whether `train.compile` asks for captured steps, and a graph can hold the steps."""
    return learner.settings.compile and uncaptured_reason(learner) is None


def uncaptured_reason(learner: Learner) -> str | None:
    """Why no CUDA graph can hold a step of a learner; None if a graph can."""
    if learner.processes.device.type != "cuda":
        return "only a GPU has CUDA graphs"
    if learner.processes.accelerator is not None:
        return "several processes wait for each other in a step"
    if learner.scaler.is_enabled():
        return "the gradients of fp16 decide whether a step moves the weights"
    return None


@dataclass(frozen=True)
class _Graph:
    """A captured step, and the tensors that a replay reads and writes."""

    graph: torch.cuda.CUDAGraph
    clips: Tensor
    labels: Tensor
    loss: Tensor


class CapturedSteps:
    """`take_step` for a learner on a GPU, replayed where the shape of the batch allows it.

    With `compiles`, torch.compile compiles the model for the step that is captured.
    """

    def __init__(self, learner: Learner, log: Log, *, compiles: bool = COMPILES) -> None:
        self.learner, self.log, self.compiles = learner, log, compiles
        self.captured: _Graph | None = None
        self.failed = False
        self.said_other_shape = False

    def __call__(self, clips: Tensor, labels: Tensor, learning_rate: float) -> Step:
        """Take a step, like `take_step` with the learner."""
        learner = self.learner
        shape = (learner.settings.batch_size, learner.spec.clip.frames)
        if self.captured is None and clips.shape[:2] == shape and not self.failed:
            self._capture(clips, labels)
        captured = self.captured
        if captured is None or captured.clips.shape != clips.shape:
            self._say_other_shape(clips)
            return take_step(learner, clips, labels, learning_rate)
        captured.clips.copy_(clips, non_blocking=True)
        captured.labels.copy_(labels, non_blocking=True)
        set_learning_rate(learner.optimizer, learning_rate)
        captured.graph.replay()
        return Step(captured.loss.clone(), len(labels))

    def _say_other_shape(self, clips: Tensor) -> None:
        """Say once that a batch has another shape than a captured step."""
        if self.failed or self.said_other_shape or not len(clips):
            return
        self.said_other_shape = True
        settings, spec = self.learner.settings, self.learner.spec
        self.log.say(
            f"a step on {how_many(len(clips), 'clip')} of {how_many(clips.shape[1], 'frame')} is "
            f"computed operation by operation; the captured step takes {settings.batch_size} clips "
            f"of {spec.clip.frames} frames"
        )

    def _capture(self, clips: Tensor, labels: Tensor) -> None:
        """Capture a step on a batch of this shape. Weights and moments stay as they are."""
        learner, device = self.learner, self.learner.processes.device
        for group in learner.optimizer.param_groups:
            group["lr"] = torch.tensor(float(group["lr"]), device=device)
        kept = _Kept(learner, device)
        clips, labels = clips.to(device, copy=True), labels.to(device, copy=True)
        graph = torch.cuda.CUDAGraph()
        try:
            with self._compiled():
                self._warm_up(clips, labels, device)
                stream = torch.cuda.Stream(device)  # of this device, which need not be the current
                with torch.cuda.device(device), torch.cuda.graph(graph, stream=stream):
                    loss = self._step(clips, labels)
            self.captured = _Graph(graph, clips, labels, loss)
        except RuntimeError as error:
            self.give_up(error)
        finally:
            kept.restore()

    def give_up(self, error: RuntimeError) -> None:
        """Take all steps operation by operation from now on, without cast weights.

        Cast weights pay off only in captured steps.
        """
        self.failed = True
        self.learner = dataclasses.replace(self.learner, cast=None)
        self.log.warn(
            f"steps are computed operation by operation, because a CUDA graph cannot hold "
            f"them: {one_line(error)}"
        )

    def _compiled(self) -> AbstractContextManager[None]:
        """Within the block torch.compile compiles the model, if the steps are to be compiled."""
        model = self.learner.model
        if not self.compiles:
            return nullcontext()
        return replaced_forward(model, torch.compile(model.forward, dynamic=False))

    def _warm_up(self, clips: Tensor, labels: Tensor, device: torch.device) -> None:
        """Take the steps before a capture, on another stream, as CUDA graphs need them.

        RuntimeError if the last of these steps makes the host wait for the GPU. A capture would
        fail at such a step, and a failed capture may leave the random numbers unusable.
        """
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(WARMUP - 1):
                self._step(clips, labels)
            with _waiting_is_an_error():
                self._step(clips, labels)
        torch.cuda.current_stream(device).wait_stream(stream)
        self.learner.optimizer.zero_grad(set_to_none=True)

    def _step(self, clips: Tensor, labels: Tensor) -> Tensor:
        """One step, without the learning rate: the sum of the losses."""
        loss = follow_gradient(self.learner, clips, labels, share=1 / len(labels))
        move_weights(self.learner)
        return loss


@contextmanager
def _waiting_is_an_error() -> Iterator[None]:
    """Within the block an operation that makes the host wait for a GPU is a RuntimeError."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


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
