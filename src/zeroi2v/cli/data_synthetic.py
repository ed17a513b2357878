"""`zeroi2v data synthetic`: write motion videos."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from zeroi2v.cli.options import (
    Commands,
    OutputArguments,
    command_line,
    nonempty_path,
    print_json,
    set_action,
    whole_number,
    workers_option,
)
from zeroi2v.errors import how_many


@dataclass(frozen=True, kw_only=True)
class SyntheticArguments(OutputArguments):
    """The arguments of `zeroi2v data synthetic`."""

    out: Path
    train: int
    val: int
    seed: int
    workers: int


def add(commands: Commands) -> None:
    """Declare the command."""
    text = "write motion videos: eight classes, four pairs of time reversals"
    parser = commands.add("synthetic", text)
    text = "folder to write; must not exist"
    parser.add_argument("out", metavar="FOLDER", type=nonempty_path, help=text)
    text = "training videos, half of them time reversals of the others (default: %(default)s)"
    parser.add_argument("--train", type=whole_number, default=800, metavar="N", help=text)
    text = "held-out videos, half of them time reversals of the others (default: %(default)s)"
    parser.add_argument("--val", type=whole_number, default=200, metavar="N", help=text)
    text = "seed of the videos (default: %(default)s)"
    parser.add_argument("--seed", type=whole_number, default=0, metavar="N", help=text)
    workers_option(parser, "processes that write videos")
    set_action(parser, SyntheticArguments, run)


def run(arguments: SyntheticArguments) -> int:
    """Write the videos, and say how many."""
    from zeroi2v.data.synthetic import write_motion_videos
    from zeroi2v.machine import worker_count

    counts = {"train": arguments.train, "val": arguments.val}
    pairs = write_motion_videos(
        arguments.out, counts, seed=arguments.seed, workers=worker_count(arguments.workers)
    )
    pairs_in_all = sum(counts.values()) // 2
    tracked = arguments.log().track(pairs, total=pairs_in_all, title="write videos")
    videos = 2 * sum(1 for _ in tracked)
    if arguments.json:
        print_json({"folder": str(arguments.out), "videos": videos})
    else:
        following = command_line("train", arguments.out)
        print(f"{arguments.out}: {how_many(videos, 'video')}; next: {following}")
    return 0
