"""What does a saved model's page say? README.md, as the Hub shows it: how it was made, what it takes, how well it did."""

from __future__ import annotations

import json
from fractions import Fraction

from zeroi2v.config import ClipConfig
from zeroi2v.method.heads import HeadLayout, shares
from zeroi2v.models.towers import spatial_blocks
from zeroi2v.models.video import VideoClassifier

PAPER = "https://arxiv.org/abs/2310.01324"
SHOWN_LABELS = 50


def model_card(model: VideoClassifier) -> str:
    """Markdown with the Hub's YAML head. The figures are those in `model.results`; without any, it says that there are none."""
    config, total = model.config, sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    mean, std = model.normalisation
    state = (
        "merged: plain image transformer weights, no adapters"
        if model.merged
        else f"adapted: {trained:,} of them trained"
    )
    rows = {
        "tower": f"`{config.tower}`"
        + ("" if config.pretrained or model.merged else ", not pretrained"),
        "strategy": config.strategy,
        "operator": config.operator
        + ("" if config.ratio is None else f", ratio {config.ratio:.4g}"),
        "temporal heads": ", ".join(dict.fromkeys(offsets(layout) for layout in model.heads)),
        "parameters": f"{total:,} ({state})",
        "input": f"{model.frames} frames of {model.image_size} x {model.image_size} pixels, {sampling(model.clip)}",
        "normalisation": f"mean {rounded(mean)}, standard deviation {rounded(std)}, for pixels of 0..1",
        "views in evaluation": f"{model.frames} frames x {model.views.crops} crops x {model.views.clips} clips",
        "scores": "sigmoid, a video may have several labels"
        if model.multi_label
        else "softmax, a video has one label",
    }
    if spatial := spatial_blocks(model.tower):
        rows["attention that stays spatial"] = ", ".join(f"`{name}`" for name in spatial)
    measured = {} if model.results.get("epoch") == 0 else model.results
    figures = {name: f"{value:.4g}" for name, value in measured.items()} or {
        "none": "not evaluated when it was saved"
    }
    labels = ", ".join(model.labels[:SHOWN_LABELS])
    if len(model.labels) > SHOWN_LABELS:
        labels += f" and {len(model.labels) - SHOWN_LABELS} more (`config.json` has all)"
    method = f"[ZeroI2V]({PAPER})" if model.strategy.peer is None else f"strategy {config.strategy}"
    head = {
        "library_name": "zeroi2v",
        "pipeline_tag": "video-classification",
        "tags": ["zeroi2v", "video-classification"],
    }
    lines = [
        "---",
        *(f"{key}: {json.dumps(value)}" for key, value in head.items()),
        "---",
        "",
        f"# {config.tower} for video, {len(model.labels)} classes",
        "",
        f"An image transformer adapted to video with {method}, by the library zeroi2v.",
        "",
        "```python",
        "import zeroi2v",
        "",
        'for prediction in zeroi2v.Predictor("this folder, or its name on the Hub").predict("video.mp4"):',
        "    print(prediction.label, prediction.score)",
        "```",
        "",
        "## How it was made",
        "",
        *table(rows),
        "",
        "## How well it did",
        "",
        *table(figures),
        "",
        "## Labels",
        "",
        labels,
        "",
    ]
    return "\n".join(lines)


def table(rows: dict[str, str]) -> list[str]:
    """A Markdown table of two columns without a heading."""
    return ["| | |", "| --- | --- |", *(f"| {key} | {value} |" for key, value in rows.items())]


def offsets(layout: HeadLayout) -> str:
    """A layout as the paper writes it: {-1*1, 1*1, 0*10}."""
    counts: dict[int, Fraction] = {}
    for head in layout:
        for offset, share in shares(head):
            counts[offset] = counts.get(offset, Fraction(0)) + share
    return "{" + ", ".join(f"{offset}*{count}" for offset, count in counts.items()) + "}"


def sampling(clip: ClipConfig) -> str:
    """How a clip is cut out of a video, in words."""
    return (
        "one of each of as many equal segments"
        if clip.sampling == "segment"
        else f"{clip.stride} video frames apart"
    )


def rounded(values: tuple[float, ...]) -> str:
    """Numbers to four digits."""
    return ", ".join(f"{value:.4g}" for value in values)
