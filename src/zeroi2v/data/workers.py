"""How do other processes make samples, and what is raised when such a worker ends early?"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from zeroi2v.data.pyav import require_pyav
from zeroi2v.errors import WorkerError

Item = TypeVar("Item")


def worker_loader(samples: Dataset[Any], workers: int, **options: Any) -> WorkerLoader[Any]:
    """The samples from `workers` processes; if `workers` is 0, this process makes the samples.

    `options` are those of a `DataLoader`. ConfigError if PyAV is missing, because samples are made
    with PyAV.
    """
    require_pyav()  # raised here the error is one line; raised in a worker it is a long traceback
    loader: DataLoader[Any] = DataLoader(
        samples,
        num_workers=workers,
        worker_init_fn=start_worker,
        # Without a generator of its own, a DataLoader draws numbers from the global generator,
        # more of them without workers than with workers.
        generator=torch.Generator(),
        **options,
    )
    return WorkerLoader(loader)


class WorkerLoader(Generic[Item]):
    """The items of a `DataLoader`. WorkerError if a worker ends early."""

    def __init__(self, loader: DataLoader[Item]) -> None:
        self._loader = loader

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Item]:
        if not self._loader.num_workers:
            yield from self._loader
            return
        with _worker_errors():
            items = iter(self._loader)
            _WorkerWatch.install()
            yield from items


@contextmanager
def _worker_errors() -> Iterator[None]:
    """Raise a WorkerError for what torch raises when a worker ends or shared memory is full."""
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        text = str(error).strip()
        is_memory_full = "shared memory" in text or "</torch_" in text
        if text.startswith("Caught ") and not is_memory_full:
            raise  # a defect of the code that ran in the worker, with the worker's traceback
        cause = text.splitlines()[-1].partition(". ")[0].rstrip(".") if text else repr(error)
        raise WorkerError(
            f"a decoding process ended early ({cause}): decode without such processes (--workers "
            "0, or train.workers = 0 in a recipe), or give them more shared memory (docker run "
            "--shm-size 2g)"
        ) from error


class _WorkerWatch:
    """A signal handler that makes torch's handler raise a WorkerError.

    torch's handler raises an error when a worker is killed, whatever the main thread does then.
    """

    def __init__(self, handler: Callable[[int, FrameType | None], object]) -> None:
        self._handler = handler

    def __call__(self, number: int, frame: FrameType | None) -> None:
        with _worker_errors():
            self._handler(number, frame)

    @classmethod
    def install(cls) -> None:
        """Take the place of the handler that torch has set in the main thread."""
        if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
            return
        handler = signal.getsignal(signal.SIGCHLD)
        if callable(handler) and not isinstance(handler, cls):
            signal.signal(signal.SIGCHLD, cls(handler))


def start_worker(_: int) -> None:
    """Prepare a worker process. Every worker calls this function first.

    A worker ignores Ctrl-C, because its parent (the process that started it) ends it. A worker ends
    when its parent ends. If the parent ends while both exchange data, the worker reports no error.
    The garbage collector of a worker passes over the objects that the worker got from its parent.
    To walk them takes a fifth of a second, and copies their memory.
    """
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.excepthook = _report_unless_left
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _report_unless_left(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, traceback)
