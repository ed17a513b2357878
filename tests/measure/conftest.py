"""Which clock do the tests of this room tell? A clock that only calls of `spend` move."""

from __future__ import annotations

import pytest

from zeroi2v.measure import timing


class Clock:
    """A clock that only `spend` moves. It stands in for the module `time`."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def spend(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock that calls are timed with."""
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    return clock
