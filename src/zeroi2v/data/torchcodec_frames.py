"""How does torchcodec decode the frames of a clip?

torchcodec is an extra, used where `clip.decoder` says so. decode.py numbers the frames.

Shapes: n frames asked for, H, W pixels as displayed.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from torch import Tensor

from zeroi2v.data.display import scaled_size
from zeroi2v.errors import ConfigError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

# Containers with an index of their packets. In other containers torchcodec seeks by bytes: it may
# start after the key frame, and the decoder then shows grey where the key frame is missing.
_INDEXED: Final = frozenset(("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi"))


def require_decoder(decoder: str) -> None:
    """ConfigError, with what to install, if this decoder cannot be used here."""
    if decoder != "torchcodec":
        return
    try:
        import torchcodec  # noqa: F401  # whether it loads is the question
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"clip.decoder is torchcodec, but {error.name} is not installed: "
            "pip install torchcodec, or choose pyav"
        ) from error
    except (ImportError, OSError, RuntimeError) as error:  # torchcodec's message is a page long
        raise ConfigError(
            "clip.decoder is torchcodec, which finds no FFmpeg that it can use, or was made for "
            "another torch: install FFmpeg (apt install ffmpeg, conda install ffmpeg) and the "
            "torchcodec made for this torch, or choose pyav"
        ) from error


def seeks_exactly(container: InputContainer) -> bool:
    """Whether torchcodec finds the key frames of a container; PyAV decodes the other containers."""
    return container.format.name in _INDEXED


def torchcodec_clip(
    path: Path,
    order: Sequence[int],
    stream: VideoStream,
    times: Sequence[int],
    key_times: Collection[int],
    *,
    short_side: int | None,
) -> Tensor | None:
    """The frames with the numbers in `order`: uint8 (n, 3, H, W).

    None if torchcodec cannot decode these frames, or decodes other frames. Frame i is shown at
    `times[i]`, in the stream's units. Frames whose shorter side is above `short_side` pixels are
    scaled down to `short_side`.
    """
    from torchcodec.decoders import VideoDecoder
    from torchcodec.transforms import Resize

    ends = [*times[1:], times[-1] + 1]
    frames = [
        {"pts": start, "duration": end - start, "key_frame": start in key_times}
        for start, end in zip(times, ends, strict=True)
    ]
    options: dict[str, Any] = {
        "stream_index": stream.index,
        "num_ffmpeg_threads": stream.codec_context.thread_count,
        # spares torchcodec its own reading of all packets
        "custom_frame_mappings": json.dumps({"frames": frames}),
    }
    try:
        decoder = VideoDecoder(f"file:{path}", **options)
        width, height = decoder.metadata.width, decoder.metadata.height
        if short_side is not None and short_side < min(width, height):
            resize = Resize(scaled_size(width, height, short_side)[::-1])
            decoder = VideoDecoder(f"file:{path}", transforms=[resize], **options)
        batch = decoder.get_frames_at([*order])
    except (RuntimeError, ValueError):
        return None
    tick = float(stream.time_base or 0)
    for seconds, number in zip(batch.pts_seconds.tolist(), order, strict=True):
        if abs(seconds - times[number] * tick) > tick / 2:
            return None
    data: Tensor = batch.data
    return data
