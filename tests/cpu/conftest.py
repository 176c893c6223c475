"""What the tests of the backend `cpu` need."""

from __future__ import annotations

import pytest
import torch

from dssnet_fast.backends import native


@pytest.fixture
def extension() -> None:
    """The compiled extension, without which there is no backend."""
    if native.problem() is not None:
        pytest.skip(native.problem())


@pytest.fixture(scope="module")
def reproducible():
    """References are computed on one thread, as small as they are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
