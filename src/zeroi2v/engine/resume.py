"""How is a run resumed? Its state is one file, which holds all that the rest of the run depends on.

On a CPU, a run that is resumed from the file ends with the weights, bit for bit, of a run that
never stopped. The pixels of a training clip follow from the seed, the epoch and the index of the
clip. So the file holds the position in the epoch, and nothing else of the loader.
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
from zeroi2v.engine.shard import full_tensors, gathered, scatter
from zeroi2v.errors import CheckpointError, FileError, ZeroI2VError, how_many
from zeroi2v.files import write_files
from zeroi2v.machine import from_all
from zeroi2v.models.video import VideoClassifier

FORMAT: Final = 2


@dataclass
class Position:
    """How far a run has come.

    The fields `batch` to `seconds` count the epoch in progress, over all processes.
    """

    epoch: int = 1  # the epoch in progress, from 1
    batch: int = 0  # batches that are done
    loss: float | Tensor = 0.0  # sum of the losses of all clips; a tensor until `settle`
    clips: int = 0
    skipped: int = 0  # steps that fp16 skipped
    seconds: float = 0.0
    best_epoch: int = 0  # 0: no epoch is finished
    best: float = -1.0  # figure of the best epoch, top-1 or mAP; -1: no epoch was validated
    validations_since_best: int = 0  # validations since the best figure last rose
    broken: dict[str, str] = field(default_factory=dict)  # path of a video -> reason

    def add(self, loss: float | Tensor, clips: int, *, skipped: bool) -> None:
        """Count one batch.

        A step that fp16 skipped may have a loss that overflowed. Such a loss is not counted.
        """
        self.batch += 1
        self.skipped += skipped
        if not skipped or math.isfinite(loss):
            self.loss = self.loss + loss
            self.clips += clips

    def settle(self) -> float:
        """The sum of the losses as a number. On a GPU this waits for the steps in progress."""
        self.loss = float(self.loss)
        return self.loss

    def next_epoch(self) -> None:
        """Begin the next epoch."""
        self.epoch += 1
        self.batch, self.loss, self.clips, self.skipped, self.seconds = 0, 0.0, 0, 0, 0.0


class TrainingState:
    """The objects that change in training, and the file in which their state is saved."""

    def __init__(
        self,
        path: Path,
        *,
        data: str,
        model: VideoClassifier,
        trained: nn.Module,
        parts: dict[str, Any],
    ) -> None:
        """`path` is the file of the state. `data` is the `data_key` of the training videos.

        `trained` is the model whose weights the optimiser moves: `model`, or a sharded copy of it.
        `parts` are other objects with a `state_dict`, by name; "optimizer" must be among the names.
        """
        self.path, self.data = path, data
        self.model, self.trained, self.parts = model, trained, parts

    def save(self, position: Position, *, writes: bool) -> None:
        """Replace the file of the state. All processes must call this; only one process `writes`.

        ZeroI2VError if the loss or a weight is not finite. CheckpointError if the file cannot be
        written. After an error the earlier file is still there.
        """
        generators = from_all([_generators()])
        parts = {name: full_tensors(part.state_dict()) for name, part in self.parts.items()}
        with gathered(self.trained, self.model):
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

    def load(self, rank: int, size: int) -> Position:
        """Restore the state of process `rank` of `size` from the file.

        CheckpointError if the file cannot be read, or is the state of another run.
        """
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
        except FileNotFoundError as error:
            raise CheckpointError(
                f"{self.path}: not there, so this folder holds no run that can be resumed; if the "
                "run stopped before its first state was saved, start the run again without "
                "--resume, and in another --out if this folder is refused"
            ) from error
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise CheckpointError(
                f"{self.path}: cannot be read ({reason}), so the run cannot be resumed; the folder "
                "still holds the model of the best epoch: to train that model further, start "
                f"another run with --start-from {self.path.parent}"
            ) from error
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise CheckpointError(
                f"{self.path}: not the state of a run that this version of zeroi2v can resume; "
                "start a new run in another --out"
            )
        if state["data"] != self.data:
            raise CheckpointError(
                f"{self.path}: the run was begun with other videos or labels; "
                "give the data that the run was begun with"
            )
        if len(state["generators"]) != size:
            raise CheckpointError(
                f"{self.path}: the run was begun on "
                f"{how_many(len(state['generators']), 'process', 'processes')}, not {size}; "
                "start as many processes as when the run was begun"
            )
        weights = self.model.stored_tensors()
        with torch.no_grad():
            for name, tensor in state["weights"].items():
                weights[name].copy_(tensor)
        for name, part in self.parts.items():
            part.load_state_dict(state["parts"][name])
        scatter(self.model, self.trained, self.parts["optimizer"])
        cpu, *gpu = state["generators"][rank]
        torch.set_rng_state(cpu)
        if gpu:
            torch.cuda.set_rng_state(gpu[0])
        return Position(**state["position"])


@torch.no_grad()
def require_finite(position: Position, model: nn.Module) -> None:
    """ZeroI2VError if the loss of the epoch, or a weight that trains, is not a finite number."""
    weights = (parameter for parameter in model.parameters() if parameter.requires_grad)
    if math.isfinite(position.settle()) and all(
        bool(weight.isfinite().all()) for weight in weights
    ):
        return
    raise ZeroI2VError(
        f"epoch {position.epoch}, step {position.batch}: the loss or a weight is not a finite "
        "number; train with a lower train.learning_rate, or with train.gradient_clip"
    )


def _write(state: dict[str, Any], path: Path) -> None:
    """Write a state to a file. OSError if the disk does not take the file."""
    try:
        torch.save(state, path)
    except RuntimeError as error:  # torch's writer of archives raises no OSError
        raise OSError(
            f"the disk is full or cannot be written to ({str(error).splitlines()[0]})"
        ) from error


def _generators() -> list[Tensor]:
    """The states of the random generators of this process: the CPU's, and the GPU's if any."""
    return [
        torch.get_rng_state(),
        *([torch.cuda.get_rng_state()] if torch.cuda.is_available() else []),
    ]


def data_key(classes: Sequence[str], videos: Iterable[Video]) -> str:
    """A hash of the class names, and of the file name and labels of each video, in order.

    The hash does not change when the folder of the videos moves.
    """
    digest = hashlib.sha256("\n".join(classes).encode(errors="surrogateescape"))
    for video in videos:
        labels = "|".join(map(str, video.labels))
        digest.update(f"\n{video.path.name}\t{labels}".encode(errors="surrogateescape"))
    return digest.hexdigest()
