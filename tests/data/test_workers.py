"""Is a worker that ends early one line with the remedy, and a defect in a worker still a defect?"""

import gc
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from zeroi2v.config import ClipConfig, PixelsConfig, ReencodeConfig, ViewsConfig
from zeroi2v.data import loader, reencode, synthetic, views
from zeroi2v.data.datasets import Video, VideoDataset
from zeroi2v.data.workers import worker_loader
from zeroi2v.errors import WorkerError

CLIP = ClipConfig(frames=4)


@pytest.fixture(autouse=True)
def _short_farewell(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch waits five seconds for a worker that has raised an error; half a second is enough."""
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.5)


def end(*_: object, **__: object) -> object:
    """What a worker does when the system ends it for lack of memory."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("not reached")


def train(video: Path) -> Iterator[object]:
    return loader.train_loader(
        [Video(video, 0)],
        clip=CLIP,
        pixels=PixelsConfig(),
        size=16,
        labels=("a", "b"),
        batch_size=1,
        seed=0,
        workers=1,
        broken="stop",
    ).epoch(0)


def evaluate(video: Path) -> Iterator[object]:
    views = ViewsConfig()
    return iter(
        loader.view_loader(
            [Video(video, 0)], clip=CLIP, views=views, size=16, batch_size=1, workers=1
        )
    )


def check(video: Path) -> Iterator[object]:
    return loader.check_videos([video], workers=1)


def copy(video: Path) -> Iterator[object]:
    dataset = VideoDataset(video.parent, ("a",), {"train": (Video(video, 0),)})
    return reencode.reencode(dataset, video.parents[1] / "copy", ReencodeConfig(), workers=1)


def draw(video: Path) -> Iterator[object]:
    return synthetic.write_motion_videos(
        video.parents[1] / "drawn", {"train": 16}, seed=0, workers=1
    )


@pytest.mark.parametrize(
    ("use", "module", "name"),
    [
        (train, loader, "read_clip"),
        (evaluate, views, "read_clip"),
        (check, loader, "scan"),
        (copy, reencode, "write_frames"),
        (draw, synthetic, "encode_video"),
    ],
)
def test_a_worker_that_is_killed_is_one_line_with_the_remedy(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    use: Callable[[Path], Iterator[object]],
    module: object,
    name: str,
) -> None:
    if multiprocessing.get_start_method() != "fork":
        pytest.skip("a worker that is not forked does not see what the test changes")
    (tmp_path / "data").mkdir()
    video = tmp_path / "data" / "x.mp4"
    video.touch()
    monkeypatch.setattr(module, name, end)
    with pytest.raises(WorkerError) as caught:
        list(use(video))
    text = str(caught.value)
    assert "\n" not in text
    assert "a decoding process ended early" in text
    assert "--workers 0" in text
    assert "--shm-size" in text


class Samples(Dataset[int]):
    """Ten numbers; for number 1 the worker raises an error, or if there is none, ends."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> int:
        if index == 1 and self.error is not None:
            raise self.error
        if index == 1:
            time.sleep(0.5)  # until number 0 is used
            end()
        return index


def failure(samples: Samples, workers: int) -> tuple[type[Exception], str]:
    """Kind and text of the error that comes; its traceback would keep the workers alive."""
    try:
        list(worker_loader(samples, workers, batch_size=None))
    except Exception as error:  # noqa: BLE001  # whatever comes is compared
        caught = type(error), str(error)
    else:
        raise AssertionError("no error came")
    gc.collect()
    return caught


def test_a_worker_that_is_killed_while_the_batch_is_used_is_the_same_line() -> None:
    """torch raises its error in whatever the main thread does when the worker ends."""

    def use() -> None:
        for number in worker_loader(Samples(None), 1, batch_size=None):
            assert number == 0
            time.sleep(60)

    started = time.monotonic()
    with pytest.raises(WorkerError, match="a decoding process ended early"):
        use()
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("what", ["allocate shared memory(shm) for", "write to"])
def test_too_little_shared_memory_is_the_same_line(what: str) -> None:
    reason = f"unable to {what} file </torch_1_2_3>: No space left on device (28)"
    kind, text = failure(Samples(RuntimeError(reason)), 1)
    assert kind is WorkerError
    assert text.startswith(
        f"a decoding process ended early (RuntimeError: {reason}): decode without"
    )
    assert "\n" not in text


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", [RuntimeError, ValueError, FileNotFoundError])
def test_a_defect_in_a_worker_stays_a_defect(workers: int, kind: type[Exception]) -> None:
    raised, text = failure(Samples(kind("something is wrong")), workers)
    assert raised is kind
    assert "something is wrong" in text


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_samples_come_in_order_again_and_again(workers: int) -> None:
    samples = worker_loader(TensorDataset(torch.arange(10)), workers, batch_size=None)
    assert len(samples) == 10
    for _ in range(2):
        assert [int(number) for (number,) in samples] == [*range(10)]


class FrozenObjects(Dataset[int]):
    """How many objects the garbage collector of this process passes over."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        return gc.get_freeze_count()


def test_the_garbage_collector_of_a_worker_passes_over_what_its_parent_made() -> None:
    (count,) = worker_loader(FrozenObjects(), 1, batch_size=None)
    assert count > 10_000
