"""Which commands are there, and how does a command end?

Exit status: 0 done; 1 the input is wrong, or a part of the work failed (lines that start with
"error:"), or the reader of the output has left; 2 wrong usage; 130 interrupted.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from zeroi2v.cli import (
    bench,
    compare,
    cost,
    data,
    evaluate,
    merge,
    predict,
    quickstart,
    show,
    towers,
    train,
)
from zeroi2v.cli.options import Commands, Parser, print_error
from zeroi2v.errors import ZeroI2VError, escaped

if TYPE_CHECKING:
    from argparse import Namespace


def build_parser() -> Parser:
    """The whole command line."""
    parser = Parser(
        prog="zeroi2v",
        description="Turn a pretrained image transformer into a video recogniser that costs "
        "nothing extra at inference.",
        epilog="A recipe is a TOML file; `zeroi2v train` writes the recipe that it used, with\n"
        "every setting, into its run folder.",
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = Commands(parser)
    for command in (
        quickstart,
        train,
        evaluate,
        predict,
        merge,
        data,
        towers,
        show,
        cost,
        bench,
        compare,
    ):
        command.add(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # a file name may hold bytes that are no text, or letters that the stream lacks
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            return _run(build_parser().parse_args(argv))
        finally:
            if sys.stdout is not None:  # None: closed by the caller of the program
                sys.stdout.flush()
    except ZeroI2VError as error:
        print_error(error)
        return 1
    except BrokenPipeError:  # the reader of the output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        name = escaped(str(error.filename or "a file"))
        print(f"error: {name}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130


def _run(namespace: Namespace) -> int:
    if namespace.version:
        from zeroi2v import __version__

        print(__version__)
        return 0
    action: Callable[[Namespace], int] = namespace.action
    return action(namespace)
