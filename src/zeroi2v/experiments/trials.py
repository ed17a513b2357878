"""How are many trials run? Each in a process of its own; finished trials are kept.

So the peak memory of a process is that of a single training, and a crash costs no other trial.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeAlias

import torch

from zeroi2v.data.datasets import VideoDataset
from zeroi2v.data.workers import start_worker
from zeroi2v.engine.folder import LAST_FILE, RESUME_FILE
from zeroi2v.errors import ZeroI2VError, how_many
from zeroi2v.experiments.trial import Trial, run_trial
from zeroi2v.experiments.trial_folder import ROWS_FILE, check_trials, open_folder
from zeroi2v.files import append_json, claimed
from zeroi2v.inference.evaluate import FIGURE_NAMES
from zeroi2v.log import Log

Entry: TypeAlias = dict[str, Any]
# The trials in progress, by the end of the pipe that receives their entry:
Running: TypeAlias = dict[Connection, tuple[BaseProcess, Trial]]


@dataclass(frozen=True)
class TrialOptions:
    """The values that the process of every trial gets."""

    dataset: VideoDataset
    out: Path
    threads: int | None
    latency: bool
    quiet: bool


def run_trials(
    trials: Sequence[Trial],
    dataset: VideoDataset,
    out: Path,
    *,
    at_once: int = 1,
    threads: int | None = None,
    latency: bool = True,
    on_progress: Callable[[Sequence[Mapping[str, Any]], Mapping[str, str]], object] = lambda *_: (
        None
    ),
    log: Log,
) -> tuple[list[Entry], dict[str, str]]:
    """Run the trials that `out` does not hold yet.

    Gives the entries of the finished trials, in the order of `trials`, and for each failed trial,
    by name, the reason. Whenever a trial is finished and kept, `on_progress` is called with the
    entries and the reasons so far. `at_once` trainings run side by side, each on `threads` threads
    (None: torch's own number). ConfigError if `out` holds other files, or a trial that was begun
    with other settings or videos, or if another comparison uses `out`.
    """
    check_trials(trials, dataset, out)
    with claimed(out, "another comparison"), _ended_together() as running:
        finished = {(entry["row"], entry["seed"]): entry for entry in open_folder(out)}
        failed: dict[str, str] = {}
        missing = [trial for trial in trials if (trial.row, trial.seed) not in finished]
        if len(missing) < len(trials):
            done = len(trials) - len(missing)
            log.say(f"{out}: finished already: {done} of {how_many(len(trials), 'training')}")
        options = TrialOptions(dataset, out, threads, latency, quiet=log.quiet or at_once > 1)

        def entries() -> list[Entry]:
            keys = [(trial.row, trial.seed) for trial in trials]
            return [finished[key] for key in keys if key in finished]

        while missing or running:
            while missing and len(running) < at_once:
                _begin(missing.pop(0), options, running)
            answered = wait(list(running))
            for receiver in [receiver for receiver in running if receiver in answered]:
                process, trial = running.pop(receiver)
                try:
                    entry = _answer(receiver, process, trial)
                except ZeroI2VError as error:
                    failed[str(trial)] = str(error)
                    log.warn(f"{error}; the other trainings go on")
                    continue
                _keep(entry, trial, out)
                finished[trial.row, trial.seed] = entry
                log.say(
                    f"{trial}: {FIGURE_NAMES[entry['figure']]} {entry['score']:.1%} after "
                    f"{entry['seconds']:.0f} s of training; {len(missing) + len(running)} to go"
                )
                on_progress(entries(), failed)
        return entries(), failed


@contextmanager
def _ended_together() -> Iterator[Running]:
    """The trials in progress. Their processes end when the block ends, however it ends."""
    running: Running = {}
    try:
        yield running
    finally:
        for process, _ in running.values():
            process.terminate()
            process.join()


def _begin(trial: Trial, options: TrialOptions, running: Running) -> None:
    """Start the process of a trial."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # one process imports the libraries for all others
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_in_own_process, args=(sender, trial, options))
    process.start()
    sender.close()
    running[receiver] = process, trial


def _in_own_process(sender: Connection, trial: Trial, options: TrialOptions) -> None:
    """Send the entry of a trial, or the error that ended it. The process ends with its parent."""
    start_worker(0)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    folder, log = options.out / trial.folder, Log(quiet=options.quiet)
    try:
        sender.send(run_trial(trial, options.dataset, folder, latency=options.latency, log=log))
    except ZeroI2VError as error:
        sender.send(error)


def _answer(receiver: Connection, process: BaseProcess, trial: Trial) -> Entry:
    """The entry that the process of a trial sent. ZeroI2VError says why there is none."""
    try:
        answer: Entry | ZeroI2VError | None = receiver.recv()
    except EOFError:
        answer = None
    process.join()
    receiver.close()
    if isinstance(answer, ZeroI2VError):
        raise ZeroI2VError(f"{trial}: {answer}") from answer
    if answer is None:
        hint = "; perhaps the memory did not suffice" if process.exitcode == -9 else ""
        raise ZeroI2VError(
            f"{trial}: its process ended with status {process.exitcode} and no result{hint}"
        )
    return answer


def _keep(entry: Entry, trial: Trial, out: Path) -> None:
    """Write the entry of a finished trial.

    Then remove the resume state and the last weights from the run folder; the model stays.
    """
    append_json(out / ROWS_FILE, entry)
    for name in (RESUME_FILE, LAST_FILE):
        (out / trial.folder / name).unlink(missing_ok=True)
