"""A training that is interrupted after a number of steps, as by Ctrl-C."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from zeroi2v.engine import run as training
from zeroi2v.engine.step import Step, take_step


@contextmanager
def interrupted_after(steps: int) -> Iterator[None]:
    """The training in the block must take `steps` steps and be interrupted before the next step."""
    taken = 0

    def stops(*arguments: object) -> Step:
        nonlocal taken
        taken += 1
        if taken > steps:
            raise KeyboardInterrupt
        return take_step(*arguments)  # type: ignore[arg-type]  # passed on as they came

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "take_step", stops)
        with pytest.raises(KeyboardInterrupt):
            yield
