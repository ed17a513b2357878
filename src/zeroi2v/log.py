"""What does a person see of a long task? Messages and a progress bar, on standard error."""

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

from zeroi2v.errors import escaped

Item = TypeVar("Item")


class Log:
    """Tells a person how a task goes on.

    A quiet log shows warnings only. A silent log shows nothing. In a group of processes
    only one process has a log that is not silent.
    """

    def __init__(self, *, quiet: bool = False, silent: bool = False) -> None:
        self.console = Console(
            stderr=True, highlight=False, soft_wrap=True, emoji=False, quiet=silent
        )
        self.quiet = quiet or silent

    def say(self, text: str) -> None:
        """Show a line, unless the log is quiet."""
        if not self.quiet:
            self.console.print(text, markup=False)

    def warn(self, text: str) -> None:
        """Show a warning, unless the log is silent."""
        self.console.print(f"warning: {escaped(text)}", style="yellow", markup=False)

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
        """Yield the items one by one, and show a progress bar (in a terminal only).

        `done` of the `total` items are finished before the first item comes. With a `unit`, such as
        "clips", the bar shows a speed: an item is `per_item` units. `memory` gives the bytes that
        the bar shows beside the speed.
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
