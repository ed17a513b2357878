"""Which processes share a command, and which of them speaks?

Only `train` and `eval` share their work among the processes of a group, which torchrun or
`accelerate launch` started. Every other command runs in one process, whatever the environment says.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zeroi2v.cli.options import OutputArguments

if TYPE_CHECKING:
    from zeroi2v.log import Log


@dataclass(frozen=True, kw_only=True)
class SharedArguments(OutputArguments):
    """The arguments of a command whose work the processes of a group share."""

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and speaks for the group."""
        from zeroi2v.machine import started_group

        group = started_group()
        return group is None or group[0] == 0

    def log(self) -> Log:
        """The log for progress and messages; the log of the other processes says nothing."""
        from zeroi2v.log import Log

        return Log(quiet=self.quiet, silent=not self.is_first)


@contextlib.contextmanager
def shared(arguments: SharedArguments) -> Iterator[None]:
    """Within the block only the first process of a group writes on standard output.

    Warns if the environment names several processes although no group was started.
    """
    from zeroi2v.machine import GROUP_VARIABLES, announced_group

    if announced := announced_group():
        arguments.log().warn(
            f"{announced} name several processes, but a group needs {', '.join(GROUP_VARIABLES)}: "
            "this process works without a group; start a group by torchrun or accelerate launch"
        )
    with contextlib.ExitStack() as stack:
        if not arguments.is_first:
            nothing = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(nothing))
        yield


def join_group() -> None:
    """Connect to the other processes of the group, if a launcher started a group."""
    from zeroi2v.machine import started_group

    if started_group() is not None:
        from zeroi2v.engine.processes import join_processes

        join_processes()
