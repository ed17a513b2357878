"""Do the lines of a listing contradict each other, and is every class spelled in one way?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from zeroi2v.data.formats.labels import LABEL_SEPARATOR
from zeroi2v.data.formats.listing import Entry, Listing
from zeroi2v.data.spellings import canonical, is_text, same_spelling, spelling_key
from zeroi2v.errors import DatasetError, first_names, how_many, nearest, nearest_class


@dataclass(frozen=True)
class CheckedListing:
    """The videos of a listing, each once."""

    classes: tuple[str, ...]  # with composed letters
    videos: list[Entry]  # the first entry of each video
    labels: Mapping[str, set[str]]  # path -> names of classes
    repeated: list[str]  # a sentence for each label of a video that is listed twice
    notes: list[str]  # a warning each


def check_listing(source: Path, listing: Listing, *, multi_label: bool) -> CheckedListing:
    """Check every line and every class name.

    DatasetError for lines that cannot be used or contradict each other, and for a class of the
    validation or test videos that is another spelling of a class of the training videos.
    """
    entries = [entry._replace(label=canonical(entry.label)) for entry in listing.entries]
    published = [canonical(name) for name in listing.classes or ()]
    classes = tuple(published or sorted({entry.label for entry in entries}))
    _check_class_names(source, classes, multi_label=multi_label)
    videos, labels, repeated = _check_entries(
        entries, classes, listing.wrong, multi_label=multi_label
    )
    notes = _mixed_letters(source, listing)
    if not published:
        _require_one_spelling(source, entries)
        notes += _similar_classes(source, classes)
    return CheckedListing(classes, videos, labels, repeated, notes)


def without_classes(
    source: Path, checked: CheckedListing, left_out: Sequence[str], *, may_be_absent: bool = False
) -> CheckedListing:
    """The listing without some classes and their videos.

    DatasetError if a class is not there, unless classes `may_be_absent`.
    """
    for name in left_out:
        if canonical(name) not in checked.classes and not may_be_absent:
            raise DatasetError(
                f"{source}: data.leave_out: no class is called {name!r}"
                f"{nearest_class(name, checked.classes)}"
            )
    names = {*map(canonical, left_out)}
    videos = [video for video in checked.videos if names.isdisjoint(checked.labels[video.path])]
    if left_out and not videos:
        raise DatasetError(f"{source}: data.leave_out leaves out every video; keep some classes")
    classes = tuple(name for name in checked.classes if name not in names)
    return replace(checked, classes=classes, videos=videos)


def classes_without_training(
    source: Path, classes: Sequence[str], splits: Mapping[str, Iterable[set[str]]]
) -> list[str]:
    """The warning about classes that have no training video, while other classes have some.

    There is no warning if no class has a training video. `splits` has the labels of every video by
    split.
    """
    labels = {split: {*set().union(*videos)} for split, videos in splits.items()}
    trained = labels.pop("train", set())
    others = set().union(*labels.values())
    untrained = [name for name in classes if name in others and name not in trained]
    if not trained or not untrained:
        return []
    shown = [repr(name) + nearest(name, trained) for name in untrained[:3]]
    more = f" and {len(untrained) - 3} more" if len(untrained) > 3 else ""
    count = how_many(len(untrained), "class has", "classes have")
    return [
        f"{source}: {count} no training video: {'; '.join(shown)}{more}; "
        "add training videos, or remove the classes"
    ]


def _check_class_names(source: Path, classes: Sequence[str], *, multi_label: bool) -> None:
    for name in classes:
        if multi_label and LABEL_SEPARATOR in name:
            raise DatasetError(
                f"{source}: the class name {name!r} holds a bar, which separates labels; rename it"
            )
        if not is_text(name):
            raise DatasetError(
                f"{source}: the class name {name!r} has characters that are no text; rename it"
            )
    twice = [name for name, count in Counter(classes).items() if count > 1]
    if twice:
        raise DatasetError(
            f"{source}: the class names hold {first_names(twice)} twice; name each once"
        )


def _check_entries(
    entries: Sequence[Entry],
    classes: Sequence[str],
    wrong_lines: Sequence[str],
    *,
    multi_label: bool,
) -> tuple[list[Entry], dict[str, set[str]], list[str]]:
    """The first entry of each video, the labels of each path, and the repeated labels.

    `wrong_lines` has a sentence for each line that the format could not use. DatasetError lists
    these lines and the lines that contradict each other.
    """
    known = {*classes}
    wrong, repeated = [*wrong_lines], []
    first: dict[str, Entry] = {}
    labels: dict[str, set[str]] = {}
    for entry in entries:
        earlier = first.setdefault(entry.path, entry)
        if not entry.label:
            wrong.append(f"{entry.where}: the label is empty")
        elif entry.label not in known:
            near = nearest(entry.label, classes) if len(wrong) < 3 else ""  # no more are shown
            wrong.append(f"{entry.where}: no class is called {entry.label!r}{near}")
        elif earlier is entry:
            labels[entry.path] = {entry.label}
        elif earlier.split != entry.split or (earlier.label != entry.label and not multi_label):
            is_label = earlier.label != entry.label and not multi_label
            what = "label" if is_label else "split"
            remedy = ", or set data.multi_label" if is_label else ""
            wrong.append(
                f"{entry.where}: {entry.path} is also at {earlier.where}, with another {what} "
                f"(keep one of the lines{remedy})"
            )
        elif entry.label in labels.setdefault(entry.path, set()):
            repeated.append(f"{entry.where}: {entry.path} is also at {earlier.where}")
        else:
            labels[entry.path].add(entry.label)
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise DatasetError("; ".join(wrong[:3]) + more)
    return [*first.values()], labels, repeated


def _require_one_spelling(source: Path, entries: Sequence[Entry]) -> None:
    """DatasetError if a class without training videos is another spelling of a trained class."""
    trained = {entry.label for entry in entries if entry.split in ("train", "")}
    others = sorted({entry.label for entry in entries} - trained)
    pairs = [(name, same_spelling(name, trained)) for name in others if trained]
    wrong = [f"{name!r} ({near[0]!r} has some)" for name, near in pairs if near]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise DatasetError(
            f"{source}: no training videos of the class {', '.join(wrong[:3])}{more}; "
            "spell the name of a class alike in all splits"
        )


def _similar_classes(source: Path, classes: Sequence[str]) -> list[str]:
    """The warning about classes whose names are spellings of each other."""
    by_key: dict[str, list[str]] = {}
    for name in classes:
        by_key.setdefault(spelling_key(name), []).append(name)
    groups = [" and ".join(map(repr, names)) for names in by_key.values() if len(names) > 1]
    if not groups:
        return []
    return [f"{source}: classes that differ only in spelling: {first_names(groups)}"]


def _mixed_letters(source: Path, listing: Listing) -> list[str]:
    """The warning about class names that occur with composed and with decomposed letters."""
    by_text: dict[str, set[str]] = {}
    for entry in listing.entries:
        if not entry.label.isascii():
            by_text.setdefault(canonical(entry.label), set()).add(entry.label)
    groups = [
        " and ".join(map(ascii, sorted(names))) for names in by_text.values() if len(names) > 1
    ]
    if not groups:
        return []
    return [
        f"{source}: class names that differ only in composed and decomposed letters are taken for "
        f"one class: {first_names(groups)}"
    ]
