"""`zeroi2v merge`: fold the adapters into the tower, and prove that the model stays the same."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from zeroi2v.cli.options import (
    DECODING,
    MODEL,
    Commands,
    OutputArguments,
    command_line,
    nonempty,
    nonempty_path,
    print_json,
    set_action,
    set_option,
    workers_option,
)

NOTES = """\
A run needs its tower again wherever the run is loaded. The merged folder holds the tower too, so
the folder can be copied to a machine without a network."""


@dataclass(frozen=True, kw_only=True)
class MergeArguments(OutputArguments):
    """The arguments of `zeroi2v merge`."""

    model: str
    out: Path
    data: Path | None
    settings: list[str]
    workers: int


def add(commands: Commands) -> None:
    """Declare the command."""
    text = "fold the adapters into the tower, so that the model costs what the tower costs"
    parser = commands.add("merge", text, NOTES)
    parser.add_argument("model", metavar="RUN", type=nonempty, help=MODEL)
    text = "folder to write; must not exist"
    parser.add_argument("--out", type=nonempty_path, required=True, metavar="FOLDER", help=text)
    text = "compare the adapted and the merged model on these videos (default: on random clips)"
    parser.add_argument("--data", type=nonempty_path, metavar="DATA", help=text)
    set_option(parser)
    workers_option(parser, DECODING)
    set_action(parser, MergeArguments, run)


def run(arguments: MergeArguments) -> int:
    """Merge, and say how far the outputs of the two models differ."""
    from zeroi2v.data.output_folder import require_outside
    from zeroi2v.deploy.merge import merge_folder
    from zeroi2v.machine import worker_count
    from zeroi2v.recipes import absent_classes, data_settings

    config = data_settings(arguments.settings, run=arguments.model)
    if arguments.data is not None:
        require_outside(arguments.out, arguments.data)
    proof = merge_folder(
        arguments.model,
        arguments.out,
        data=arguments.data,
        config=config,
        absent_classes=absent_classes(arguments.settings),
        workers=worker_count(arguments.workers),
        log=arguments.log(),
    )
    if arguments.json:
        print_json(proof)
        return 0
    print(
        f"{arguments.out}: merged; largest difference of logits "
        f"{proof['largest_logit_difference']:.1e}, "
        f"same answer for {proof['same_answers']} of {proof['clips']} {proof['compared_on']}"
    )
    print(
        f"{arguments.out} holds the tower too and needs nothing else; "
        "a run needs its tower again wherever the run is loaded"
    )
    print(f"Next: {command_line('predict', 'VIDEO', '--model', arguments.out)}")
    return 0
