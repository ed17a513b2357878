"""What does a hook know of the call in progress? How many clips, how many frames, and which weights the model adds.

A model sets the call when it begins a forward pass, and takes the call back when the pass ends. The call belongs to the thread,
not to the model: several threads can call one model at once. Outside of a call every hook does nothing.

Shapes: B clips, T frames as attention sees them, D channels.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass
class Call:
    """One forward pass of a model. Windows make B unknowable from the shape of a tensor, so the call tells B and T."""

    clips: int  # B
    frames: int  # T
    whole_frames: int  # T that the offsets are meant for; a training may begin with fewer frames of the same videos
    adapters: Any  # adapters[block][name]: the adapter of an attention block, from 0
    temporal_embedding: Tensor  # (T, D)
    kept: dict[Hashable, Tensor] = field(
        default_factory=dict
    )  # what one hook keeps for a later hook of this call

    def scaled(self, offset: int) -> int:
        """The offset that reaches as far in time among fewer frames of the same video: in proportion, rounded away from 0."""
        if self.frames == self.whole_frames:
            return offset
        reach = -(-abs(offset) * self.frames // self.whole_frames)
        return reach if offset > 0 else -reach


_thread = threading.local()


def call_in_progress() -> Call | None:
    """The call that this thread is in; None outside of any."""
    call: Call | None = getattr(_thread, "call", None)
    return call


def begin_call(call: Call | None) -> Call | None:
    """Set the call of this thread, and give the call that was set before, to be set again when this call ends.

    A pair of plain functions, because torch.compile follows these and no context manager around a whole forward pass.
    """
    before = call_in_progress()
    _thread.call = call
    return before


@contextmanager
def in_call(call: Call | None) -> Iterator[None]:
    """Within the block this thread is in that call, for instance to compute activations of the call again."""
    before = begin_call(call)
    try:
        yield
    finally:
        begin_call(before)
