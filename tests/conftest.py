"""What the tests share: the header that names what is absent here, and small data to train on."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image


def pytest_report_header() -> str:
    absent = []
    if not torch.cuda.is_available():
        absent.append("CUDA device (tests marked gpu are skipped)")
    if shutil.which("nvcc") is None:
        absent.append("nvcc (CUDA sources are not compiled)")
    if importlib.util.find_spec("triton") is None:
        absent.append("triton (its kernels are not compiled)")
    if "DSSNET_FAST_GOLDEN" not in os.environ:
        absent.append("DSSNET_FAST_GOLDEN (outputs of the released network are not compared)")
    if "DSSNET_FAST_SLIDES" not in os.environ:
        absent.append("DSSNET_FAST_SLIDES (a folder with CMU-1-Small-Region.svs; it is not read)")
    if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        absent.append("chromium (the viewer's page is not tried)")
    return "dssnet_fast: absent here: " + ("; ".join(absent) or "nothing")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(scope="module")
def one_thread():
    """Networks as small as those of most tests run slower on several threads than on one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def disks(random: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Bright disks on noise: image uint8 [H, W, 3] and instance map uint16 [H, W]."""
    rows, columns = np.mgrid[:height, :width]
    labels = np.zeros((height, width), np.uint16)
    for number in range(1, 5):
        row, column = random.integers(0, height), random.integers(0, width)
        radius = random.integers(5, 10)
        labels[(rows - row) ** 2 + (columns - column) ** 2 <= radius**2] = number
    image = random.normal(80, 10, (height, width, 3)) + 90 * (labels > 0)[:, :, None]
    return image.clip(0, 255).astype(np.uint8), labels


def write_disks(folder: Path, count: int, height: int = 44, width: int = 52) -> Path:
    """A data folder with `count` pairs of files."""
    random = np.random.default_rng(7)
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    for number in range(count):
        image, labels = disks(random, height, width)
        Image.fromarray(image).save(folder / "images" / f"disks{number}.png")
        Image.fromarray(labels).save(folder / "labels" / f"disks{number}.png")
    return folder


@pytest.fixture(scope="session")
def disk_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pairs, 44 x 52 pixels, instance maps; not to be changed."""
    return write_disks(tmp_path_factory.mktemp("disks") / "data", 12)


@pytest.fixture(scope="session")
def golden_folder() -> Path:
    """The released network's checkpoint and outputs."""
    if "DSSNET_FAST_GOLDEN" not in os.environ:
        pytest.skip("DSSNET_FAST_GOLDEN names no folder with the released network's outputs")
    folder = Path(os.environ["DSSNET_FAST_GOLDEN"])
    assert (folder / "released_10blocks_3classes.npz").is_file(), f"{folder} lacks the outputs"
    return folder


@pytest.fixture(scope="session")
def kernels() -> None:
    """Kernels of the CUDA backend as PTX, for the executor."""
    from ptx.plans import shipped_kernels

    try:
        shipped_kernels("downsample")
    except FileNotFoundError as error:
        pytest.skip(f"no kernel images are installed; {error}")
