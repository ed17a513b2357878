"""`zeroi2v compare`: train several strategies under one budget."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from zeroi2v.cli.options import (
    Commands,
    OutputArguments,
    data_argument,
    nonempty_path,
    open_data,
    print_json,
    set_action,
    set_option,
    whole_number,
)

NOTES = """\
Each strategy is a row of the table, and so is each --row with settings of its own:
  --row no_time 'heads=[]' --row wide strategy=lora adapter_ratio=0.5
After an interruption, the same command goes on with the trainings that are not finished. More rows
or seeds can be added later."""


@dataclass(frozen=True, kw_only=True)
class CompareArguments(OutputArguments):
    """The arguments of `zeroi2v compare`."""

    data: Path
    strategies: list[str]
    rows: list[list[str]]
    seeds: list[int]
    recipe: Path | None
    out: Path
    settings: list[str]


def add(commands: Commands) -> None:
    """Declare the command."""
    text = "train several strategies under one budget, and write one table and one page"
    parser = commands.add("compare", text, NOTES)
    data_argument(parser)
    text = (
        "rows: strategies of docs/training.md "
        "(default: zeroi2v lora linear_probe, unless there is a --row)"
    )
    parser.add_argument("--strategies", nargs="+", default=[], metavar="NAME", help=text)
    parser.add_argument(
        "--row",
        nargs="+",
        action="append",
        default=[],
        metavar=("NAME", "KEY=VALUE"),
        dest="rows",
        help="a row with settings of its own, as often as you like",
    )
    text = "seeds of the trainings; every row is trained with each seed (default: 0 1)"
    parser.add_argument(
        "--seeds", nargs="+", type=whole_number, default=[0, 1], metavar="N", help=text
    )
    text = "TOML file of the settings that all rows share"
    parser.add_argument("--recipe", type=nonempty_path, metavar="FILE", help=text)
    parser.add_argument(
        "--out",
        type=nonempty_path,
        default=Path("compare"),
        metavar="FOLDER",
        help="folder to write, outside of DATA, or folder of a comparison to go on with "
        "(default: %(default)s)",
    )
    set_option(parser, "change one setting of all rows, as often as you like")
    set_action(parser, CompareArguments, run)


def run(arguments: CompareArguments) -> int:
    """Train all rows, and show the table."""
    from rich.console import Console

    from zeroi2v.config import Recipe
    from zeroi2v.data.flip_pairs import with_flip_pairs
    from zeroi2v.data.output_folder import require_outside
    from zeroi2v.experiments.compare import compare, rows_asked
    from zeroi2v.experiments.trial_folder import ROWS_FILE
    from zeroi2v.pages.compare import terminal
    from zeroi2v.recipes import assigned_names, names_in, override, read_recipe

    recipe = read_recipe(arguments.recipe) if arguments.recipe else Recipe()
    budget = override(recipe, arguments.settings)
    given = assigned_names(arguments.settings)
    if arguments.recipe:
        given |= names_in(arguments.recipe)
    rows = rows_asked(arguments.strategies, arguments.rows, budget, given)
    log = arguments.log()
    if not (arguments.out / ROWS_FILE).is_file():  # an earlier comparison goes on where it is
        require_outside(arguments.out, arguments.data)
    dataset = open_data(arguments.data, budget.data, budget.train.broken, log)
    budget = with_flip_pairs(budget, dataset, log)
    result = compare(rows, budget, arguments.seeds, dataset, arguments.out, log=log)
    if arguments.json:
        print_json(result)
    else:
        Console().print(terminal(result))
        print(f"The page: {arguments.out / 'compare.html'}")
    return 1 if result["failed"] else 0
