"""What does the method achieve? One command makes videos, learns them and writes a report.

The quickstart writes motion videos (`data/synthetic.py`), fits a probe that ignores the order of
frames, adapts the embedded tower (`zeroi2v_tiny`, which comes with the package), merges the model,
compares answers and cost, and writes a page of the results.

Shapes: T frames, H x W pixels.
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch

import zeroi2v
from zeroi2v.config import REAL_TOWERS, ClipConfig, ModelConfig, PixelsConfig, Recipe, TrainConfig
from zeroi2v.data.datasets import Video, VideoDataset, open_dataset
from zeroi2v.data.decode import read_clip
from zeroi2v.data.sampling import clip_indices
from zeroi2v.data.synthetic import MIRROR, MOTIONS, PAIRS, write_motion_videos
from zeroi2v.data.views import read_views
from zeroi2v.deploy.merge import difference
from zeroi2v.deploy.predict import Predictor
from zeroi2v.engine.folder import LOG_FILE
from zeroi2v.engine.run import train
from zeroi2v.errors import ConfigError
from zeroi2v.experiments.probe import fit_probe
from zeroi2v.explain.attention import attention_maps, patch_map
from zeroi2v.explain.overlay import enlarge, outline, overlay
from zeroi2v.files import read_json_lines, write_json, write_text
from zeroi2v.inference.evaluate import Evaluation, evaluate
from zeroi2v.inference.scores import normalise
from zeroi2v.log import Log
from zeroi2v.machine import best_device, provenance, worker_count
from zeroi2v.measure.cost import cost, count_macs, new_tower, plain_tower
from zeroi2v.measure.timing import interleave, median_ratio
from zeroi2v.models.build import build_model
from zeroi2v.models.loading import load
from zeroi2v.models.survey import prefix_tokens
from zeroi2v.models.video import VideoClassifier
from zeroi2v.pages.report import Look, write_report

VIDEOS: Final = {"train": 1600, "val": 160, "test": 800}
MARKER: Final = "quickstart.txt"
REPORT: Final = "report.html"
OWN: Final = (MARKER, "videos", "adapted", "merged", "result.json", REPORT)
STAGES: Final = {  # name of a stage -> what the page says while the stage runs
    "videos": "writing the videos",
    "probe": "fitting a linear probe that ignores the order of frames",
    "train": "training the model with temporal heads",
    "evaluate": "asking the adapted and the merged model about the test videos",
    "latency": "measuring the time of a clip",
    "report": "drawing where the temporal heads look",
}
LAYOUT_NOTE: Final = (
    "The head layout is not the paper's: there one head of every block has offset -1 and one head "
    "has offset 1. Here all heads of blocks 2 and 6 are temporal, half of them with offset -2 and "
    "half with offset 2, and the other four blocks have only spatial heads. The layout was found "
    "by hand, on these made-up videos: the model learned faster with it than with offsets -1 and "
    "1 in the same blocks. So it says nothing about other videos."
)


def recipe(seed: int) -> Recipe:
    """How the embedded tower is adapted to the motion videos.

    A clip has four frames, and two of the six blocks have temporal heads. In these blocks half of
    the heads read two frames back and half of the heads read two frames ahead, because the motions
    are steady and show best between frames far apart. The narrow bottleneck of the adapters allows
    a high learning rate. The temporal embedding stays zero: with a temporal embedding, spatial
    heads too could tell a motion from its reversal.
    """
    temporal, spatial = "-2*6, 2*6", ()
    return Recipe(
        model=ModelConfig(
            tower="zeroi2v_tiny",
            heads=(spatial, temporal, spatial, spatial, spatial, temporal),
            adapter_ratio=0.0625,
            temporal_embedding="zero",
        ),
        clip=ClipConfig(frames=4, sampling="segment"),
        pixels=PixelsConfig(crop_area=(0.8, 1.0), flip=0.5, flip_pairs=MIRROR),
        train=TrainConfig(
            epochs=6,
            batch_size=16,
            learning_rate=4e-3,
            warmup_epochs=0.5,
            gradient_clip=1.0,
            seed=seed,
        ),
    )


def run(out: Path, *, seed: int = 0, log: Log | None = None) -> dict[str, Any]:
    """Run every stage in a folder, and return what `result.json` holds.

    The page is written anew when a stage begins, with everything measured so far. An earlier
    quickstart in the folder is replaced. ConfigError if the folder holds other files.
    """
    log = log or Log(quiet=True)
    settings = recipe(seed)  # refuses a wrong seed before anything is removed
    prepare(out, log)
    with fewer_threads():
        return run_stages(out, settings, log)


def run_stages(out: Path, settings: Recipe, log: Log) -> dict[str, Any]:
    """Run every stage in a prepared folder, and return what `result.json` holds."""
    progress = Progress(out / REPORT, settings.train.seed, log)
    result = progress.result
    with progress.stage("videos"):
        dataset = write_videos(out / "videos", settings.train.seed, log)
        shown, test = example_videos(dataset), dataset.splits["test"]
        progress.strips = [
            (dataset.classes[video.label], clip_frames(video, settings.clip)) for video in shown
        ]
    with progress.stage("probe"):
        probe = order_blind_probe(dataset, settings.clip, log)
        result["probe"] = accuracy(evaluate_on(probe, test, log), dataset.classes)
    top1 = result["probe"]["top1"]
    log.say(f"linear probe that ignores the order of frames: {top1:.1%} top-1")
    with progress.stage("train"):
        train(settings, dataset, out / "adapted", log=log)
        result["curve"] = learning_curve(out / "adapted")
    with progress.stage("evaluate"):
        adapted = load(out / "adapted").to(best_device())
        merged = adapted.merge()
        merged.save_pretrained(out / "merged")
        before, after = evaluate_on(adapted, test, log), evaluate_on(merged, test, log)
        result["adapted"] = accuracy(after, dataset.classes)
        result["heads"] = [[str(offset) for offset in layout] for layout in merged.heads]
        result["merge"] = difference(before.logits.flatten(0, 1), after.logits.flatten(0, 1))
        result["cost"] = cost_table(adapted, merged)
        result["prediction"] = predict_one(out / "merged", shown[0])
    log.say(f"temporal heads and linear adapters: {after.top(1):.1%} top-1, merged")
    with progress.stage("latency"):
        result["latency"] = measure_latency(adapted, merged)
    with progress.stage("report"):
        # two videos: in the first the object moves, in the second the object grows
        progress.looks = temporal_looks(merged, [shown[0], shown[4]])
    progress.write_page()
    write_json(out / "result.json", result)
    return result


class Progress:
    """What the quickstart has measured so far, and the page that shows these measurements."""

    def __init__(self, page: Path, seed: int, log: Log) -> None:
        self.page, self.log = page, log
        self.begun = time.perf_counter()
        self.seconds: dict[str, float] = {}  # of each finished stage, and of all of them
        self.strips: list[tuple[str, torch.Tensor]] = []  # a class, and frames (T, 3, H, W)
        self.looks: list[Look] = []
        self.result: dict[str, Any] = {
            "zeroi2v": zeroi2v.__version__,
            "seed": seed,
            **provenance(),
            "classes": list(MOTIONS),
            "pairs": [list(pair) for pair in PAIRS],
            "videos": dict(VIDEOS),
            "layout_note": LAYOUT_NOTE,
            "real_tower": REAL_TOWERS[0],
            "seconds": self.seconds,
        }

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Write the page, then measure the seconds of a stage of `STAGES`."""
        begun = time.perf_counter()
        self.log.say(f"[{name}]")
        self.write_page(running=STAGES[name])
        yield
        now = time.perf_counter()
        self.seconds[name] = round(now - begun, 1)
        self.seconds["total"] = round(now - self.begun, 1)

    def write_page(self, *, running: str = "") -> None:
        """Write the page with what is measured so far. `running`: what the quickstart does now."""
        write_report(self.page, self.result, strips=self.strips, looks=self.looks, running=running)


@contextmanager
def fewer_threads() -> Iterator[None]:
    """Let torch compute with one thread fewer, which leaves a core to the process that decodes.

    The products of the embedded tower are small. When a thread must wait for a core, all other
    threads wait for that thread at the end of each product.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads - 1))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def prepare(out: Path, log: Log) -> None:
    """Make the folder, or remove an earlier quickstart from it. ConfigError for other files."""
    is_marked = (out / MARKER).is_file()
    if out.exists() and not is_marked and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out}: already there and not from a quickstart; choose another --out")
    if is_marked:
        log.say(f"replacing the quickstart in {out}")
    for path in [*(out / name for name in OWN[1:]), *out.glob(".videos.*.partial")]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    write_text(
        out / MARKER,
        "`zeroi2v quickstart` wrote this folder. When the command is run again with this folder, "
        "it replaces these files.\n",
    )


def write_videos(folder: Path, seed: int, log: Log) -> VideoDataset:
    """Write the videos, with a progress bar, and open them as a data set."""
    every_core = worker_count(-1, cores_kept=0)  # this process waits meanwhile
    written = write_motion_videos(folder, VIDEOS, seed=seed, workers=every_core)
    pairs = sum(VIDEOS.values()) // 2
    for _ in log.track(written, total=pairs, title="write videos", unit="videos", per_item=2):
        pass
    return open_dataset(folder)


def order_blind_probe(dataset: VideoDataset, clip: ClipConfig, log: Log) -> VideoClassifier:
    """The frozen tower with a linear classifier of the mean over the frame features."""
    config = ModelConfig(tower="zeroi2v_tiny", heads=(), strategy="linear_probe")
    model = build_model(config, labels=dataset.classes, clip=clip).to(best_device())
    fit_probe(model, dataset.train, workers=worker_count(-1), log=log)
    return model


def evaluate_on(model: VideoClassifier, videos: Sequence[Video], log: Log) -> Evaluation:
    """The scores of a model for some videos, decoded by the automatic number of workers."""
    return evaluate(model, videos, workers=worker_count(-1), log=log)


def learning_curve(run: Path) -> list[dict[str, Any]]:
    """The loss and the validation accuracy of each epoch of a run folder."""
    return [
        {key: entry[key] for key in ("epoch", "loss", "top1") if key in entry}
        for entry in read_json_lines(run / LOG_FILE)
    ]


def accuracy(evaluation: Evaluation, classes: tuple[str, ...]) -> dict[str, Any]:
    """Top-1, the accuracy within each pair, and the confusion matrix in the order of MOTIONS."""
    order = torch.tensor([classes.index(name) for name in MOTIONS])
    within = {
        f"{motion}/{reversal}": evaluation.between(classes.index(motion), classes.index(reversal))
        for motion, reversal in PAIRS
    }
    return {
        "top1": evaluation.top(1),
        "within_pairs": within,
        "confusion": evaluation.confusion()[order][:, order].tolist(),
    }


def cost_table(adapted: VideoClassifier, merged: VideoClassifier) -> dict[str, Any]:
    """Parameters and multiply-adds per clip: plain tower, adapted model, merged model."""
    tower = new_tower(merged)
    of_adapted, of_merged = cost(adapted), cost(merged)
    frames = torch.empty(merged.frames, 3, merged.image_size, merged.image_size, device="meta")
    expected = {f"tower.{key}": tensor.shape for key, tensor in tower.state_dict().items()}
    shapes = {key: tensor.shape for key, tensor in merged.state_dict().items()}
    of_tower = {key: shape for key, shape in shapes.items() if key.startswith("tower.")}
    beside = shapes.keys() - of_tower.keys()
    return {
        "tower": {
            "params": sum(parameter.numel() for parameter in tower.parameters()),
            "gmacs": count_macs(tower, frames) / 1e9,
        },
        "adapted": {"params": of_adapted.params, "gmacs": of_adapted.gmacs},
        "merged": {
            "params": of_merged.params,
            "gmacs": of_merged.gmacs,
            "extra_gmacs": of_merged.extra_gmacs,
        },
        "classifier_params": sum(parameter.numel() for parameter in merged.classifier.parameters()),
        "temporal_embedding_params": merged.temporal_embedding.numel(),
        "merged_keys_equal_tower": of_tower == expected
        and beside == {"temporal_embedding", "classifier.weight", "classifier.bias"},
    }


@torch.no_grad()
def measure_latency(
    adapted: VideoClassifier, merged: VideoClassifier, *, clips: int = 16, rounds: int = 40
) -> dict[str, Any]:
    """Milliseconds for `clips` clips with the plain tower, the merged and the adapted model.

    Every round calls each of the three models once.
    """
    tower = plain_tower(merged)
    size = (clips, merged.frames, 3, merged.image_size, merged.image_size)
    device = merged.classifier.weight.device
    clip = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(device)
    frames = clip.flatten(0, 1)
    times = interleave(
        {
            "tower": lambda: tower(frames),
            "merged": lambda: merged(clip),
            "adapted": lambda: adapted(clip),
        },
        rounds=rounds,
    )
    medians = {f"{name}_ms": statistics.median(series) for name, series in times.items()}
    return {
        "clips": clips,
        "rounds": rounds,
        **medians,
        "merged_over_tower": median_ratio(times, "merged", "tower"),
    }


def example_videos(dataset: VideoDataset) -> list[Video]:
    """A test video of each motion, in the order of MOTIONS.

    The two videos of a pair are time reversals of each other.
    """
    videos = []
    for motion, reversal in PAIRS:
        label = dataset.classes.index(motion)
        forward = next(
            video
            for video in dataset.splits["test"]
            if video.label == label and "reversed" not in video.path.stem
        )
        backward = forward.path.parents[1] / reversal / f"{forward.path.stem}_reversed.mp4"
        videos += [forward, Video(backward, dataset.classes.index(reversal))]
    return videos


def clip_frames(video: Video, clip: ClipConfig) -> torch.Tensor:
    """The frames of a video's evaluation clip, at their own size: uint8 (T, 3, H, W)."""
    return read_clip(video.path, lambda frames: clip_indices(frames, clip)[0])


def predict_one(folder: Path, video: Video) -> dict[str, Any]:
    """The answer of the merged model for a video file, from the `Predictor` that users call."""
    predictions = [
        {"label": prediction.label, "score": prediction.score}
        for prediction in Predictor(folder).predict(video.path)
    ]
    return {"video": str(video.path), "label": video.path.parent.name, "predictions": predictions}


def temporal_looks(model: VideoClassifier, videos: Sequence[Video]) -> list[Look]:
    """Where the first head of each offset looks, in the first block with temporal heads.

    The query is the patch of the head's own frame that changes most to the frame that is read.
    """
    block = next(number for number, layout in enumerate(model.heads) if any(layout))
    layout = model.heads[block]
    offsets = sorted({offset for offset in layout if isinstance(offset, int) and offset})
    looks = []
    for video in videos:
        views = read_views(video.path, clip=model.clip, views=model.views, size=model.image_size)
        clip = views[0]
        pixels = views[:1].to(model.classifier.weight.device)
        maps = attention_maps(model, normalise(pixels, *model.normalisation), block=block)[0].cpu()
        grid = len(patch_map(maps[0, 0, 0], model))
        for offset in offsets:
            head, frame = layout.index(offset), middle_frame(model.frames, offset)
            change = (clip[frame].float() - clip[frame + offset].float()).square().sum(0)
            per_patch = torch.nn.functional.adaptive_avg_pool2d(change[None], grid)[0]
            row, column = divmod(int(per_patch.argmax()), grid)
            query = prefix_tokens(model.tower) + row * grid + column
            heat = patch_map(maps[frame, head, query], model)
            own = outline(enlarge(clip[frame]), (row, column), grid)
            read = overlay(clip[frame + offset], heat)
            caption = (
                f"{video.path.parent.name}: head {head + 1} of block {block + 1}, "
                f"frame {frame + 1}, reads frame {frame + 1 + offset}"
            )
            looks.append(Look(caption=caption, own=own, read=read))
    return looks


def middle_frame(frames: int, offset: int) -> int:
    """Of the frames of a clip that read another frame at this offset, the middle frame."""
    first, stop = max(0, -offset), min(frames, frames - offset)
    return (first + stop) // 2
