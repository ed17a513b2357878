"""Which class names look like mirror images of each other?

A left-right flip of a video turns left into right, and clockwise into anticlockwise. So a flip of a
video of one such class shows the other class.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Final, NamedTuple

# What a flip exchanges: patterns of both sides, in English first. A name that holds a pattern
# counts only if the name of its mirror image is a class too, so the "left" of "cleft" does no harm.
SIDES: Final = (
    (
        r"left|links|gauche|izquierd|sinistr|esquerd|左|\b(?:l|lh|lhs)\b",
        r"right|rechts|droite|derech|destr|direit|右|\b(?:r|rh|rhs)\b",
    ),
    (r"(?:anti|counter|contra) ?clock ?wise|\b(?:ccw|acw)\b", r"clock ?wise|\bcw\b"),
    (r"\b(?:lr|ltr|l2r)\b", r"\b(?:rl|rtl|r2l)\b"),
    (r"east", r"west"),
)
# Words that show a side, whether or not the mirror image is a class.
ONE_SIDED: Final = re.compile(
    r"\b(?:(?:left|right)(?:wards?|most|hand(?:ed)?)?|(?:(?:anti|counter) ?)?clock ?wise|cc?w)\b"
)


class MirrorNames(NamedTuple):
    """What the names of classes say about a left-right flip."""

    pairs: tuple[tuple[str, str], ...]  # classes whose names look like mirror images of each other
    alone: tuple[str, ...]  # classes whose names show a side, and whose mirror image is no class


def mirror_names(classes: Iterable[str]) -> MirrorNames:
    """The classes whose names look like mirror images, in the order of the classes."""
    by_key: dict[str, list[str]] = {}
    for name in classes:
        by_key.setdefault(_key(name), []).append(name)
    pairs: list[tuple[str, str]] = []
    paired: set[str] = set()
    alone: list[str] = []
    for names in by_key.values():
        mirrored = by_key.get(_key(names[0], mirrored=True), [])
        if len(names) == len(mirrored) == 1 and names != mirrored:
            if names[0] not in paired:
                pairs.append((names[0], mirrored[0]))
                paired |= {names[0], mirrored[0]}
        elif names != mirrored:
            alone += [name for name in names if ONE_SIDED.search(_words(name))]
    return MirrorNames((*pairs,), (*alone,))


def _key(name: str, *, mirrored: bool = False) -> str:
    """A key that all spellings of a name share, or all spellings of its mirror image."""
    text = _words(name)
    for number, (one, other) in enumerate(SIDES):
        marks = f"\0{number}<", f"\0{number}>"
        first, second = reversed(marks) if mirrored else marks
        # The first pattern goes first: "clockwise" is a part of "anticlockwise".
        pieces = re.split(f"({one})", text)
        pieces[::2] = [re.sub(other, second, piece) for piece in pieces[::2]]
        pieces[1::2] = [first] * (len(pieces) // 2)
        text = "".join(pieces)
    return text.replace(" ", "")


def _words(name: str) -> str:
    """The words of a name in lower case, with one space between them: `turnLeft` is two words."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", unicodedata.normalize("NFKC", name))
    return re.sub(r"[\s_\-\u2010-\u2015]+", " ", apart.casefold()).strip()
