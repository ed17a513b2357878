"""What does a person, or a program, see of a long task? Progress on standard error, and each epoch as a line of JSON and in TensorBoard."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from zeroi2v.errors import ConfigError

Item = TypeVar("Item")


class Log:
    """Says what goes on. `quiet` keeps warnings and drops the rest."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.quiet = quiet

    def say(self, text: str) -> None:
        """A line for people."""
        if not self.quiet:
            self.console.print(text, markup=False)

    def warn(self, text: str) -> None:
        """A line that is shown even when quiet."""
        self.console.print(f"warning: {text}", style="yellow", markup=False)

    def track(
        self,
        items: Iterable[Item],
        *,
        total: int,
        title: str,
        done: int = 0,
        unit: str = "",
        per_item: int = 1,
        memory: Callable[[], int] | None = None,
    ) -> Iterator[Item]:
        """Go through the items behind a progress bar, `done` of `total` being done already.

        `unit` and `per_item` give its speed, for instance in clips per second; `memory` gives bytes to show beside it.
        """
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TextColumn("{task.fields[memory]}"),
            TimeRemainingColumn(),
        )
        hidden = self.quiet or not self.console.is_terminal
        with Progress(
            *columns, console=self.console, transient=True, disable=hidden, redirect_stdout=False, redirect_stderr=False
        ) as progress:
            task = progress.add_task(title, total=total, completed=done, rate="", memory="")
            for item in items:
                yield item
                speed = progress.tasks[task].speed
                rate = f"{speed * per_item:.0f} {unit}/s" if speed and unit else ""
                used = f"{memory() / 2**30:.1f} GiB" if memory else ""
                progress.update(task, advance=1, rate=rate, memory=used)


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
    numbers = {name: value for name, value in entry.items() if name != "epoch" and isinstance(value, int | float)}
    for name, value in {**numbers, "clips_per_second": entry["clips"] / entry["seconds"]}.items():
        board.add_scalar(name, value, entry["epoch"])
    board.flush()


def append_json(path: Path, entry: dict[str, Any]) -> None:
    """Add one line of JSON to a file and see it onto the disk."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The entries that `append_json` wrote; a last line cut short by a crash is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


def keep_json_lines(path: Path, count: int) -> None:
    """Drop the entries after the first `count`, and a line cut short."""
    entries = read_json_lines(path)[:count]
    if path.exists():
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
        os.replace(partial, path)
