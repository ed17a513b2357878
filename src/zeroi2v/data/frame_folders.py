"""Which images of a folder are the frames of a video, in which order, and how are they decoded?"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, Literal

from zeroi2v.data.file_kinds import files_of
from zeroi2v.data.pyav import av
from zeroi2v.data.video_files import NO_FRAME, reason
from zeroi2v.errors import VideoError, first_names

_CODECS: Final[dict[bytes, Literal["mjpeg", "png", "webp", "bmp"]]] = {  # by the first two bytes
    b"\xff\xd8": "mjpeg",
    b"\x89P": "png",
    b"RI": "webp",
    b"BM": "bmp",
}
_LAST_NUMBER: Final = re.compile(r"(.*?)(\d+)(\D*)", re.DOTALL)
_FRAME_NAMES: Final = ("img", "image", "frame")  # how the names of frames begin


def image_files(folder: Path) -> list[Path]:
    """The frames of a folder of images, by number.

    VideoError if nothing tells which images are the frames.

    The names of all frames differ in their last number only. Where a folder has several kinds of
    names, the frames are the one kind that begins with img, image or frame.
    """
    try:
        names = files_of(folder)
    except OSError as error:
        raise VideoError(folder, reason(error)) from error
    if names.videos:
        videos = first_names([folder / name for name in names.videos])
        raise VideoError(folder, f"holds videos, so it is no folder of frames: give {videos}")
    kinds: dict[str, list[tuple[int, Path]]] = {}
    for file in (folder / name for name in names.images):
        parts = _LAST_NUMBER.fullmatch(file.stem)
        kind = f"{parts[1]}#{parts[3]}" if parts else file.stem
        kinds.setdefault(kind, []).append((int(parts[2]) if parts else 0, file))
    if not kinds and names.folders:
        raise VideoError(
            folder,
            f"a folder of folders ({first_names(names.folders)}) without images; give a video file "
            "or the folder of the images of one clip; for a data set, run `zeroi2v eval`",
        )
    if not kinds:
        raise VideoError(folder, "a folder without images")
    chosen = [kind for kind in kinds if kind.lower().startswith(_FRAME_NAMES)]
    if len(kinds) == 1:
        chosen = [*kinds]
    if len(chosen) != 1:
        first = ", ".join(sorted(kinds)[:5])
        more = ", ..." if len(kinds) > 5 else ""
        raise VideoError(
            folder,
            f"images of {len(kinds)} kinds ({first}{more}; # is a number), and nothing tells which "
            "are the frames; keep the images of one kind, or begin the names of the frames with "
            "img, image or frame",
        )
    return [file for _, file in sorted(kinds[chosen[0]])]


def decode_image(file: Path) -> av.VideoFrame:
    """The frame in an image file. VideoError, with the folder as its path, if there is none."""
    try:
        data = file.read_bytes()
        name = _CODECS.get(data[:2])
        if name is None:
            raise VideoError(file.parent, f"{file.name}: not a JPEG, PNG, WebP or BMP image")
        codec = av.CodecContext.create(name, "r")
        codec.thread_count = 1
        frames = codec.decode(av.Packet(data)) + codec.decode(None)
    except (av.FFmpegError, OSError) as error:
        why = reason(error, kind="an image")
        raise VideoError(file.parent, f"{file.name}: {why}") from error
    if not frames:
        raise VideoError(file.parent, f"{file.name}: {NO_FRAME}")
    return frames[0]
