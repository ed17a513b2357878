"""What can be asked of a model or tower on the command line? Cost, speed, where it looks; cli.py says how commands behave."""

from __future__ import annotations

import argparse
import fnmatch
import sys
from pathlib import Path
from typing import Any

from zeroi2v.cli import Parser, model_option, output_options, print_json
from zeroi2v.errors import ConfigError, nearest


def add_commands(command: Any, commands: Any, parser: Parser) -> None:
    """Add the commands; `command` is what `build_parser` adds its own with."""
    one = command(commands, parser, "towers", towers, "list the image transformers that can be adapted")
    text = "only names that match, such as '*clip*' (default: all)"
    one.add_argument("pattern", nargs="?", default="*", metavar="PATTERN", help=text)
    one.add_argument("--partly", action="store_true", help="those where some attention blocks stay spatial")
    output_options(one)

    one = command(commands, parser, "show", show, "draw where the heads of one block look in a video")
    one.add_argument("video", type=Path, metavar="VIDEO", help="video file, or folder of the images of one clip")
    model_option(one)
    one.add_argument("--block", type=int, metavar="N", help="attention block, from 1 (default: the last)")
    one.add_argument("--label", metavar="NAME", help="class that Grad-CAM explains (default: the predicted one)")
    text = "folder for show.png, show.mp4 and show.html, which are replaced (default: %(default)s)"
    one.add_argument("--out", type=Path, default=Path("show"), metavar="FOLDER", help=text)
    output_options(one)


def towers(arguments: argparse.Namespace) -> int:
    """`zeroi2v towers`"""
    from zeroi2v.models.towers import partly_covered_towers, supported_towers

    known = partly_covered_towers() if arguments.partly else supported_towers()
    found = [name for name in known if fnmatch.fnmatchcase(name, arguments.pattern)]
    if not found:
        near = nearest(arguments.pattern.strip("*"), known)
        raise ConfigError(f"no tower is called {arguments.pattern!r}{near}; a part of a name needs stars: '*clip*'")
    if arguments.json:
        print_json(found)
    else:
        print("\n".join(found))
        if not arguments.quiet:
            print(f"{len(found)} towers; their pretrained weights: docs/weights.md", file=sys.stderr)
    return 0


def show(arguments: argparse.Namespace) -> int:
    """`zeroi2v show`"""
    from zeroi2v.analysis.show import show as draw
    from zeroi2v.engine.evaluate import best_device
    from zeroi2v.models.checkpoints import load

    model = load(arguments.model).to(best_device())
    result = draw(arguments.video, model, arguments.out, block=arguments.block, label=arguments.label)
    if arguments.json:
        print_json(result)
    else:
        for group in result["heads"]:
            heads = ", ".join(map(str, group["heads"]))
            print(f"offset {group['offset']:+d}: heads {heads}; frame by frame they read {group['reads']}")
        print(f"{result['label']} ({result['score']:.1%}): {', '.join(result['files'])}")
    return 0
