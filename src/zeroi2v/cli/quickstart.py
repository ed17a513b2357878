"""`zeroi2v quickstart`: learn made-up motions, merge, and write a report of accuracy and cost."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from zeroi2v.cli.options import (
    Commands,
    OutputArguments,
    nonempty_path,
    print_json,
    set_action,
    whole_number,
)


@dataclass(frozen=True, kw_only=True)
class QuickstartArguments(OutputArguments):
    """The arguments of `zeroi2v quickstart`."""

    out: Path
    seed: int


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add(
        "quickstart",
        "learn made-up motions, merge the model, and write a report of accuracy and cost",
    )
    parser.add_argument(
        "--out",
        type=nonempty_path,
        default=Path("quickstart"),
        metavar="FOLDER",
        help="folder to write; an earlier quickstart in it is replaced (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=whole_number,
        default=0,
        metavar="N",
        help="seed of the videos and of the training (default: %(default)s)",
    )
    set_action(parser, QuickstartArguments, run)


def run(arguments: QuickstartArguments) -> int:
    """Run the quickstart and show its report."""
    from rich.console import Console

    from zeroi2v.experiments import quickstart
    from zeroi2v.files import claimed
    from zeroi2v.pages.report import terminal_report

    with claimed(arguments.out, "another quickstart"):
        result = quickstart.run(arguments.out, seed=arguments.seed, log=arguments.log())
    if arguments.json:
        print_json(result)
    else:
        Console().print(terminal_report(result))
        print(f"The page: {arguments.out / 'report.html'}")
    return 0
