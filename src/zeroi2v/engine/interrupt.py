"""How does Ctrl-C wait for the end of a training step, so that no step is half done?"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def undivided() -> Iterator[None]:
    """Within the block Ctrl-C waits; KeyboardInterrupt comes at the end of the block.

    A second Ctrl-C takes effect at once. Where Ctrl-C is handled otherwise than by Python's own
    handler, and in threads beside the main thread, nothing changes.
    """
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    if not is_main or handler is not signal.default_int_handler:
        yield
        return
    was_asked = False

    def wait(number: int, frame: FrameType | None) -> None:
        nonlocal was_asked
        if was_asked:
            raise KeyboardInterrupt
        was_asked = True

    signal.signal(signal.SIGINT, wait)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if was_asked:
        raise KeyboardInterrupt
