"""What can be said on the command line? Each subcommand: parse, configure, one call, print.

Standard output carries results (one JSON value with --json), standard error progress and messages. Exit status: 0 done, 1 the
input is wrong (one line that starts with "error:"), 2 wrong usage, 130 interrupted. Nothing heavy is imported before a
subcommand needs it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from zeroi2v.errors import ConfigError, VideoError, ZeroI2VError, nearest


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints take one line, name the nearest known word, and end with status 2."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(
            allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **settings
        )
        self.commands: dict[str, Parser] = {}

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, but an unknown option or command is an error here, where the known ones are at hand."""
        args = sys.argv[1:] if args is None else list(args)
        first = next((word for word in args if not word.startswith("-")), None)
        if self.commands and first is not None and first not in self.commands:
            self.error(f"unknown command {first!r}{nearest(first, self.commands)}")
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            known = [option for action in self._actions for option in action.option_strings]
            self.error(
                f"unknown argument {unknown[0]!r}{nearest(unknown[0].partition('=')[0], known)}"
            )
        return parsed, []

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and where the help is."""
        print(f"error: {message}; see {self.prog} --help", file=sys.stderr)
        sys.exit(2)


def build_parser() -> Parser:
    """The whole command line."""
    from zeroi2v.cli import data as cli_data  # they take the functions below from here
    from zeroi2v.cli import eval as cli_eval
    from zeroi2v.cli import measure as cli_measure

    parser = Parser(
        prog="zeroi2v",
        description="Turn a pretrained image transformer into a video recogniser that costs nothing extra at inference.",
        epilog="A recipe is a TOML file; `zeroi2v train` writes the one it used, with every setting, into its run folder.",
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=Parser)

    def command(
        group: Any, owner: Parser, name: str, run: Any, text: str, notes: str = ""
    ) -> Parser:
        made: Parser = group.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=notes
        )
        made.set_defaults(run=run)
        owner.commands[name] = made
        return made

    one = command(
        commands,
        parser,
        "quickstart",
        quickstart,
        "learn made-up motions, merge, and write a report that proves it",
    )
    one.add_argument(
        "--out",
        type=Path,
        default=Path("quickstart"),
        help="folder to write (default: %(default)s)",
    )
    one.add_argument(
        "--seed", type=int, default=0, help="of the videos and the training (default: %(default)s)"
    )
    output_options(one)

    one = command(
        commands,
        parser,
        "train",
        train,
        "adapt a tower to a folder or list of videos",
        "DATA is a folder with one folder of videos per class (or train/ and val/ with those inside), a CSV file with the\n"
        "columns path, label and, if you like, split (train, val), or a published data set: docs/data.md lists the formats.\n"
        "Without a split a fifth of each class is held out.",
    )
    data_argument(one)
    one.add_argument(
        "--recipe",
        type=Path,
        metavar="FILE",
        help="TOML file of settings; others keep their defaults",
    )
    one.add_argument(
        "--tower",
        metavar="NAME",
        help="image transformer: a timm name (default: the embedded zeroi2v_tiny)",
    )
    one.add_argument("--epochs", type=int, metavar="N", help="passes over the training videos")
    one.add_argument("--seed", type=int, metavar="N", help="of weights, order, frames and crops")
    one.add_argument(
        "--broken", choices=("stop", "skip"), help="at a video that cannot be read (default: stop)"
    )
    one.add_argument(
        "--out",
        type=Path,
        default=Path("run"),
        metavar="RUN",
        help="folder to write (default: %(default)s)",
    )
    one.add_argument(
        "--resume", action="store_true", help="go on with the run in RUN, with its own settings"
    )
    one.add_argument(
        "--start-from",
        metavar="RUN",
        help="begin with the weights, and the model, of an earlier run",
    )
    set_option(one, "change one setting, as often as you like")
    output_options(one)

    cli_eval.add_commands(command, commands, parser)

    one = command(commands, parser, "predict", predict, "name what happens in videos")
    one.add_argument(
        "videos", nargs="+", metavar="VIDEO", help="video file, or folder of the images of one clip"
    )
    model_option(one)
    one.add_argument(
        "--top-k",
        type=count,
        default=5,
        metavar="K",
        help="labels per video (default: %(default)s)",
    )
    output_options(one)

    one = command(
        commands,
        parser,
        "merge",
        merge,
        "fold the adapters into the tower, so that the model costs what the tower costs",
    )
    one.add_argument("model", metavar="RUN", help="run folder, model folder or Hub name")
    one.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder to write")
    one.add_argument(
        "--data",
        type=Path,
        metavar="DATA",
        help="compare both on these videos (default: on random clips)",
    )
    set_option(one)
    output_options(one)

    data = command(commands, parser, "data", None, "make, check or copy videos")
    cli_data.add_commands(command, data)
    cli_measure.add_commands(command, commands, parser)
    return parser


def count(text: str) -> int:
    """A whole number of at least 1, from the command line."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def data_argument(parser: Parser) -> None:
    text = "folder per class, CSV manifest, or data set in one of the formats of docs/data.md"
    parser.add_argument("data", metavar="DATA", type=Path, help=text)


def set_option(
    parser: Parser, text: str = "change a setting of [data]: data.format=ucf101, data.split=2 ..."
) -> None:
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="settings", help=text
    )


def open_data(path: Path, config: Any, missing: Any) -> Any:
    """The data set, after a warning of everything in it that is not used."""
    from zeroi2v.data.datasets import open_dataset

    dataset = open_dataset(path, config, missing=missing)
    for text in dataset.warnings:
        print(f"warning: {text}", file=sys.stderr)
    return dataset


def with_flip_pairs(recipe: Any, dataset: Any, log: Any) -> Any:
    """The recipe, told of the labels that a flip exchanges where the data set knows them and the recipe does not."""
    from zeroi2v.recipes import override

    if not dataset.flip_pairs or recipe.pixels.flip_pairs:
        return recipe
    pairs = json.dumps(dataset.flip_pairs, ensure_ascii=False)
    log.say(f"{dataset.format}: a flip exchanges the labels {pairs}")
    return override(recipe, [f"pixels.flip_pairs={pairs}"])


def output_options(parser: Parser) -> None:
    """What every command says about its output."""
    parser.add_argument(
        "--json", action="store_true", help="print one JSON value on standard output"
    )
    parser.add_argument(
        "--quiet", action="store_true", help="no progress, only warnings and errors"
    )


def model_option(parser: Parser) -> None:
    parser.add_argument(
        "--model", required=True, metavar="RUN", help="run folder, model folder or Hub name"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(
                errors="backslashreplace"
            )  # a file name may hold bytes that are no text
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.version:
        from zeroi2v import __version__

        print(__version__)
        return 0
    if not hasattr(arguments, "run"):
        parser.error("a command is missing")
    try:
        with contextlib.ExitStack() as silence:
            if not speaks():
                nowhere = silence.enter_context(open(os.devnull, "w", encoding="utf-8"))
                silence.enter_context(contextlib.redirect_stdout(nowhere))
            status = arguments.run(arguments)
            sys.stdout.flush()
    except ZeroI2VError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever read the output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"error: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    return int(status or 0)


def speaks() -> bool:
    """Whether this is the first of the processes that torchrun started, or the only one: it speaks for all."""
    return os.environ.get("RANK", "0") == "0"


def log_of(arguments: argparse.Namespace) -> Any:
    """The log that --quiet asks for."""
    from zeroi2v.log import Log

    return Log(quiet=arguments.quiet or not speaks())


def print_json(value: Any) -> None:
    """The one value that --json prints."""
    print(json.dumps(value, ensure_ascii=False))


def quickstart(arguments: argparse.Namespace) -> int:
    """`zeroi2v quickstart`"""
    from rich.console import Console

    from zeroi2v.experiments.quickstart import run
    from zeroi2v.pages.report import terminal_report

    result = run(arguments.out, seed=arguments.seed, log=log_of(arguments))
    if arguments.json:
        print_json(result)
    else:
        Console().print(terminal_report(result))
        print(f"The page: {arguments.out / 'report.html'}")
    return 0


def train(arguments: argparse.Namespace) -> int:
    """`zeroi2v train`"""
    from zeroi2v.engine.folder import RECIPE_FILE
    from zeroi2v.inference.evaluate import FIGURE_NAMES
    from zeroi2v.models.loading import model_recipe
    from zeroi2v.recipes import override, read_recipe

    flags = {
        "model.tower": arguments.tower,
        "train.epochs": arguments.epochs,
        "train.seed": arguments.seed,
        "train.broken": arguments.broken,
        "train.start_from": arguments.start_from,
    }
    given = [f"{key}={json.dumps(value)}" for key, value in flags.items() if value is not None]
    if arguments.resume:
        if given or arguments.settings or arguments.recipe:
            raise ConfigError(
                "--resume goes on with the settings of the run; give it DATA and --out alone"
            )
        recipe = read_recipe(arguments.out / RECIPE_FILE)
    else:
        recipe = (
            read_recipe(arguments.recipe)
            if arguments.recipe
            else model_recipe(arguments.start_from)
        )
        recipe = override(recipe, [*given, *arguments.settings])
    from zeroi2v.engine.run import train as train_model

    log = log_of(arguments)
    dataset = open_data(arguments.data, recipe.data, recipe.train.broken)
    recipe = with_flip_pairs(recipe, dataset, log)
    try:
        run = train_model(recipe, dataset, arguments.out, resume=arguments.resume, log=log)
    except VideoError as error:
        raise VideoError(
            error.path, f"{error.reason}; mend it, or leave such videos out with --broken skip"
        ) from error
    figure = "mAP" if recipe.data.multi_label else "top1"
    if arguments.json:
        left_out = {**dict.fromkeys(map(str, dataset.missing), "no such file"), **run.broken}
        broken = [{"video": path, "error": reason} for path, reason in left_out.items()]
        answer = {
            "run": str(run.folder),
            "epochs": run.epochs,
            "best_epoch": run.best_epoch,
            figure: run.best,
        }
        print_json({**answer, "broken": broken, "excluded": [*run.excluded]})
    else:
        found = (
            ""
            if run.best is None
            else f", {FIGURE_NAMES[figure]} {run.best:.1%} on the validation videos"
        )
        print(f"{run.folder}: epoch {run.best_epoch} of {run.epochs} is the best{found}")
        print(f"Next: zeroi2v predict VIDEO --model {run.folder}")
    return 0


def predict(arguments: argparse.Namespace) -> int:
    """`zeroi2v predict`"""
    from zeroi2v.deploy.predict import Predictor

    predictor = Predictor(arguments.model)
    log = log_of(arguments)
    answers: list[dict[str, Any]] = []
    for video in log.track(arguments.videos, total=len(arguments.videos), title="predict"):
        try:
            found = predictor.predict(video, top_k=arguments.top_k)
        except VideoError as error:
            answers.append({"video": video, "error": error.reason})
            print(f"error: {error}", file=sys.stderr)
            continue
        answers.append(
            {
                "video": video,
                "predictions": [{"label": one.label, "score": one.score} for one in found],
            }
        )
        if not arguments.json:
            print(video + "".join(f"\n  {one.score:7.2%}  {one.label}" for one in found))
    if arguments.json:
        print_json(answers)
    return 1 if any("error" in answer for answer in answers) else 0


def merge(arguments: argparse.Namespace) -> int:
    """`zeroi2v merge`"""
    from zeroi2v.deploy.merge import merge_folder
    from zeroi2v.recipes import data_settings

    config = data_settings(arguments.settings)
    proof = merge_folder(
        arguments.model, arguments.out, data=arguments.data, config=config, log=log_of(arguments)
    )
    if arguments.json:
        print_json(proof)
    else:
        print(
            f"{arguments.out}: merged; largest difference of logits {proof['largest_logit_difference']:.1e}, "
            f"same answer for {proof['same_answers']} of {proof['clips']} {proof['compared_on']}"
        )
    return 0
