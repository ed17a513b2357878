"""Is the merged model as fast as its image tower, and the others how much slower? The paper's comparison, ViT-B/16 with 8 frames.

    python benchmarks/bench.py                                       # two CPU cores, fp32: about nine minutes
    python benchmarks/bench.py --name bench-cpu-again                # once more: how far do the ratios move?
    python benchmarks/bench.py --device cuda --dtype fp16 --rounds 196 --warmup 14 --name bench-cuda
    python benchmarks/bench.py --compare bench-cpu bench-cpu-again   # the ratios of two results side by side
    python benchmarks/bench.py plain zeroi2v --tower zeroi2v_tiny --name trial    # anything else needs a name of its own
    python benchmarks/bench.py --docs                                # only writes the tables of docs/speed.md anew

Writes results/<name>.json, docs/pictures/<name>.svg, and then the tables of docs/speed.md. It is `zeroi2v bench` with these models.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from zeroi2v.config import Recipe
from zeroi2v.log import Log
from zeroi2v.inference.scores import DTYPES
from zeroi2v.measure.bench import bench, bench_table, build_subjects, write_bench
from zeroi2v.recipes import override

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parents[1] / "docs"
TOWER = "vit_base_patch16_clip_quickgelu_224"
MODELS = ("plain", "zeroi2v:merged", "zeroi2v", "lora:merged", "evl", "aim", "st_adapter_published")
# Printed milliseconds of ViT-B/16 with 8 frames on a V100 with mixed precision, three views: Table 5, and of Table 2 the rows that fit
TABLE_5 = {"plain": 28.72, "zeroi2v:merged": 28.89, "evl": 53.87}
TABLE_2 = {"plain": 28.9, "zeroi2v:merged": 28.9, "lora:merged": 28.9, "st_adapter_published": 38.8}


def read(name: str) -> dict[str, Any]:
    """A result by its name; nothing where it was not measured."""
    path = RESULTS / f"{name}.json"
    found: dict[str, Any] = (
        json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"models": []}
    )
    return found


def ratios(*names: str) -> dict[str, dict[str, float]]:
    """The ratios to the first model, by model, as means of these results; nothing unless all were measured.

    Each run is a ratio of its own, so that a drift between runs falls on none; the intervals shrink as those of independent runs do.
    """
    runs = [{model["name"]: model["ratio"] for model in read(name)["models"]} for name in names]
    if not all(runs):
        return {}
    found = {}
    for name in runs[0]:
        fast, median = (
            statistics.mean(run[name][key] for run in runs) for key in ("fast", "median")
        )
        half = sum(((run[name]["high"] - run[name]["low"]) / 2) ** 2 for run in runs) ** 0.5 / len(
            runs
        )
        found[name] = {"fast": fast, "low": fast - half, "high": fast + half, "median": median}
    return found


def tables(name: str) -> str:
    """A result beside the paper's figures and beside its repetition, as Markdown."""
    names = [one for one in (name, f"{name}-again") if read(one)["models"]]
    if name not in names:
        return "Not measured yet."
    result, found, each = read(name), ratios(*names), [ratios(one) for one in names]
    runs = [{model["name"]: model["latency_ms"] for model in read(one)["models"]} for one in names]
    machine, versions = result["machine"], result["versions"]
    where = (
        machine.get("gpu")
        if result["device"] == "cuda"
        else f"{machine['processor']}, {machine['threads']} threads"
    )
    lines = [
        f"{where}, {result['dtype']}, {result['rounds']} rounds{', twice' * (len(names) - 1)}, "
        f"torch {versions['torch']}, {result['date']}",
        f"({', '.join(f'[`{run}.json`](../benchmarks/results/{run}.json)' for run in names)}).",
        "",
        "| | ms | p95 | times plain (95 %) | each run | by medians | clips/s | weights, peak, MiB | paper, Table 5 | paper, Table 2 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for model in sorted(result["models"], key=lambda model: found[model["name"]]["fast"]):
        key, batch = model["name"], model.get("throughput")
        ratio = found[key]
        latency = {
            part: statistics.mean(run[key][part] for run in runs) for part in ("median", "p95")
        }
        cells = [
            f"`{key}`",
            f"{latency['median']:.0f}",
            f"{latency['p95']:.0f}",
            f"{ratio['fast']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f})",
            ", ".join(f"{run[key]['fast']:.3f}" for run in each),
            f"{ratio['median']:.3f}",
            f"{batch['clips_per_second']:.2f} ({batch['batch']:.0f})" if batch else "",
            f"{model['weights_mib']:.0f} + {model['peak_mib']:.0f}",
            *(
                f"{paper[key]} ms, {paper[key] / paper['plain']:.3f}" if key in paper else ""
                for paper in (TABLE_5, TABLE_2)
            ),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def with_tables(text: str) -> str:
    """The page with what lies between its markers replaced by the tables of what was measured."""
    for name in ("bench-cpu", "bench-cuda"):
        start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, rest = text.split(start)
        text = f"{before}{start}{tables(name)}\n{end}{rest.split(end)[1]}"
    return text


def compare(one: str, other: str) -> None:
    """Print how far the ratios of two results lie apart."""
    first, second = ratios(one), ratios(other)
    for name in first.keys() & second.keys():
        before, after = first[name]["fast"], second[name]["fast"]
        print(f"{name:24}{before:8.3f}{after:8.3f}  {after / before - 1:+.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--tower", default=TOWER)
    parser.add_argument("--model", action="append", default=[], help="a saved model beside them")
    parser.add_argument("--name", help="of the result; bench-cpu if nothing but --name is said")
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
        device, log = torch.device(arguments.device), Log()
        recipe = override(
            Recipe(), [f'model.tower="{arguments.tower}"', f"clip.frames={arguments.frames}"]
        )
        how: dict[str, Any] = {"device": device, "dtype": arguments.dtype, "log": log}
        subjects = build_subjects(
            arguments.models, arguments.model, recipe, compiled=arguments.compile, **how
        )
        largest = arguments.max_batch or (2 if arguments.device == "cpu" else None)
        limits = {"rounds": arguments.rounds, "warmup": arguments.warmup, "max_batch": largest}
        result = bench(subjects, **how, **limits)
        name = arguments.name or "bench-cpu"
        write_bench(result, RESULTS / f"{name}.json", DOCS / "pictures" / f"{name}.svg")
        Console().print(bench_table(result))
    page = DOCS / "speed.md"
    page.write_text(with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
