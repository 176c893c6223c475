"""Reading checkpoints of any kind: released, our training runs, plain weights, safetensors.

Files come from strangers: nothing in a file is ever run (`weights_only=True`), and whatever is
wrong with one is said in one `InputError`.
"""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import init
from torch.overrides import TorchFunctionMode

from dssnet_fast import fold
from dssnet_fast.python_ref.config import DSSNetConfig, default_class_names
from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.python_ref.network import UPSAMPLING, DSSNet
from dssnet_fast.python_ref.released import from_released, load_released, to_released

# Where training scripts keep the state dict inside what they save.
_CONTAINERS = ("model", "state_dict", "model_state_dict", "net", "network", "ema")
# What wrappers put before every key: DataParallel, torch.compile, Lightning.
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
# Weight normalisation: torch.nn.utils.weight_norm, and its parametrisation.
_NORMED = (
    (".weight_g", ".weight_v"),
    (".parametrizations.weight.original0", ".parametrizations.weight.original1"),
)
_MOST_KEYS_SHOWN = 12


@dataclass(frozen=True)
class Checkpoint:
    """A DSSNet read from a file, with weight normalisation folded.

    Attributes:
        config: Inferred from the shapes.
        state: Plain float64 tensors under the reference's key names.
        class_names: Background first.
        digest: SHA-256 of the file, hexadecimal; of the tensors when there was no file.
        source: What it was read from, for messages.
        kind: What it turned out to be, for people.
    """

    config: DSSNetConfig
    state: dict[str, Tensor]
    class_names: tuple[str, ...]
    digest: str
    source: str
    kind: str

    def reference(self) -> DSSNet:
        """The reference network with these weights, in float64 and evaluation mode."""
        network = DSSNet(self.config).double()
        load_released(network, {to_released(key): value for key, value in self.state.items()})
        return network.eval()


def read_checkpoint(path: str | os.PathLike, allow_nonfinite: bool = False) -> Checkpoint:
    """Read a checkpoint file.

    Args:
        path: A file of `torch.save` (state dict, or a dict that holds one) or safetensors.
        allow_nonfinite: Accept NaN and infinite weights.

    Raises:
        InputError: The file is missing, empty, truncated, no checkpoint, asks to run code, or
            holds no DSSNet; missing, unexpected and misshapen keys are listed together.
    """
    path = Path(path)
    raw = read_file(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return from_state(raw, str(path), digest, allow_nonfinite)


def from_state(
    raw: Mapping[str, object],
    source: str = "state dict",
    digest: str | None = None,
    allow_nonfinite: bool = False,
) -> Checkpoint:
    """A checkpoint from what a file held; see `read_checkpoint`."""
    names = raw.get("class_names")
    tensors, kind = _find_tensors(raw, source)
    state = {}
    unexpected = []
    for key, value in _fold_weight_norm(tensors, source).items():
        own = from_released(key)
        if own is None:
            unexpected.append(key)
        else:
            state[own] = value
    if not state:
        raise InputError(
            f"{source}: holds no DSSNet weights; its keys are {_listed(sorted(tensors))}"
        )
    try:
        config = infer_config(state)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    _check_keys(state, config, unexpected, source)
    if not allow_nonfinite:
        check_finite({to_released(key): value for key, value in state.items()}, source)
    if digest is None:
        digest = tensors_digest(state)
    return Checkpoint(config, state, _class_names(names, config, source), digest, source, kind)


def read_file(path: Path) -> dict[str, object]:
    """The dictionary in a file of `torch.save` or safetensors, unchecked but for code.

    Raises:
        InputError: See `read_checkpoint`.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(9)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder; give a checkpoint file") from None
    if not start:
        raise InputError(f"{path}: is empty")
    if start[8:9] == b"{":
        return _read_safetensors(path)
    try:
        with warnings.catch_warnings():
            # torch remarks on pickle protocols; whatever matters of that ends up as an error.
            warnings.simplefilter("ignore")
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:
        raise InputError(f"{path}: {_why_unreadable(error)}") from error
    if not isinstance(loaded, Mapping):
        raise InputError(f"{path}: holds a {type(loaded).__name__}, not a dictionary of tensors")
    return dict(loaded)


def _read_safetensors(path: Path) -> dict[str, object]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no dict)
    except OSError:
        raise
    except Exception as error:
        raise InputError(f"{path}: is not a whole safetensors file: {error}") from error


def _why_unreadable(error: Exception) -> str:
    # torch explains how to switch the protection off; what the user needs is what was refused.
    asked = re.search(r"(?:Unsupported global: GLOBAL|unsupported GLOBAL) (\S+)", str(error))
    if asked:
        return (
            f"refused: besides tensors it holds Python code to run ({asked[1]}); "
            "save only the weights: torch.save(model.state_dict(), file)"
        )
    return (
        "is not a checkpoint, or is damaged or cut short; "
        "expected a file of torch.save or safetensors"
    )


def _find_tensors(raw: Mapping[str, object], source: str) -> tuple[dict[str, Tensor], str]:
    """The state dict itself, without containers and prefixes, and what it was wrapped in."""
    kind = "state dict"
    if not any(isinstance(value, Tensor) for value in raw.values()):
        inside = next((n for n in _CONTAINERS if isinstance(raw.get(n), Mapping)), None)
        if inside is None:
            raise InputError(
                f"{source}: holds no tensors; its keys are {_listed(sorted(map(str, raw)))}"
            )
        ours = raw.get("format") == "dssnet_fast.training"
        kind = f"training run, epoch {raw.get('epoch')}" if ours else f"state dict in {inside!r}"
        raw = raw[inside]
    tensors = {str(key): value for key, value in raw.items()}
    stripped = True
    while stripped and tensors:
        stripped = False
        for prefix in _PREFIXES:
            if all(key.startswith(prefix) for key in tensors):
                tensors = {key[len(prefix) :]: value for key, value in tensors.items()}
                stripped = True
    wrong = [key for key, value in tensors.items() if not _is_float_tensor(value)]
    if wrong:
        raise InputError(f"{source}: not floating point tensors: {_listed(wrong)}")
    return tensors, kind


def _is_float_tensor(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _fold_weight_norm(tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Plain weights in float64, from whichever way weight normalisation was saved."""
    state = {key: value.detach().to("cpu", torch.float64) for key, value in tensors.items()}
    for g_suffix, v_suffix in _NORMED:
        for v_key in [key for key in state if key.endswith(v_suffix)]:
            layer = v_key.removesuffix(v_suffix)
            g_key = layer + g_suffix
            if g_key not in state:
                raise InputError(f"{source}: {v_key} has no {g_key} beside it")
            g, v = state.pop(g_key), state.pop(v_key)
            if v.ndim != 4 or g.shape != (v.shape[0], 1, 1, 1):
                raise InputError(
                    f"{source}: {g_key} has shape {list(g.shape)} beside {v_key} {list(v.shape)}; "
                    "expected [outputs, 1, 1, 1] and [outputs, inputs, k, k]"
                )
            state[f"{layer}.weight"] = fold.weight_norm(g, v)
    return state


def infer_config(state: Mapping[str, Tensor]) -> DSSNetConfig:
    """The config that plain weights under the reference's names were made with.

    What cannot be told, because the tensor that tells it is missing, is taken from the defaults;
    the missing tensor is then reported by its name.

    Raises:
        InputError: A number is outside the range of `DSSNetConfig`.
    """
    defaults = DSSNetConfig()

    def size(key: str, dimension: int, default: int) -> int:
        tensor = state.get(key)
        return default if tensor is None or tensor.ndim != 4 else tensor.shape[dimension]

    width = size("stem.weight", 0, defaults.width)
    features = size("head.weight", 0, defaults.features)
    numbers = [int(key.split(".")[1]) for key in state if key.startswith("blocks.")]
    mixed = size("ffm.mix.weight", 0, 2 * features)
    return DSSNetConfig(
        in_channels=size("stem.weight", 1, defaults.in_channels),
        classes=size("segmentation.outer.weight", 0, defaults.classes),
        width=width,
        features=features,
        blocks=max(numbers, default=defaults.blocks - 1) + 1,
        block=_infer_block(state),
        super_resolution=any(key.startswith("super_resolution.") for key in state),
        edge=any(key.startswith("edge.") for key in state),
        upsampling="pixel_shuffle" if mixed == 2 * features * UPSAMPLING**2 else "nearest",
    )


def _infer_block(state: Mapping[str, Tensor]) -> str:
    first_layers = {"expand": "wdsr_b", "reduce": "bottleneck", "first": "basic"}
    for layer, kind in first_layers.items():
        if f"blocks.0.layers.{layer}.weight" in state:
            return kind
    return "wneck"


class _OnlyShapes(TorchFunctionMode):
    """Makes networks on the meta device without going through PyTorch's Python operators.

    There it draws random numbers and takes the norms of weight normalisation in Python, and imports
    torch._dynamo for it, which takes longer than everything else about loading a network.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (init.kaiming_uniform_, init.uniform_):
            return None
        if func is torch.norm_except_dim:
            return args[0][:, :1, :1, :1]
        return func(*args, **(kwargs or {}))


def plain_shapes(config: DSSNetConfig) -> dict[str, torch.Size]:
    """Shapes of a network's plain weights under the reference's names."""
    with torch.device("meta"), _OnlyShapes():
        state = DSSNet(config).state_dict()
    _, directions = _NORMED[1]
    shapes = {}
    for key, value in state.items():
        if key.endswith(directions):
            shapes[key.removesuffix(directions) + ".weight"] = value.shape
        elif ".parametrizations." not in key:
            shapes[key] = value.shape
    return shapes


def _check_keys(
    state: Mapping[str, Tensor], config: DSSNetConfig, unexpected: list[str], source: str
) -> None:
    expected = plain_shapes(config)
    problems = problems_with_keys(
        {to_released(key): value.shape for key, value in state.items()},
        {to_released(key): shape for key, shape in expected.items()},
    )
    if unexpected:
        problems.append(f"unexpected: {_listed(sorted(unexpected))}")
    if problems:
        raise InputError(f"{source}: does not fit DSSNet: {'; '.join(problems)}")


def problems_with_keys(
    actual: Mapping[str, torch.Size], expected: Mapping[str, torch.Size]
) -> list[str]:
    """What is missing, unexpected and misshapen, one entry each; empty when all fits."""
    problems = []
    if missing := sorted(set(expected) - set(actual)):
        problems.append(f"missing: {_listed(missing)}")
    if unexpected := sorted(set(actual) - set(expected)):
        problems.append(f"unexpected: {_listed(unexpected)}")
    misshapen = [
        f"{key} {list(actual[key])} instead of {list(shape)}"
        for key, shape in sorted(expected.items())
        if key in actual and actual[key] != shape
    ]
    if misshapen:
        problems.append(f"wrong shape: {_listed(misshapen)}")
    return problems


def check_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise InputError that names the CPU tensors with NaN or infinite values."""
    # In NumPy: PyTorch would wake its threads for every tensor, see `weights.load`.
    bad = [key for key, value in tensors.items() if not np.isfinite(value.numpy()).all()]
    if bad:
        raise InputError(
            f"{source}: NaN or infinite values in {_listed(bad)}; the training run has diverged "
            "(to convert it all the same: --allow-nonfinite)"
        )


def _class_names(names: object, config: DSSNetConfig, source: str) -> tuple[str, ...]:
    if names is None:
        return tuple(default_class_names(config.classes))
    if not isinstance(names, (list, tuple)) or len(names) != config.classes:
        raise InputError(f"{source}: class_names must be {config.classes} names, got {names!r}")
    return tuple(str(name) for name in names)


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and values, independent of order; hexadecimal."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        value = tensors[key].detach().cpu().contiguous()
        digest.update(f"{key} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def _listed(items: list[str]) -> str:
    shown = ", ".join(items[:_MOST_KEYS_SHOWN])
    rest = len(items) - _MOST_KEYS_SHOWN
    return f"{shown} and {rest} more" if rest > 0 else shown or "none"
