"""How is the result of `zeroi2v bench` shown and kept? As a table, as JSON, and as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from zeroi2v.errors import how_many
from zeroi2v.files import write_files, write_json
from zeroi2v.pages.charts import bench_plot


def bench_table(result: Mapping[str, Any]) -> Table:
    """The table that `zeroi2v bench` prints: a row for each model."""
    machine = result["machine"]
    device = machine.get("gpu") if result["device"] == "cuda" else machine["processor"]
    compiled = "compiled" if result["compiled"] else "eager"
    rounds, reference = how_many(result["rounds"], "round"), result["reference"]
    table = Table(
        title=f"{device}, {result['dtype']}, {compiled}, {rounds}",
        title_justify="left",
        caption=f"ms, p95: median and 95th percentile of the time of one clip. / {reference}: time "
        f"relative to {reference}, with the 95 % interval of this ratio. clips/s: at the fastest "
        "batch. MiB: weights, and peak memory of one clip.",
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=0,
    )
    table.add_column("model", no_wrap=True)
    for name in ("ms", "p95", f"/ {reference}", "interval", "clips/s", "batch", "MiB"):
        table.add_column(name, justify="right")
    if result["compiled"]:
        table.add_column("compile s", justify="right")
    for model in result["models"]:
        latency, ratio = model["latency_ms"], model["ratio"]
        throughput = model.get("throughput")
        table.add_row(
            model["name"],
            f"{latency['median']:.1f}",
            f"{latency['p95']:.1f}",
            f"{ratio['fast']:.3f}",
            f"{ratio['low']:.3f}-{ratio['high']:.3f}",
            f"{throughput['clips_per_second']:.3g}" if throughput else "-",
            f"{throughput['batch']:.0f}" if throughput else "-",
            f"{model['weights_mib'] + model['peak_mib']:.0f}",
            *([f"{model['compile_seconds']:.1f}"] if result["compiled"] else []),
        )
    return table


def write_bench(result: dict[str, Any], json_file: Path, picture: Path) -> None:
    """Write the result, and then its picture. The result is kept if the picture cannot be drawn.

    FileError if a file cannot be written.
    """
    write_json(json_file, result)
    write_files({picture: lambda path: bench_plot(result, path)})
