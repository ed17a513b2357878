"""`zeroi2v data check`: decode every video and name the broken ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from zeroi2v.cli.options import (
    DECODING,
    Commands,
    OutputArguments,
    broken_entries,
    command_line,
    data_argument,
    nonempty_path,
    open_data,
    print_error,
    print_json,
    set_action,
    set_option,
    workers_option,
)
from zeroi2v.errors import VideoError, how_many

NOTES = "Leave the listed videos out of a training: zeroi2v train DATA --set train.exclude=LIST"


@dataclass(frozen=True, kw_only=True)
class CheckArguments(OutputArguments):
    """The arguments of `zeroi2v data check`."""

    data: Path
    settings: list[str]
    out: Path | None
    workers: int


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add("check", "decode every video and name the broken ones", NOTES)
    data_argument(parser)
    set_option(parser)
    text = (
        "list of the broken videos to write, for train.exclude: a .txt file, "
        "or a .csv file with the reasons"
    )
    parser.add_argument("--out", type=nonempty_path, metavar="LIST", help=text)
    workers_option(parser, DECODING)
    set_action(parser, CheckArguments, run)


def run(arguments: CheckArguments) -> int:
    """Decode every video, write the list of the broken videos, and say how many are broken."""
    from zeroi2v.data.exclude import check_list_path, write_list
    from zeroi2v.data.loader import check_videos
    from zeroi2v.machine import worker_count
    from zeroi2v.recipes import data_settings

    if arguments.out:
        check_list_path(arguments.out)
    log = arguments.log()
    dataset = open_data(arguments.data, data_settings(arguments.settings), "keep", log)
    # With `data.directions` a video is there twice.
    paths = [*dict.fromkeys(video.path for video in dataset.for_check)]
    checks = check_videos(paths, workers=worker_count(arguments.workers))
    broken: dict[Path, str] = {}
    frames = 0
    for path, result in log.track(checks, total=len(paths), title="check"):
        if isinstance(result, VideoError):
            broken[path] = result.reason
            print_error(result)
        else:
            frames += result.frames
            if result.undecodable:
                announced = result.frames + result.undecodable
                log.warn(
                    f"{path}: {result.undecodable} of {announced} frames cannot be decoded and are "
                    "passed over"
                )
    if arguments.out:
        write_list(arguments.out, dataset, broken)
    if arguments.json:
        print_json(
            {
                "videos": len(paths),
                "frames": frames,
                "broken": broken_entries(broken),
                "ignored": [str(path) for path in dataset.ignored],
            }
        )
    else:
        print(f"{how_many(len(paths), 'video')}, {how_many(frames, 'frame')}, {len(broken)} broken")
        if arguments.out and broken:
            print(f"Next: {_training_without(arguments, arguments.out)}")
    return 1 if broken else 0


def _training_without(arguments: CheckArguments, excluded: Path) -> str:
    """The command that trains on the same data without the listed videos."""
    from zeroi2v.recipes import as_assignment

    settings = [*arguments.settings, as_assignment("train.exclude", str(excluded))]
    options = [word for setting in settings for word in ("--set", setting)]
    return command_line("train", arguments.data, *options)
