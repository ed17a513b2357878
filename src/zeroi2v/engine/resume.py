"""Where does a run stand? Everything that the rest of the run depends on, in one file that is replaced in one step.

A run that goes on from this file ends, on a CPU, bit for bit like a run that never stopped. The pixels of a sample follow from
seed, epoch and index, so the file keeps nothing of the loader but the position.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import pickle
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from zeroi2v.data.datasets import Video
from zeroi2v.engine.shard import gathered, scatter, whole
from zeroi2v.errors import CheckpointError, FileError, ZeroI2VError
from zeroi2v.files import write_files
from zeroi2v.machine import from_all
from zeroi2v.models.video import VideoClassifier

FORMAT: Final = 2


@dataclass
class Position:
    """How far a run has come. Sums are over the epoch in progress, and over all processes."""

    epoch: int = 1  # the epoch in progress
    batch: int = 0  # the batches of it that are done
    loss: float = 0.0
    clips: int = 0
    skipped: int = 0  # steps that fp16 skipped
    seconds: float = 0.0
    best_epoch: int = 0
    best: float = -1.0  # the figure of that epoch, the higher the better
    validations_since_best: int = 0
    broken: dict[str, str] = field(default_factory=dict)  # path -> reason

    def add(self, loss: float, clips: int, *, skipped: bool) -> None:
        """Count one batch. The loss of a step that fp16 skipped says nothing where it overflowed too."""
        self.batch += 1
        self.skipped += skipped
        if not skipped or math.isfinite(loss):
            self.loss += loss
            self.clips += clips

    def next_epoch(self) -> None:
        """Begin the next epoch."""
        self.epoch += 1
        self.batch, self.loss, self.clips, self.skipped, self.seconds = 0, 0.0, 0, 0, 0.0


class TrainingState:
    """The parts of a run that move, and the file that keeps them."""

    def __init__(
        self,
        path: Path,
        *,
        data: str,
        model: VideoClassifier,
        learning: nn.Module,
        parts: dict[str, Any],
    ) -> None:
        """`parts`: by name, what has a state_dict. `learning`: the model, or the model in parts. `data`: `data_key` of the videos."""
        self.path, self.data, self.model, self.learning, self.parts = (
            path,
            data,
            model,
            learning,
            parts,
        )

    def save(self, position: Position, *, writes: bool) -> None:
        """Replace the file, in the process that `writes`; all processes must call this.

        ZeroI2VError if the run has come to no finite loss or weights, CheckpointError if the file cannot be written; the file of
        before stays.
        """
        generators = from_all([_generators()])
        parts = {name: whole(part.state_dict()) for name, part in self.parts.items()}
        with gathered(self.learning, self.model):
            require_finite(position, self.model)
            if not writes:
                return
            state = {
                "format": FORMAT,
                "data": self.data,
                "position": dataclasses.asdict(position),
                "weights": self.model.stored_tensors(),
                "parts": parts,
                "generators": generators,
            }
            try:
                write_files({self.path: lambda path: _write(state, path)})
            except FileError as error:
                raise CheckpointError(str(error)) from error

    def load(self, process: int, processes: int) -> Position:
        """Put every part back to where it was. CheckpointError if the file is not of this run."""
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
        except FileNotFoundError as error:
            raise CheckpointError(
                f"{self.path}: not there; only a run that was begun can be resumed"
            ) from error
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise CheckpointError(f"{self.path}: cannot be read: {reason}") from error
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise CheckpointError(f"{self.path}: not the state of a run")
        if state["data"] != self.data:
            raise CheckpointError(
                f"{self.path}: the run was begun with other videos or labels; give it the same data"
            )
        if len(state["generators"]) != processes:
            raise CheckpointError(
                f"{self.path}: the run was begun on {len(state['generators'])} processes, not {processes}"
            )
        weights = self.model.stored_tensors()
        with torch.no_grad():
            for name, tensor in state["weights"].items():
                weights[name].copy_(tensor)
        for name, part in self.parts.items():
            part.load_state_dict(state["parts"][name])
        scatter(self.model, self.learning, self.parts["optimizer"])
        cpu, *gpu = state["generators"][process]
        torch.set_rng_state(cpu)
        if gpu:
            torch.cuda.set_rng_state(gpu[0])
        return Position(**state["position"])


@torch.no_grad()
def require_finite(position: Position, model: nn.Module) -> None:
    """ZeroI2VError if the loss of the epoch, or a weight that trains, is no finite number."""
    trained = (parameter for parameter in model.parameters() if parameter.requires_grad)
    if math.isfinite(position.loss) and all(bool(one.isfinite().all()) for one in trained):
        return
    raise ZeroI2VError(
        f"epoch {position.epoch}, step {position.batch}: the loss or a weight is no finite number any more; "
        "train with a lower train.learning_rate, or with train.gradient_clip"
    )


def _write(state: dict[str, Any], path: Path) -> None:
    try:
        torch.save(state, path)
    except (
        RuntimeError
    ) as error:  # how torch's writer of archives says that the disk did not take them
        raise OSError(
            f"the disk is full, or does not take it ({str(error).splitlines()[0]})"
        ) from error


def _generators() -> list[Tensor]:
    """The states of this process's random generators."""
    return [
        torch.get_rng_state(),
        *([torch.cuda.get_rng_state()] if torch.cuda.is_available() else []),
    ]


def data_key(classes: Sequence[str], videos: Iterable[Video]) -> str:
    """A hash of the videos' names and labels, in order, and of the classes: the same when the folder has moved."""
    digest = hashlib.sha256("\n".join(classes).encode(errors="surrogateescape"))
    for video in videos:
        labels = "|".join(map(str, video.labels))
        digest.update(f"\n{video.path.name}\t{labels}".encode(errors="surrogateescape"))
    return digest.hexdigest()
