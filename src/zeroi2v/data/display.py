"""Which way up, mirrored or not, and how large is a frame shown?

A display matrix tells how players turn and mirror the frame that is stored. MP4, MOV and Matroska
files carry a display matrix, and so do H.264 and H.265 streams and the EXIF data of an image.

Shapes: H, W pixels of the frame as stored.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Final, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from zeroi2v.data.pyav import av

if TYPE_CHECKING:
    from av.sidedata.sidedata import SideData

Scalar = TypeVar("Scalar", bound=np.generic)

# FFmpeg numbers the kinds of side data from 0. The limit is higher than today's number of kinds.
_SIDE_DATA_KINDS: Final = 48


@dataclass(frozen=True)
class Orientation:
    """How a stored frame is laid out for display: its axes change places, then it is flipped."""

    swaps_axes: bool = False  # pixel (x, y) goes to (y, x)
    flips_x: bool = False  # left and right change places
    flips_y: bool = False  # top and bottom change places

    @classmethod
    def of(cls, frame: av.VideoFrame) -> Orientation | None:
        """What the display matrix of a frame asks for, to the nearest quarter turn.

        None if the frame has no matrix.
        """
        display_matrix = av.sidedata.sidedata.Type.DISPLAYMATRIX
        matrices = (data for data in _side_data(frame) if data.type is display_matrix)
        matrix = next(matrices, None)
        if matrix is None:
            return None
        # Pixel (x, y) is shown at (a x + c y, b x + d y).
        a, b, _, c, d, *_ = struct.unpack("9i", matrix)
        if abs(b) + abs(c) > abs(a) + abs(d):
            return cls(swaps_axes=True, flips_x=c < 0, flips_y=b < 0)
        return cls(flips_x=a < 0, flips_y=d < 0)

    @property
    def is_mirrored(self) -> bool:
        """Whether no rotation alone gives the frame on display: a flip is needed too."""
        return (self.swaps_axes + self.flips_x + self.flips_y) % 2 == 1

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height on display of a frame that is stored with this width and height.

        The same function gives the stored size from the size on display.
        """
        return (height, width) if self.swaps_axes else (width, height)

    def upright(self, pixels: NDArray[Scalar]) -> NDArray[Scalar]:
        """The pixels on display of stored pixels (H, W) or (H, W, channels); no value changes."""
        if self.swaps_axes:
            pixels = pixels.swapaxes(0, 1)
        return pixels[:: -1 if self.flips_y else 1, :: -1 if self.flips_x else 1]


def oriented(frames: Iterable[av.VideoFrame]) -> Iterator[tuple[av.VideoFrame, Orientation]]:
    """The frames of a video with their orientations.

    A frame without a matrix is shown as the frame before it, since H.264 and H.265 streams may
    send their matrix with key frames only; a key frame without a matrix is shown as stored.
    """
    orientation = Orientation()
    for frame in frames:
        default = Orientation() if frame.key_frame else orientation
        orientation = Orientation.of(frame) or default
        yield frame, orientation


def scaled_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Width and height with the aspect kept and the shorter side equal to `short_side`."""
    scale = short_side / min(width, height)
    return round(width * scale), round(height * scale)


def _side_data(frame: av.VideoFrame) -> list[SideData]:
    """The side data of a frame, such as its display matrix."""
    # `frame.side_data` would store its result in the frame, and the result refers to the frame. The
    # frame would then stay in memory until Python's garbage collector runs. PyAV's annotations lack
    # the call that is used here instead.
    container = cast(
        "Callable[[av.VideoFrame], Iterable[SideData]]", av.sidedata.sidedata.SideDataContainer
    )
    try:
        return [*container(frame)]
    except ValueError:  # PyAV refuses all side data if one kind is unknown, for instance EXIF data
        return [*container(_without_unknown_side_data(frame))]


def _without_unknown_side_data(frame: av.VideoFrame) -> av.VideoFrame:
    """The frame without the kinds of side data that FFmpeg knows and PyAV does not."""
    known = {cast(int, kind.value) for kind in av.sidedata.sidedata.Type}
    unknown = [kind for kind in range(_SIDE_DATA_KINDS) if kind not in known]
    graph = av.filter.Graph()
    graph.threads = 1
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1)
    )
    deletions = [graph.add("sidedata", f"mode=delete:type={kind}") for kind in unknown]
    graph.link_nodes(source, *deletions, graph.add("buffersink")).configure()
    graph.vpush(frame)
    return graph.vpull()
