"""How do the figures of each epoch reach TensorBoard?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zeroi2v.errors import ConfigError


def require_tensorboard() -> Any:
    """The class that writes TensorBoard's events. ConfigError if it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError("train.tensorboard needs tensorboard: pip install tensorboard") from error
    return SummaryWriter


def new_board(folder: Path, epoch: int) -> Any:
    """A TensorBoard writer that goes on with this epoch: what the folder has of it and later ones counts no more."""
    return require_tensorboard()(str(folder), purge_step=epoch)


def write_figures(board: Any, entry: Mapping[str, Any]) -> None:
    """Write the numbers of a line of the log as points of its epoch, and see them onto the disk."""
    numbers = {
        name: value
        for name, value in entry.items()
        if name != "epoch" and isinstance(value, int | float)
    }
    for name, value in {**numbers, "clips_per_second": entry["clips"] / entry["seconds"]}.items():
        board.add_scalar(name, value, entry["epoch"])
    board.flush()
