"""What does `zeroi2v eval` say? How good one model is, or several and their mean; cli.py says how commands behave."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

from zeroi2v.cli.main import (
    Parser,
    count,
    data_argument,
    log_of,
    open_data,
    output_options,
    print_json,
    set_option,
    speaks,
)
from zeroi2v.errors import ConfigError


def add_commands(command: Any, commands: Any, parser: Parser) -> None:
    """Add the command; `command` is what `build_parser` adds its own with."""
    notes = (
        "Uses the val split if DATA has one, else every video. Of several official splits it takes the one that the run in RUN\n"
        "was trained on, unless --set data.split names another. With several models it gives each and their mean:\n"
        "zeroi2v eval UCF101 --model RUN1 --model RUN2 --model RUN3"
    )
    one = command(commands, parser, "eval", evaluate, "measure models on labelled videos", notes)
    data_argument(one)
    set_option(one)
    text = "run folder, model folder or Hub name; as often as there are models"
    one.add_argument("--model", required=True, action="append", metavar="RUN", help=text)
    one.add_argument(
        "--clips", type=count, metavar="N", help="clips per video (default: as trained)"
    )
    one.add_argument(
        "--crops", type=int, choices=(1, 3), help="crops per clip (default: as trained)"
    )
    text = "what decodes video files (default: %(default)s)"
    one.add_argument("--decoder", choices=("pyav", "torchcodec"), default="pyav", help=text)
    text = "write every video's scores into a table, .csv or .parquet"
    one.add_argument("--scores", type=Path, metavar="FILE", help=text)
    text = "write how many videos of each class were taken for each class, .csv or .parquet"
    one.add_argument("--confusion", type=Path, metavar="FILE", help=text)
    one.add_argument(
        "--frames", type=count, metavar="T", help="frames of a clip (default: as trained)"
    )
    one.add_argument(
        "--image-size",
        type=count,
        metavar="S",
        help="pixels a side of a frame (default: as trained)",
    )
    output_options(one)


def evaluate(arguments: argparse.Namespace) -> int:
    """`zeroi2v eval`"""
    from zeroi2v.inference.evaluate import FIGURE_NAMES
    from zeroi2v.inference.tables import check_table

    tables = [path for path in (arguments.scores, arguments.confusion) if path]
    for path in tables:
        check_table(path)
    if tables and len(arguments.model) > 1:
        raise ConfigError("--scores and --confusion are of one model; give one --model with them")
    answers = [_evaluate_one(arguments, model) for model in arguments.model]
    if len(answers) == 1:
        (answer,) = answers
    else:
        names = [name for name in FIGURE_NAMES if all(name in one for one in answers)]
        if not names:
            raise ConfigError(
                "some models know one label a video, others several: they have no mean; evaluate them apart"
            )
        mean = {name: sum(one[name] for one in answers) / len(answers) for name in names}
        answer = {**mean, "models": answers}
        if not arguments.json:
            print(f"mean of {len(answers)} models: {_in_words(mean, len(answers[0]['per_class']))}")
    if arguments.json:
        print_json(answer)
    return 1 if any(one["skipped"] for one in answers) else 0


def _evaluate_one(arguments: argparse.Namespace, folder: str) -> dict[str, Any]:
    """What --json says of one model; a line for people is printed at once."""
    from zeroi2v.data.datasets import relabel
    from zeroi2v.engine.folder import RECIPE_FILE
    from zeroi2v.inference.evaluate import data_for
    from zeroi2v.inference.evaluate import evaluate as evaluate_model
    from zeroi2v.inference.tables import write_confusion, write_scores
    from zeroi2v.machine import best_device, worker_count
    from zeroi2v.models.loading import load
    from zeroi2v.recipes import data_settings, read_recipe

    model = load(folder).to(best_device())
    if arguments.confusion and model.spec.multi_label:
        raise ConfigError(
            "--confusion is for one label a video; this model knows several: see per_class of --json"
        )
    log = log_of(arguments)
    if arguments.frames or arguments.image_size:
        log.say(
            f"trained on {model.frames} frames of {model.image_size} pixels; its embeddings are resized"
        )
        model.resize(frames=arguments.frames, image_size=arguments.image_size)
    asked = {"clips": arguments.clips, "crops": arguments.crops}
    views = dataclasses.replace(
        model.views, **{name: value for name, value in asked.items() if value is not None}
    )
    clip = dataclasses.replace(model.clip, decoder=arguments.decoder)
    recipe = Path(folder) / RECIPE_FILE
    own = [f"data.split={read_recipe(recipe).data.split}"] if recipe.is_file() else []
    config = data_for(model, data_settings([*own, *arguments.settings]))
    dataset = relabel(open_data(arguments.data, config, "keep"), model.labels)
    if dataset.held_out:
        print(
            f"warning: {arguments.data} has no val split: all its videos are evaluated, also any that were trained on",
            file=sys.stderr,
        )
    found = evaluate_model(
        model, dataset.for_evaluation(), clip=clip, views=views, workers=worker_count(-1), log=log
    )
    for path, write in ((arguments.scores, write_scores), (arguments.confusion, write_confusion)):
        if path and speaks():
            write(found, model.labels, path)
    for error in found.skipped:
        print(f"error: {error}", file=sys.stderr)
    per_class = dict(zip(model.labels, found.per_class(), strict=True))
    several = {"model": folder, "data.split": config.split} if len(arguments.model) > 1 else {}
    if not arguments.json:
        which = f"{folder} (data.split {config.split}): " if several else ""
        print(f"{which}{_in_words(found.figures, len(per_class))} on {len(found.videos)} videos")
    return {
        **several,
        **found.to_dict(),
        "split": "all" if dataset.held_out else "val",
        "per_class": per_class,
    }


def _in_words(figures: dict[str, float], classes: int) -> str:
    """The figures for people; a top-5 of fewer classes than six says nothing."""
    from zeroi2v.inference.evaluate import FIGURE_NAMES

    shown = {name: value for name, value in figures.items() if name != "top5" or classes > 5}
    return ", ".join(f"{FIGURE_NAMES[name]} {value:.2%}" for name, value in shown.items())
