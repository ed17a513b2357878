"""What do the commands share? Their parser, the options that several commands take, and output.

A command is a file with three parts: a dataclass of its arguments, `add`, which declares them to
the parser, and `run`, which does the work and returns the exit status.

Standard output carries results; standard error carries progress, warnings and errors. Nothing
heavy is imported here: `--help` reads this file and the `add` of every command.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, TypeVar

from zeroi2v.errors import escaped, nearest
from zeroi2v.files import json_text

if TYPE_CHECKING:
    from zeroi2v.config import DataConfig
    from zeroi2v.data.datasets import VideoDataset
    from zeroi2v.log import Log


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors take one line, name the nearest word and exit with 2."""

    def __init__(
        self, **settings: Any
    ) -> None:  # the settings of argparse, which knows their types
        super().__init__(
            allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **settings
        )
        self.commands: dict[str, Parser] = {}

    # argparse declares five overloads, which this one method serves
    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's method, but an unknown option or command is an error here.

        This method knows the options and commands, so the error can name the nearest of them.
        """
        args = sys.argv[1:] if args is None else list(args)
        first = next((word for word in args if not word.startswith("-")), None)
        if self.commands and first is not None and first not in self.commands:
            self.error(f"unknown command {first!r}{nearest(first, self.commands)}")
        if not self.commands and (path := self._path_like_option(args)):
            self.error(f"{path}: a path must not begin with -; write ./{path}")
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            known = [option for action in self._actions for option in action.option_strings]
            near = nearest(unknown[0].partition("=")[0], known)
            self.error(f"unknown argument {unknown[0]!r}{near}")
        return parsed, []

    def _path_like_option(self, args: list[str]) -> str | None:
        """The first word that begins with - and names an existing path; None if there is none.

        An option or a number is no such word.
        """
        known = {option for action in self._actions for option in action.option_strings}
        for word in args[: args.index("--")] if "--" in args else args:
            dashed = word.startswith("-") and not word[1:2].isdigit() and word not in known
            if dashed and os.path.lexists(word):
                return word
        return None

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and where the help is, and exit with status 2."""
        print(f"error: {escaped(message)}; see {self.prog} --help", file=sys.stderr)
        sys.exit(2)


@dataclass(frozen=True, kw_only=True)
class OutputArguments:
    """The arguments that every command has. A subclass adds the arguments of one command."""

    json: bool
    quiet: bool

    def log(self) -> Log:
        """The log for progress and messages."""
        from zeroi2v.log import Log

        return Log(quiet=self.quiet)


Arguments = TypeVar("Arguments", bound=OutputArguments)


class Commands:
    """The commands below a parser."""

    def __init__(self, parser: Parser) -> None:
        self._parser = parser
        self._group = parser.add_subparsers(
            title="commands", metavar="COMMAND", parser_class=Parser
        )
        parser.set_defaults(action=lambda _: parser.error("a command is missing"))

    def add(self, name: str, text: str, notes: str = "") -> Parser:
        """The parser of a new command. `text` says in the help what the command does."""
        description = f"{text[0].upper()}{text[1:]}."
        parser = self._group.add_parser(name, help=text, description=description, epilog=notes)
        self._parser.commands[name] = parser
        return parser


def set_action(parser: Parser, kind: type[Arguments], run: Callable[[Arguments], int]) -> None:
    """Add --json and --quiet. The command calls `run` with its arguments, an instance of `kind`."""
    parser.add_argument(
        "--json", action="store_true", help="print one JSON value on standard output"
    )
    parser.add_argument(
        "--quiet", action="store_true", help="no progress, only warnings and errors"
    )
    names = [field.name for field in dataclasses.fields(kind)]

    def action(namespace: argparse.Namespace) -> int:
        return run(kind(**{name: getattr(namespace, name) for name in names}))

    parser.set_defaults(action=action)


# Types of arguments


def whole_number(text: str) -> int:
    """A whole number."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}") from None


def number(text: str) -> float:
    """A number."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from None


def count(text: str) -> int:
    """A whole number of at least 1."""
    return _at_least(1, text)


def nonempty(text: str) -> str:
    """A name or path. An empty text is refused: it may come from a variable that was never set."""
    if not text:
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def nonempty_path(text: str) -> Path:
    """The path of a file or folder."""
    return Path(nonempty(text))


def _worker_number(text: str) -> int:
    return _at_least(0, text)


def _at_least(least: int, text: str) -> int:
    """A whole number that is not below `least`."""
    try:
        if (value := int(text)) >= least:
            return value
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, got {text!r}")


# Arguments that several commands take

MODEL: Final = "folder of a run or of a merged model, or name of a model on the Hub"
DECODING: Final = "processes that decode videos"


def data_argument(parser: Parser) -> None:
    """DATA: `data: Path`."""
    text = "folder per class, CSV manifest, or data set in one of the formats of docs/data.md"
    parser.add_argument("data", metavar="DATA", type=nonempty_path, help=text)


def model_option(parser: Parser) -> None:
    """--model RUN, required: `model: str`."""
    parser.add_argument("--model", required=True, type=nonempty, metavar="RUN", help=MODEL)


def set_option(
    parser: Parser, text: str = "change a setting of docs/data.md: data.format=ucf101, data.split=2"
) -> None:
    """--set KEY=VALUE, as often as wanted: `settings: list[str]`."""
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="settings", help=text
    )


def workers_option(
    parser: Parser, work: str, automatic: str = "one per core beyond the first, at most 8"
) -> None:
    """--workers N: `workers: int`, -1 for the automatic number."""
    text = f"{work} beside the main process; 0: none (default: {automatic})"
    parser.add_argument("--workers", type=_worker_number, default=-1, metavar="N", help=text)


def dtype_option(parser: Parser, text: str) -> None:
    """--dtype: `dtype: str`."""
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), default="fp32", help=text)


def views_options(parser: Parser, default: str) -> None:
    """--clips and --crops: `clips: int | None` and `crops: int | None`."""
    text = f"clips per video (default: {default})"
    parser.add_argument("--clips", type=count, metavar="N", help=text)
    text = f"crops per clip (default: {default})"
    parser.add_argument("--crops", type=whole_number, choices=(1, 3), help=text)


def given(settings: Mapping[str, object]) -> dict[str, object]:
    """The settings of the flags that were given; a flag that was not given is None."""
    return {name: value for name, value in settings.items() if value is not None}


# What commands print


def print_json(value: object) -> None:
    """Print the one value of --json, such that any standard output can carry it."""
    print(json_text(value, encoding=getattr(sys.stdout, "encoding", None) or "utf-8"))


def print_error(error: Exception) -> None:
    """Print an error as one line on standard error."""
    print(f"error: {escaped(str(error))}", file=sys.stderr)


def broken_entries(broken: Mapping[Path, str]) -> list[dict[str, str]]:
    """Videos that cannot be read, with the reasons, as --json lists them."""
    return [{"video": str(video), "error": reason} for video, reason in broken.items()]


def command_line(*words: str | Path) -> str:
    """A command to copy into a shell. A path that starts with a dash is no option."""
    texts = [
        f"./{word}" if isinstance(word, Path) and str(word).startswith("-") else str(word)
        for word in words
    ]
    return shlex.join(["zeroi2v", *texts])


def open_data(
    source: Path,
    config: DataConfig,
    missing: Literal["stop", "skip", "keep"],
    log: Log,
    *,
    absent_classes: Literal["stop", "skip"] = "stop",
) -> VideoDataset:
    """The data set, after a warning for each kind of thing in it that is not used."""
    from zeroi2v.data.datasets import open_dataset

    dataset = open_dataset(source, config, missing=missing, absent_classes=absent_classes)
    for text in dataset.warnings:
        log.warn(text)
    return dataset
