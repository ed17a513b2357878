"""How do several processes work off a list of trainings, until the time is over?"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable, MutableSequence, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from multiprocessing import connection
from typing import Generic, TypeVar

Job = TypeVar("Job")


@dataclass(frozen=True)
class JobQueue(Generic[Job]):
    """The jobs that no worker has begun, for workers that share `taken` and the lock.

    `waiting` says which jobs can begin; a finished job may add further jobs.
    """

    waiting: Callable[[], Sequence[Job]]
    taken: MutableSequence[Job]
    lock: AbstractContextManager[object]  # held while a worker takes a job or writes a result
    end: float  # in seconds since the epoch: no job begins later

    def next(self) -> Job | None:
        """Wait for a job and take the job; None if no job is left or the time is over."""
        while time.time() < self.end:
            with self.lock:
                waiting = self.waiting()
                for job in waiting:
                    if job not in self.taken:
                        self.taken.append(job)
                        return job
            if not waiting:
                return None
            time.sleep(1)  # the jobs of other workers are not done
        return None


def work_off(
    waiting: Callable[[argparse.Namespace], Sequence[Job]],
    work: Callable[[JobQueue[Job], argparse.Namespace], None],
    arguments: argparse.Namespace,
    *,
    workers: int,
    end: float,
) -> None:
    """Let `workers` processes call `work` with one queue of jobs, and wait for all of them."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        queue = JobQueue(partial(waiting, arguments), manager.list(), manager.Lock(), end)
        processes = [
            context.Process(target=work, args=(queue, arguments), daemon=True)
            for _ in range(workers)
        ]
        for process in processes:
            process.start()
        while running := [process.sentinel for process in processes if process.is_alive()]:
            connection.wait(running)
            if any(process.exitcode for process in processes):
                for process in processes:
                    process.terminate()
        for process in processes:
            process.join()
    if any(process.exitcode for process in processes):
        raise SystemExit("a training failed; its error stands above")
