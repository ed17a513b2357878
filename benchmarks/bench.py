"""Is the merged model as fast as its image tower, and how much slower are other methods?

    python benchmarks/bench.py                          # two CPU cores, fp32: about nine minutes
    python benchmarks/bench.py --name bench-cpu-again   # how far do the ratios move?
    python benchmarks/bench.py --device cuda --dtype fp16 --rounds 196 --warmup 14 --name bench-cuda
    python benchmarks/bench.py --compare bench-cpu bench-cpu-again    # ratios of two results
    python benchmarks/bench.py plain zeroi2v --tower zeroi2v_tiny --name trial
    python benchmarks/bench.py --docs                   # only writes the tables of docs/speed.md

The comparison of the paper: ViT-B/16 with 8 frames. It is `zeroi2v bench` with these models; other
models or settings need a name of their own. Writes results/<name>.json, docs/pictures/<name>.svg,
and then the tables of docs/speed.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from zeroi2v.config import Recipe
from zeroi2v.errors import how_many
from zeroi2v.files import write_json, write_text
from zeroi2v.log import Log
from zeroi2v.measure.bench import bench
from zeroi2v.measure.bench_table import bench_table, write_bench
from zeroi2v.measure.subjects import build_subjects
from zeroi2v.models.compiled import DTYPES
from zeroi2v.recipes import override

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parents[1] / "docs"
TOWER = "vit_base_patch16_clip_quickgelu_224"
MODELS = ("plain", "zeroi2v:merged", "zeroi2v", "lora:merged", "evl", "aim", "st_adapter_published")
# Printed milliseconds of ViT-B/16 with 8 frames on a V100 with mixed precision, three views:
TABLE_5 = {"plain": 28.72, "zeroi2v:merged": 28.89, "evl": 53.87}
TABLE_2 = {"plain": 28.9, "zeroi2v:merged": 28.9, "lora:merged": 28.9, "st_adapter_published": 38.8}
COLUMNS = (
    "",
    "ms",
    "p95",
    "times plain (95 %)",
    "ratio in each run",
    "ratio of medians",
    "clips/s",
    "weights, peak, MiB",
    "paper, Table 5",
    "paper, Table 2",
)


def read(name: str) -> dict[str, Any]:
    """A result by its name. A result that was not measured has no models."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return {"models": []}
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result


def ratios(*names: str) -> dict[str, dict[str, float]]:
    """The ratios to the first model, by model: means over the results. Empty unless all exist.

    Each run has ratios of its own, so that a drift between runs falls on no model. The intervals
    shrink as intervals of independent runs do.
    """
    runs = [{model["name"]: model["ratio"] for model in read(name)["models"]} for name in names]
    if not all(runs):
        return {}
    means = {}
    for model in runs[0]:
        fast, median = (
            statistics.mean(run[model][key] for run in runs) for key in ("fast", "median")
        )
        halves = [(run[model]["high"] - run[model]["low"]) / 2 for run in runs]
        half = sum(half**2 for half in halves) ** 0.5 / len(runs)
        means[model] = {"fast": fast, "low": fast - half, "high": fast + half, "median": median}
    return means


def tables(name: str) -> str:
    """A result, its repetition and the figures of the paper, as a table in Markdown."""
    names = [run for run in (name, f"{name}-again") if read(run)["models"]]
    if name not in names:
        return "Not measured yet."
    result, means = read(name), ratios(*names)
    lines = [
        f"{device_of(result)}, {result['dtype']}, {how_many(result['rounds'], 'round')}"
        f"{', twice' * (len(names) - 1)}, torch {result['versions']['torch']}, {result['date']}",
        f"({', '.join(f'[`{run}.json`](../benchmarks/results/{run}.json)' for run in names)}).",
        "",
        f"| {' | '.join(COLUMNS)} |".replace("|  |", "| |"),
        f"| {' | '.join('---' for _ in COLUMNS)} |",
    ]
    for model in sorted(result["models"], key=lambda model: means[model["name"]]["fast"]):
        lines.append(f"| {' | '.join(cells(model, names, means[model['name']]))} |")
    return "\n".join(lines)


def device_of(result: Mapping[str, Any]) -> str:
    """The device that a result was measured on."""
    machine = result["machine"]
    if result["device"] == "cuda":
        return str(machine.get("gpu"))
    return f"{machine['processor']}, {how_many(machine['threads'], 'thread')}"


def cells(model: Mapping[str, Any], names: Sequence[str], ratio: Mapping[str, float]) -> list[str]:
    """The row of a model in the table of the results."""
    key, batch = model["name"], model.get("throughput")
    runs = [
        {entry["name"]: entry["latency_ms"] for entry in read(name)["models"]} for name in names
    ]
    median, p95 = (statistics.mean(run[key][part] for run in runs) for part in ("median", "p95"))
    return [
        f"`{key}`",
        f"{median:.0f}",
        f"{p95:.0f}",
        f"{ratio['fast']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f})",
        ", ".join(f"{ratios(name)[key]['fast']:.3f}" for name in names),
        f"{ratio['median']:.3f}",
        f"{batch['clips_per_second']:.2f} ({batch['batch']:.0f})" if batch else "",
        f"{model['weights_mib']:.0f} + {model['peak_mib']:.0f}",
        *(
            f"{printed[key]} ms, {printed[key] / printed['plain']:.3f}" if key in printed else ""
            for printed in (TABLE_5, TABLE_2)
        ),
    ]


def with_tables(text: str) -> str:
    """The page, with the tables of what was measured between its markers."""
    for name in ("bench-cpu", "bench-cuda"):
        start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, rest = text.split(start)
        text = f"{before}{start}{tables(name)}\n{end}{rest.split(end)[1]}"
    return text


def compare(first: str, second: str) -> None:
    """Print how far the ratios of two results lie apart."""
    before, after = ratios(first), ratios(second)
    for name in before.keys() & after.keys():
        old, new = before[name]["fast"], after[name]["fast"]
        print(f"{name:24}{old:8.3f}{new:8.3f}  {new / old - 1:+.1%}")


def measure(arguments: argparse.Namespace, name: str) -> None:
    """Measure the models, and write and print the result."""
    device, log, path = torch.device(arguments.device), Log(), RESULTS / f"{name}.json"
    settings = [f'model.tower="{arguments.tower}"', f"clip.frames={arguments.frames}"]
    subjects = build_subjects(
        arguments.models,
        arguments.model,
        override(Recipe(), settings),
        device=device,
        dtype=arguments.dtype,
        compiled=arguments.compile,
        log=log,
    )
    result = bench(
        subjects,
        device=device,
        dtype=arguments.dtype,
        rounds=arguments.rounds,
        warmup=arguments.warmup,
        max_batch=arguments.max_batch or (2 if arguments.device == "cpu" else None),
        on_progress=lambda result: write_json(path, result),
        log=log,
    )
    try:
        write_bench(result, path, DOCS / "pictures" / f"{name}.svg")
    finally:
        Console().print(bench_table(result))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--tower", default=TOWER)
    parser.add_argument("--model", action="append", default=[], help="a saved model beside them")
    parser.add_argument("--name", help="name of the result; without any option: bench-cpu")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=28)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument(
        "--max-batch", type=int, help="default: 2 on a CPU, as memory allows on a GPU"
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--compare", nargs=2, metavar="NAME")
    parser.add_argument("--docs", action="store_true")
    arguments = parser.parse_args()
    if arguments.compare:
        compare(*arguments.compare)
        return
    if arguments.name is None and len(sys.argv) > 1 + arguments.docs:
        parser.error("name the result of other settings: --name")
    if not arguments.docs:
        measure(arguments, arguments.name or "bench-cpu")
    page = DOCS / "speed.md"
    write_text(page, with_tables(page.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
