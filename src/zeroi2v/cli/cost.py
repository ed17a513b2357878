"""`zeroi2v cost`: count parameters, multiply-adds and memory."""

from __future__ import annotations

from dataclasses import dataclass

from zeroi2v.cli.options import (
    MODEL,
    Commands,
    OutputArguments,
    count,
    given,
    nonempty,
    print_json,
    set_action,
    set_option,
    views_options,
    whole_number,
)
from zeroi2v.errors import ConfigError

NOTES = """\
The command counts without computing: no weights are fetched and no GPU is needed. docs/costs.md
says what is counted. --table prints a table of the paper: the paper's figures beside our counts."""


@dataclass(frozen=True, kw_only=True)
class CostArguments(OutputArguments):
    """The arguments of `zeroi2v cost`."""

    model: str | None
    tower: str | None
    strategy: str | None
    frames: int | None
    classes: int | None
    clips: int | None
    crops: int | None
    table: int | None
    settings: list[str]


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add("cost", "count parameters, multiply-adds and memory", NOTES)
    text = f"{MODEL} (default: the model that the settings describe)"
    parser.add_argument("--model", type=nonempty, metavar="RUN", help=text)
    text = "image transformer (default: zeroi2v_tiny, which comes with the package)"
    parser.add_argument("--tower", type=nonempty, metavar="NAME", help=text)
    text = "how the tower is adapted: a strategy of docs/training.md (default: zeroi2v)"
    parser.add_argument("--strategy", type=nonempty, metavar="NAME", help=text)
    text = "frames of a clip (default: 8)"
    parser.add_argument("--frames", type=count, metavar="T", help=text)
    text = "number of classes, without --model (default: 400)"
    parser.add_argument("--classes", type=count, metavar="N", help=text)
    views_options(parser, "the model's, or 1")
    text = "count the models of this table of the paper instead"
    parser.add_argument("--table", type=whole_number, choices=(3, 4, 5, 10, 11), help=text)
    set_option(parser, "change a setting of [model], [clip] or [views], as often as you like")
    set_action(parser, CostArguments, run)


def run(arguments: CostArguments) -> int:
    """Count, and print the figures."""
    from zeroi2v.config import TrainConfig
    from zeroi2v.engine.spare import spared
    from zeroi2v.measure.cost_table import compare_table, model_costs

    flags = given(
        {
            "model.tower": arguments.tower,
            "model.strategy": arguments.strategy,
            "clip.frames": arguments.frames,
            "views.clips": arguments.clips,
            "views.crops": arguments.crops,
        }
    )
    if arguments.table:
        others = arguments.model or flags or arguments.settings or arguments.classes is not None
        if others:
            raise ConfigError("--table counts the paper's models; leave the other options out")
        value, lines = compare_table(arguments.table)
    else:
        value, lines = model_costs(
            arguments.model,
            flags,
            arguments.settings,
            num_classes=arguments.classes,
            training_mode=lambda model: spared(model, TrainConfig()),
        )
    if arguments.json:
        print_json(value)
    else:
        for line in lines:
            print(line, flush=True)
    return 0
