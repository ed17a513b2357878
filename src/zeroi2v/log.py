"""What does a person see of a long task? Messages, and a progress bar, on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

Item = TypeVar("Item")


class Log:
    """Writes messages to standard error. With `quiet`, a log writes warnings alone."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.quiet = quiet

    def say(self, text: str) -> None:
        """Write a line for people, unless the log is quiet."""
        if not self.quiet:
            self.console.print(text, markup=False)

    def warn(self, text: str) -> None:
        """Write a warning, even if the log is quiet."""
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
        """Give the items one after the other, and show a progress bar in a terminal.

        The bar begins at `done` items of `total`. With a `unit` such as "clips", the bar shows the
        speed in units per second, where an item counts as `per_item` units. With `memory`, the bar
        shows the bytes that this function returns.
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
            *columns,
            console=self.console,
            transient=True,
            disable=hidden,
            redirect_stdout=False,
            redirect_stderr=False,
        ) as progress:
            task = progress.add_task(title, total=total, completed=done, rate="", memory="")
            for item in items:
                yield item
                speed = progress.tasks[task].speed
                rate = f"{speed * per_item:.0f} {unit}/s" if speed and unit else ""
                used = f"{memory() / 2**30:.1f} GiB" if memory else ""
                progress.update(task, advance=1, rate=rate, memory=used)
