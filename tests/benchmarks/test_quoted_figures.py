"""Do README, docs and the card of the embedded tower quote the figures of committed results?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from benchmarks import gpu
from zeroi2v.models.towers import TINY_FILE

TILED = (  # rows (frames of all clips), tokens, and the sentence of docs/speed.md
    (256, 197, "{kernel:.0f} against {torch:.0f} for ViT-B/16 with 32 clips of 8 frames"),
    (8, 197, "{kernel:.1f} against {torch:.1f} with one clip"),
    (256, 257, "{kernel:.0f} against {torch:.0f} for ViT-L/14 with 32 clips"),
    (64, 1370, "518 pixels with 8 clips the kernel took {kernel:.0f} against {torch:.0f}"),
)


def result(name: str) -> Any:
    return json.loads((gpu.RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def text(path: str) -> str:
    """The text of a page, with a space in place of each line break."""
    return " ".join((gpu.ROOT / path).read_text(encoding="utf-8").split())


def test_the_table_of_the_gpu_is_the_committed_one() -> None:
    page = gpu.PAGE.read_text(encoding="utf-8")
    assert gpu.with_tables(page) == page


def test_the_readme_quotes_the_gpu() -> None:
    rows = [*result("gpu-inference")["rows"], *result("gpu-compiled")["rows"]]
    ratios = {(row["mode"], row["clips"]): row["times_plain"]["reads"] for row in rows}
    readme = text("README.md")
    for mode, words in (
        ("eager", "as it is"),
        ("captured", "captured"),
        ("compiled", "by torch.compile"),
        ("compiled and captured", "by torch.compile, and captured"),
    ):
        cells = [
            f"{ratio['fast']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f})"
            for ratio in (ratios[mode, 1], ratios[mode, 32])
        ]
        assert f"| {words} | {' | '.join(cells)} |" in readme


def test_the_page_of_speed_says_how_much_python_costs() -> None:
    rows = result("gpu-inference")["rows"]
    ms = {(row["mode"], row["clips"]): row["ms"]["plain"]["median"] for row in rows}
    page = text("docs/speed.md")
    assert (
        f"took {ms['eager', 1]:.2f} ms when Python started every kernel, and "
        f"{ms['captured', 1]:.2f} ms when a CUDA graph" in page
    )
    assert f"as long, {ms['eager', 32]:.2f} and {ms['captured', 32]:.2f} ms" in page


def test_the_page_of_speed_says_how_far_logits_lie_from_float64() -> None:
    rows = {row["dtype"]: row for row in result("gpu-agreement")["rows"]}
    reads = {dtype: row["difference"]["reads"] for dtype, row in rows.items()}
    moved = {dtype: row["difference"]["moved"] for dtype, row in rows.items()}
    page = text("docs/speed.md")
    assert (
        f"in fp32 at most {reads['fp32']:.1e} with **reads** and {moved['fp32']:.1e} with "
        f"**moved**, in bf16 {reads['bf16']:.1e} and {moved['bf16']:.1e}" in page
    )
    for row in rows.values():
        assert f"the largest logit is {row['largest_logit']:.2f}" in page


@pytest.mark.parametrize(("frames", "tokens", "sentence"), TILED)
def test_the_page_of_speed_quotes_the_kernel_alone(frames: int, tokens: int, sentence: str) -> None:
    pytest.importorskip("triton")
    from zeroi2v.method.kernels.attention import tiles_for

    (row,) = (
        row
        for row in result("gpu-tiles")["rows"]
        if (row["shape"]["rows"], row["shape"]["tokens"]) == (frames, tokens)
    )
    shape = (frames, tokens, row["shape"]["heads"], row["shape"]["width"])
    values = torch.empty(shape, dtype=torch.bfloat16, device="meta")
    times = row["microseconds"]
    kernel = times[repr(tuple(tiles_for(values, values)))]
    assert sentence.format(kernel=kernel, torch=times["PyTorch"]) in text("docs/speed.md")


def test_the_page_of_videos_quotes_the_loader() -> None:
    loader, page = result("loader"), text("docs/videos.md")
    speed, peaks = loader["clips_per_second"], loader["peak_resident_mib"].values()
    for words in (
        f"{loader['date']}, [`loader.json`]",
        f"with `--rounds {loader['rounds']}`",
        f"{loader['video']['width']} x {loader['video']['height']} pixels",
        f"PyAV gave {speed['evaluation']:.1f} clips a second and torchcodec "
        f"{speed['torchcodec']:.1f}; training read {speed['training']:.1f} with PyAV",
        f"the last wanted frame, gave {speed['bare']:.1f}.",
        f"between {min(peaks):,.0f} and {max(peaks):,.0f} MiB",
    ):
        assert words in page


def test_the_card_of_the_embedded_tower_quotes_its_file() -> None:
    with safe_open(TINY_FILE, "pt") as file:
        figures = {key: float(value) for key, value in file.metadata().items()}
    card = " ".join(Path(TINY_FILE).with_suffix(".md").read_text(encoding="utf-8").split())
    for words in (
        f"for {figures['shape_accuracy']:.1%}".replace("%", " %"),
        f"the stripes for {figures['stripes_accuracy']:.1%}".replace("%", " %"),
        f"place was {figures['median_place_error_pixels']:.2f} of 48 pixels",
        f"angle was {figures['median_angle_error_degrees']:.1f} degrees",
        f"trains {figures['steps']:,.0f} steps of {figures['batch_size']:.0f} pictures",
    ):
        assert words in card
