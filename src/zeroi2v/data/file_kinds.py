"""Which files of a folder are videos, which are images, and which are neither?

The ending of a name tells the kind of a file. A file with an unknown ending, or without an ending,
is a video if its first bytes are those of a video. An animated GIF is an image that is not read.

A folder of frames is a folder that holds images and no video.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, TypeAlias

Kind: TypeAlias = Literal["video", "image", "copy", "other"]
"""video, image: what the decoder reads. copy: a small copy that a camera keeps of its video."""

_VIDEOS: Final = """
    264 265 3g2 3gp 3gpp amv asf av1 avi avs2 divx drc dv f4v flv gxf h264 h265 hevc insv ivf m1v
    m2p m2t m2ts m2v m4v mjpeg mjpg mk3d mkv mod mov mp4 mp4v mpe mpeg mpg mpv mts mxf nsv nut obu
    ogm ogv qt rm rmvb roq tod tp trp ts vob webm wmv wtv xvid y4m
"""
_IMAGES: Final = "bmp jpeg jpg png webp"
_COPIES: Final = "lrf lrv"  # lrf: of DJI's cameras; lrv: of GoPro's and Insta360's cameras
_OTHERS: Final = {
    "images that are not read": """
        3fr ai apng arw avif cr2 cr3 crw cur dng dpx eps exr gif gpr hdr heic heics heif hif icns
        ico insp j2k jfif jp2 jpe jpf jxl jxr mpo nef nrw orf pam pbm pcx pef pgm pnm ppm psb psd
        raf raw rw2 sr2 srf srw svg svgz tga thm tif tiff x3f xbm xcf xpm
    """,
    "sounds": """
        3ga aac ac3 aif aiff amr ape caf dts eac3 f4a flac m4a m4b mid midi mka mp2 mp3 oga ogg
        opus ra spx wav weba wma wv
    """,
    "subtitles": "ass dfxp idx lrc sbv smi srt ssa sub sup ttml vtt",
    "documents": """
        adoc asc bib csv doc docx epub htm html ini ipynb json json5 jsonl key log md mhtml ndjson
        nfo numbers odp ods odt org pages pdf ppt pptx properties ps rst rtf tex toml tsv txt
        xhtml xls xlsx xml yaml yml
    """,
    "measurements and tensors": """
        arrow bag bvh c3d cls db db3 feather flo h5 hdf hdf5 joblib lmdb mat mdb msgpack npy npz
        onnx orc parquet pb pcd pickle pkl ply pt pth rds safetensors skeleton sqlite sqlite3
        tfrecord trc zarr
    """,
    "archives and unfinished downloads": """
        7z apk aria2 bz2 cab crdownload deb dmg download egg filepart gz iso jar lz4 opdownload
        par2 part partial rar rpm tar tbz2 temp tgz tmp torrent txz whl xz ytdl zip zst
    """,
    "companions of cameras, players and desktops": """
        aae bdm bif bim bup cif cpf cpi ctg dop fit gpx ifo kml lnk lrcat m3u m3u8 modd moff moi
        mpd mpl nmea pgi pls pp3 ppn sdp tcx tdt tid url webloc website wpl xmp xspf
    """,
    "projects of editors and annotations": """
        aep anvil cha drp eaf fcpxml kdenlive mlt otio pfsx prproj psfx textgrid veg vott
    """,
    "programs, backups and checksums": """
        bak bash bat bin c cfg class cmd conf cpp crc css desktop directory dll dylib exe gitkeep
        h hpp java js lock m map md5 mex o old orig pid ps1 py pyc pyd r rb rej rs sav sfv sh sha1
        sha256 sha512 sig so sql swn swo swp xsl
    """,
}
_UNREAD_IMAGES: Final = frozenset(_OTHERS["images that are not read"].split())
_KIND_OF_ENDING: Final[dict[str, Kind]] = {
    **dict.fromkeys(_VIDEOS.split(), "video"),
    **dict.fromkeys(_IMAGES.split(), "image"),
    **dict.fromkeys(_COPIES.split(), "copy"),
    **dict.fromkeys(" ".join(_OTHERS.values()).split(), "other"),
}
# Names without an ending that are never videos. macOS stores the icon of a folder as "Icon\r".
_NO_VIDEOS: Final = frozenset(("icon\r",))
_VIDEO_BEGINNINGS: Final = (
    b"\x1aE\xdf\xa3",  # Matroska, WebM
    b"\0\0\0\x01",  # H.264 or H.265 without a container
    b"\0\0\0\0\x01\xbc",  # GXF
    b"0&\xb2u",  # ASF, WMV
    b"\x06\x0e+4",  # MXF
    b".RMF\0",
    b"DHAV\xfd",  # recorders of cameras
    b"DKIF\0",  # IVF
    b"FLV\x01",
    b"IMKH\x01",
    b"OggS\0",
    b"YUV4MPEG2 ",
    b"nut/multimedia container",
)
_RIFF_VIDEOS: Final = (b"AVI ", b"AVIX", b"CDXA")
_BOXES: Final = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide")  # of MP4 and QuickTime
_IMAGE_BRANDS: Final = (b"heic", b"heix", b"mif1", b"msf1", b"avif", b"avis", b"crx ")
_FIRST_BYTES: Final = 1024
# Of MPEG-TS files: the position of the first packet, which begins with G, and the packet length
_TS_PACKETS: Final = ((0, 188), (4, 192))

_COPY_WORDS: Final = re.compile(r"(.+?)[ ._-]+(?:proxy|low[ _-]?res|lowresolution|lrv|preview)")
_SONY_COPY: Final = re.compile(r"(c\d{4})s\d{2}")  # C0001S03.MP4 of C0001.MP4
_GOPRO_COPY: Final = re.compile(r"gl(\d{6})")  # GL010001.MP4, a renamed .LRV, of GX010001.MP4
_INSTA360_COPY: Final = re.compile(r"lrv(_\d{8}_\d{6}_).*")  # LRV_20240101_120000_01_001.mp4

_SYSTEM_FOLDERS: Final = re.compile(
    r"""
    __macosx | \$recycle\.bin | recycler | recycled | system\ volume\ information | config\.msi
    | found\.\d{3} | lost\+found | lost\.dir | @eadir | [@\#]recycle | [@\#]snapshot | @tmp
    | @recently-snapshot | @sharebin | __pycache__ | node_modules
    | lightning_logs | mlruns | tb_logs | wandb
    """,
    re.VERBOSE,
)
OUTPUT_FILES: Final = frozenset(  # each tells that zeroi2v wrote the folder of the file
    (
        "recipe.toml",  # a run
        "model.safetensors",  # a saved model
        "show.html",
        "bench.json",
        "compare.json",
        "rows.jsonl",  # a comparison that has not ended
        "quickstart.txt",
        ".reencode.json",  # a copy of a data set
    )
)
_OUTPUT_VIDEO: Final = "show.mp4"


@dataclass(frozen=True)
class FolderFiles:
    """The names in one folder by kind, sorted. Hidden names are left out."""

    folders: list[str] = field(default_factory=list)
    videos: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)  # smaller copies of the videos too
    is_output: bool = False  # zeroi2v wrote the folder: a run, a model, a report, a copy

    @property
    def all_files(self) -> list[str]:
        """The names of all files."""
        return sorted([*self.videos, *self.images, *self.others])

    @property
    def are_frames(self) -> bool:
        """Whether the folder is a folder of frames, which is one video."""
        return bool(self.images) and not self.videos and not self.is_output


def files_of(folder: Path) -> FolderFiles:
    """The files and folders in a folder. OSError if the folder cannot be read."""
    names: dict[str, list[str]] = {"folder": [], "video": [], "image": [], "copy": [], "other": []}
    has_output_file = False
    with os.scandir(folder) as entries:  # asks the disk once, not once a file
        for entry in entries:
            has_output_file = has_output_file or entry.name in OUTPUT_FILES
            if not entry.name.startswith("."):
                names[_kind_of_entry(entry)].append(entry.name)
    copies = _copies_among(names["video"])
    videos = [name for name in names["video"] if name not in copies]
    return FolderFiles(
        sorted(names["folder"]),
        sorted(videos),
        sorted(names["image"]),
        sorted([*names["other"], *names["copy"], *copies]),
        has_output_file and {*videos} <= {_OUTPUT_VIDEO},
    )


def kind_by_name(name: str) -> Kind | None:
    """The kind of a file, as its name tells; None if the ending is unknown, or missing."""
    lower = name.lower()
    if lower in _NO_VIDEOS or lower.endswith("~"):
        return "other"
    _, dot, ending = lower.rpartition(".")
    return _KIND_OF_ENDING.get(ending.rstrip()) if dot else None


def kind_of_file(path: Path) -> Kind:
    """The kind of a file that is there, as its name tells, or else its first bytes."""
    return kind_by_name(path.name) or ("video" if _begins_as_video(str(path)) else "other")


def is_unread_image(name: str) -> bool:
    """Whether a file is an image of a kind that no folder of frames can hold."""
    return name.lower().rpartition(".")[2] in _UNREAD_IMAGES


def is_system_folder(name: str) -> bool:
    """Whether an operating system, a file server or a tool makes folders of this name."""
    return _SYSTEM_FOLDERS.fullmatch(name.lower()) is not None


def _kind_of_entry(entry: os.DirEntry[str]) -> str:
    if entry.is_dir():
        return "folder"
    kind = kind_by_name(entry.name)
    if kind is not None:
        return kind
    if not entry.is_file():  # a link to nothing is a broken video; a pipe is no video
        return "video" if entry.is_symlink() else "other"
    return "video" if _begins_as_video(entry.path) else "other"


def _begins_as_video(path: str) -> bool:
    """Whether the first bytes of a file are those of a video."""
    try:
        with open(path, "rb") as file:
            beginning = file.read(_FIRST_BYTES)
    except OSError:
        return True  # a video that cannot be read, which is reported when its turn comes
    if not beginning:
        # An empty file with an ending may be a failed download; without an ending it is no video.
        return bool(os.path.splitext(path)[1])
    box, kind = beginning[4:8], beginning[8:12]
    return (
        beginning.startswith(_VIDEO_BEGINNINGS)
        # MPEG; with a fourth byte of 0 the file is a Windows icon
        or (beginning.startswith(b"\0\0\x01") and beginning[3:4] != b"\0")
        or (beginning.startswith(b"RIFF") and kind in _RIFF_VIDEOS)
        or (beginning.startswith(b"\0") and box in _BOXES and kind not in _IMAGE_BRANDS)
        or any(beginning[first::length][:3] == b"GGG" for first, length in _TS_PACKETS)
    )


def _copies_among(videos: Iterable[str]) -> set[str]:
    """The videos whose names say that they are smaller copies of other videos in the list."""
    stems = {name: os.path.splitext(name.lower())[0] for name in videos}
    known = {*stems.values()}
    return {name for name, stem in stems.items() if _is_copy(stem, known)}


def _is_copy(stem: str, known: set[str]) -> bool:
    for pattern in (_COPY_WORDS, _SONY_COPY):
        if (match := pattern.fullmatch(stem)) and match[1] in known:
            return True
    if match := _GOPRO_COPY.fullmatch(stem):
        return any(f"{prefix}{match[1]}" in known for prefix in ("gx", "gh"))
    if match := _INSTA360_COPY.fullmatch(stem):
        return any(other.startswith(f"vid{match[1]}") for other in known)
    return False
