"""How near does the loader come to decoding alone, and does its memory stay flat?

    python benchmarks/loader.py                  # 2 processes; about ten minutes on two free cores
    python benchmarks/loader.py --clips 16 --rounds 2 --memory-clips 0 --name trial

Draws videos like real ones in what they cost: 256 pixels high, 10 s at 30 frames/s, H.264 with a key frame every 250 frames, of a
texture that moves, turns and flickers under noise. From each, 8 frames by segment sampling, in turn within every round:

    bare        a loop that opens the file with PyAV and decodes up to the last wanted frame, and does nothing else
    evaluation  the same frames as views of 224 pixels, by view_loader
    training    random frames and crops of 224 pixels, by train_loader
    torchcodec  as evaluation, decoded by torchcodec; left out where it cannot be used

Every one of them starts its processes anew in every round. Writes benchmarks/results/loader.json: medians of clips/s, ratios to bare
within a round, and the peak of the resident memory of all processes after each quarter of a long evaluation.
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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import torch
import torch.nn.functional as F

from zeroi2v.config import ClipConfig, PixelsConfig, ViewsConfig
from zeroi2v.data.datasets import Video
from zeroi2v.data.loader import train_loader, view_loader
from zeroi2v.data.sampling import clip_indices
from zeroi2v.data.torchcodec_frames import require_decoder
from zeroi2v.errors import ConfigError
from zeroi2v.machine import provenance
from zeroi2v.measure.timing import interleave, median_ratio

RESULTS = Path(__file__).parent / "results"
CLIP = ClipConfig(frames=8)
WIDTH, HEIGHT, FRAMES, RATE, KEY_FRAMES = 340, 256, 300, 30, 250
SIZE, BATCH = 224, 8


def draw_video(path: Path, seed: int) -> None:
    """A texture of many scales that pans, turns and zooms, two smaller ones that cross it, and noise of a camera."""
    generator = torch.Generator().manual_seed(seed)
    textures = [_texture(generator) for _ in range(3)]
    speeds = torch.rand((3, 4), generator=generator) - 0.5
    y, x = torch.meshgrid(
        torch.linspace(-1, 1, HEIGHT), torch.linspace(-1, 1, WIDTH) * WIDTH / HEIGHT, indexing="ij"
    )
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
            picture = torch.zeros(3, HEIGHT, WIDTH)
            for layer, (texture, speed) in enumerate(zip(textures, speeds, strict=True)):
                time = number / FRAMES + 0.02 * math.sin(number / 5 + layer)  # a hand that shakes
                angle, zoom = float(speed[2]) * time * 3, 1 + float(speed[3]) * time
                turned_x = (x * math.cos(angle) + y * math.sin(angle)) * zoom * 0.5 + float(
                    speed[0]
                ) * time
                turned_y = (y * math.cos(angle) - x * math.sin(angle)) * zoom * 0.5 + float(
                    speed[1]
                ) * time
                grid = torch.stack([turned_x, turned_y], -1)[None]
                drawn = F.grid_sample(
                    texture[None], grid, padding_mode="reflection", align_corners=False
                )[0]
                middle = (float(speed[0]) * 4 * time, float(speed[1]) * 4 * time)
                inside = (
                    ((x - middle[0]) ** 2 + (y - middle[1]) ** 2 < 0.1 * layer)
                    if layer
                    else torch.ones_like(x) > 0
                )
                picture = torch.where(inside, drawn, picture)
            picture = picture + 0.04 * torch.randn(picture.shape, generator=generator)
            pixels = (
                (picture.clamp(0, 1) * 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
            )
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))


def _texture(generator: torch.Generator) -> torch.Tensor:
    """Noise whose strength falls with its frequency, as in photographs: (3, 512, 512), 0 to 1."""
    total = torch.zeros(1, 3, 512, 512)
    for level in range(2, 9):
        noise = torch.rand((1, 3, 2**level, 2**level), generator=generator) - 0.5
        total += F.interpolate(noise, (512, 512), mode="bicubic") / 1.6 ** (level - 2)
    return (total[0] * 0.6 + 0.5).clamp(0, 1)


def bare(path: Path) -> int:
    """Decode up to the last wanted frame, and keep the wanted ones."""
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
    """Of this process and all that it started, pages that they share counted once for each."""
    pages, waiting = 0, [os.getpid()]
    for pid in waiting:
        try:
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            waiting += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        except FileNotFoundError:  # it has just ended
            continue
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def evaluation(videos: Sequence[Video], workers: int, clip: ClipConfig = CLIP) -> Any:
    return view_loader(
        videos, clip=clip, views=ViewsConfig(), size=SIZE, batch_size=BATCH, workers=workers
    )


def peak_memory(videos: Sequence[Video], workers: int) -> dict[str, float]:
    """The highest resident memory in each quarter of an evaluation, in MiB, by the number of clips at its end."""
    peaks: dict[str, float] = {}
    quarter = math.ceil(len(videos) / 4)
    for number, _ in enumerate(evaluation(videos, workers), start=1):
        key = str(min(math.ceil(number * BATCH / quarter) * quarter, len(videos)))
        peaks[key] = max(peaks.get(key, 0.0), round(resident_mib(), 1))
    return peaks


def _calls(videos: Sequence[Video], workers: int) -> dict[str, Callable[[], object]]:
    def loop() -> None:
        with multiprocessing.get_context("fork").Pool(workers) as pool:
            assert set(pool.imap(bare, [video.path for video in videos], chunksize=BATCH)) == {
                CLIP.frames
            }

    def through(loader: Any) -> None:
        assert sum(
            len(batch[0] if isinstance(batch, tuple) else batch.indices) for batch in loader
        ) == len(videos)

    def training() -> None:
        pixels, labels = PixelsConfig(), ("a", "b")
        options: dict[str, Any] = {
            "batch_size": BATCH,
            "seed": 0,
            "workers": workers,
            "broken": "stop",
        }
        through(
            train_loader(
                videos, clip=CLIP, pixels=pixels, size=SIZE, labels=labels, **options
            ).epoch(0)
        )

    calls = {
        "bare": loop,
        "evaluation": lambda: through(evaluation(videos, workers)),
        "training": training,
    }
    try:
        require_decoder("torchcodec")
    except ConfigError as error:
        print(f"without torchcodec: {error}")
        return calls
    clip = dataclasses.replace(CLIP, decoder="torchcodec")
    return {**calls, "torchcodec": lambda: through(evaluation(videos, workers, clip))}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--videos", type=int, default=8, help="different ones that are drawn")
    parser.add_argument("--clips", type=int, default=64, help="of a round; the videos in turn")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--memory-clips", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--name", default="loader", help="of the result's file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # as in the loader's processes
    with tempfile.TemporaryDirectory() as folder:
        drawn = [Path(folder) / f"{seed}.mp4" for seed in range(arguments.videos)]
        for seed, path in enumerate(drawn):
            draw_video(path, seed)
        size = sum(path.stat().st_size for path in drawn)
        videos = [Video(path, 0) for path in drawn]

        def repeated(count: int) -> list[Video]:
            return [videos[number % len(videos)] for number in range(count)]

        times = interleave(
            _calls(repeated(arguments.clips), arguments.workers), rounds=arguments.rounds, warmup=1
        )
        memory = peak_memory(repeated(arguments.memory_clips), arguments.workers)
    others = [name for name in times if name != "bare"]
    result = provenance()
    if "torchcodec" in times:
        result["versions"]["torchcodec"] = importlib.metadata.version("torchcodec")
    result |= {
        "seeds": [*range(arguments.videos)],
        "video": {
            "width": WIDTH,
            "height": HEIGHT,
            "frames": FRAMES,
            "key_frame_every": KEY_FRAMES,
            "kilobits_per_second": round(8 * size / arguments.videos / (FRAMES / RATE) / 1000),
        },
        "workers": arguments.workers,
        "clips": arguments.clips,
        "rounds": arguments.rounds,
        "clips_per_second": {
            name: round(1000 * arguments.clips / statistics.median(series), 2)
            for name, series in times.items()
        },
        "speed_over_bare": {name: round(median_ratio(times, "bare", name), 3) for name in others},
        "peak_resident_mib": memory,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{arguments.name}.json").write_text(
        json.dumps(result, indent=1) + "\n", encoding="utf-8"
    )
    print(
        json.dumps(
            {
                key: result[key]
                for key in ("video", "clips_per_second", "speed_over_bare", "peak_resident_mib")
            }
        )
    )


if __name__ == "__main__":
    main()
