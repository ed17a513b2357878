"""How near does the loader come to the speed of bare decoding, and does its memory stay flat?

    python benchmarks/loader.py       # 2 processes; about ten minutes on two free cores
    python benchmarks/loader.py --clips 16 --rounds 2 --memory-clips 0 --name trial

Draws videos that cost as much to decode as real ones: 256 pixels high, 10 s at 30 frames/s, H.264
with a key frame every 250 frames, of a texture that moves, turns and flickers under noise. In every
round each of these readers in turn reads 8 frames of each video (segment sampling):

    bare        a loop that opens the file with PyAV and decodes up to the last wanted frame
    evaluation  view_loader: the same frames, as views of 224 pixels
    training    train_loader: random frames, as crops of 224 pixels
    torchcodec  like evaluation, decoded by torchcodec; left out where torchcodec cannot be used

Each reader starts its processes anew in every round. The script writes
benchmarks/results/loader.json: medians of clips/s, ratios to bare within a round, and the peak of
the resident memory of all processes after each quarter of a long evaluation.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import math
import multiprocessing
import os
import statistics
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zeroi2v.config import ClipConfig, PixelsConfig, ViewsConfig
from zeroi2v.data.datasets import Video
from zeroi2v.data.loader import Views, train_loader, view_loader
from zeroi2v.data.pyav import av
from zeroi2v.data.sampling import clip_indices
from zeroi2v.data.torchcodec_frames import require_decoder
from zeroi2v.errors import ConfigError
from zeroi2v.files import write_json
from zeroi2v.machine import provenance
from zeroi2v.measure.timing import interleave, median_ratio

RESULTS = Path(__file__).parent / "results"
CLIP = ClipConfig(frames=8)
WIDTH, HEIGHT, FRAMES, RATE, KEY_FRAMES = 340, 256, 300, 30, 250
SIZE, BATCH = 224, 8


def draw_video(path: Path, seed: int) -> None:
    """Draw and encode a video: three layers of texture, and the noise of a camera."""
    generator = torch.Generator().manual_seed(seed)
    textures = [_texture(generator) for _ in range(3)]
    speeds = (torch.rand((3, 4), generator=generator) - 0.5).tolist()
    options = {
        "g": str(KEY_FRAMES),
        "keyint_min": str(KEY_FRAMES),
        "sc_threshold": "0",
        "crf": "23",
    }
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in range(FRAMES):
            picture = _picture(number, textures, speeds)
            picture = picture + 0.04 * torch.randn(picture.shape, generator=generator)
            pixels = (picture.clamp(0, 1) * 255).to(torch.uint8).permute(1, 2, 0)
            frame = av.VideoFrame.from_ndarray(pixels.contiguous().numpy(), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _picture(number: int, textures: Sequence[Tensor], speeds: Sequence[Sequence[float]]) -> Tensor:
    """A frame (3, H, W), 0 to 1: a texture that pans, turns and zooms, and two disks of texture."""
    y, x = torch.meshgrid(
        torch.linspace(-1, 1, HEIGHT), torch.linspace(-1, 1, WIDTH) * WIDTH / HEIGHT, indexing="ij"
    )
    picture = torch.zeros(3, HEIGHT, WIDTH)
    for layer, (texture, speed) in enumerate(zip(textures, speeds, strict=True)):
        time = number / FRAMES + 0.02 * math.sin(number / 5 + layer)  # a hand that shakes
        angle, zoom = speed[2] * time * 3, 1 + speed[3] * time
        turned_x = (x * math.cos(angle) + y * math.sin(angle)) * zoom * 0.5 + speed[0] * time
        turned_y = (y * math.cos(angle) - x * math.sin(angle)) * zoom * 0.5 + speed[1] * time
        grid = torch.stack([turned_x, turned_y], -1)[None]
        drawn = F.grid_sample(texture[None], grid, padding_mode="reflection", align_corners=False)[
            0
        ]
        middle = (speed[0] * 4 * time, speed[1] * 4 * time)
        disk = (x - middle[0]) ** 2 + (y - middle[1]) ** 2 < 0.1 * layer
        picture = torch.where(disk, drawn, picture) if layer else drawn
    return picture


def _texture(generator: torch.Generator) -> Tensor:
    """Noise whose strength falls with its frequency, as in photographs: (3, 512, 512), 0 to 1."""
    total = torch.zeros(1, 3, 512, 512)
    for level in range(2, 9):
        noise = torch.rand((1, 3, 2**level, 2**level), generator=generator) - 0.5
        total += F.interpolate(noise, (512, 512), mode="bicubic") / 1.6 ** (level - 2)
    return (total[0] * 0.6 + 0.5).clamp(0, 1)


def bare(path: Path) -> int:
    """Decode up to the last wanted frame: the number of frames that were wanted."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        wanted = {*clip_indices(stream.frames, CLIP)[0]}
        kept = []
        for number, frame in enumerate(container.decode(stream)):
            if number in wanted:
                kept.append(frame)
                if len(kept) == len(wanted):
                    break
    return len(kept)


def resident_mib() -> float:
    """The resident memory of this process and all its descendants; shared pages count for each."""
    pages, processes = 0, [os.getpid()]
    for process in processes:
        try:
            pages += int(Path(f"/proc/{process}/statm").read_text().split()[1])
            children = Path(f"/proc/{process}/task/{process}/children").read_text()
            processes += map(int, children.split())
        except FileNotFoundError:  # the process has just ended
            continue
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def evaluation(videos: Sequence[Video], workers: int, clip: ClipConfig = CLIP) -> Iterable[Views]:
    """All views of the videos."""
    loader: Iterable[Views] = view_loader(
        videos, clip=clip, views=ViewsConfig(), size=SIZE, batch_size=BATCH, workers=workers
    )
    return loader


def peak_memory(videos: Sequence[Video], workers: int) -> dict[str, float]:
    """Peak resident MiB in each quarter of an evaluation, by the number of clips at its end."""
    peaks: dict[str, float] = {}
    quarter = math.ceil(len(videos) / 4)
    for number, _ in enumerate(evaluation(videos, workers), start=1):
        key = str(min(math.ceil(number * BATCH / quarter) * quarter, len(videos)))
        peaks[key] = max(peaks.get(key, 0.0), round(resident_mib(), 1))
    return peaks


def calls_of(videos: Sequence[Video], workers: int) -> dict[str, Callable[[], object]]:
    """What is timed, by name. Every call reads all videos."""

    def decode_all() -> None:
        paths = [video.path for video in videos]
        with multiprocessing.get_context("fork").Pool(workers) as pool:
            assert set(pool.imap(bare, paths, chunksize=BATCH)) == {CLIP.frames}

    def evaluate(clip: ClipConfig = CLIP) -> None:
        assert sum(len(part.indices) for part in evaluation(videos, workers, clip)) == len(videos)

    def train() -> None:
        loader = train_loader(
            videos,
            clip=CLIP,
            pixels=PixelsConfig(),
            size=SIZE,
            labels=("a", "b"),
            batch_size=BATCH,
            seed=0,
            workers=workers,
            broken="stop",
        )
        assert sum(len(clips) for clips, _ in loader.epoch(0)) == len(videos)

    calls: dict[str, Callable[[], object]] = {
        "bare": decode_all,
        "evaluation": evaluate,
        "training": train,
    }
    try:
        require_decoder("torchcodec")
    except ConfigError as error:
        print(f"without torchcodec: {error}")
        return calls
    clip = dataclasses.replace(CLIP, decoder="torchcodec")
    return {**calls, "torchcodec": lambda: evaluate(clip)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--videos", type=int, default=8, help="number of different videos that are drawn"
    )
    parser.add_argument(
        "--clips", type=int, default=64, help="clips of a round, from the videos in turn"
    )
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--memory-clips", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--name", default="loader", help="of the result's file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # as in the processes of the loader
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{seed}.mp4" for seed in range(arguments.videos)]
        for seed, path in enumerate(paths):
            draw_video(path, seed)
        result = measure(paths, arguments)
    write_json(RESULTS / f"{arguments.name}.json", result)
    shown = ("video", "clips_per_second", "speed_over_bare", "peak_resident_mib")
    print(json.dumps({key: result[key] for key in shown}))


def measure(paths: Sequence[Path], arguments: argparse.Namespace) -> dict[str, Any]:
    """Speeds and memory, with machine and versions."""

    def repeated(count: int) -> list[Video]:
        return [Video(paths[number % len(paths)], 0) for number in range(count)]

    calls = calls_of(repeated(arguments.clips), arguments.workers)
    times = interleave(calls, rounds=arguments.rounds, warmup=1)
    memory = peak_memory(repeated(arguments.memory_clips), arguments.workers)
    result = provenance()
    if "torchcodec" in times:
        result["versions"]["torchcodec"] = importlib.metadata.version("torchcodec")
    size = sum(path.stat().st_size for path in paths)
    return result | {
        "seeds": [*range(len(paths))],
        "video": {
            "width": WIDTH,
            "height": HEIGHT,
            "frames": FRAMES,
            "key_frame_every": KEY_FRAMES,
            "kilobits_per_second": round(8 * size / len(paths) / (FRAMES / RATE) / 1000),
        },
        "workers": arguments.workers,
        "clips": arguments.clips,
        "rounds": arguments.rounds,
        "clips_per_second": {
            name: round(1000 * arguments.clips / statistics.median(series), 2)
            for name, series in times.items()
        },
        "speed_over_bare": {
            name: round(median_ratio(times, "bare", name), 3) for name in times if name != "bare"
        },
        "peak_resident_mib": memory,
    }


if __name__ == "__main__":
    main()
