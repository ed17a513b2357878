"""`zeroi2v data reencode`: copy a data set into small videos that decode fast."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from zeroi2v.cli.options import (
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
    whole_number,
    workers_option,
)
from zeroi2v.errors import how_many

NOTES = """\
Sound is left out, rotation is applied, and every frame stays, in order. After an interruption the
same command goes on where it was. The copy opens as the same data set:
zeroi2v train FOLDER/manifest.csv"""


@dataclass(frozen=True, kw_only=True)
class ReencodeArguments(OutputArguments):
    """The arguments of `zeroi2v data reencode`."""

    data: Path
    settings: list[str]
    out: Path
    short_side: int
    keyframes: int
    crf: int
    workers: int


def add(commands: Commands) -> None:
    """Declare the command."""
    text = "copy a data set into small H.264 videos that decode fast"
    parser = commands.add("reencode", text, NOTES)
    data_argument(parser)
    set_option(parser)
    text = "folder to write, outside of DATA"
    parser.add_argument("--out", type=nonempty_path, required=True, metavar="FOLDER", help=text)
    text = (
        "pixels of the shorter side; videos that are smaller keep their size (default: %(default)s)"
    )
    parser.add_argument("--short-side", type=whole_number, default=256, metavar="N", help=text)
    text = "frames from one key frame to the next, at most (default: %(default)s)"
    parser.add_argument("--keyframes", type=whole_number, default=16, metavar="N", help=text)
    text = "quality: from 0, lossless, to 51, worst (default: %(default)s)"
    parser.add_argument("--crf", type=whole_number, default=20, metavar="N", help=text)
    workers_option(parser, "processes that copy videos", "one per core, at most 8")
    set_action(parser, ReencodeArguments, run)


def run(arguments: ReencodeArguments) -> int:
    """Copy every video, and say how many could be copied."""
    from zeroi2v.config import ReencodeConfig
    from zeroi2v.data.output_folder import require_outside
    from zeroi2v.data.reencode import MANIFEST_FILE, reencode
    from zeroi2v.machine import worker_count
    from zeroi2v.recipes import data_settings

    settings = ReencodeConfig(
        short_side=arguments.short_side, keyframes=arguments.keyframes, crf=arguments.crf
    )
    config = data_settings(arguments.settings)
    if config.videos is not None:
        require_outside(arguments.out, Path(config.videos))
    log = arguments.log()
    dataset = open_data(arguments.data, config, "keep", log)
    total = len(dataset.for_check)
    workers = worker_count(arguments.workers, cores_kept=0)
    copies = reencode(dataset, arguments.out, settings, workers=workers)
    tracked = log.track(copies, total=total, title="reencode")
    broken = {path: error for path, error in tracked if error is not None}
    for error in broken.values():
        print_error(error)
    copied = total - len(broken)
    if arguments.json:
        reasons = broken_entries({path: error.reason for path, error in broken.items()})
        print_json({"folder": str(arguments.out), "videos": copied, "broken": reasons})
    else:
        options = ["--set", "data.multi_label=true"] if config.multi_label else []
        following = command_line("train", arguments.out / MANIFEST_FILE, *options)
        counts = f"{how_many(copied, 'video')}, {len(broken)} broken"
        print(f"{arguments.out}: {counts}; next: {following}")
    return 1 if broken else 0
