"""How do several processes work off a list of trainings, until the time is over?"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable, MutableSequence, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Generic, TypeVar

Job = TypeVar("Job")


@dataclass(frozen=True)
class JobQueue(Generic[Job]):
    """The jobs that no worker has begun. All workers share the jobs and the lock."""

    jobs: MutableSequence[Job]
    lock: AbstractContextManager[object]  # held while a worker takes a job or writes a result
    end: float  # in seconds since the epoch: no job begins later

    def next(self) -> Job | None:
        """Take the first job; None if no job is left or the time is over."""
        with self.lock:
            return self.jobs.pop(0) if self.jobs and time.time() < self.end else None


def work_off(
    jobs: Sequence[Job],
    work: Callable[[JobQueue[Job], argparse.Namespace], None],
    arguments: argparse.Namespace,
    *,
    workers: int,
    end: float,
) -> None:
    """Let `workers` processes call `work` with one queue of the jobs, and wait for all of them."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        queue = JobQueue(manager.list(jobs), manager.Lock(), end)
        processes = [
            context.Process(target=work, args=(queue, arguments))
            for _ in range(min(workers, len(jobs)))
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
    if any(process.exitcode for process in processes):
        raise SystemExit("a training failed; its error stands above")
