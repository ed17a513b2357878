"""Is a class that is spelled in two ways noticed, and is every name that is text accepted?"""

import unicodedata
from pathlib import Path

import pytest

from tests.sources_for_tests import refusal, touch, write
from zeroi2v.config import DataConfig
from zeroi2v.data.datasets import open_dataset
from zeroi2v.data.spellings import spelling_key

REMEDY = "; add training videos, or remove the classes"
PAIRS = [
    ("opening", "Opening"),
    ("OPENING", "opening"),
    ("1", "01"),
    ("class 7", "class 007"),
    ("opening", "opening "),
    ("open door", "open  door"),
    ("open door", "open_door"),
    ("open-door", "open door"),
    ("OpenDoor", "open_door"),
    ("open door", "open\u00a0door"),
    ("open door", "open\u3000door"),
    ("open", "open\u200b"),
    ("open", "\uff4f\uff50\uff45\uff4e"),  # of full width
    ("open", "open\ufe0f"),
    ("Straße", "STRASSE"),
    ("Plié", unicodedata.normalize("NFD", "plié")),
]


@pytest.mark.parametrize(("trained", "other"), PAIRS)
@pytest.mark.parametrize("split", ["val", "test"])
def test_a_class_spelled_otherwise_in_another_split_is_an_error(
    tmp_path: Path, trained: str, other: str, split: str
) -> None:
    touch(tmp_path, f"train/{trained}/a.mp4", "train/walk/b.mp4", f"{split}/{other}/c.mp4")
    touch(tmp_path, f"{split}/walk/d.mp4")
    shown, known = (unicodedata.normalize("NFC", name) for name in (other, trained))
    assert refusal(tmp_path) == (
        f"SOURCE: no training videos of the class {shown!r} ({known!r} has some); "
        "spell the name of a class alike in all splits"
    )


@pytest.mark.parametrize(("trained", "other"), [("Wave", "wave"), ("1", "01")])
@pytest.mark.parametrize("several", [False, True])
def test_so_is_a_label_of_a_manifest(
    tmp_path: Path, trained: str, other: str, several: bool
) -> None:
    lines = [f"a.mp4,{trained},train", "b.mp4,walk,train", f"c.mp4,{other},val"]
    source = write(touch(tmp_path, "a.mp4", "b.mp4", "c.mp4") / "x.csv", "path,label,split", *lines)
    config = DataConfig(multi_label=several)
    assert f"the class {other!r} ({trained!r} has some)" in refusal(source, config)


DIFFERENT = [
    ("push left", "push right"),
    ("1-2", "12"),
    ("1.05", "1.5"),
    ("-1", "1"),
    ("10", "1"),
    ("C", "C++"),
    ("का", "की"),
    ("👍", "👎"),
]


@pytest.mark.parametrize(("trained", "other"), DIFFERENT)
def test_other_classes_without_training_videos_are_a_warning(
    tmp_path: Path, trained: str, other: str
) -> None:
    touch(tmp_path, f"train/{trained}/a.mp4", "train/walk/b.mp4", f"val/{other}/c.mp4")
    (note,) = open_dataset(tmp_path).notes
    assert note.startswith(f"{tmp_path}: 1 class has no training video: {other!r}")


def test_the_warning_names_the_nearest_class(tmp_path: Path) -> None:
    touch(tmp_path, "train/opening/a.mp4", "train/walk/b.mp4", "val/opning/c.mp4")
    assert open_dataset(tmp_path).warnings == (
        f"{tmp_path}: 1 class has no training video: 'opning', did you mean 'opening'?{REMEDY}",
    )


def test_many_classes_without_training_videos_are_counted(tmp_path: Path) -> None:
    touch(tmp_path, "train/run/a.mp4", *(f"val/x{number}q{number}/c.mp4" for number in range(2, 7)))
    (warning,) = open_dataset(tmp_path).warnings
    assert warning.startswith(f"{tmp_path}: 5 classes have no training video: 'x2q2'")
    assert warning.endswith(f" and 2 more{REMEDY}")


def test_without_training_videos_there_is_nothing_to_compare_with(tmp_path: Path) -> None:
    touch(tmp_path, "val/run/a.mp4", "val/walk/b.mp4")
    assert not open_dataset(tmp_path).warnings


def test_a_class_that_lost_its_training_videos_is_warned_of(tmp_path: Path) -> None:
    lines = ["a.mp4,x,train", "b.mp4,y,train", "c.mp4,x,val", "d.mp4,y,val"]
    source = write(touch(tmp_path, "a.mp4", "c.mp4", "d.mp4") / "x.csv", "path,label,split", *lines)
    assert open_dataset(source, missing="skip").notes == (
        f"{source}: 1 class has no training video: 'y'{REMEDY}",
    )


@pytest.mark.parametrize("folder", ["", "train/"])
def test_two_spellings_in_one_split_are_a_warning(tmp_path: Path, folder: str) -> None:
    touch(tmp_path, f"{folder}Run/a.mp4", f"{folder}run/b.mp4", f"{folder}walk/c.mp4")
    dataset = open_dataset(tmp_path)
    assert dataset.classes == ("Run", "run", "walk")
    assert dataset.warnings == (
        f"{tmp_path}: classes that differ only in spelling: 'Run' and 'run'",
    )


def test_the_same_text_composed_and_decomposed_is_one_class(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "plié") for form in ("NFC", "NFD"))
    touch(tmp_path, f"train/{composed}/a.mp4", "train/walk/b.mp4", f"val/{decomposed}/c.mp4")
    dataset = open_dataset(tmp_path)
    assert dataset.classes == (composed, "walk")
    assert [video.label for video in dataset.val] == [0]
    assert dataset.notes == (
        f"{tmp_path}: class names that differ only in composed and decomposed letters are "
        "taken for one class: "
        r"'plie\u0301' and 'pli\xe9'",
    )


@pytest.mark.parametrize(
    "name",
    [
        "می‌روم",  # with a zero-width non-joiner
        "क्‍ष",  # with a zero-width joiner
        "open\u00a0door",
        "開ける\u3000ドア",
        "👩‍🚀",
        "👨‍👩‍👧‍👦 hug",
        "❤️",
        "שלום\u200f",
        "\ue000",  # private use
        "A\u2060B",
    ],
)
def test_every_text_may_be_a_class(tmp_path: Path, name: str) -> None:
    assert name in open_dataset(touch(tmp_path, f"{name}/a.mp4", "walk/b.mp4")).classes


@pytest.mark.parametrize("name", ["a\nb", "a\tb", "a\x1bb", "a\x7fb", "a\x85b", "a\udcffb"])
def test_control_characters_and_bytes_that_are_no_text_are_refused(
    tmp_path: Path, name: str
) -> None:
    touch(tmp_path, f"{name}/a.mp4", "walk/b.mp4")
    assert refusal(tmp_path) == (
        f"SOURCE: the class name {name!r} has characters that are no text; rename it"
    )


def test_the_key_of_a_name_is_that_of_its_spellings() -> None:
    for first, second in PAIRS:
        assert spelling_key(first) == spelling_key(second)
    for first, second in DIFFERENT:
        assert spelling_key(first) != spelling_key(second)
