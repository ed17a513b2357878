"""What can be said after `zeroi2v data`? The commands that make, check and copy videos; cli.py says how commands behave."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from zeroi2v.cli.main import (
    Parser,
    count,
    data_argument,
    log_of,
    open_data,
    output_options,
    print_json,
    set_option,
)
from zeroi2v.errors import VideoError


def add_commands(command: Any, data: Parser) -> None:
    """Add the commands below `data`; `command` is what `build_parser` adds its own with."""
    group = data.add_subparsers(title="commands", metavar="COMMAND", parser_class=Parser)
    data.set_defaults(run=lambda _: data.error("a command is missing"))
    text = "write motion videos: eight classes, four pairs of time reversals"
    one = command(group, data, "synthetic", synthetic, text)
    one.add_argument("out", metavar="FOLDER", type=Path, help="folder to write; must not exist")
    text = "training videos, half of them time reversals (default: %(default)s)"
    one.add_argument("--train", type=int, default=800, metavar="N", help=text)
    text = "held-out videos, likewise (default: %(default)s)"
    one.add_argument("--val", type=int, default=200, metavar="N", help=text)
    one.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    output_options(one)

    notes = "Leave the listed videos out of a training: zeroi2v train DATA --set train.exclude=LIST"
    one = command(group, data, "check", check, "decode every video and name the broken ones", notes)
    data_argument(one)
    set_option(one)
    text = (
        "write the broken ones into a file that train.exclude reads: .txt, or .csv with the reasons"
    )
    one.add_argument("--out", type=Path, metavar="LIST", help=text)
    output_options(one)

    notes = (
        "Sound is left out, rotation is applied, and every frame stays, in order. After an interruption the same command\n"
        "goes on where it was; one run at a time. The copy opens as the same data set: zeroi2v train FOLDER/manifest.csv"
    )
    text = "copy a data set into small H.264 videos that decode fast"
    one = command(group, data, "reencode", reencode, text, notes)
    data_argument(one)
    set_option(one)
    one.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder to write")
    text = (
        "pixels of the shorter side; videos that are smaller keep their size (default: %(default)s)"
    )
    one.add_argument("--short-side", type=int, default=256, metavar="N", help=text)
    text = "frames from one key frame to the next, at most (default: %(default)s)"
    one.add_argument("--keyframes", type=int, default=16, metavar="N", help=text)
    text = "from 0, lossless, to 51, worst (default: %(default)s)"
    one.add_argument("--crf", type=int, default=20, metavar="N", help=text)
    text = "videos that are copied at once (default: one per core, at most 8)"
    one.add_argument("--workers", type=count, metavar="N", help=text)
    output_options(one)


def synthetic(arguments: argparse.Namespace) -> int:
    """`zeroi2v data synthetic`"""
    from zeroi2v.data.synthetic import write_motion_videos
    from zeroi2v.machine import worker_count

    log = log_of(arguments)
    counts = {"train": arguments.train, "val": arguments.val}
    written = write_motion_videos(
        arguments.out, counts, seed=arguments.seed, workers=worker_count(-1)
    )
    total = sum(
        1 for _ in log.track(written, total=sum(counts.values()) // 2, title="write videos")
    )
    if arguments.json:
        print_json({"folder": str(arguments.out), "videos": 2 * total})
    else:
        print(f"{arguments.out}: {2 * total} videos; next: zeroi2v train {arguments.out}")
    return 0


def check(arguments: argparse.Namespace) -> int:
    """`zeroi2v data check`"""
    from zeroi2v.data.exclude import check_list_path, write_list
    from zeroi2v.data.loader import check_videos
    from zeroi2v.machine import worker_count
    from zeroi2v.recipes import data_settings

    if arguments.out:
        check_list_path(arguments.out)
    dataset = open_data(arguments.data, data_settings(arguments.settings), "keep")
    videos = dataset.for_check
    log = log_of(arguments)
    checks = check_videos([video.path for video in videos], workers=worker_count(-1))
    broken: dict[Path, str] = {}
    frames = 0
    for path, found in log.track(checks, total=len(videos), title="check"):
        if isinstance(found, VideoError):
            broken[path] = found.reason
            print(f"error: {found}", file=sys.stderr)
        else:
            frames += found.frames
    if arguments.out:
        write_list(arguments.out, dataset, broken)
    if arguments.json:
        ignored = [str(path) for path in dataset.ignored]
        print_json(
            {"videos": len(videos), "frames": frames, "broken": _listed(broken), "ignored": ignored}
        )
    else:
        print(f"{len(videos)} videos, {frames:,} frames, {len(broken)} broken")
        if arguments.out and broken:
            print(f"Next: zeroi2v train {arguments.data} --set train.exclude={arguments.out}")
    return 1 if broken else 0


def reencode(arguments: argparse.Namespace) -> int:
    """`zeroi2v data reencode`"""
    import os

    from zeroi2v.config import ReencodeConfig
    from zeroi2v.data.reencode import MANIFEST_FILE
    from zeroi2v.data.reencode import reencode as copy_videos
    from zeroi2v.recipes import data_settings

    settings = ReencodeConfig(
        short_side=arguments.short_side, keyframes=arguments.keyframes, crf=arguments.crf
    )
    dataset = open_data(arguments.data, data_settings(arguments.settings), "keep")
    total = len(dataset.for_check)
    workers = arguments.workers or min(8, os.cpu_count() or 1)
    copies = copy_videos(dataset, arguments.out, settings, workers=workers)
    tracked = log_of(arguments).track(copies, total=total, title="reencode")
    broken = {path: error.reason for path, error in tracked if error is not None}
    for path, reason in broken.items():
        print(f"error: {path}: {reason}", file=sys.stderr)
    if arguments.json:
        print_json(
            {"folder": str(arguments.out), "videos": total - len(broken), "broken": _listed(broken)}
        )
    else:
        manifest = arguments.out / MANIFEST_FILE
        print(
            f"{arguments.out}: {total - len(broken)} videos, {len(broken)} broken; next: zeroi2v train {manifest}"
        )
    return 1 if broken else 0


def _listed(broken: dict[Path, str]) -> list[dict[str, str]]:
    return [{"video": str(path), "error": reason} for path, reason in broken.items()]
