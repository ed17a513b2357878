"""What does the method do, from nothing? Write motion videos, learn them, merge, prove the cost, and write a report."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch

import zeroi2v
from zeroi2v.config import ClipConfig, ModelConfig, PixelsConfig, Recipe, TrainConfig
from zeroi2v.data.datasets import Video, VideoDataset, open_dataset
from zeroi2v.data.decode import read_clip
from zeroi2v.data.loader import read_views
from zeroi2v.data.sampling import clip_indices
from zeroi2v.data.synthetic import MIRROR, MOTIONS, PAIRS, write_motion_videos
from zeroi2v.data.transforms import normalise
from zeroi2v.deploy.merge import difference
from zeroi2v.deploy.predict import Predictor
from zeroi2v.engine.folder import LOG_FILE
from zeroi2v.engine.run import train
from zeroi2v.errors import ConfigError
from zeroi2v.experiments.probe import fit_probe
from zeroi2v.explain.attention import attention_maps, patch_map
from zeroi2v.explain.overlay import enlarge, outline, overlay
from zeroi2v.files import read_json_lines
from zeroi2v.inference.evaluate import Evaluation, evaluate
from zeroi2v.log import Log
from zeroi2v.machine import best_device, provenance, worker_count
from zeroi2v.measure.cost import cost, count_macs, new_tower, plain_tower
from zeroi2v.measure.timing import interleave, median_ratio
from zeroi2v.models.build import build_model
from zeroi2v.models.loading import load
from zeroi2v.models.survey import prefix_tokens
from zeroi2v.models.video import VideoClassifier
from zeroi2v.pages.report import Look, write_report

VIDEOS: Final = {"train": 3200, "val": 160, "test": 800}
MARKER: Final = "quickstart.txt"
OWN: Final = (MARKER, "videos", "adapted", "merged", "result.json", "report.html")


def recipe(seed: int) -> Recipe:
    """How the embedded tower is adapted to the motion videos.

    Two of the six blocks are given to time: there half of the heads read three frames back and half three frames ahead, since
    the motions are steady and show best between frames far apart. The temporal embedding stays zero: it would tell every head
    when its frame was shown, and then spatial heads could tell a motion from its reversal too, without another frame.
    """
    time, space = "-3*6, 3*6", ()
    return Recipe(
        model=ModelConfig(
            tower="zeroi2v_tiny",
            heads=(space, time, space, space, space, time),
            temporal_embedding="zero",
        ),
        clip=ClipConfig(frames=8, sampling="segment"),
        pixels=PixelsConfig(crop_area=(0.8, 1.0), flip=0.5, flip_pairs=MIRROR),
        train=TrainConfig(
            epochs=4,
            batch_size=32,
            learning_rate=2e-3,
            warmup_epochs=0.5,
            gradient_clip=1.0,
            seed=seed,
        ),
    )


def run(out: Path, *, seed: int = 0, log: Log | None = None) -> dict[str, Any]:
    """Do all of it into a folder and return what `result.json` holds. An earlier quickstart in that folder is replaced."""
    log = log or Log(quiet=True)
    clock, settings = Clock(log), recipe(seed)  # which checks the seed, before anything is removed
    prepare(out, log)
    with clock("videos"):
        dataset = write_videos(out / "videos", seed, log)
    with clock("probe"):
        probe = order_blind_probe(dataset, log)
        probed = evaluate(probe, dataset.splits["test"], workers=worker_count(-1), log=log)
    log.say(f"bag-of-frames linear probe: {probed.top(1):.1%} top-1")
    with clock("train"):
        train(settings, dataset, out / "adapted", log=log)
    with clock("evaluate"):
        adapted = load(out / "adapted").to(best_device())
        merged = adapted.merge()
        merged.save_pretrained(out / "merged")
        before, after = (
            evaluate(one, dataset.splits["test"], workers=worker_count(-1), log=log)
            for one in (adapted, merged)
        )
    log.say(f"temporal heads and linear adapters: {after.top(1):.1%} top-1, merged")
    with clock("latency"):
        latency = measure_latency(adapted, merged)
    shown = example_videos(dataset)
    result = {
        "zeroi2v": zeroi2v.__version__,
        "seed": seed,
        **provenance(),
        "classes": list(MOTIONS),
        "pairs": [list(pair) for pair in PAIRS],
        "videos": {split: len(videos) for split, videos in dataset.splits.items()},
        "curve": [
            {key: entry[key] for key in ("epoch", "loss", "top1") if key in entry}
            for entry in read_json_lines(out / "adapted" / LOG_FILE)
        ],
        "probe": accuracy(probed, dataset.classes),
        "adapted": accuracy(after, dataset.classes),
        "heads": [[str(offset) for offset in layout] for layout in merged.heads],
        "merge": difference(before.logits.flatten(0, 1), after.logits.flatten(0, 1)),
        "cost": cost_table(adapted, merged),
        "latency": latency,
        "prediction": predict_one(out / "merged", shown[0]),
        "seconds": clock.seconds,
    }
    with clock("report"):
        strips = [(dataset.classes[video.label], frames_of(video, merged)) for video in shown]
        looks = temporal_looks(merged, [shown[0], shown[4]])  # one that moves, one that grows
        write_report(out / "report.html", result, strips=strips, looks=looks)
    (out / "result.json").write_text(
        json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    return result


class Clock:
    """Seconds of each stage, and of all of them."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.start = time.perf_counter()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        self.log.say(f"[{stage}]")
        yield
        now = time.perf_counter()
        self.seconds[stage], self.seconds["total"] = (
            round(now - start, 1),
            round(now - self.start, 1),
        )


def prepare(out: Path, log: Log) -> None:
    """An empty folder with our mark in it; what an earlier quickstart wrote there is removed, anything else is refused."""
    if out.exists() and not (out / MARKER).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out}: already there and not from a quickstart; choose another --out")
    if (out / MARKER).exists():
        log.say(f"replacing the quickstart in {out}")
    for path in [*(out / name for name in OWN[1:]), *out.glob(".videos.*.partial")]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).write_text(
        "Written by `zeroi2v quickstart`, which replaces it when it is run again with this folder.\n"
    )


def write_videos(folder: Path, seed: int, log: Log) -> VideoDataset:
    """Write the videos, with a progress bar, and open them as a data set."""
    written = write_motion_videos(folder, VIDEOS, seed=seed, workers=worker_count(-1))
    for _ in log.track(
        written, total=sum(VIDEOS.values()) // 2, title="write videos", unit="videos", per_item=2
    ):
        pass
    return open_dataset(folder)


def order_blind_probe(dataset: VideoDataset, log: Log) -> VideoClassifier:
    """The frozen tower with a linear classifier on the mean of its frame features."""
    config = ModelConfig(tower="zeroi2v_tiny", heads=(), strategy="linear_probe")
    model = build_model(config, labels=dataset.classes, clip=ClipConfig(frames=8))
    fit_probe(model, dataset.train, workers=worker_count(-1), log=log)
    return model


def accuracy(found: Evaluation, classes: tuple[str, ...]) -> dict[str, Any]:
    """Top-1, the two-way accuracy within each pair of time reversals, and the confusion matrix in the order of MOTIONS."""
    order = torch.tensor([classes.index(name) for name in MOTIONS])
    within = {
        f"{one}/{other}": found.between(classes.index(one), classes.index(other))
        for one, other in PAIRS
    }
    return {
        "top1": found.top(1),
        "within_pairs": within,
        "confusion": found.confusion()[order][:, order].tolist(),
    }


def cost_table(adapted: VideoClassifier, merged: VideoClassifier) -> dict[str, Any]:
    """Parameters and multiply-adds per clip of the plain tower, the adapted and the merged model."""
    tower = new_tower(merged)
    of_adapted, of_merged = cost(adapted), cost(merged)
    frames = torch.empty(merged.frames, 3, merged.image_size, merged.image_size, device="meta")
    expected = {f"tower.{key}": tensor.shape for key, tensor in tower.state_dict().items()}
    found = {
        key: tensor.shape for key, tensor in merged.state_dict().items() if key.startswith("tower.")
    }
    beside = set(merged.state_dict()) - set(found)
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
        "merged_keys_equal_tower": found == expected
        and beside == {"temporal_embedding", "classifier.weight", "classifier.bias"},
    }


@torch.no_grad()
def measure_latency(
    adapted: VideoClassifier, merged: VideoClassifier, *, clips: int = 16, rounds: int = 60
) -> dict[str, Any]:
    """Milliseconds for `clips` clips, the three models in turn: the plain tower, merged and adapted."""
    tower = plain_tower(merged)
    size = (clips, merged.frames, 3, merged.image_size, merged.image_size)
    clip = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(
        merged.classifier.weight.device
    )
    frames = clip.flatten(0, 1)
    times = interleave(
        {
            "tower": lambda: tower(frames),
            "merged": lambda: merged(clip),
            "adapted": lambda: adapted(clip),
        },
        rounds=rounds,
    )
    middle = {f"{name}_ms": torch.tensor(series).median().item() for name, series in times.items()}
    return {
        "clips": clips,
        "rounds": rounds,
        **middle,
        "merged_over_tower": median_ratio(times, "merged", "tower"),
    }


def example_videos(dataset: VideoDataset) -> list[Video]:
    """One held-out video of each motion, in the order of MOTIONS; each second one is the time reversal of the one before it."""
    shown = []
    for one, other in PAIRS:
        label = dataset.classes.index(one)
        original = next(
            video
            for video in dataset.splits["test"]
            if video.label == label and "reversed" not in video.path.stem
        )
        backwards = original.path.parents[1] / other / f"{original.path.stem}_reversed.mp4"
        shown += [original, Video(backwards, dataset.classes.index(other))]
    return shown


def frames_of(video: Video, model: VideoClassifier) -> torch.Tensor:
    """The frames of a video that the model's evaluation clip has, in the size they were written: uint8 (T, 3, H, W)."""
    return read_clip(video.path, lambda frames: clip_indices(frames, model.clip)[0])


def predict_one(folder: Path, video: Video) -> dict[str, Any]:
    """What the merged model says of one file, through the same door as any user."""
    found = Predictor(folder).predict(video.path)
    predictions = [{"label": one.label, "score": one.score} for one in found]
    return {"video": str(video.path), "label": video.path.parent.name, "predictions": predictions}


def temporal_looks(model: VideoClassifier, videos: list[Video]) -> list[Look]:
    """Where the first head of each offset, in the first block that has any, looks from the patch that changes most."""
    block = next(number for number, layout in enumerate(model.heads) if any(layout))
    layout = model.heads[block]
    looks = []
    frame = model.frames // 2
    for video in videos:
        views = read_views(video.path, clip=model.clip, views=model.views, size=model.image_size)[
            :1
        ]
        maps = attention_maps(
            model,
            normalise(views.to(model.classifier.weight.device), *model.normalisation),
            block=block,
        )[0].cpu()
        clip = views[0]
        grid = len(patch_map(maps[0, 0, 0], model))
        change = (clip[frame].float() - clip[frame - 1].float()).square().sum(0)
        per_patch = torch.nn.functional.adaptive_avg_pool2d(change[None], grid)[0]
        row, column = divmod(int(per_patch.argmax()), grid)
        query = prefix_tokens(model.tower) + row * grid + column
        for offset in sorted({head for head in layout if isinstance(head, int) and head}):
            head = layout.index(offset)
            heat = patch_map(maps[frame, head, query], model)
            own = outline(enlarge(clip[frame]), (row, column), grid)
            read = overlay(clip[frame + offset], heat)
            caption = (
                f"{video.path.parent.name}: head {head + 1} of block {block + 1}, frame {frame + 1}, "
                f"reads frame {frame + 1 + offset}"
            )
            looks.append(Look(caption=caption, own=own, read=read))
    return looks
