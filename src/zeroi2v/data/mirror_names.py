"""Which class names look like mirror images, or like time reversals, of each other?

A left-right flip of a video turns left into right, and clockwise into anticlockwise. So a flip of a
video of one such class shows the other class. Playing a video backwards likewise turns up into
down, and open into close.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Final, NamedTuple, TypeAlias

# What a flip exchanges: patterns of both sides, in English first. A name that holds a pattern
# counts only if the name of its mirror image is a class too, so the "left" of "cleft" does no harm.
Exchange: TypeAlias = tuple[str, str]
SIDES: Final[tuple[Exchange, ...]] = (
    (
        r"left|links|gauche|izquierd|sinistr|esquerd|左|\b(?:l|lh|lhs)\b",
        r"right|rechts|droite|derech|destr|direit|右|\b(?:r|rh|rhs)\b",
    ),
    (r"(?:anti|counter|contra) ?clock ?wise|\b(?:ccw|acw)\b", r"clock ?wise|\bcw\b"),
    (r"\b(?:lr|ltr|l2r)\b", r"\b(?:rl|rtl|r2l)\b"),
    (r"east", r"west"),
)
_UNDONE: Final = (
    *("fold", "cover", "lock", "tie", "zip", "wrap", "pack", "roll", "load", "plug", "dress"),
    *("button", "screw", "bend", "hook", r"do\b"),
)
# What playing backwards exchanges, in the same way.
TIMES: Final[tuple[Exchange, ...]] = (
    *SIDES,
    (r"\b(?:near(?:er)?|closer)\b", r"\b(?:far(?:ther)?|further)\b"),
    (r"\bup(?:wards?|hill|stairs)?\b|\bhoch\b", r"\bdown(?:wards?|hill|stairs)?\b|\brunter\b"),
    (r"\bopen(?:ed)?", r"\b(?:close?d?|shut(?:t(?=ing))?)"),
    (r"\bin(?:to|wards?|side)?\b", r"\bout(?:wards?|side)?(?: of)?\b"),
    (r"\bon(?:to)?\b", r"\boff(?: of)?\b"),
    (r"\bpush", r"\bpull"),
    (r"\b(?:put(?:t(?=ing))?|plac|insert|attach|add)e?", r"\b(?:tak|pick|remov|detach)e?"),
    (r"\b(?:throw|drop)(?:p(?=ing))?", r"\bcatch"),
    (r"\btowards?\b", r"\baway(?: from)?\b"),
    (r"\b(?:forwards?|vorwärts)\b", r"\b(?:backwards?|rückwärts)\b"),
    (r"\b(?:approach|arriv)e?", r"\b(?:depart|recede?)"),
    (r"\b(?:rais|lift|ascend|climb|ris)e?", r"\b(?:lower|descend|fall)"),
    (r"\benter", r"\b(?:leav|exit)e?"),
    (r"\b(?:stand|get)(?:t(?=ing))?", r"\b(?:sit|li|lay)(?:t(?=ing))?e?"),
    (r"\bdisappear", r"\bappear"),
    (r"\b(?:grow|expand|inflat|fill|stretch)e?", r"\b(?:shrink|contract|deflat|empt|squeez)[ey]?"),
    (r"\b(?:start|begin)(?:n(?=ing))?", r"\b(?:stop|end|finish)(?:p(?=ing))?"),
    (r"\b(?:accelerat|speed)e?", r"\b(?:decelerat|slow)e?"),
    (r"\b(?:assembl|build)e?", r"\b(?:disassembl|dismantl)e?"),
    (r"\bconnect", r"\bdisconnect"),
    *((rf"\bun{verb}", rf"\b{verb}") for verb in _UNDONE),
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
        by_key.setdefault(_key(name, SIDES), []).append(name)
    pairs: list[tuple[str, str]] = []
    paired: set[str] = set()
    alone: list[str] = []
    for names in by_key.values():
        mirrored = by_key.get(_key(names[0], SIDES, exchanged=True), [])
        if len(names) == len(mirrored) == 1 and names != mirrored:
            if names[0] not in paired:
                pairs.append((names[0], mirrored[0]))
                paired |= {names[0], mirrored[0]}
        elif names != mirrored:
            alone += [name for name in names if ONE_SIDED.search(_words(name))]
    return MirrorNames((*pairs,), (*alone,))


def reversed_names(classes: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Pairs of classes whose names look like time reversals, in the order of the classes."""
    by_key: dict[str, str] = {}
    for name in classes:
        by_key.setdefault(_key(name, TIMES), name)
    pairs: dict[frozenset[str], tuple[str, str]] = {}
    for name in by_key.values():
        other = by_key.get(_key(name, TIMES, exchanged=True), name)
        if other != name:
            pairs.setdefault(frozenset((name, other)), (name, other))
    return (*pairs.values(),)


def _key(name: str, exchanges: Iterable[Exchange], *, exchanged: bool = False) -> str:
    """A key that all spellings of a name share, or of the name with both sides exchanged."""
    text = _words(name)
    for number, (one, other) in enumerate(exchanges):
        marks = f"\0{number}<", f"\0{number}>"
        first, second = reversed(marks) if exchanged else marks
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
