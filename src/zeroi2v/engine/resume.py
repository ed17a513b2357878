"""Where does a run stand? Everything that the rest of it depends on, in one file that is replaced in one step.

A run that goes on from this file ends, on a CPU, bit for bit like one that never stopped. What a sample looks like follows from seed,
epoch and index, so of the loader only the position is kept.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pickle
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from zeroi2v.data.datasets import Video
from zeroi2v.engine.shard import gathered, scatter, whole
from zeroi2v.errors import CheckpointError
from zeroi2v.files import write_files
from zeroi2v.machine import from_all
from zeroi2v.models.checkpoints import own_state
from zeroi2v.models.video import VideoClassifier

FORMAT: Final = 2


@dataclass
class Position:
    """How far a run has come. Sums are over the clips of the epoch in progress, of all processes."""

    epoch: int = 1  # the epoch in progress
    batch: int = 0  # the batches of it that are done
    loss: float = 0.0
    clips: int = 0
    seconds: float = 0.0
    best_epoch: int = 0
    best: float = -1.0  # the figure of that epoch, the higher the better
    validations_since_best: int = 0
    broken: dict[str, str] = field(default_factory=dict)  # path -> reason


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
        """`parts`: what has a state_dict, by name. `learning`: the model, or what it is in parts. `data`: `data_key` of the videos."""
        self.path, self.data, self.model, self.learning, self.parts = (
            path,
            data,
            model,
            learning,
            parts,
        )

    def save(self, position: Position, *, writes: bool) -> None:
        """Replace the file, in the one process that `writes`; all of them must call this.

        CheckpointError if it cannot be written; the one before stays.
        """
        generators = from_all([_generators()])
        parts = {name: whole(part.state_dict()) for name, part in self.parts.items()}
        with gathered(self.learning, self.model):
            if not writes:
                return
            state = {
                "format": FORMAT,
                "data": self.data,
                "position": dataclasses.asdict(position),
                "weights": dict(own_state(self.model)),
                "parts": parts,
                "generators": generators,
            }
            write_files({self.path: lambda path: _write(state, path)})

    def load(self, process: int, processes: int) -> Position:
        """Put every part back to where it was. CheckpointError if the file is none of this run's."""
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
        weights = own_state(self.model)
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
