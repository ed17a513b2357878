"""`zeroi2v eval`: how good is a model on labelled videos? Or several models, and their mean."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from zeroi2v.cli.group import SharedArguments, join_group, shared
from zeroi2v.cli.options import (
    DECODING,
    MODEL,
    Commands,
    count,
    data_argument,
    nonempty,
    nonempty_path,
    open_data,
    print_error,
    print_json,
    set_action,
    set_option,
    views_options,
    workers_option,
)
from zeroi2v.errors import ConfigError, how_many

if TYPE_CHECKING:
    from zeroi2v.config import DataConfig, Decoder, ViewsConfig
    from zeroi2v.data.datasets import Video
    from zeroi2v.inference.evaluate import Evaluation
    from zeroi2v.models.video import VideoClassifier

NOTES = """\
Without --split, eval takes the val split of DATA, or the test split if DATA has no val split, or
else every video. If DATA has several official splits, eval takes the split that RUN was trained on,
unless --set data.split names another split. With several models, eval prints the score figures of
each model and their mean: zeroi2v eval UCF101 --model RUN1 --model RUN2 --model RUN3"""
SPLITS = ("train", "val", "test", "all")


@dataclass(frozen=True, kw_only=True)
class EvaluateArguments(SharedArguments):
    """The arguments of `zeroi2v eval`."""

    data: Path
    split: str | None
    settings: list[str]
    models: list[str]
    clips: int | None
    crops: Literal[1, 3] | None
    decoder: Decoder
    scores: Path | None
    confusion: Path | None
    frames: int | None
    image_size: int | None
    workers: int


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add("eval", "measure models on labelled videos", NOTES)
    data_argument(parser)
    text = "split of DATA to evaluate on (default: val, else test, else all)"
    parser.add_argument("--split", choices=SPLITS, help=text)
    set_option(parser)
    parser.add_argument(
        "--model",
        required=True,
        action="append",
        type=nonempty,
        metavar="RUN",
        dest="models",
        help=f"{MODEL}; once for each model",
    )
    views_options(parser, "as trained")
    text = "library that decodes video files (default: %(default)s)"
    parser.add_argument("--decoder", choices=("pyav", "torchcodec"), default="pyav", help=text)
    text = "table to write with the scores of every video, .csv or .parquet"
    parser.add_argument("--scores", type=nonempty_path, metavar="FILE", help=text)
    text = "table to write, .csv or .parquet: for each class, its videos by predicted class"
    parser.add_argument("--confusion", type=nonempty_path, metavar="FILE", help=text)
    text = "frames of a clip (default: as trained)"
    parser.add_argument("--frames", type=count, metavar="T", help=text)
    text = "pixels along a side of a frame (default: as trained)"
    parser.add_argument("--image-size", type=count, metavar="S", help=text)
    workers_option(parser, DECODING)
    set_action(parser, EvaluateArguments, run)


def run(arguments: EvaluateArguments) -> int:
    """Evaluate each model, and say how good they are."""
    from zeroi2v.inference.evaluate import mean_figures
    from zeroi2v.inference.tables import check_table

    with shared(arguments):
        tables = [path for path in (arguments.scores, arguments.confusion) if path]
        for path in tables:
            check_table(path)
        if tables and len(arguments.models) > 1:
            raise ConfigError("--scores and --confusion work with one model; give a single --model")
        join_group()
        results = [_evaluated(arguments, model) for model in arguments.models]
        answers = [result.answer for result in results]
        if len(results) == 1:
            (answer,) = answers
        else:
            mean = mean_figures([result.evaluation.figures for result in results])
            answer = {**mean, "models": answers}
            if not arguments.json:
                print(f"mean of {len(results)} models: {_in_words(mean, results[0].classes)}")
        if arguments.json:
            print_json(answer)
    return 1 if any(result.evaluation.skipped for result in results) else 0


@dataclass(frozen=True)
class _Result:
    """The evaluation of one model, and the value of --json for this model."""

    evaluation: Evaluation
    answer: dict[str, object]

    @property
    def classes(self) -> int:
        return self.evaluation.logits.shape[-1]


def _evaluated(arguments: EvaluateArguments, folder: str) -> _Result:
    """Evaluate one model, write its tables, and print its score figures at once."""
    from zeroi2v.inference.evaluate import data_for, evaluate
    from zeroi2v.inference.tables import write_confusion, write_scores
    from zeroi2v.machine import worker_count
    from zeroi2v.recipes import data_settings

    model = _opened(arguments, folder)
    config = data_for(model, data_settings(arguments.settings, run=folder))
    split, videos = _chosen(arguments, config, model)
    evaluation = evaluate(
        model,
        videos,
        clip=dataclasses.replace(model.clip, decoder=arguments.decoder),
        views=_views(arguments, model.views),
        workers=worker_count(arguments.workers),
        log=arguments.log(),
    )
    for path, write in ((arguments.scores, write_scores), (arguments.confusion, write_confusion)):
        if path and arguments.is_first:
            write(evaluation, model.labels, path)
    if arguments.is_first:
        for error in evaluation.skipped:
            print_error(error)
    per_class = dict(zip(model.labels, evaluation.per_class(), strict=True))
    is_several = len(arguments.models) > 1
    if not arguments.json:
        which = f"{folder} (data.split {config.split}): " if is_several else ""
        figures = _in_words(evaluation.figures, len(per_class))
        both = "" if evaluation.sharpness is None else ", each forwards and backwards"
        print(f"{which}{figures} on {how_many(evaluation.video_count, 'video')}{both}")
        if evaluation.sharpness is not None:
            print(f"Does time matter? {evaluation.direction_answer()['reading']}")
    names = {"model": folder, "data.split": config.split} if is_several else {}
    answer = {**names, **evaluation.to_dict(), "split": split, "per_class": per_class}
    if evaluation.sharpness is not None:
        within_pairs = evaluation.within_pairs_per_class()
        answer["within_pairs_per_class"] = dict(zip(model.labels[::2], within_pairs, strict=True))
    return _Result(evaluation, answer)


def _views(arguments: EvaluateArguments, views: ViewsConfig) -> ViewsConfig:
    """The views that the flags say, and else the views that the model was trained with."""
    return dataclasses.replace(
        views, clips=arguments.clips or views.clips, crops=arguments.crops or views.crops
    )


def _opened(arguments: EvaluateArguments, folder: str) -> VideoClassifier:
    """The model in a folder, for frames of the number and size that the flags say."""
    from zeroi2v.machine import best_device
    from zeroi2v.models.loading import load

    model = load(folder).to(best_device())
    if arguments.confusion and model.spec.multi_label:
        raise ConfigError(
            "--confusion is for models of one label a video; this model is for several labels: "
            "see per_class of --json"
        )
    if arguments.frames or arguments.image_size:
        frames, size = arguments.frames or model.frames, arguments.image_size or model.image_size
        arguments.log().say(
            f"the model was trained on {how_many(model.frames, 'frame')} of {model.image_size} "
            f"pixels; its embeddings are resized to {how_many(frames, 'frame')} of {size} pixels"
        )
        model.resize(frames=arguments.frames, image_size=arguments.image_size)
    return model


def _chosen(
    arguments: EvaluateArguments, config: DataConfig, model: VideoClassifier
) -> tuple[str, tuple[Video, ...]]:
    """The name of the split to evaluate on, and its videos."""
    from zeroi2v.data.datasets import relabel
    from zeroi2v.recipes import absent_classes

    log, absent = arguments.log(), absent_classes(arguments.settings)
    found = open_data(arguments.data, config, "keep", log, absent_classes=absent)
    dataset = relabel(found, model.labels)
    if arguments.split == "all":
        return "all", dataset.for_check
    if arguments.split is not None:
        return arguments.split, dataset.for_evaluation(arguments.split)
    if dataset.held_out:
        log.warn(
            f"{arguments.data} has neither a val nor a test split: all its videos are evaluated, "
            "also videos that the model may have been trained on"
        )
    return "all" if dataset.held_out else "val", dataset.for_evaluation()


def _in_words(figures: Mapping[str, float], classes: int) -> str:
    """The figures for people, without top-5 if there are no more than five classes."""
    from zeroi2v.inference.evaluate import FIGURE_NAMES

    shown = {name: value for name, value in figures.items() if name != "top5" or classes > 5}
    return ", ".join(f"{FIGURE_NAMES[name]} {value:.2%}" for name, value in shown.items())
