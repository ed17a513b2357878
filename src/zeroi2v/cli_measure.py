"""What can be asked of a model or tower on the command line? Cost, speed, where it looks; cli.py says how commands behave."""

from __future__ import annotations

import argparse
import fnmatch
import sys
from pathlib import Path
from typing import Any

from zeroi2v.cli import (
    Parser,
    data_argument,
    log_of,
    open_data,
    output_options,
    print_json,
    set_option,
    with_flip_pairs,
)
from zeroi2v.errors import ConfigError, nearest


def add_commands(command: Any, commands: Any, parser: Parser) -> None:
    """Add the commands; `command` is what `build_parser` adds its own with."""
    one = command(commands, parser, "towers", towers, "list the image transformers that can be adapted")
    text = "only names that match, such as '*clip*' (default: all)"
    one.add_argument("pattern", nargs="?", default="*", metavar="PATTERN", help=text)
    one.add_argument("--partly", action="store_true", help="those where some attention blocks stay spatial")
    output_options(one)

    notes = (
        "Each strategy is a row of the table, and so is each --row with settings of its own:\n"
        "  --row no_time 'heads=[]' --row wide strategy=lora adapter_ratio=0.5\n"
        "Interrupted or killed, the same command goes on where it was; more rows or seeds can be asked for later."
    )
    text = "train several strategies under one budget, and write one table and one page"
    one = command(commands, parser, "compare", compare, text, notes)
    data_argument(one)
    text = "rows: strategies of docs/training.md (default: zeroi2v lora linear_probe, unless there is a --row)"
    one.add_argument("--strategies", nargs="+", default=[], metavar="NAME", help=text)
    text = "a row with settings of its own, as often as you like"
    one.add_argument("--row", nargs="+", action="append", default=[], metavar=("NAME", "KEY=VALUE"), help=text)
    text = "of the trainings; every row is trained with each (default: 0 1)"
    one.add_argument("--seeds", nargs="+", type=int, default=[0, 1], metavar="N", help=text)
    one.add_argument("--recipe", type=Path, metavar="FILE", help="TOML file of the settings that all rows share")
    text = "folder to write, or to go on in (default: %(default)s)"
    one.add_argument("--out", type=Path, default=Path("compare"), metavar="FOLDER", help=text)
    set_option(one, "change one setting of all rows, as often as you like")
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


def compare(arguments: argparse.Namespace) -> int:
    """`zeroi2v compare`"""
    from rich.console import Console

    from zeroi2v.analysis.compare import Row, compare
    from zeroi2v.analysis.compare_page import terminal
    from zeroi2v.config import Recipe, override, read_recipe

    strategies = arguments.strategies or ([] if arguments.row else ["zeroi2v", "lora", "linear_probe"])
    rows = [Row(name, (f"strategy={name}",)) for name in strategies]
    rows += [Row(name, tuple(settings)) for name, *settings in arguments.row]
    budget = override(read_recipe(arguments.recipe) if arguments.recipe else Recipe(), arguments.settings)
    dataset = open_data(arguments.data, budget.data, budget.train.broken)
    log = log_of(arguments)
    budget = with_flip_pairs(budget, dataset, log)
    result = compare(rows, budget, arguments.seeds, dataset, arguments.out, log=log)
    if arguments.json:
        print_json(result)
    else:
        Console().print(terminal(result))
        print(f"The page: {arguments.out / 'compare.html'}")
    return 0
