"""How are measurements drawn? As SVG files, readable on a light and on a dark page: they bring their own background."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

STYLE: Final = {
    "font.size": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#5c5c57",
    "text.color": "#1d1d1b",
    "axes.labelcolor": "#1d1d1b",
    "xtick.color": "#5c5c57",
    "ytick.color": "#1d1d1b",
    "figure.facecolor": "#fcfcfa",
    "axes.facecolor": "#fcfcfa",
    "text.parse_math": False,  # a dollar in a file's name is a dollar
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "zeroi2v",  # the same figures give the same file
}
REFERENCE_COLOUR: Final = "#8c8c86"
COLOUR: Final = "#2660a4"
LONGEST: Final = 26  # letters of a name that leave room for its bar; the end of a path tells more than its beginning


def bench_plot(result: dict[str, Any], path: Path) -> None:
    """Draw what `bench` measured: latency with its quartiles and ratio to the reference above, throughput below."""
    import matplotlib
    from matplotlib.figure import Figure

    models = result["models"]
    every = [model["name"] for model in models]
    names = [
        name if len(name) <= LONGEST else "\N{HORIZONTAL ELLIPSIS}" + name[1 - LONGEST :]
        for name in every
    ]
    places = range(len(models))
    colours = [REFERENCE_COLOUR, *[COLOUR] * (len(models) - 1)]
    panels = 2 if all("throughput" in model for model in models) else 1
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]  # its stub knows every key by name
        figure = Figure(figsize=(6, panels * (1 + 0.36 * len(models)) + 0.5), layout="constrained")
        axes = figure.subplots(panels, squeeze=False)[:, 0]
        latency = [model["latency_ms"] for model in models]
        middle = [one["median"] for one in latency]
        whiskers = [
            [one["median"] - one["q1"] for one in latency],
            [one["q3"] - one["median"] for one in latency],
        ]
        axes[0].barh(places, middle, xerr=whiskers, color=colours, ecolor="#1d1d1b", capsize=3)
        axes[0].set_xlabel(f"ms for one clip (median, quartiles), x {names[0]}")
        texts = [[f"{model['ratio']['fast']:.3f}x" for model in models]]
        ends = [[one["q3"] for one in latency]]
        if panels == 2:
            best = [model["throughput"] for model in models]
            axes[1].barh(places, [one["clips_per_second"] for one in best], color=colours)
            axes[1].set_xlabel("clips per second at the best batch")
            texts.append([f"batch {one['batch']:.0f}" for one in best])
            ends.append([one["clips_per_second"] for one in best])
        for axis, labels, lengths in zip(axes, texts, ends, strict=True):
            axis.set_yticks(places, names)
            axis.invert_yaxis()
            axis.set_xlim(0, 1.22 * max(lengths))
            for place, label, length in zip(places, labels, lengths, strict=True):
                axis.annotate(
                    label, (length, place), xytext=(6, 0), textcoords="offset points", va="center"
                )
        figure.savefig(path, format="svg", metadata={"Date": None})
