"""When are two names the same name, or one name in two spellings?

Unicode writes an accented letter in one character (composed) or in two (decomposed). Both forms
are the same text, so both are the same name. Other spellings are likely to be mistakes.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Final

_SEPARATORS: Final = r"[\s_\-\u2010-\u2015]+"
_INVISIBLE: Final = re.compile("[\u00ad\u200b-\u200f\u2060\ufe0e\ufe0f\ufeff]")


def canonical(name: str) -> str:
    """The name with composed letters, so that the same text is the same string."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def is_text(name: str) -> bool:
    """Whether a name holds neither control characters nor bytes that no encoding explains."""
    return not any(unicodedata.category(character) in ("Cc", "Cs") for character in name)


def spelling_key(name: str) -> str:
    """A key that names share if they differ only in case, spaces, hyphens, underscores, invisible
    characters, the width of letters, or zeros before a number. The sign of a number counts.
    """
    key = unicodedata.normalize("NFKC", _INVISIBLE.sub("", name)).casefold()
    key = re.sub(r"(?<!\w)-(?=\d)", "\u2212", key)  # a minus sign, no hyphen
    key = re.sub(r"(?<![\d.,])0+(?=\d)", "", key)
    key = re.sub(rf"(?<=\d){_SEPARATORS}(?=\d)", "/", key)  # 1-2 is not 12
    return unicodedata.normalize("NFC", re.sub(_SEPARATORS, "", key))


def same_spelling(name: str, names: Iterable[str]) -> list[str]:
    """The other names among `names` with the key of `name`."""
    key = spelling_key(name)
    return [other for other in names if other != name and spelling_key(other) == key]
