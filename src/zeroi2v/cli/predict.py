"""`zeroi2v predict`: name what happens in videos."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from zeroi2v.cli.options import (
    Commands,
    OutputArguments,
    count,
    dtype_option,
    model_option,
    print_error,
    print_json,
    set_action,
    workers_option,
)
from zeroi2v.errors import VideoError, escaped

if TYPE_CHECKING:
    from zeroi2v.deploy.predict import Prediction


@dataclass(frozen=True, kw_only=True)
class PredictArguments(OutputArguments):
    """The arguments of `zeroi2v predict`."""

    videos: list[str]
    model: str
    top_k: int
    dtype: str
    compile: bool
    workers: int


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add("predict", "name what happens in videos")
    parser.add_argument(
        "videos", nargs="+", metavar="VIDEO", help="video file, or folder of the images of one clip"
    )
    model_option(parser)
    text = "labels per video (default: %(default)s)"
    parser.add_argument("--top-k", type=count, default=5, metavar="K", help=text)
    dtype_option(parser, "precision of weights and arithmetic (default: %(default)s)")
    text = "compile the model first; this saves time if many videos follow, above all on a GPU"
    parser.add_argument("--compile", action="store_true", help=text)
    workers_option(parser, "threads that decode videos")
    set_action(parser, PredictArguments, run)


def run(arguments: PredictArguments) -> int:
    """Predict for each video in turn. After a video that cannot be read, the next video follows."""
    from zeroi2v.deploy.predict import Predictor
    from zeroi2v.machine import worker_count

    videos, log = arguments.videos, arguments.log()
    predictor = Predictor(arguments.model, dtype=arguments.dtype, compiled=arguments.compile)
    # No thread is needed for the first video, since nothing runs before it.
    workers = min(worker_count(arguments.workers), len(videos) - 1)
    results = predictor.predict_each(videos, top_k=arguments.top_k, workers=workers)
    answers: list[dict[str, object]] = []
    tracked = log.track(results, total=len(videos), title="predict")
    for video, result in zip(videos, tracked, strict=True):
        if isinstance(result, VideoError):
            answers.append({"video": video, "error": result.reason})
            print_error(result)
            continue
        predictions = [
            {"label": prediction.label, "score": prediction.score} for prediction in result
        ]
        answers.append({"video": video, "predictions": predictions})
        if arguments.json:
            log.say(f"{len(answers)} of {len(videos)}: {video}: {_in_words(result[0])}")
        else:
            lines = [f"\n  {_in_words(prediction)}" for prediction in result]
            print(escaped(video) + "".join(lines))
    if arguments.json:
        print_json(answers)
    return 1 if any("error" in answer for answer in answers) else 0


def _in_words(prediction: Prediction) -> str:
    return f"{prediction.score:7.2%}  {prediction.label}"
