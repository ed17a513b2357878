"""Where do a model's heads look in one video? Figure 3 of the paper: a picture, a video and a page.

Shapes: F frames of a clip, T frames as attention sees them, S pixels a side, g patches along a side of the block's map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from zeroi2v.config import ViewsConfig
from zeroi2v.data.encode import write_video
from zeroi2v.data.loader import read_views
from zeroi2v.data.transforms import normalise
from zeroi2v.errors import ConfigError, nearest
from zeroi2v.explain.attention import Looks, head_looks, watch
from zeroi2v.explain.overlay import overlay
from zeroi2v.files import write_files, write_text
from zeroi2v.inference.scores import view_scores
from zeroi2v.method.relocate import channel_offsets, frames_read
from zeroi2v.models.video import VideoClassifier
from zeroi2v.pages.page import page, picture

FILES: Final = ("show.png", "show.mp4", "show.html")
WIDTH: Final = (
    1536  # pixels that the frames of a clip have together in the picture, or a little more
)
SIDES: Final = (96, 192)  # pixels along a side of a frame in it, at least and at most
LINE: Final = 24  # pixels of a line of text
MARGIN: Final = 176  # pixels left of the frames, for the names of the rows
FPS: Final = 2  # frames/s of the video: slow enough to look at each
KINDS: Final = {"grad_cam": "Grad-CAM", "attention": "attention"}


def show(
    video: Path,
    model: VideoClassifier,
    out: Path,
    *,
    block: int | None = None,
    label: str | None = None,
) -> dict[str, Any]:
    """Draw where the heads of block number `block` (from 1; None: the last) look in one clip of a video, into a folder.

    The clip is the one that an evaluation with one clip and one crop would see, however many the model's own protocol has: its frames
    from the middle of the video, or of each segment, the centre crop. `label`: the class whose logit Grad-CAM explains; None: the
    predicted one. Gives what the page says in numbers. ConfigError if there is no such block or label, VideoError if the video
    cannot be read, TowerError as `watch`.
    """
    blocks = model.plan.blocks
    number = len(blocks) if block is None else block
    if not 1 <= number <= len(blocks):
        raise ConfigError(
            f"block must be 1 to {len(blocks)} for {model.spec.model.tower}, got {block}"
        )
    if label is not None and label not in model.labels:
        raise ConfigError(f"no class is called {label!r}{nearest(label, model.labels)}")
    clip = read_views(
        video, clip=model.clip, views=ViewsConfig(), size=model.image_size
    )  # (1, F, 3, S, S)
    seen = watch(
        model, normalise(clip.to(model.classifier.weight.device), *model.normalisation), number - 1
    )
    scores = view_scores(seen.logits.detach().float().cpu(), multi_label=model.spec.multi_label)
    predicted = int(scores.argmax())
    chosen = predicted if label is None else model.labels.index(label)
    looks = head_looks(seen, chosen)
    tubelet = model.spec.model.tubelet
    frames = clip[0, ::tubelet]
    result = {
        "video": str(video),
        "model": model.spec.model.tower,
        "merged": model.spec.merged,
        "operator": model.spec.model.operator,
        "block": number,
        "blocks": len(blocks),
        "frames": len(frames),
        "tubelet": tubelet,
        "label": model.labels[chosen],
        "score": scores[chosen].item(),
        "predicted": model.labels[predicted],
        "predicted_score": scores[predicted].item(),
        "heads": reading(model, number - 1),
        "groups": {
            name: {
                "read_by": [[reader + 1 for reader in readers] for readers in look.readers],
                "grad_cam": look.grad_cam.sum((1, 2)).tolist(),
            }
            for name, look in looks.items()
        },
        "files": [str(out / name) for name in FILES],
    }
    side = min(max(WIDTH // len(frames), SIDES[0]), SIDES[1])
    tiles = {
        (kind, name): _tiles(frames, getattr(look, kind), side)
        for kind in KINDS
        for name, look in looks.items()
    }
    plain = resize(frames, [side, side])
    out.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(_sheet(plain, tiles, looks))
    write_files({out / FILES[0]: lambda path: image.save(path, "PNG")})
    write_video(out / FILES[1], _moving(plain, tiles), fps=FPS)
    write_text(
        out / FILES[2], page(f"{video.name}: where heads look", _body(result, plain, tiles, looks))
    )
    return result


def reading(model: VideoClassifier, block: int) -> list[dict[str, Any]]:
    """For each offset of a block, its heads, from 1, and for each frame of the clip, from 1, the frame that they read."""
    layout = model.plan.blocks[block].block.layout
    offsets = channel_offsets(layout, model.plan.blocks[block].moves)  # (H, D)
    read = frames_read(
        layout, model.plan.blocks[block].moves, model.frames // model.spec.model.tubelet
    )  # (T, H, D)
    found = []
    for offset in sorted({*offsets.flatten().tolist()}, key=lambda offset: (abs(offset), offset)):
        at = offsets == offset
        heads = {
            head + 1: round(share, 3)
            for head, share in enumerate(at.float().mean(1).tolist())
            if share
        }
        found.append({"offset": offset, "heads": heads, "reads": (read[:, at][:, 0] + 1).tolist()})
    return found


def heads_text(heads: Mapping[int, float]) -> str:
    """The heads of an offset, each with its share of channels where that is not all."""
    return ", ".join(
        f"{head}" + ("" if share == 1 else f" ({100 * share:g}%)") for head, share in heads.items()
    )


def beside_heads(result: Mapping[str, Any]) -> str:
    """What crosses frames in this model although no head does, or nothing."""
    if result["operator"] != "cls_shift":
        return ""
    return "The [cls] shift moves channels of the class token between neighbouring frames; every head reads its own frame."


# The pictures


def _tiles(frames: Tensor, maps: Tensor, side: int) -> Tensor:
    """The maps (T, g, g) over the frames, on one scale: uint8 (T, 3, side, side)."""
    most = maps.max().item()
    drawn = [overlay(frame, heat, most=most) for frame, heat in zip(frames, maps, strict=True)]
    tiles: Tensor = resize(torch.stack(drawn), [side, side])
    return tiles


def _sheet(
    plain: Tensor, tiles: dict[tuple[str, str], Tensor], looks: dict[str, Looks]
) -> np.ndarray[Any, Any]:
    """Frames from left to right, a row per kind of map and group of heads; under a tile, the frames that read it."""
    side = plain.shape[-1]
    rows: list[tuple[str, str, str, Tensor, Sequence[str]]] = [
        ("", "frames", "", plain, [f"frame {number}" for number in range(1, len(plain) + 1)])
    ]
    rows += [
        (KINDS[kind], name, _scale(getattr(looks[name], kind)), drawn, _read_by(looks[name]))
        for (kind, name), drawn in tiles.items()
    ]
    sheet = Image.new("RGB", (MARGIN + len(plain) * (side + 4), len(rows) * (side + LINE)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    small = ImageFont.load_default(12)
    for row, (kind, name, scale, drawn, words) in enumerate(rows):
        top = row * (side + LINE)
        pen.text((8, top + side // 2 - LINE), f"{kind}\n{name}\n{scale}", "black", font)
        for column, (pixels, word) in enumerate(zip(drawn, words, strict=True)):
            left = MARGIN + column * (side + 4)
            sheet.paste(Image.fromarray(pixels.movedim(0, -1).numpy()), (left, top))
            pen.text((left, top + side + 3), word, "black", small)
    return np.asarray(sheet)


def _moving(plain: Tensor, tiles: dict[tuple[str, str], Tensor]) -> Tensor:
    """The same as a video, uint8 (T, 3, H, W): beside each frame its maps by group of heads, a line for each kind of map."""
    side, names = plain.shape[-1], list(dict.fromkeys(name for _, name in tiles))
    size = ((1 + len(names)) * side, len(KINDS) * (side + LINE))
    font, moments = ImageFont.load_default(12), []
    for number, frame in enumerate(plain):
        sheet = Image.new("RGB", (size[0] + size[0] % 2, size[1] + size[1] % 2), "white")
        pen = ImageDraw.Draw(sheet)
        for row, kind in enumerate(KINDS):
            drawn = [
                (f"frame {number + 1}", frame),
                *((name, tiles[kind, name][number]) for name in names),
            ]
            for column, (name, pixels) in enumerate(drawn):
                left, top = column * side, row * (side + LINE)
                pen.text(
                    (left + 3, top + 5),
                    f"{name}" if column == 0 else f"{name}, {KINDS[kind]}",
                    "black",
                    font,
                )
                sheet.paste(Image.fromarray(pixels.movedim(0, -1).numpy()), (left, top + LINE))
        moments.append(torch.from_numpy(np.array(sheet)).movedim(-1, 0))
    return torch.stack(moments)


def _scale(maps: Tensor) -> str:
    """What the palest colour of a row stands for."""
    return f"up to {maps.max().item():.2g}"


def _read_by(look: Looks) -> list[str]:
    """Under each frame, which frames' queries meet it there; nothing where every frame is read by itself alone."""
    if all(readers == (own,) for own, readers in enumerate(look.readers)):
        return [""] * len(look.readers)
    return [
        f"read by {', '.join(str(reader + 1) for reader in readers)}" if readers else "not read"
        for readers in look.readers
    ]


# The page


def _body(
    result: dict[str, Any],
    plain: Tensor,
    tiles: dict[tuple[str, str], Tensor],
    looks: dict[str, Looks],
) -> str:
    asked = (
        "the predicted class"
        if result["label"] == result["predicted"]
        else f"predicted: {result['predicted']}"
    )
    lead = (
        f"Grad-CAM is for the class <b>{escape(result['label'])}</b>, score {result['score']:.1%} ({escape(asked)}). "
        f"Block {result['block']} of {result['blocks']} of {escape(result['model'])}, "
        f"{'merged' if result['merged'] else 'not merged'}."
    )
    kinds = {
        "grad_cam": "Coloured are the patches whose values raise the score of the class through the heads of a group: the sum "
        "of value times gradient over their channels, where it is above 0.",
        "attention": "Coloured are the patches at which the queries look: softmax attention of the class token, or of the "
        "mean query where there is none, averaged over the heads of a group.",
    }
    sections = [
        f"""<header><p class="quiet">zeroi2v show</p><h1>{escape(Path(result["video"]).name)}: where the heads look</h1>
<p class="lead">{lead}</p></header>""",
        f"""<section><h2>The clip</h2>{_tubelets(result["tubelet"])}{_strip(plain, [f"{n + 1}" for n in range(len(plain))])}
</section>""",
    ]
    for kind, text in kinds.items():
        figures = "".join(
            f"<h3>{escape(name.capitalize())}, {_scale(getattr(look, kind))}</h3>{_strip(tiles[kind, name], _captions(look))}"
            for name, look in looks.items()
        )
        sections.append(f"""<section><h2>{"Grad-CAM" if kind == "grad_cam" else "Attention"}</h2>
<p>{text} A map lies on the frame that is <em>read</em>. Grey is nothing; purple, orange and pale yellow are more, each row up
to its own largest value.</p>{figures}</section>""")
    sections.append(_reading_table(result))
    return "\n".join(sections)


def _tubelets(tubelet: int) -> str:
    return (
        f"<p>Attention sees {tubelet} neighbouring frames as one; the first is shown.</p>"
        if tubelet > 1
        else ""
    )


def _captions(look: Looks) -> list[str]:
    return [
        f"{number}{word and f': {word}'}" for number, word in enumerate(_read_by(look), start=1)
    ]


def _strip(drawn: Tensor, captions: Sequence[str]) -> str:
    figures = (
        f"<figure>{picture(pixels, '')}<figcaption>{escape(caption)}</figcaption></figure>"
        for pixels, caption in zip(drawn, captions, strict=True)
    )
    return f'<div class="frames">{"".join(figures)}</div>'


def _reading_table(result: dict[str, Any]) -> str:
    numbers = "".join(f'<th scope="col">{number}</th>' for number in range(1, result["frames"] + 1))
    rows = []
    for group in result["heads"]:
        heads = heads_text(group["heads"])
        cells = "".join(f"<td>{read}</td>" for read in group["reads"])
        rows.append(f'<tr><th scope="row">{group["offset"]:+d}</th><td>{heads}</td>{cells}</tr>')
    return f"""<section><h2>Which frame a head reads</h2>
<p>A column is the frame that asks, a cell the frame that the heads read from it. A head that would leave the clip reads
its own frame. {escape(beside_heads(result))}</p>
<div class="wide"><table class="numbers"><thead><tr><th scope="col">Offset</th><th scope="col">Heads</th>{numbers}</tr></thead>
<tbody>{"".join(rows)}</tbody></table></div></section>"""
