"""DSSNet nucleus segmentation: fused inference, reference, training and tools.

    >>> from dssnet_fast import FastDSSNet
    >>> net = FastDSSNet.pretrained()
    >>> labels = net.predict(image)  # uint8 [H, W, 3] -> uint8 [H, W]

Importing this package loads neither torch nor any backend; the first use of `FastDSSNet` does.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dssnet_fast.model import FastDSSNet as FastDSSNet
    from dssnet_fast.python_ref.config import DSSNetConfig as DSSNetConfig
    from dssnet_fast.python_ref.errors import InputError as InputError

__version__ = "0.1.0"
__all__ = ["DSSNetConfig", "FastDSSNet", "InputError", "__version__"]

# In a checkout `kernels/` and `python_ref/` lie beside this folder; installed, they lie inside it.
# `python -m dssnet_fast.x` in a checkout's root imports this folder whatever is installed, so a
# checkout also looks beside itself.
_here = Path(__file__).resolve().parent
if not (_here / "python_ref").is_dir() and (_here.parent / "python_ref").is_dir():
    __path__.append(str(_here.parent))

_HOMES = {
    "FastDSSNet": "dssnet_fast.model",
    "DSSNetConfig": "dssnet_fast.python_ref.config",
    "InputError": "dssnet_fast.python_ref.errors",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'dssnet_fast' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
