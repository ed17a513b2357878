"""What can be asked of a model or tower on the command line? Cost, speed, where it looks; cli.py says how commands behave."""

from __future__ import annotations

import argparse
import fnmatch
import sys
from typing import Any

from zeroi2v.cli import Parser, output_options, print_json
from zeroi2v.errors import ConfigError, nearest


def add_commands(command: Any, commands: Any, parser: Parser) -> None:
    """Add the commands; `command` is what `build_parser` adds its own with."""
    one = command(commands, parser, "towers", towers, "list the image transformers that can be adapted")
    text = "only names that match, such as '*clip*' (default: all)"
    one.add_argument("pattern", nargs="?", default="*", metavar="PATTERN", help=text)
    one.add_argument("--partly", action="store_true", help="those where some attention blocks stay spatial")
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
