"""Does a folder per class become its videos, classes and splits, and is everything else named?"""

import json
from pathlib import Path

import pytest

from tests.sources_for_tests import held, ignored, refusal, touch, ucf101, write
from zeroi2v.data.datasets import VideoDataset, open_dataset
from zeroi2v.data.file_kinds import OUTPUT_FILES
from zeroi2v.errors import DatasetError
from zeroi2v.experiments.quickstart import MARKER
from zeroi2v.experiments.trial_folder import ROWS_FILE
from zeroi2v.explain.show import FILES
from zeroi2v.models.saving import WEIGHTS_FILE
from zeroi2v.recipes import RECIPE_FILE


def without_hold_out(source: Path) -> VideoDataset:
    return open_dataset(source, val_share=0)


def test_a_folder_per_class(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "walk/b.mp4",
        "walk/a.AVI",
        "run/c.webm",
        "run/clip/img_1.jpg",
        "run/clip/img_2.jpg",
        "run/d.unheard",
    )
    touch(
        tmp_path,
        "walk/.hidden.mp4",
        ".cache/x.mp4",
        "walk/notes.txt",
        "walk/Thumb.JPG",
        "walk/nested/e.mp4",
        "README.md",
    )
    dataset = without_hold_out(tmp_path)
    assert dataset.classes == ("run", "walk")
    run = [("run/c.webm", "run"), ("run/clip", "run"), ("run/d.unheard", "run")]
    assert held(dataset) == {
        "train": [*run, ("walk/a.AVI", "walk"), ("walk/b.mp4", "walk")],
        "val": [],
    }
    assert ignored(dataset) == {"walk/notes.txt", "walk/Thumb.JPG", "walk/nested", "README.md"}


def test_a_folder_per_split_and_class(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "train/run/a.mp4",
        "train/walk/b.mp4",
        "Validation/run/c.mp4",
        "test/run/d.mp4",
        "extra/e.mp4",
        "train/x.txt",
    )
    dataset = open_dataset(tmp_path)
    counts = {split: len(videos) for split, videos in dataset.splits.items()}
    assert counts == {"train": 2, "val": 1, "test": 1}
    assert held(dataset)["val"] == [("Validation/run/c.mp4", "run")]
    assert dataset.for_evaluation() == dataset.val
    assert len(dataset.for_check) == 4
    assert {path.name for path in dataset.ignored} == {"extra", "x.txt"}


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("training", "validation", "testing"),
        ("Train", "Valid", "Test"),
        ("train_set", "dev", "test_set"),
        ("train_256", "val_256", "test-256"),
        ("trainset", "valset", "testset"),
        ("TRAINING DATA", "eval", "test videos"),
        ("videos_train", "videos_val", "videos_test"),
    ],
)
def test_folders_named_by_split(tmp_path: Path, train: str, val: str, test: str) -> None:
    touch(tmp_path, f"{train}/run/a.mp4", f"{train}/walk/b.mp4", f"{val}/run/c.mp4")
    touch(tmp_path, f"{test}/run/d/1.jpg", f"{test}/run/d/2.jpg")
    assert held(open_dataset(tmp_path)) == {
        "train": [(f"{train}/run/a.mp4", "run"), (f"{train}/walk/b.mp4", "walk")],
        "val": [(f"{val}/run/c.mp4", "run")],
        "test": [(f"{test}/run/d", "run")],
    }


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    touch(tmp_path, "train/a.mp4", "train/clip/1.jpg", "bus/b.mp4")
    assert open_dataset(tmp_path).classes == ("bus", "train")


def test_a_class_called_training_with_a_folder_too_deep_is_no_split(tmp_path: Path) -> None:
    touch(tmp_path, "training/a.mp4", "training/old/c.mp4", "boxing/b.mp4")
    dataset = open_dataset(tmp_path)
    assert dataset.classes == ("boxing", "training")
    assert ignored(dataset) == {"training/old"}


def test_a_folder_that_holds_a_video_is_no_folder_of_frames(tmp_path: Path) -> None:
    touch(tmp_path, "run/clip0/a.mp4", "run/clip0/cover.jpg", "run/b.mp4", "walk/c.mp4")
    dataset = without_hold_out(tmp_path)
    assert held(dataset)["train"] == [("run/b.mp4", "run"), ("walk/c.mp4", "walk")]
    assert ignored(dataset) == {"run/clip0"}
    assert dataset.notes == (
        f"{tmp_path}: 1 video lies one folder too deep and is not used: {tmp_path}/run/clip0/a.mp4",
    )


@pytest.mark.parametrize(
    "names",
    [
        ["clip0/a.MOV", "clip0/a.jpg"],
        ["clip0/a.mkv", *(f"clip0/frame_{number}.png" for number in range(3))],
        ["clip0/GOPR1.MP4", "clip0/GOPR1.LRV", "clip0/GOPR1.JPG"],
        ["clip0/a.m2ts", "clip0/thumbs/1.jpg", "clip0/poster.webp"],
        ["clip0/failed.download_of_mp4", "clip0/1.bmp"],
    ],
)
def test_a_class_of_such_folders_only_is_refused_with_a_hint(
    tmp_path: Path, names: list[str]
) -> None:
    touch(tmp_path, *(f"run/{name}" for name in names), "walk/c.mp4")
    assert refusal(tmp_path) == (
        f"SOURCE: no videos in the class folders run; run/{names[0]} lies too deep: "
        "move videos into the class folder, or list them in a manifest"
    )


@pytest.mark.parametrize("folder", ["thumbnails", "Thumbs", "a", "posters"])
def test_stills_of_the_videos_beside_them_are_no_videos(tmp_path: Path, folder: str) -> None:
    touch(tmp_path, "run/a.mp4", f"run/{folder}/1.jpg", f"run/{folder}/2.jpg", "walk/c.mp4")
    dataset = without_hold_out(tmp_path)
    assert held(dataset)["train"] == [("run/a.mp4", "run"), ("walk/c.mp4", "walk")]
    assert ignored(dataset) == {f"run/{folder}"}


def test_stills_and_copies_of_other_kinds_are_warned_of(tmp_path: Path) -> None:
    touch(tmp_path, "run/a.mp4", "run/a.avi", "run/b/cover.jpg", "walk/c.mp4")
    assert open_dataset(tmp_path).notes == (
        f"{tmp_path}: 1 video is a folder with a single image: {tmp_path}/run/b",
        f"{tmp_path}: 2 videos have the name of another video but for the ending; "
        f"remove the copies: {tmp_path}/run/a.avi, {tmp_path}/run/a.mp4",
    )


SIDE_FILES = [
    *("a.THM", "a.LRV", "a.LRF", "a.SRT", "a.srt", "a.vtt", "a.aae", "a.xmp", "a.XMP", "a.gpx"),
    *(
        "a.heic",
        "a.HEIF",
        "a.avif",
        "a.tif",
        "a.tiff",
        "a.gif",
        "a.dng",
        "a.CR3",
        "a.jfif",
        "a.svg",
    ),
    *("Thumbs.db", "ehthumbs.db", "desktop.ini", "Icon\r", "video.lnk", "site.url", "a.webloc"),
    *("README", "LICENSE", "_SUCCESS", "a.mp4~", "a.mp4.bak", "a.mp4.part", "a.mp4.crdownload"),
    *("a.swp", "a.mp4.swp", "a.info.json", "a.description.txt", "a.nfo", "a.torrent", "a.md5"),
    *("list.m3u8", "list.m3u", "a.CPI", "a.BIM", "a.MOI", "a.ifo", "a.eaf", "a.npy", "a.wav"),
    *("MVI_1.ctg", "a.insp", "a.gpr", "a.psd", "a.xlsx", "a.pages", "a.py", "a.mp4.aria2"),
]


@pytest.mark.parametrize("name", SIDE_FILES)
def test_files_that_cameras_systems_and_tools_leave_are_no_videos(
    tmp_path: Path, name: str
) -> None:
    touch(tmp_path, "run/a.mp4", f"run/{name}", "walk/c.mp4")
    dataset = without_hold_out(tmp_path)
    assert held(dataset)["train"] == [("run/a.mp4", "run"), ("walk/c.mp4", "walk")]
    assert ignored(dataset) == {f"run/{name}"}
    assert name in dataset.warnings[0]


@pytest.mark.parametrize(
    ("video", "copy"),
    [
        ("GX010001.MP4", "GL010001.LRV"),
        ("GX010001.MP4", "GL010001.MP4"),
        ("GH010001.MP4", "GL010001.mp4"),
        ("DJI_0001.MP4", "DJI_0001.LRF"),
        ("C0001.MP4", "C0001S03.MP4"),
        ("clip.mov", "clip_Proxy.mov"),
        ("clip.mov", "clip-proxy.mp4"),
        ("clip.mp4", "clip_lowres.mp4"),
        ("VID_20240101_120000_00_001.insv", "LRV_20240101_120000_01_001.insv"),
        ("VID_20240101_120000_00_001.insv", "LRV_20240101_120000_11_001.mp4"),
    ],
)
def test_the_small_copy_of_a_video_is_no_second_video(
    tmp_path: Path, video: str, copy: str
) -> None:
    touch(tmp_path, f"run/{video}", f"run/{copy}", "walk/c.mp4")
    dataset = without_hold_out(tmp_path)
    assert held(dataset)["train"] == [(f"run/{video}", "run"), ("walk/c.mp4", "walk")]
    assert ignored(dataset) == {f"run/{copy}"}


def test_a_name_like_that_of_a_copy_is_a_video_where_there_is_no_original(tmp_path: Path) -> None:
    names = ["GL010001.MP4", "C0001S03.MP4", "clip_proxy.mp4", "LRV_20240101_120000_01_001.insv"]
    touch(tmp_path, *(f"run/{name}" for name in names), "walk/c.mp4")
    videos = [video for video, label in held(without_hold_out(tmp_path))["train"] if label == "run"]
    assert videos == sorted(f"run/{name}" for name in names)


def test_a_class_of_small_copies_only_is_refused_with_the_reason(tmp_path: Path) -> None:
    touch(tmp_path, "run/GOPR1.LRV", "walk/a.mp4")
    assert refusal(tmp_path) == (
        "SOURCE: no videos in the class folders run; "
        "run/GOPR1.LRV is the small copy that a camera keeps of a video"
    )


SYSTEM_FOLDERS = [
    *("__MACOSX", "@eaDir", "lost+found", "System Volume Information", "$RECYCLE.BIN"),
    *("$Recycle.Bin", "#recycle", "@Recycle", "#snapshot", "RECYCLER", "FOUND.000", "LOST.DIR"),
    *("__pycache__", "node_modules", "wandb", "mlruns"),
]


@pytest.mark.parametrize("folder", SYSTEM_FOLDERS)
@pytest.mark.parametrize("parent", ["", "train/", "train/run/"])
def test_folders_of_operating_systems_are_no_classes(
    tmp_path: Path, folder: str, parent: str
) -> None:
    touch(tmp_path, "train/run/a.mp4", "train/walk/b.mp4", "val/run/c.mp4")
    touch(tmp_path, f"{parent}{folder}/x.mp4", f"{parent}{folder}/y/z.jpg")
    dataset = open_dataset(tmp_path)
    assert dataset.classes == ("run", "walk")
    assert len(dataset.for_check) == 3
    assert ignored(dataset) == {f"{parent}{folder}"}


RUN = ("recipe.toml", "log.jsonl", "config.json", "model.safetensors", "resume.pt")
OUTPUTS = {
    "run": RUN,
    "run that has just begun": ("recipe.toml",),
    "run with TensorBoard": ("recipe.toml", "board/events.out"),
    "merged model": ("config.json", "model.safetensors", "README.md"),
    "show": ("show.png", "show.mp4", "show.html"),
    "bench": ("bench.json", "bench.svg"),
    "compare": ("rows.jsonl", "compare.json", *(f"row-0/{name}" for name in RUN)),
    "quickstart": ("quickstart.txt", "videos/train/a/1.mp4", "adapted/recipe.toml"),
    "reencode": (".reencode.json", "run/a.mp4", "walk/b.mp4"),
}


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("parent", ["", "train/", "train/run/"])
def test_folders_that_zeroi2v_wrote_are_no_classes(
    tmp_path: Path, output: str, parent: str
) -> None:
    touch(tmp_path, "train/run/a.mp4", "train/walk/b.mp4", "val/run/c.mp4")
    touch(tmp_path / parent / "output", *OUTPUTS[output])
    dataset = open_dataset(tmp_path)
    assert dataset.classes == ("run", "walk")
    assert len(dataset.for_check) == 3
    assert ignored(dataset) == {f"{parent}output"}
    assert "output" in dataset.warnings[0]


def test_the_files_that_tell_an_output_are_those_that_are_written() -> None:
    written = {RECIPE_FILE, WEIGHTS_FILE, ROWS_FILE, MARKER}
    assert written < OUTPUT_FILES
    assert OUTPUT_FILES & {*FILES} == {"show.html"}


def test_a_class_folder_with_videos_may_hold_a_recipe(tmp_path: Path) -> None:
    touch(tmp_path, "cooking/a.mp4", "cooking/recipe.toml", "walk/b.mp4")
    dataset = open_dataset(tmp_path)
    assert dataset.classes == ("cooking", "walk")
    assert ignored(dataset) == {"cooking/recipe.toml"}


def test_a_folder_of_lists_is_no_class_unless_it_holds_videos(tmp_path: Path) -> None:
    touch(tmp_path, "run/a.mp4", "walk/b.mp4", "labels/notes.txt")
    assert ignored(open_dataset(tmp_path)) == {"labels"}
    touch(tmp_path, "splits/c.mp4")
    assert open_dataset(tmp_path).classes == ("run", "splits", "walk")


def test_a_defect_of_a_folder_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nowhere") == "SOURCE: no such folder or manifest"
    assert refusal(touch(tmp_path / "flat", "a.mp4")) == (
        "SOURCE: no class folders in it; expected flat/class/video, or a CSV manifest"
    )
    assert refusal(touch(tmp_path / "empty", "run/a.mp4", "walk/a.txt")) == (
        "SOURCE: no videos in the class folders walk"
    )
    with pytest.raises(DatasetError, match=r"training needs at least 2 classes, found only 'run';"):
        _ = open_dataset(touch(tmp_path / "one", "run/a.mp4")).train


@pytest.mark.parametrize("inner", ["wrapped", "wrapped/again"])
@pytest.mark.parametrize("split", ["", "train/"])
def test_a_folder_around_the_data_set_is_named(tmp_path: Path, inner: str, split: str) -> None:
    names = [f"{inner}/{split}run/a.mp4", f"{inner}/{split}walk/b.mp4"]
    touch(tmp_path, *names, "__MACOSX/x", "README.md")
    assert refusal(tmp_path) == (
        f"SOURCE: no videos in its class folders; the videos lie deeper, as {names[0]}: "
        f"give {inner} if that is the data set"
    )
    assert open_dataset(tmp_path / inner).classes == ("run", "walk")


def test_videos_by_person_and_class_lie_too_deep(tmp_path: Path) -> None:
    touch(tmp_path, "anna/run/a.mp4", "anna/walk/b.mp4", "bert/run/c.mp4")
    assert refusal(tmp_path) == (
        "SOURCE: no videos in the class folders anna, bert; anna/run/a.mp4 lies too deep: "
        "move videos into the class folder, or list them in a manifest"
    )


def test_folders_of_frames_without_a_class_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "clip0/1.jpg", "clip0/2.jpg", "clip1/1.jpg")
    assert refusal(tmp_path) == (
        "SOURCE: no videos in the class folders clip0, clip1; clip0/1.jpg is an image: "
        "a folder of images is one video, and lies in a class folder"
    )


@pytest.mark.parametrize("name", ["a.gif", "clip/1.tif", "clip/b.HEIC"])
def test_images_that_are_not_read_are_the_reason_for_a_class_without_videos(
    tmp_path: Path, name: str
) -> None:
    touch(tmp_path, f"run/{name}", "walk/b.mp4")
    assert refusal(tmp_path) == (
        "SOURCE: no videos in the class folders run; "
        f"run/{name} is an image of a kind that is not read as a frame"
    )


def test_a_published_data_set_in_a_folder_is_named_with_its_lists(tmp_path: Path) -> None:
    names = ["YoYo/v_YoYo_g08_c01.avi", "Archery/v_Archery_g08_c01.avi"]
    touch(ucf101(tmp_path / "UCF"), *(f"UCF-101/{name}" for name in names))
    assert refusal(tmp_path).endswith(": give UCF if that is the data set")


def test_a_split_without_videos_is_warned_of(tmp_path: Path) -> None:
    touch(tmp_path, "train/run/a.mp4", "train/walk/b.mp4", "val/run/notes.txt", "val/walk/x.json")
    dataset = open_dataset(tmp_path, val_share=0)
    assert dataset.held_out
    assert dataset.notes == (
        f"{tmp_path}: no videos in the class folders of the split val, which is not used",
    )


def test_json_beside_class_folders_is_ignored(tmp_path: Path) -> None:
    touch(tmp_path, "run/a.mp4", "walk/b.mp4")
    write(tmp_path / "labels.json", json.dumps({"run": 0, "walk": 1}))
    assert ignored(open_dataset(tmp_path)) == {"labels.json"}
