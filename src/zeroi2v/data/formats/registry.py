"""Which formats are there, and which of them reads a source?

A format is a row of FORMATS: a function that recognises a source, and a function that reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Literal, NamedTuple

from zeroi2v.config import DataConfig
from zeroi2v.data.formats import (
    class_folders,
    diving48,
    hmdb51,
    kinetics,
    manifest,
    mmaction,
    shards,
    ssv2,
    ucf101,
)
from zeroi2v.data.formats.layout import is_folder_per_class
from zeroi2v.data.formats.listing import Listing
from zeroi2v.data.formats.source import Source
from zeroi2v.errors import ConfigError, DatasetError, first_names, how_many, nearest


class Format(NamedTuple):
    """One way to list the videos of a data set."""

    recognises: Callable[[Source], bool]
    read: Callable[[Source], Listing]
    # settings of [data] whose path the format reads
    takes: tuple[Literal["videos", "classes"], ...] = ("videos",)


FORMATS: Final[Mapping[str, Format]] = {  # the first format that recognises a source reads it
    "kinetics": Format(kinetics.recognises, kinetics.read),
    "ssv2": Format(ssv2.recognises, ssv2.read),
    "ucf101": Format(ucf101.recognises, ucf101.read),
    "hmdb51": Format(hmdb51.recognises, hmdb51.read),
    "diving48": Format(diving48.recognises, diving48.read),
    "mmaction": Format(mmaction.recognises, mmaction.read, ("videos", "classes")),
    "webdataset": Format(shards.recognises, shards.read, ("classes",)),
    "manifest": Format(manifest.recognises, manifest.read),
    "folder": Format(lambda source: True, class_folders.read, ()),
}


def read_source(path: Path, config: DataConfig) -> tuple[str, Listing]:
    """The name of the format of a source, and what the source lists.

    The settings name the format. With "auto", the first format that recognises the source is taken.
    ConfigError if the settings name a path that this format does not read.
    """
    if config.format != "auto" and config.format not in FORMATS:
        known = ["auto", *FORMATS]
        raise ConfigError(
            f"format {config.format!r} is none of {', '.join(known)}{nearest(config.format, known)}"
        )
    source = Source.of(path, config)
    name = config.format
    if name == "auto":
        name = next(name for name, format in FORMATS.items() if format.recognises(source))
    for setting in ("videos", "classes"):
        if getattr(config, setting) is not None and setting not in FORMATS[name].takes:
            raise ConfigError(
                f"data.{setting} has no meaning for {path}, which is read as {name} (data.format); "
                "leave the setting out, or name another data.format"
            )
    listing = FORMATS[name].read(source)
    if not (listing.entries or listing.wrong):
        only = ", only a header" if name == "manifest" else f" that can be read as {name}"
        raise DatasetError(f"{path}: no videos in it{only}")
    if config.format == "auto":
        _require_a_video(source, name, listing)
    return name, listing


def _require_a_video(source: Source, name: str, listing: Listing) -> None:
    """DatasetError if the lists beside class folders name only videos that are not there."""
    if listing.wrong or any(entry.found for entry in listing.entries):
        return
    if source.path.is_dir() and is_folder_per_class(source.path):
        paths = list(dict.fromkeys(entry.path for entry in listing.entries))
        raise DatasetError(
            f"{source.path}: its lists ({name}) name {how_many(len(paths), 'video')}, but none is "
            f"there: {first_names(paths)}; if the class folders are the data set, "
            "add --set data.format=folder"
        )
