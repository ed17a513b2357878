"""How does Something-Something V2 list its videos?

labels.json numbers the classes. train.json and validation.json give the id and the template of each
video; test-answers.csv has lines of id;label.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from zeroi2v.data.formats.layout import is_folder_per_class
from zeroi2v.data.formats.listing import Entry, Listing
from zeroi2v.data.formats.lists import read_array, read_lines, read_object
from zeroi2v.data.formats.source import Source
from zeroi2v.errors import DatasetError

_PREFIXES: Final = ("", "something-something-v2-")
_CLASSES: Final = 174
_FLIPS: Final = ((86, 87), (93, 94), (166, 167))  # numbers of classes that a flip exchanges
_SPLITS: Final = {"train": "train", "validation": "val"}  # word in a file's name -> split


def recognises(source: Source) -> bool:
    """Whether labels.json and a list of templates are there.

    Other data sets have files of these names too. So if the source has class folders, the files
    must also have the content of Something-Something's files.
    """
    labels = _named(source, "labels.json")
    lists = [file for split in _SPLITS if (file := _named(source, f"{split}.json"))]
    if labels is None or not lists:
        return False
    return not is_folder_per_class(source.path) or _are_ssv2_lists(labels, lists)


def read(source: Source) -> Listing:
    """Read labels.json and the lists. DatasetError if the classes are not numbered from 0 on."""
    classes = _read_classes(source.need(*_names("labels.json")))
    pairs = _FLIPS if len(classes) == _CLASSES else ()
    listing = Listing(
        classes=classes,
        flip_pairs=tuple((classes[first], classes[second]) for first, second in pairs),
    )
    for word, split in _SPLITS.items():
        file = source.need(*_names(f"{word}.json"))
        for number, item in enumerate(read_array(file), start=1):
            where = f"{file}, entry {number}"
            template = item.get("template") if isinstance(item, dict) and "id" in item else None
            if not isinstance(item, dict) or not isinstance(template, str):
                listing.wrong.append(f"{where}: expected an object with id and template")
                continue
            label = template.replace("[", "").replace("]", "")
            listing.entries.append(Entry(str(item["id"]), label, split, where))
    answers = [file for name, file in source.lists.items() if name.endswith("test-answers.csv")]
    for where, line in read_lines(answers[0]) if answers else ():
        name, _, label = line.partition(";")
        listing.entries.append(Entry(name, label.strip(), "test", where))
    if not answers:
        listing.ignored += [
            file for name, file in source.lists.items() if name.endswith("test.json")
        ]
    listing.find_videos(source.videos, ending=".webm")
    return listing


def _names(name: str) -> list[str]:
    return [prefix + name for prefix in _PREFIXES]


def _named(source: Source, name: str) -> Path | None:
    return next((source.lists[full] for full in _names(name) if full in source.lists), None)


def _are_ssv2_lists(labels: Path, lists: list[Path]) -> bool:
    """Whether labels.json maps names to numbers, and the lists hold ids and templates."""
    try:
        numbers = read_object(labels).values()
        items = [item for file in lists for item in read_array(file)[:1]]
    except DatasetError:
        return False
    return (
        all(str(number).isdecimal() for number in numbers)
        and bool(items)
        and all(isinstance(item, dict) and {"id", "template"} <= item.keys() for item in items)
    )


def _read_classes(labels: Path) -> tuple[str, ...]:
    """The classes in the order of their numbers."""
    numbers = {name: str(number) for name, number in read_object(labels).items()}
    order = sorted(
        numbers, key=lambda name: int(numbers[name]) if numbers[name].isdecimal() else -1
    )
    if [numbers[name] for name in order] != [str(number) for number in range(len(order))]:
        raise DatasetError(f"{labels}: its numbers must be 0 to {len(order) - 1}, each once")
    return (*order,)
