"""`zeroi2v towers`: list the image transformers that can be adapted."""

from __future__ import annotations

import fnmatch
import sys
from dataclasses import dataclass

from zeroi2v.cli.options import Commands, OutputArguments, print_json, set_action
from zeroi2v.errors import ConfigError, how_many, nearest


@dataclass(frozen=True, kw_only=True)
class TowersArguments(OutputArguments):
    """The arguments of `zeroi2v towers`."""

    pattern: str
    partly: bool


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add("towers", "list the image transformers that can be adapted")
    text = "only names that match, such as '*clip*' (default: all)"
    parser.add_argument("pattern", nargs="?", default="*", metavar="PATTERN", help=text)
    text = "list instead the partly covered towers: some of their attention blocks stay spatial"
    parser.add_argument("--partly", action="store_true", help=text)
    set_action(parser, TowersArguments, run)


def run(arguments: TowersArguments) -> int:
    """Print the names that match."""
    from zeroi2v.models.towers import partly_covered_towers, supported_towers

    known = partly_covered_towers() if arguments.partly else supported_towers()
    matching = [name for name in known if fnmatch.fnmatchcase(name, arguments.pattern)]
    if not matching:
        near = nearest(arguments.pattern.strip("*"), known)
        raise ConfigError(
            f"no tower is called {arguments.pattern!r}{near}; "
            "put stars around a part of a name: '*clip*'"
        )
    if arguments.json:
        print_json(matching)
        return 0
    print("\n".join(matching))
    if not arguments.quiet:
        text = f"{how_many(len(matching), 'tower')}; their pretrained weights: docs/weights.md"
        print(text, file=sys.stderr)
    return 0
