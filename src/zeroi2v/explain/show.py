"""Where do a model's heads look in one video? Figure 3 of the paper as a picture, a video and a
page.

Shapes: F frames of a clip, T frames as attention sees them, S pixels along a side of a picture,
g patches along a side of the block's map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from zeroi2v.config import ViewsConfig
from zeroi2v.data.encode import write_video
from zeroi2v.data.views import read_views
from zeroi2v.errors import ConfigError, nearest_class
from zeroi2v.explain.attention import Looks, Watched, head_looks, watch
from zeroi2v.explain.overlay import overlay
from zeroi2v.files import write_files, write_text
from zeroi2v.inference.scores import normalise, view_scores
from zeroi2v.method.relocate import channel_offsets, frames_read
from zeroi2v.models.video import VideoClassifier
from zeroi2v.pages.show import KINDS, MapRow, show_page

FILES: Final = ("show.png", "show.mp4", "show.html")
WIDTH: Final = 1536  # pixels, or a little more: all frames of a clip side by side in the picture
SIDES: Final = (96, 192)  # pixels along a side of a frame in the picture, at least and at most
LINE: Final = 24  # pixels of a line of text
MARGIN: Final = 176  # pixels left of the frames, for the names of the rows
FPS: Final = 2  # frames/s of the video: slow enough to look at each frame


def show(
    video: Path,
    model: VideoClassifier,
    out: Path,
    *,
    block: int | None = None,
    label: str | None = None,
) -> dict[str, Any]:
    """Draw where the heads of one block look in one clip of a video, and write `FILES` into a
    folder.

    `block` counts from 1; None is the last block. `label` is the class whose logit Grad-CAM
    explains; None is the predicted class. The clip is the middle one and its crop the centre,
    whatever views the model's own evaluation takes. Returns the numbers that the page shows.

    ConfigError if there is no such block or label. VideoError if the video cannot be read. Raises
    TowerError like `watch`.
    """
    blocks = len(model.plan.blocks)
    number = blocks if block is None else block
    if not 1 <= number <= blocks:
        raise ConfigError(f"block must be 1 to {blocks} for {model.spec.model.tower}, got {block}")
    if label is not None and label not in model.labels:
        raise ConfigError(f"no class is called {label!r}{nearest_class(label, model.labels)}")
    # (1, F, 3, S, S)
    clip = read_views(
        video,
        clip=model.clip,
        views=ViewsConfig(),
        size=model.image_size,
        direction="forwards" if model.spec.directions else None,
    )
    pixels = normalise(clip.to(model.classifier.weight.device), *model.normalisation)
    watched = watch(model, pixels, number - 1)
    answer = _answer(model, watched, label)
    looks = head_looks(watched, model.labels.index(answer["label"]))
    frames = clip[0, :: model.spec.model.tubelet]
    result = {
        "video": str(video),
        "model": model.spec.model.tower,
        "merged": model.spec.merged,
        "operator": model.spec.model.operator,
        "block": number,
        "blocks": blocks,
        "frames": len(frames),
        "tubelet": model.spec.model.tubelet,
        **answer,
        "heads": frames_by_offset(model, number - 1),
        "groups": {
            name: {
                "read_by": [[reader + 1 for reader in readers] for readers in look.readers],
                "grad_cam": look.grad_cam.sum((1, 2)).tolist(),
            }
            for name, look in looks.items()
        },
        "files": [str(out / name) for name in FILES],
    }
    _write(out, result, frames, looks)
    return result


def _answer(model: VideoClassifier, watched: Watched, label: str | None) -> dict[str, Any]:
    """The class that Grad-CAM explains and the predicted class, each with its score."""
    scores = view_scores(watched.logits.detach().float().cpu(), multi_label=model.spec.multi_label)
    predicted = int(scores.argmax())
    explained = predicted if label is None else model.labels.index(label)
    return {
        "label": model.labels[explained],
        "score": scores[explained].item(),
        "predicted": model.labels[predicted],
        "predicted_score": scores[predicted].item(),
    }


def frames_by_offset(model: VideoClassifier, block: int) -> list[dict[str, Any]]:
    """The offsets of a block, each with its heads and with the frames that these heads read.

    "heads" has the share of a head's channels by the head's number; "reads" has, for each frame of
    the clip, the number of the frame that its queries read. Heads and frames are counted from 1.
    """
    plan, frames = model.plan.blocks[block], model.plan.frames
    layout = plan.block.layout
    offsets = channel_offsets(layout, plan.moves)  # (H, D)
    read = frames_read(layout, plan.moves, frames)  # (T, H, D)
    entries = []
    for offset in sorted({*offsets.flatten().tolist()}, key=lambda offset: (abs(offset), offset)):
        channels = offsets == offset
        shares = enumerate(channels.float().mean(1).tolist(), start=1)
        heads = {head: round(share, 3) for head, share in shares if share}
        reads = (read[:, channels][:, 0] + 1).tolist()
        entries.append({"offset": offset, "heads": heads, "reads": reads})
    return entries


# The pictures


def _write(
    out: Path, result: Mapping[str, Any], frames: Tensor, looks: Mapping[str, Looks]
) -> None:
    """Draw the maps over the frames uint8 (T, 3, S, S), and write the three files."""
    side = min(max(WIDTH // len(frames), SIDES[0]), SIDES[1])
    rows = []
    for kind in KINDS:
        for group, look in looks.items():
            maps = getattr(look, kind)
            pictures = _pictures(frames, maps, side)
            rows.append(MapRow(kind, group, maps.max().item(), pictures, look.readers))
    plain = resize(frames, [side, side])
    out.mkdir(parents=True, exist_ok=True)
    sheet = _sheet(plain, rows)
    write_files({out / FILES[0]: lambda path: sheet.save(path, "PNG")})
    write_video(out / FILES[1], _moving(plain, rows), fps=FPS)
    write_text(out / FILES[2], show_page(result, plain, rows))


def _pictures(frames: Tensor, maps: Tensor, side: int) -> Tensor:
    """The maps (T, g, g) over the frames, all with one scale of colours: uint8 (T, 3, side,
    side)."""
    largest = maps.max().item()
    drawn = [
        overlay(frame, heat, largest=largest) for frame, heat in zip(frames, maps, strict=True)
    ]
    pictures: Tensor = resize(torch.stack(drawn), [side, side])
    return pictures


def _sheet(plain: Tensor, rows: Sequence[MapRow]) -> Image.Image:
    """One picture of all: the frames from left to right, and below them each row of maps."""
    side = plain.shape[-1]
    lines: list[tuple[str, Tensor, Sequence[str]]] = [
        ("\nframes\n", plain, [f"frame {number}" for number in range(1, len(plain) + 1)]),
        *(
            (f"{KINDS[row.kind]}\n{row.group}\n{row.scale}", row.pictures, row.captions)
            for row in rows
        ),
    ]
    width, height = MARGIN + len(plain) * (side + 4), len(lines) * (side + LINE)
    sheet = Image.new("RGB", (width, height), "white")
    pen, font, small = ImageDraw.Draw(sheet), ImageFont.load_default(15), ImageFont.load_default(12)
    for row_number, (name, pictures, captions) in enumerate(lines):
        top = row_number * (side + LINE)
        pen.text((8, top + side // 2 - LINE), name, "black", font)
        for column, (pixels, caption) in enumerate(zip(pictures, captions, strict=True)):
            left = MARGIN + column * (side + 4)
            sheet.paste(_image(pixels), (left, top))
            pen.text((left, top + side + 3), caption, "black", small)
    return sheet


def _moving(plain: Tensor, rows: Sequence[MapRow]) -> Tensor:
    """The frames and maps as a video, uint8 (T, 3, H, W).

    Each kind of map has a line, with its groups of heads side by side.
    """
    side, lines = plain.shape[-1], [[row for row in rows if row.kind == kind] for kind in KINDS]
    width, height = (1 + len(lines[0])) * side, len(lines) * (side + LINE)
    size = (width + width % 2, height + height % 2)  # the encoder takes even sides
    font, moments = ImageFont.load_default(12), []
    for number, frame in enumerate(plain):
        moment = Image.new("RGB", size, "white")
        pen = ImageDraw.Draw(moment)
        for line, line_rows in enumerate(lines):
            top = line * (side + LINE)
            tiles = [(f"frame {number + 1}", frame)]
            tiles += [
                (f"{row.group}, {KINDS[row.kind]}", row.pictures[number]) for row in line_rows
            ]
            for column, (name, pixels) in enumerate(tiles):
                pen.text((column * side + 3, top + 5), name, "black", font)
                moment.paste(_image(pixels), (column * side, top + LINE))
        moments.append(torch.from_numpy(np.array(moment)).movedim(-1, 0))
    return torch.stack(moments)


def _image(pixels: Tensor) -> Image.Image:
    """Pixels uint8 (3, H, W) as an image of PIL."""
    return Image.fromarray(pixels.movedim(0, -1).numpy())
