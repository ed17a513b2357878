"""How is the result of `zeroi2v bench --count` shown? As a table that says what is not counted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table


def count_table(result: Mapping[str, Any]) -> Table:
    """The table that `zeroi2v bench --count` prints: a row for each size of a batch and model."""
    table = Table(
        title=f"counted, not timed: {result['dtype']}, eager, on a GPU",
        title_justify="left",
        caption=_foot(result["card"]),
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=0,
    )
    table.add_column("model", no_wrap=True)
    for name in ("clips", "kernels", "GB", "GMACs", "least ms", f"/ {result['reference']}"):
        table.add_column(name, justify="right")
    reference = {count["batch"]: count["least_ms"] for count in result["models"][0]["counts"]}
    for batch in reference:
        for model in result["models"]:
            (count,) = (count for count in model["counts"] if count["batch"] == batch)
            table.add_row(
                model["name"],
                f"{batch}",
                f"{count['kernels']}",
                f"{count['gb']:.2f}",
                f"{count['gmacs']:.2f}",
                f"{count['least_ms']:.2f}",
                f"{count['least_ms'] / reference[batch]:.3f}",
            )
    return table


def _foot(card: Mapping[str, float]) -> str:
    return (
        "GB: bytes that the kernels of a call read and write. least ms: the least time that the "
        "card needs. For each kernel it is the longest of three times, bytes / "
        f"{card['terabytes_per_second']:g} TB/s, operations / {card['teraflops']:g} TFLOP/s, and "
        f"{card['microseconds_per_kernel']:g} us; the kernels are added up. Not counted: "
        "the time that Python takes between two kernels, which is most of the time of a small "
        "batch."
    )
