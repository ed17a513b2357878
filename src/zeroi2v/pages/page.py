"""How does a result become a page? A template is filled: one HTML file that needs no other file.

A page reads well on a light and on a dark screen, and down to a width of 400 pixels. The templates
lie in templates/: `layout.html` is around every page, `tables.html` holds what pages share.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from zeroi2v.errors import how_many


def render(template: str, **values: object) -> Markup:
    """Fill a template with values.

    A text in a value is escaped, so it can hold no HTML. A missing value is an error.
    """
    return Markup(_environment().get_template(template).render(values))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("zeroi2v.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "duration": duration,
        "picture": picture,
        "how_many": how_many,
    }
    return environment


def picture(pixels: Tensor, alt: str) -> Markup:
    """Pixels uint8 (3, H, W) as an HTML element that holds the picture. `alt` describes it."""
    height, width = pixels.shape[-2:]
    file = io.BytesIO()
    Image.fromarray(pixels.movedim(0, -1).cpu().numpy()).save(file, "JPEG", quality=90)
    encoded = base64.b64encode(file.getvalue()).decode("ascii")
    element = '<img src="data:image/jpeg;base64,{}" width="{}" height="{}" alt="{}">'
    return Markup(element).format(encoded, width, height, alt)


def percent(share: float, digits: int = 1) -> str:
    """A share of one in per cent: 0.5 is '50.0 %', with a space that does not break."""
    return f"{100 * share:.{digits}f}\u00a0%"


def in_one_line(values: Mapping[str, Any], text: Callable[[Any], str] = str) -> str:
    """Names and values in one line: 'cores 2, threads 2'. `text` writes a value."""
    return ", ".join(f"{name} {text(value)}" for name, value in values.items())


def duration(seconds: float) -> str:
    """Seconds as people say them: '4.2 s', '35 s', '3 min 20 s', with spaces that do not break."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes:
        return f"{minutes:,}\u00a0min {rest}\u00a0s"
    return f"{seconds:.1f}\u00a0s" if seconds < 10 else f"{rest}\u00a0s"
