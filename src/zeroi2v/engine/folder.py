"""What does the folder of a run hold? The name of every file, and the object that writes the files.

RUN/recipe.toml         every setting of the run; all paths are absolute
RUN/config.json, RUN/model.safetensors, RUN/README.md
                        the model of the best epoch, which `zeroi2v.load(RUN)` returns
RUN/last.safetensors    the weights of the last epoch
RUN/log.jsonl           one line of JSON for each epoch
RUN/tensorboard/        the figures of the log for TensorBoard, with `train.tensorboard`
RUN/resume.pt           the state from which the run can be resumed; resume.py writes this file
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Final

from zeroi2v.config import Recipe
from zeroi2v.errors import ConfigError
from zeroi2v.files import append_json, claimed, is_partial, keep_json_lines, require_no_file
from zeroi2v.models.saving import (
    CARD_FILE,
    CONFIG_FILE,
    WEIGHTS_FILE,
    write_model,
    write_weights,
)
from zeroi2v.models.video import VideoClassifier
from zeroi2v.recipes import RECIPE_FILE, write_recipe

LOG_FILE: Final = "log.jsonl"
LAST_FILE: Final = "last.safetensors"
BOARD_FOLDER: Final = "tensorboard"
RESUME_FILE: Final = "resume.pt"
# A run that stopped before its first state was saved holds no other files.
_UNFINISHED: Final = {RECIPE_FILE, CONFIG_FILE, CARD_FILE, WEIGHTS_FILE, LAST_FILE, BOARD_FOLDER}


class RunFolder:
    """The folder of a run.

    Several processes may train one run, and only the process with `writes` writes files. In the
    other processes the methods that write do nothing.
    """

    def __init__(self, path: Path, *, writes: bool) -> None:
        self.path, self.writes = path, writes
        self._board: Any = None  # TensorBoard's SummaryWriter

    def require_free(self) -> None:
        """ConfigError unless a new run can begin in the folder.

        The folder may be missing or empty, or hold a run that stopped before its first state was
        saved.
        """
        require_no_file(self.path)
        if not self.path.exists():
            return
        if self.path.is_dir():
            names = {path.name for path in self.path.iterdir() if not is_partial(path)}
            if not names or RECIPE_FILE in names <= _UNFINISHED:
                return
        raise ConfigError(
            f"{self.path}: already there and not empty; "
            "choose another --out, remove the folder, or go on with --resume"
        )

    def claimed(self) -> AbstractContextManager[None]:
        """Within the block no other training can use the folder.

        ConfigError if another training uses the folder now.
        """
        return claimed(self.path, "another training") if self.writes else nullcontext()

    def begin(self, recipe: Recipe, model: VideoClassifier) -> None:
        """Write the recipe and the untrained model. From now on `zeroi2v.load` can load the folder.

        Raises ConfigError like `require_free`, because another training may have used the folder in
        the meantime.
        """
        if self.writes:
            self.require_free()
            write_recipe(recipe, self.path / RECIPE_FILE)
            self.write_best(model, {"epoch": 0}, epoch=0)

    def write_best(
        self, model: VideoClassifier, results: Mapping[str, float], *, epoch: int
    ) -> None:
        """Write the model with its present weights as the model of the best epoch.

        `results` are the figures that the card of the model shows.
        """
        if self.writes:
            spec = dataclasses.replace(model.spec, results=results)
            write_model(self.path, spec, model.stored(), {"epoch": str(epoch)})

    def write_last(self, model: VideoClassifier, *, epoch: int) -> None:
        """Write the weights of the last epoch."""
        if self.writes:
            path = self.path / LAST_FILE
            write_weights(path, model.spec, model.stored(), {"epoch": str(epoch)})

    def write_entry(self, entry: Mapping[str, Any]) -> None:
        """Add the line of an epoch to the log, and to TensorBoard's board if the board is open."""
        if self.writes:
            append_json(self.path / LOG_FILE, entry)
        if self._board is not None:
            for name, value in entry.items():
                if name != "epoch" and isinstance(value, int | float):
                    self._board.add_scalar(name, value, entry["epoch"])
            speed = entry["clips"] / entry["seconds"]
            self._board.add_scalar("clips_per_second", speed, entry["epoch"])
            self._board.flush()

    def keep_entries(self, epochs: int) -> None:
        """Keep the lines of the first `epochs` epochs in the log, and drop later lines."""
        if self.writes:
            keep_json_lines(self.path / LOG_FILE, epochs)

    def open_board(self, epoch: int) -> None:
        """Open TensorBoard's board. TensorBoard then ignores older points of `epoch` and later."""
        if self.writes:
            board = str(self.path / BOARD_FOLDER)
            self._board = require_tensorboard()(board, purge_step=epoch)

    def close_board(self) -> None:
        """Close TensorBoard's board, if open."""
        if self._board is not None:
            self._board.close()
            self._board = None


def require_tensorboard() -> Any:
    """TensorBoard's class SummaryWriter. ConfigError if tensorboard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError("train.tensorboard needs tensorboard: pip install tensorboard") from error
    return SummaryWriter
