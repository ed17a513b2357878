"""How is a video cut into the views of an evaluation? Into clips in time, into crops in space.

Shapes: V views of a video (clips * crops), C crops of a frame, T frames, S pixels a side.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
import torchvision.transforms.v2.functional as F
from torch import Tensor

from zeroi2v.config import ClipConfig, ViewsConfig
from zeroi2v.data.decode import read_clip
from zeroi2v.data.directions import Direction, blurred_alike
from zeroi2v.data.display import scaled_size
from zeroi2v.data.sampling import frames_of_clips


def read_views(
    path: Path,
    *,
    clip: ClipConfig,
    views: ViewsConfig,
    size: int,
    direction: Direction | None = None,
) -> Tensor:
    """The views of one video: uint8 (V, T, 3, S, S), the crops of the first clip first.

    With a `direction` the frames are blurred (`data/directions.py`). Backwards the views have the
    same frames in reverse order. VideoError if the video cannot be read.
    """
    choose = partial(frames_of_clips, clip=clip, clips=views.clips)
    frames = read_clip(path, choose, short_side=size, decoder=clip.decoder)
    if direction is not None:
        frames = blurred_alike(frames)
    crops = view_pixels(frames, size, views.crops)  # (crops, clips * T, 3, S, S)
    cut = torch.cat(crops.split(clip.frames, dim=1)).contiguous()
    return cut.flip(1) if direction == "backwards" else cut


def view_pixels(frames: Tensor, size: int, crops: int) -> Tensor:
    """The C views of an evaluation, uint8 (C, T, 3, S, S), of frames uint8 (T, 3, H, W).

    The frames are first scaled to a shorter side of S. One crop is the centre. Three crops lie
    along the longer side, at its start, its centre and its end, evenly spaced; if a pixel is left
    over, it is the last pixel of the side ("ThreeCrop").
    """
    height, width = frames.shape[-2:]
    if min(height, width) != size:
        width, height = scaled_size(width, height, size)
        frames = F.resize(frames, [height, width], antialias=True)
    halves = (1,) if crops == 1 else (0, 1, 2)  # of the way from the first to the last corner
    corners = [((height - size) // 2 * half, (width - size) // 2 * half) for half in halves]
    return torch.stack([frames[..., top : top + size, left : left + size] for top, left in corners])
