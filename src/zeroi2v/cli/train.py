"""`zeroi2v train`: adapt a tower to a folder or list of videos."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from zeroi2v.cli.group import SharedArguments, shared
from zeroi2v.cli.options import (
    DECODING,
    Commands,
    command_line,
    data_argument,
    given,
    nonempty,
    nonempty_path,
    open_data,
    print_json,
    set_action,
    set_option,
    whole_number,
    workers_option,
)
from zeroi2v.config import REAL_TOWERS
from zeroi2v.errors import ConfigError, VideoError

if TYPE_CHECKING:
    from zeroi2v.config import Recipe
    from zeroi2v.data.datasets import VideoDataset
    from zeroi2v.engine.run import Run

NOTES = f"""\
For videos of your own, take a tower that was trained on photographs. The default tower,
zeroi2v_tiny, is a toy for the quickstart: it comes with the package and has seen only drawings.
  zeroi2v train DATA {REAL_TOWERS[0]}
  zeroi2v train DATA {REAL_TOWERS[1]}
No clip is flipped unless `--set flip=0.5` or a recipe says so. Where a flip turns one class into
another, such as left into right: `--set 'flip_pairs=[["left", "right"]]'`.
Does time matter in your videos? `--set data.directions=true`: docs/directions.md.

DATA is a folder with one folder of videos per class (or train/ and val/ with such folders inside),
a CSV file with the columns path, label and, if you like, split (train, val), or a published data
set: docs/data.md lists the formats. Without a split, a fifth of each class is held out."""


@dataclass(frozen=True, kw_only=True)
class TrainArguments(SharedArguments):
    """The arguments of `zeroi2v train`."""

    data: Path
    recipe: Path | None
    tower: str | None
    epochs: int | None
    seed: int | None
    broken: str | None
    out: Path
    resume: bool
    start_from: str | None
    settings: list[str]
    workers: int


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add("train", "adapt a tower to a folder or list of videos", NOTES)
    data_argument(parser)
    parser.add_argument(
        "--recipe",
        type=nonempty_path,
        metavar="FILE",
        help="TOML file of settings; a setting that it lacks keeps its default",
    )
    text = "image transformer: a timm name (default: zeroi2v_tiny, a toy; see below)"
    parser.add_argument("--tower", type=nonempty, metavar="NAME", help=text)
    text = "passes over the training videos"
    parser.add_argument("--epochs", type=whole_number, metavar="N", help=text)
    text = "seed of the weights, and of the order, frames and crops of the videos"
    parser.add_argument("--seed", type=whole_number, metavar="N", help=text)
    text = "what happens at a video that cannot be read (default: stop)"
    parser.add_argument("--broken", choices=("stop", "skip"), help=text)
    parser.add_argument(
        "--out",
        type=nonempty_path,
        default=Path("run"),
        metavar="RUN",
        help="folder to write, outside of DATA (default: %(default)s)",
    )
    text = "go on with the run in RUN, with the settings of that run; only --workers may change"
    parser.add_argument("--resume", action="store_true", help=text)
    text = "begin with the model and the weights of an earlier run"
    parser.add_argument("--start-from", type=nonempty, metavar="RUN", help=text)
    set_option(parser, "change a setting of docs/training.md, as often as you like")
    workers_option(parser, DECODING)
    set_action(parser, TrainArguments, run)


def run(arguments: TrainArguments) -> int:
    """Train, and say where the run is and how good it is."""
    with shared(arguments):
        recipe = _recipe(arguments)
        from zeroi2v.data.flip_pairs import with_flip_pairs
        from zeroi2v.data.output_folder import require_outside

        if not arguments.resume:
            require_outside(arguments.out, arguments.data)
        log = arguments.log()
        absent: Literal["stop", "skip"] = "skip" if arguments.resume else "stop"
        dataset = open_data(
            arguments.data, recipe.data, recipe.train.broken, log, absent_classes=absent
        )
        recipe = with_flip_pairs(recipe, dataset, log)
        result = _trained(arguments, recipe, dataset)
        figure = "mAP" if recipe.data.multi_label else "top1"
        directions = _directions(result) if recipe.data.directions else {}
        if arguments.json:
            print_json({**_answer(result, dataset, figure), **directions})
        else:
            _say(result, figure, recipe.model.tower)
            if "reading" in directions:
                print(f"Does time matter? {directions['reading']}")
    return 0


def _recipe(arguments: TrainArguments) -> Recipe:
    """The recipe that the flags, a recipe file or an earlier run describe."""
    from zeroi2v.models.loading import model_recipe
    from zeroi2v.recipes import changed, override, read_recipe, read_run_recipe

    flags = given(
        {
            "model.tower": arguments.tower,
            "train.epochs": arguments.epochs,
            "train.seed": arguments.seed,
            "train.broken": arguments.broken,
            "train.start_from": arguments.start_from,
        }
    )
    workers = {} if arguments.workers < 0 else {"train.workers": arguments.workers}
    if arguments.resume:
        if flags or arguments.settings or arguments.recipe:
            raise ConfigError(
                "--resume takes the settings of the run; "
                "give only DATA, --out and, if you like, --workers"
            )
        recipe = read_run_recipe(arguments.out)
    else:
        if arguments.recipe:
            recipe = read_recipe(arguments.recipe)
        else:
            recipe = model_recipe(arguments.start_from)
        recipe = override(recipe, arguments.settings, {**flags, **workers})
    return changed(recipe, workers)


def _trained(arguments: TrainArguments, recipe: Recipe, dataset: VideoDataset) -> Run:
    """Train. The error of a video that cannot be read also says what to do."""
    from zeroi2v.engine.processes import join_processes
    from zeroi2v.engine.run import train

    try:
        return train(
            recipe,
            dataset,
            arguments.out,
            resume=arguments.resume,
            processes=join_processes(),
            log=arguments.log(),
        )
    except VideoError as error:
        advice = "mend the video, or leave broken videos out with --broken skip"
        raise VideoError(error.path, f"{error.reason}; {advice}") from error


def _answer(result: Run, dataset: VideoDataset, figure: str) -> dict[str, object]:
    """The value of --json."""
    left_out = {**dict.fromkeys(map(str, dataset.missing), "no such file"), **result.broken}
    return {
        "run": str(result.folder),
        "epochs": result.epochs,
        "best_epoch": result.best_epoch,
        figure: result.best,
        "broken": [{"video": path, "error": reason} for path, reason in left_out.items()],
        "excluded": [*result.excluded],
    }


def _directions(result: Run) -> dict[str, object]:
    """What the best epoch tells of the direction of clips; nothing without validation videos."""
    from zeroi2v.engine.folder import LOG_FILE
    from zeroi2v.files import read_json_lines

    names = ("within_pairs", "sharpness", "pairs", "reading")
    return {
        name: entry[name]
        for entry in read_json_lines(result.folder / LOG_FILE)
        if entry["epoch"] == result.best_epoch
        for name in names
        if name in entry
    }


def _say(result: Run, figure: str, tower: str) -> None:
    """Print the result for people, and what to do next."""
    from zeroi2v.inference.evaluate import FIGURE_NAMES

    score = ""
    if result.best is not None:
        score = f", {FIGURE_NAMES[figure]} {result.best:.1%} on the validation videos"
    print(f"{result.folder}: epoch {result.best_epoch} of {result.epochs} is the best{score}")
    if result.needs_tower:
        merging = command_line("merge", result.folder, "--out", "FOLDER")
        print(
            f"Wherever the run is loaded, its tower {tower} is needed again. "
            f"A merged folder holds the tower. To merge: {merging}"
        )
    print(f"Next: {command_line('predict', 'VIDEO', '--model', result.folder)}")
