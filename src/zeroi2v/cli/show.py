"""`zeroi2v show`: draw where the heads of one block look in a video."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from zeroi2v.cli.options import (
    Commands,
    OutputArguments,
    model_option,
    nonempty_path,
    print_json,
    set_action,
    whole_number,
)


@dataclass(frozen=True, kw_only=True)
class ShowArguments(OutputArguments):
    """The arguments of `zeroi2v show`."""

    video: Path
    model: str
    block: int | None
    label: str | None
    out: Path


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add("show", "draw where the heads of one block look in a video")
    text = "video file, or folder of the images of one clip"
    parser.add_argument("video", type=nonempty_path, metavar="VIDEO", help=text)
    model_option(parser)
    text = "attention block, from 1 (default: the last)"
    parser.add_argument("--block", type=whole_number, metavar="N", help=text)
    text = "class that Grad-CAM explains (default: the predicted class)"
    parser.add_argument("--label", metavar="NAME", help=text)
    parser.add_argument(
        "--out",
        type=nonempty_path,
        default=Path("show"),
        metavar="FOLDER",
        help="folder for show.png, show.mp4 and show.html, which are replaced "
        "(default: %(default)s)",
    )
    set_action(parser, ShowArguments, run)


def run(arguments: ShowArguments) -> int:
    """Draw, and say which heads read which frames."""
    from zeroi2v.data.output_folder import require_outside
    from zeroi2v.explain.show import show
    from zeroi2v.files import claimed
    from zeroi2v.machine import best_device
    from zeroi2v.models.loading import load
    from zeroi2v.pages.show import beside_heads, heads_text

    require_outside(arguments.out, arguments.video, kind="the folder of images")
    model = load(arguments.model).to(best_device())
    with claimed(arguments.out, "another show"):
        result = show(
            arguments.video, model, arguments.out, block=arguments.block, label=arguments.label
        )
    if arguments.json:
        print_json(result)
        return 0
    for group in result["heads"]:
        print(
            f"offset {group['offset']:+d}: heads {heads_text(group['heads'])}; "
            f"frame by frame they read {group['reads']}"
        )
    if aside := beside_heads(result):
        print(aside)
    print(f"{result['label']} ({result['score']:.1%}): {', '.join(result['files'])}")
    return 0
