"""What does a person, or a program, see of a long task? Progress on standard error, and one JSON line per epoch in a file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

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
        self, items: Iterable[Item], *, total: int, title: str, done: int = 0, unit: str = "", per_item: int = 1
    ) -> Iterator[Item]:
        """Go through the items behind a progress bar, `done` of `total` being done already.

        `unit` and `per_item` give its speed, for instance in clips per second.
        """
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        hidden = self.quiet or not self.console.is_terminal
        with Progress(
            *columns, console=self.console, transient=True, disable=hidden, redirect_stdout=False, redirect_stderr=False
        ) as progress:
            task = progress.add_task(title, total=total, completed=done, rate="")
            for item in items:
                yield item
                speed = progress.tasks[task].speed
                rate = f"{speed * per_item:.0f} {unit}/s" if speed and unit else ""
                progress.update(task, advance=1, rate=rate)


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
