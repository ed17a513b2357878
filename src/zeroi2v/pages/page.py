"""What is around every page that the project writes? One HTML file that needs nothing but itself, light and dark, also narrow.

`page.css` is its style. A page is written with `data.folders.write_text`.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Final

from PIL import Image
from torch import Tensor

STYLE_FILE: Final = Path(__file__).with_name("page.css")


def page(title: str, body: str) -> str:
    """The whole file: `title` is text, `body` HTML. The browser is told to load nothing that the file does not hold."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{escape(title)}</title>
<style>
{STYLE_FILE.read_text(encoding="utf-8")}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def picture(pixels: Tensor, alt: str) -> str:
    """A picture uint8 (3, H, W) as an element that holds its own pixels."""
    height, width = pixels.shape[-2:]
    file = io.BytesIO()
    Image.fromarray(pixels.movedim(0, -1).cpu().numpy()).save(file, "JPEG", quality=90)
    source = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
    return f'<img src="{source}" width="{width}" height="{height}" alt="{escape(alt)}">'


def percent(share: float, digits: int = 1) -> str:
    """A share of one in per cent."""
    return f"{100 * share:.{digits}f}\u00a0%"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes:
        return f"{minutes:,}\u00a0min {rest}\u00a0s"
    return f"{seconds:.1f}\u00a0s" if seconds < 10 else f"{rest}\u00a0s"


def body_rows(rows: Sequence[Sequence[str]]) -> str:
    """The body of a table whose first column names the row."""
    lines = []
    for name, *cells in rows:
        lines.append(
            f'<tr><th scope="row">{escape(name)}</th>'
            + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        )
    return "</tr>".join([*lines, ""])
