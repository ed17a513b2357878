"""Where do the heads of one block look in a video? The page of `zeroi2v show`, and its words.

`result` is what `zeroi2v.explain.show.show` returns. Shapes: T frames as attention sees them, S
pixels along a side of a picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from zeroi2v.pages.page import render

KINDS: Final = {"grad_cam": "Grad-CAM", "attention": "attention"}  # kinds of map, and their names


@dataclass(frozen=True)
class MapRow:
    """The maps of one kind for one group of heads, each drawn over the frame that the heads
    read."""

    kind: str  # a key of KINDS
    group: str  # such as "temporal heads"
    largest: float  # value of the maps, drawn in the palest colour
    pictures: Tensor  # uint8 (T, 3, S, S)
    readers: tuple[tuple[int, ...], ...]  # for each frame, the frames whose queries read it

    @property
    def scale(self) -> str:
        """The value that the palest colour of the row stands for."""
        return f"up to {self.largest:.2g}"

    @property
    def captions(self) -> list[str]:
        """For each frame, the numbers of the frames that read it; '' if each frame reads itself."""
        if all(readers == (own,) for own, readers in enumerate(self.readers)):
            return [""] * len(self.readers)
        return [
            f"read by {', '.join(str(reader + 1) for reader in readers)}" if readers else "not read"
            for readers in self.readers
        ]


def show_page(result: Mapping[str, Any], frames: Tensor, rows: Sequence[MapRow]) -> str:
    """The page as one HTML file. `frames` are the frames of the clip, uint8 (T, 3, S, S)."""
    return render(
        "show.html",
        result=result,
        name=Path(result["video"]).name,
        frames=frames,
        rows={kind: [row for row in rows if row.kind == kind] for kind in KINDS},
        kinds=KINDS,
        heads_text=heads_text,
        beside_heads=beside_heads(result),
    )


def heads_text(heads: Mapping[int, float]) -> str:
    """The numbers of heads; a head of which only a share of the channels moves, with this share."""
    return ", ".join(
        f"{head}" + ("" if share == 1 else f" ({100 * share:g}%)") for head, share in heads.items()
    )


def beside_heads(result: Mapping[str, Any]) -> str:
    """How channels cross frames beside the heads, as a sentence; '' if no channels do."""
    if result["operator"] != "cls_shift":
        return ""
    return (
        "The [cls] shift moves channels of the class token between neighbouring frames; "
        "every head reads its own frame."
    )
