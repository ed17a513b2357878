"""What do tests of several rooms share?"""

import os
import signal
from pathlib import Path

import pytest
import torch

# Triton decides this when the source of a kernel is read.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A shell that starts the tests in the background makes them, and the processes that they start,
# deaf to Ctrl-C, which some tests send.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real videos beside the checkout; a test that needs it is skipped without it."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs the real videos of ../shared/data, beside the checkout")
    return SHARED_DATA


@pytest.fixture(scope="session")
def motion_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set of motion videos: 48 for training, 16 held out."""
    from zeroi2v.data.synthetic import write_motion_videos  # needs PyAV

    folder = tmp_path_factory.mktemp("motion") / "videos"
    for _ in write_motion_videos(folder, {"train": 48, "val": 16}, seed=0):
        pass
    return folder
