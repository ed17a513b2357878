"""Is everything right and fast on a GPU? All checks and timings that need a CUDA device, in parts.

    python benchmarks/gpu.py                          # or: make gpu
    python benchmarks/gpu.py inference --minutes 3    # one part
    PYTHONPATH=src python3 benchmarks/gpu.py --out FOLDER      # from a bare checkout
    python benchmarks/gpu.py --docs                   # only writes the tables of docs/speed.md

The parts, in this order:

    agreement   how far logits lie from logits in float64, for each form of relocation
    inference   ViT-B/16, 8 frames, bf16: the plain image transformer beside the merged model, in
                each form of relocation, eager and captured, 1 clip and 32 clips
    compiled    the same models after torch.compile, with and without capturing
    tests       pytest -m gpu: the kernels against slow loops
    tiles       the attention kernel with different tiles, beside PyTorch's own attention
    others      as `inference`, for other towers, dtypes and strategies

A form of relocation is a way in which heads read other frames (see `forms`). Captured: the kernels
are recorded in a CUDA graph, and replayed. `plain` includes the mean over frames and the
classifier, and takes no temporal embedding. Each part is a process of its own, so that a fault
costs only that part. Each result is written as soon as it is there: results/gpu-<part>.json. The
results in results/ are the tables of docs/speed.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zeroi2v import VideoClassifier, create_model
from zeroi2v.errors import how_many
from zeroi2v.files import write_json, write_text
from zeroi2v.machine import provenance
from zeroi2v.measure.cost import plain_tower
from zeroi2v.measure.subjects import PlainTower
from zeroi2v.measure.timing import fast_ratio, interleave, spread
from zeroi2v.method.kernels import attention
from zeroi2v.models.compiled import DTYPES, Captured
from zeroi2v.models.exchange import FrameAttention, put_offsets

RESULTS: Final = Path(__file__).parent / "results"
PAGE: Final = Path(__file__).parents[1] / "docs" / "speed.md"
FORMS: Final = ("moved", "reads", "reads, offsets 0", "adapted")  # in the order of the table
TOWER: Final = "vit_base_patch16_clip_quickgelu_224"
CLASSES: Final = 400
ROUNDS: Final = 40


class Plain(nn.Module):
    """The image transformer of a model, the mean over frames and the classifier."""

    def __init__(self, model: VideoClassifier) -> None:
        super().__init__()
        self.tower = PlainTower(plain_tower(model), model.spec.model.tubelet)
        self.classifier = model.classifier

    def forward(self, clip: Tensor) -> Tensor:
        """Logits (B, K) of a clip (B, F, 3, S, S)."""
        feature = self.tower(clip).unflatten(0, (len(clip), -1))
        logits: Tensor = self.classifier(feature.mean(1))
        return logits


def forms(
    tower: str, *, strategy: str = "zeroi2v", dtype: str = "bf16", **options: Any
) -> dict[str, Callable[[Tensor], Tensor]]:
    """The plain image transformer, and the model in each form, by name.

    `moved`: merged, and hooks move keys and values. `reads`: merged, and attention reads other
    frames by itself. `reads, offsets 0`: the same with all heads spatial and no temporal embedding,
    so that a faster kernel does not hide what relocation costs.
    """
    torch.manual_seed(0)
    model = create_model(tower, num_classes=CLASSES, strategy=strategy, **options)
    model = model.to("cuda", DTYPES[dtype]).eval().requires_grad_(False)
    calls: dict[str, Callable[[Tensor], Tensor]] = {"plain": Plain(model)}
    if strategy != "zeroi2v":
        return {**calls, strategy: model}
    with torch.no_grad():  # as after a training: adapters and temporal embedding matter
        for weight in (*model.adapters.parameters(), model.temporal_embedding):
            weight.add_(0.02 * torch.randn_like(weight))
    merged, moved, still = model.merge(), model.merge(), model.merge()
    moved.attention_reads = False
    still._embedding_hook.remove()
    for module in still.tower.modules():
        if isinstance(module, FrameAttention):
            module.head_offsets = (0,) * module.num_heads
            put_offsets(module)
    calls |= {"moved": moved, "adapted": model}
    return calls | {"reads": merged, "reads, offsets 0": still} if merged.attention_reads else calls


def in_mode(run: Callable[[Tensor], Tensor], mode: str, clips: Tensor) -> Callable[[], Tensor]:
    """A call of `run` on clips: eager, captured, compiled, or compiled and captured."""
    if mode.startswith("compiled"):
        run = torch.compile(run, dynamic=False)
    if mode.endswith("captured"):
        run = Captured(run, clips.clone(), sizes=[len(clips)])
    return torch.no_grad()(lambda: run(clips))


def timed_forms(
    calls: Mapping[str, Callable[[Tensor], Tensor]],
    *,
    clips: Tensor,
    mode: str,
    rounds: int = ROUNDS,
) -> dict[str, Any]:
    """The milliseconds of each form in a mode, and their ratios to the plain image transformer."""
    began = time.monotonic()
    ready, errors = {}, {}
    for name, run in calls.items():
        try:
            ready[name] = in_mode(run, mode, clips)
            ready[name]()
        except Exception as error:  # noqa: BLE001  only this form fails: time the other forms
            errors[name] = str(error)[:500]
            ready.pop(name, None)
    preparation = time.monotonic() - began
    result: dict[str, Any] = {
        "clips": len(clips),
        "mode": mode,
        "preparation_s": preparation,
        "errors": errors,
    }
    if "plain" not in ready:
        return result
    times = interleave(ready, rounds=rounds, warmup=5)
    return {
        **result,
        "rounds": rounds,
        "ms": {name: spread(series) for name, series in times.items()},
        "times_plain": {name: fast_ratio(times, name, "plain") for name in times},
    }


def inference() -> Iterator[dict[str, Any]]:
    """The comparison of the paper in each form of relocation, as rows."""
    calls = forms(TOWER)
    for mode in ("eager", "captured"):
        for count in (1, 32):
            yield timed_forms(calls, clips=random_clips(count), mode=mode)


def compiled() -> Iterator[dict[str, Any]]:
    """The comparison of the paper by torch.compile, as rows."""
    calls = forms(TOWER)
    calls = {name: calls[name] for name in ("plain", "reads", "moved") if name in calls}
    for count in (1, 32):
        for mode in ("compiled", "compiled and captured"):
            yield timed_forms(calls, clips=random_clips(count), mode=mode)
        torch.compiler.reset()


def random_clips(count: int) -> Tensor:
    """Clips (count, 8, 3, 224, 224) of random numbers in bf16."""
    return torch.randn(count, 8, 3, 224, 224, device="cuda", dtype=torch.bfloat16)


def agreement() -> Iterator[dict[str, Any]]:
    """How far do logits of the forms lie from logits in float64, by dtype?"""
    for dtype in DTYPES:
        calls = forms(TOWER, dtype=dtype)
        clips = torch.randn(2, 8, 3, 224, 224, device="cuda", dtype=DTYPES[dtype])
        with torch.no_grad():
            logits = {name: run(clips).double() for name, run in calls.items()}
        model = calls["moved"]
        assert isinstance(model, VideoClassifier)
        exact = model.double()(clips.double())
        yield {
            "dtype": dtype,
            "largest_logit": exact.abs().max().item(),
            "difference": {
                name: (logits[name] - exact).abs().max().item()
                for name in ("moved", "reads", "adapted")
                if name in logits
            },
        }


@dataclass(frozen=True)
class Shape:
    """Attention of one block: frames of all clips, tokens, heads, channels of a head."""

    rows: int
    tokens: int
    heads: int
    width: int


SHAPES: Final = (
    Shape(256, 197, 12, 64),  # ViT-B/16, 32 clips of 8 frames
    Shape(8, 197, 12, 64),  # one clip
    Shape(256, 257, 16, 64),  # ViT-L/14
    Shape(64, 1370, 6, 64),  # DINOv2 ViT-S/14 at 518 pixels
    Shape(256, 257, 16, 80),  # ViT-H/14
)
TILES: Final = tuple(
    attention.Tiles(queries, keys, warps, stages)
    for queries, keys, warps, stages in (
        (64, 16, 4, 3),
        (64, 32, 4, 2),
        (64, 32, 4, 3),
        (64, 32, 4, 4),
        (64, 64, 4, 3),
        (128, 32, 4, 3),
        (128, 32, 8, 3),
        (128, 64, 4, 3),
        (128, 64, 8, 3),
    )
)


def tiles() -> Iterator[dict[str, Any]]:
    """The attention kernel with different tiles, beside PyTorch's attention, as rows.

    Each time is the mean of many starts in a CUDA graph: what a start costs does not count.
    """
    for shape in SHAPES:
        size = (shape.rows, shape.tokens, 3, shape.heads, shape.width)
        q, k, v = torch.randn(size, device="cuda", dtype=torch.bfloat16).unbind(2)
        offsets = torch.zeros(shape.heads, dtype=torch.int32, device="cuda")
        offsets[:2] = torch.tensor([-1, 1], dtype=torch.int32)
        out = q.new_empty(q.shape)
        scale = shape.width**-0.5
        calls: dict[str, Callable[[], object]] = {
            "PyTorch": partial(
                F.scaled_dot_product_attention,
                q.transpose(1, 2),
                k.transpose(1, 2),
                v.transpose(1, 2),
            )
        }
        for entry in TILES:
            calls[repr(tuple(entry))] = partial(
                attention._start, q, k, v, out, offsets, 8, scale, entry
            )
        microseconds: dict[str, float | str] = {}
        for name, call in calls.items():
            try:
                microseconds[name] = graph_time(call)
            except Exception as error:  # noqa: BLE001  these tiles do not fit this device
                microseconds[name] = str(error)[:100]
        yield {"shape": vars(shape), "microseconds": microseconds}


def graph_time(call: Callable[[], object], *, starts: int = 20, replays: int = 5) -> float:
    """The microseconds of a call within a CUDA graph: the least mean of several replays."""
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(starts):
            call()
    best = float("inf")
    for _ in range(replays):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        best = min(best, begin.elapsed_time(end) * 1000 / starts)
    return best


def matrix_rate() -> float:
    """The operations per second of a product of two 8192 x 8192 matrices of bfloat16."""
    matrix = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    return 2 * 8192**3 / (graph_time(lambda: matrix @ matrix) * 1e-6)


def others() -> Iterator[dict[str, Any]]:
    """Other dtypes, towers and strategies: eager and captured, as rows."""
    cases: tuple[dict[str, Any], ...] = (
        {"tower": TOWER, "dtype": "fp16"},
        {"tower": TOWER, "dtype": "fp32"},
        {"tower": TOWER, "strategy": "st_adapter_published"},
        {"tower": TOWER, "strategy": "aim"},
        {"tower": TOWER, "strategy": "evl"},
        {"tower": "vit_large_patch14_clip_quickgelu_224", "frames": 32},
        {"tower": "vit_small_patch14_reg4_dinov2", "tower_options": {"img_size": 224}},
        {"tower": "swin_base_patch4_window7_224", "tubelet": 2, "frames": 16},
    )
    for case in cases:
        calls = forms(**case)
        frames, dtype = case.get("frames", 8), DTYPES[case.get("dtype", "bf16")]
        for mode in ("eager", "captured"):
            for count in (1, 8):
                clips = torch.randn(count, frames, 3, 224, 224, device="cuda", dtype=dtype)
                row = timed_forms(calls, clips=clips, mode=mode, rounds=20)
                yield {**case, **row}
        del calls
        torch.cuda.empty_cache()


def tests() -> Iterator[dict[str, Any]]:
    """The outcome of the tests that need a CUDA device."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False
    )
    print(done.stdout[-6000:], done.stderr[-2000:])
    yield {"exit": done.returncode, "last_line": (done.stdout.strip().splitlines() or [""])[-1]}


PARTS: Final[Mapping[str, Callable[[], Iterator[dict[str, Any]]]]] = {
    "agreement": agreement,
    "inference": inference,
    "compiled": compiled,
    "tests": tests,
    "tiles": tiles,
    "others": others,
}


def measure(part: str, out: Path) -> None:
    """Run one part in this process, and write its rows as they come."""
    result: dict[str, Any] = {
        **provenance(),
        "seeds": [0],
        "matrix_tflops": matrix_rate() / 1e12,
        "rows": [],
    }
    for row in PARTS[part]():
        result["rows"].append(row)
        write_json(out / f"gpu-{part}.json", result)
        print(part, summary(row), flush=True)


def summary(row: Mapping[str, Any]) -> str:
    """A row as one line."""
    if "ms" not in row:
        return str(row)
    head = {key: value for key, value in row.items() if not isinstance(value, dict)}
    cells = [
        f"{name} {row['ms'][name]['median']:.3f} ms"
        f" ({ratio['fast']:.3f}, {ratio['low']:.3f} to {ratio['high']:.3f})"
        for name, ratio in row["times_plain"].items()
    ]
    return f"{head} {', '.join(cells)} {row['errors'] or ''}"


def read(part: str) -> dict[str, Any]:
    """The committed result of a part. A part that was not measured has no rows."""
    path = RESULTS / f"gpu-{part}.json"
    if not path.exists():
        return {"rows": []}
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result


def inference_table() -> str:
    """The times of the parts `inference` and `compiled`, as a table in Markdown."""
    results = [result for result in map(read, ("inference", "compiled")) if result["rows"]]
    if not results:
        return "Not measured yet."
    machine, versions = results[0]["machine"], results[0]["versions"]
    lines = [
        f"{machine['gpu']}, bf16, torch {versions['torch']}, {results[0]['date']}.",
        f"A product of two 8192 x 8192 matrices reaches {results[0]['matrix_tflops']:.0f} TFLOP/s.",
        "",
        f"| | plain, ms | {' | '.join(FORMS)} |",
        f"| --- | --- | {' | '.join('---' for _ in FORMS)} |",
    ]
    for result in results:
        for row in result["rows"]:
            clips = how_many(row["clips"], "clip")
            cells = [
                f"{ratio['fast']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f})" if ratio else ""
                for ratio in (row["times_plain"].get(form) for form in FORMS)
            ]
            plain = row["ms"]["plain"]["median"]
            lines.append(f"| {row['mode']}, {clips} | {plain:.2f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def with_tables(text: str) -> str:
    """The page, with the tables of what was measured between its markers."""
    for name, table in (("gpu-inference", inference_table()),):
        start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, rest = text.split(start)
        text = f"{before}{start}{table}\n{end}{rest.split(end)[1]}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "parts", nargs="*", help=f"parts to run, of {', '.join(PARTS)}; default: all"
    )
    parser.add_argument("--minutes", type=float, default=10, help="minutes for all parts together")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--here", action="store_true", help="run the parts in this process")
    parser.add_argument("--docs", action="store_true", help="only write the tables of the page")
    arguments = parser.parse_args()
    if unknown := [part for part in arguments.parts if part not in PARTS]:
        parser.error(f"unknown part {unknown[0]}; there are {', '.join(PARTS)}")
    if arguments.docs:
        write_text(PAGE, with_tables(PAGE.read_text(encoding="utf-8")))
        return
    if not torch.cuda.is_available():
        raise SystemExit("error: no CUDA device; these checks need one")
    if arguments.here:
        for part in arguments.parts:
            measure(part, arguments.out)
        return
    end = time.monotonic() + 60 * arguments.minutes
    failed = []
    for part in arguments.parts or PARTS:
        command = [sys.executable, __file__, part, "--here", "--out", str(arguments.out)]
        try:
            done = subprocess.run(command, timeout=max(1, end - time.monotonic()), check=False)
            failed += [part] if done.returncode else []
        except subprocess.TimeoutExpired:
            failed.append(part)
            print(f"{part}: stopped, because the time of --minutes is over", flush=True)
    if failed:
        raise SystemExit(f"error: these parts failed or were cut off: {', '.join(failed)}")


if __name__ == "__main__":
    main()
