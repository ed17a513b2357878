"""What does a hook know of the call in progress? The clips, the frames, and the model's adapters.

A call is one forward pass of a model. The model sets the call when the forward pass begins, and
removes the call when the pass ends. A call belongs to a thread, not to a model, so several threads
can call one model at once. A hook that runs outside of a call changes nothing.

Shapes: B clips, T frames as attention sees them, D channels.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor


@dataclass
class Call:
    """One forward pass of a model.

    A hook cannot tell B and T from the shape of its tensor, since a frame may be cut into windows.
    """

    clips: int  # B
    frames: int  # T
    # T of a whole clip. The offsets hold for whole clips. Training may begin with shorter clips.
    whole_frames: int
    # adapters[block][name]: an adapter of a block, by name; blocks count from 0.
    adapters: Sequence[Mapping[str, Any]]
    temporal_embedding: Tensor  # (T, D)
    # Whether attention modules that can read other frames by themselves do so in this call. The
    # hooks of these modules then move nothing.
    attention_reads: bool = False
    moves_by_index: bool = False  # whether hooks move keys and values by an index (moving.py)
    # Whether hooks move keys and values by copies in place: PyTorch does not follow the operations,
    # and neither an index nor a kernel is in use. The model finds this out, once a call.
    changes_in_place: bool = False
    # Tensors that a hook keeps for a later hook.
    kept: dict[Hashable, Tensor] = field(default_factory=dict)

    def scaled(self, offset: int) -> int:
        """The offset of a head in this call, where `offset` is the head's offset in a whole clip.

        A clip of this call may have fewer frames than a whole clip over the same stretch of the
        video. The offset shrinks in proportion to the number of frames, and is rounded away from 0.
        """
        if self.frames == self.whole_frames:
            return offset
        distance = -(-abs(offset) * self.frames // self.whole_frames)
        return distance if offset > 0 else -distance

    def with_hooks(self) -> Call:
        """The same call, in which hooks move keys and values for every attention."""
        return replace(self, attention_reads=False)


_thread = threading.local()


def call_in_progress() -> Call | None:
    """The call in progress in this thread; None where the thread is in no call."""
    call: Call | None = getattr(_thread, "call", None)
    return call


def begin_call(call: Call | None) -> Call | None:
    """Set the call of this thread and return the previous call.

    When the new call ends, the caller sets the previous call again with this same function. A
    forward pass uses this function and not `in_call`, because torch.compile can follow a plain
    function but not a context manager around a whole forward pass.
    """
    before = call_in_progress()
    _thread.call = call
    return before


@contextmanager
def in_call(call: Call | None) -> Iterator[None]:
    """Make `call` the call of this thread within the block.

    A hook that computes activations of an earlier call again needs the earlier call.
    """
    before = begin_call(call)
    try:
        yield
    finally:
        begin_call(before)
