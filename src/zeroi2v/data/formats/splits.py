"""Which split is a file, a folder or a word named after: train, val or test?"""

from __future__ import annotations

import re
from typing import Final

SPLITS: Final = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "validate": "val",
    "dev": "val",
    "eval": "val",
    "evaluation": "val",
    "test": "test",
    "testing": "test",
}
_CONTENT: Final = "videos|clips|frames|rawframes|data"
_SPLIT_NAME: Final = re.compile(
    rf"(?:(?:{_CONTENT})[ ._-])?({'|'.join(SPLITS)})(?:[ ._-]?(?:sets?|split|{_CONTENT}|\d+p?))?"
)


def split_of(name: str) -> str:
    """The split that a whole name stands for: 'train' for Training, train_set, train_256; or ''."""
    match = _SPLIT_NAME.fullmatch(name.strip().lower())
    return SPLITS[match[1]] if match else ""


def split_in(name: str) -> str:
    """The split that a word of a name stands for, 'val' for k400_validate_list.csv; '' if none."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((SPLITS[word] for word in words if word in SPLITS), "")
