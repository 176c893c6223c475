"""Folded weights under the names of the stages, and the file that holds them.

The tensors are stored neither padded nor packed: packing belongs to a backend.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import dssnet_fast
from dssnet_fast import fold
from dssnet_fast.checkpoint import (
    Checkpoint,
    check_finite,
    plain_shapes,
    problems_with_keys,
    tensors_digest,
)
from dssnet_fast.python_ref.config import DSSNetConfig
from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.python_ref.files import atomic_write
from dssnet_fast.python_ref.network import DSSNet
from dssnet_fast.python_ref.released import load_released, to_released
from dssnet_fast.quantisation import Quantisation

FORMAT = "dssnet_fast.weights"
# Files without an edge head are of version 1, which everybody reads.
FORMAT_VERSION, EDGE_FORMAT_VERSION = 1, 2
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
FOLDING = ("weight_norm", "downsample.project")

# Reference name -> stage name; `#` stands for a running number. The down-samplers' two
# convolutions become one, and what only training needs has no stage.
_NAMES = (
    ("stem", "downsample.stem"),
    ("head", "extract.head"),
    ("blocks.#.activation.weight", "extract.blocks.#.slope"),
    ("blocks.#.layers.activation.weight", "extract.blocks.#.slope"),
    ("blocks.#.layers.inner_activation.weight", "extract.blocks.#.inner.slope"),
    ("blocks.#.layers", "extract.blocks.#"),
    ("blocks.#", "extract.blocks.#"),
    ("ffm.mix_activation.weight", "fuse.mix.slope"),
    ("ffm.smooth_activation.weight", "fuse.smooth.slope"),
    ("ffm", "fuse"),
    ("segmentation.reduce_activation.weight", "fuse.reduce.slope"),
    ("segmentation.reduce", "fuse.reduce"),
    ("segmentation.narrow_activation.weight", "segment.narrow.slope"),
    ("segmentation", "segment"),
    ("edge.0", "edge.first"),
    ("edge.1.weight", "edge.first.slope"),
    ("edge.2", "edge.inner"),
    ("edge.3", "edge.outer"),
    ("edge.4", "edge.last"),
)
_RULES = [
    (re.compile(re.escape(own).replace(r"\#", r"(\d+)") + r"(\..+|)"), stage)
    for own, stage in _NAMES
]
DOWNSAMPLERS = 3


def _stage_name(key: str) -> str | None:
    for pattern, stage in _RULES:
        match = pattern.fullmatch(key)
        if match:
            *numbers, rest = match.groups()
            for number in numbers:
                stage = stage.replace("#", number, 1)
            return stage + rest
    return None


@dataclass(frozen=True)
class FoldedWeights:
    """Everything inference needs of a trained network.

    Attributes:
        config: The network's, without the training-only branch; `edge` says whether they have an
            edge head.
        tensors: Stage name, such as `extract.blocks.0.squeeze.weight`, to float32 CPU tensor.
            Convolutions are [O, I, k, k] with `bias` [O]; `slope` [1] is a PReLU's.
        class_names: Background first.
        source_digest: SHA-256 of the checkpoint they were folded from, hexadecimal.
        quantisation: What int8 needs; None where nobody calibrated.
        mpp: Micrometres per px of the images that the network knows; None where nobody said.
    """

    config: DSSNetConfig
    tensors: Mapping[str, Tensor]
    class_names: tuple[str, ...]
    source_digest: str
    quantisation: Quantisation | None = None
    mpp: float | None = None

    @cached_property
    def digest(self) -> str:
        """SHA-256 of config and values: equal for weights that give equal results."""
        same = self.config.to_dict()
        if self.quantisation is not None:
            steps = dict(self.quantisation.steps)
            same["int8"] = {"steps": steps, "exact": sorted(self.quantisation.exact)}
        prefix = json.dumps(same, sort_keys=True)
        return tensors_digest({prefix + key: value for key, value in self.tensors.items()})

    def without_edges(self) -> FoldedWeights:
        """These weights without the edge head."""
        tensors = {k: v for k, v in self.tensors.items() if not k.startswith("edge.")}
        return replace(self, config=replace(self.config, edge=False), tensors=tensors)

    def rounded(self, dtype: str) -> FoldedWeights:
        """These weights as a file of `dtype` would give them back.

        Raises:
            InputError: A value exceeds the range of `dtype`.
        """
        rounded = {key: value.to(DTYPES[dtype]).float() for key, value in self.tensors.items()}
        too_large = [
            key
            for key, value in self.tensors.items()
            if torch.isfinite(value).all() and not torch.isfinite(rounded[key]).all()
        ]
        if too_large:
            raise InputError(f"weights too large for {dtype} in {', '.join(too_large)}; store fp32")
        return replace(self, tensors=rounded)


def inference_config(config: DSSNetConfig) -> DSSNetConfig:
    """`config` without the branch that only training needs."""
    return replace(config, super_resolution=False)


def fold_checkpoint(checkpoint: Checkpoint) -> FoldedWeights:
    """Fold a checkpoint, in float64, rounding once at the end."""
    state = checkpoint.state
    tensors = {
        name: value for key, value in state.items() if (name := _stage_name(key)) is not None
    }
    for i in range(DOWNSAMPLERS):
        strided, project = f"downsamplers.{i}.strided", f"downsamplers.{i}.project"
        weight, bias = fold.project(
            state[f"{strided}.weight"],
            state[f"{strided}.bias"],
            state[f"{project}.weight"],
            state[f"{project}.bias"],
        )
        tensors[f"downsample.{i}.weight"], tensors[f"downsample.{i}.bias"] = weight, bias
    return FoldedWeights(
        config=inference_config(checkpoint.config),
        tensors={key: value.float().contiguous() for key, value in sorted(tensors.items())},
        class_names=checkpoint.class_names,
        source_digest=checkpoint.digest,
    )


def unfold(weights: FoldedWeights) -> DSSNet:
    """A reference network, in float64, that computes what folded weights compute.

    The down-samplers' 1x1 convolutions become the identity. It is a starting point for training on
    and the yardstick for the inference path where there is no checkpoint.
    """
    state = {}
    for key in plain_shapes(weights.config):
        name = _stage_name(key)
        if name is not None:
            state[key] = weights.tensors[name].double()
    width = weights.config.width
    for i in range(DOWNSAMPLERS):
        for leaf in ("weight", "bias"):
            state[f"downsamplers.{i}.strided.{leaf}"] = weights.tensors[
                f"downsample.{i}.{leaf}"
            ].double()
        identity = torch.eye(width, dtype=torch.float64).view(width, width, 1, 1)
        state[f"downsamplers.{i}.project.weight"] = identity
        state[f"downsamplers.{i}.project.bias"] = torch.zeros(width, dtype=torch.float64)
    network = DSSNet(weights.config).double()
    load_released(network, {to_released(key): value for key, value in state.items()})
    return network.eval()


def folded_shapes(config: DSSNetConfig) -> dict[str, torch.Size]:
    """Names and shapes of the tensors in a weight file for `config`."""
    shapes = plain_shapes(inference_config(config))
    folded = {name: shape for key, shape in shapes.items() if (name := _stage_name(key))}
    for i in range(DOWNSAMPLERS):
        for leaf in ("weight", "bias"):
            folded[f"downsample.{i}.{leaf}"] = shapes[f"downsamplers.{i}.strided.{leaf}"]
    return folded


def save(weights: FoldedWeights, path: str | os.PathLike, dtype: str = "fp32") -> None:
    """Write a weight file: safetensors with metadata, at once or not at all.

    Args:
        weights: What to store.
        path: The file to write or replace.
        dtype: `fp32`, or `fp16` for half the size.

    Raises:
        InputError: A value exceeds the range of `dtype`, the quantisation does not fit, or `mpp`
            is none.
        OSError: The folder is missing or not writable, or the disk is full.
    """
    weights.rounded(dtype)
    metadata = {
        "format": FORMAT,
        "format_version": str(EDGE_FORMAT_VERSION if weights.config.edge else FORMAT_VERSION),
        "config": json.dumps(weights.config.to_dict()),
        "class_names": json.dumps(weights.class_names),
        "source_sha256": weights.source_digest,
        "folding": json.dumps(FOLDING),
        "dtype": dtype,
        "normalisation": "(value - 128) / 128",
        "written_by": f"dssnet_fast {dssnet_fast.__version__}",
    }
    if weights.quantisation is not None:
        weights.quantisation.check(weights.config)
        metadata["int8"] = weights.quantisation.to_json()
    if weights.mpp is not None:
        metadata["mpp"] = repr(check_mpp(weights.mpp))
    tensors = {key: value.to(DTYPES[dtype]) for key, value in weights.tensors.items()}
    try:
        with atomic_write(path) as temporary:
            save_file(tensors, temporary, metadata)
    except OSError:
        raise
    except Exception as error:  # safetensors wraps a full disk in an exception of its own
        raise OSError(errno.EIO, f"could not be written: {error}") from error


def is_weight_file(path: str | os.PathLike) -> bool:
    """Whether a file is a weight file of this project, whole or not."""
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("format") == FORMAT
    except Exception:
        return False


def load(path: str | os.PathLike, allow_nonfinite: bool = False) -> FoldedWeights:
    """Read a weight file.

    Raises:
        InputError: The file is missing, damaged, of another kind or of a newer version, or its
            tensors or int8 steps do not fit its config.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file" if not path.exists() else f"{path}: is no file")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors = {key: _float32(file.get_tensor(key)) for key in file.keys()}  # noqa: SIM118
    except OSError:
        raise
    except Exception as error:
        raise InputError(
            f"{path}: is not a whole safetensors file ({error}); "
            "convert a checkpoint with: python -m dssnet_fast.convert CHECKPOINT"
        ) from error
    if metadata.get("format") != FORMAT:
        raise InputError(
            f"{path}: is not a weight file of dssnet_fast; "
            f"convert it with: python -m dssnet_fast.convert {path}"
        )
    try:
        version = int(metadata["format_version"])
        if version > EDGE_FORMAT_VERSION:
            raise InputError(
                f"{path}: has format version {version}, this dssnet_fast reads up to "
                f"{EDGE_FORMAT_VERSION}; upgrade dssnet_fast"
            )
        config = DSSNetConfig.from_dict(json.loads(metadata["config"]))
        names = tuple(str(name) for name in json.loads(metadata["class_names"]))
        source = metadata["source_sha256"]
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: its metadata is damaged ({error!r})") from error
    if len(names) != config.classes:
        raise InputError(f"{path}: has {len(names)} class names for {config.classes} classes")
    actual = {key: value.shape for key, value in tensors.items()}
    if problems := problems_with_keys(actual, folded_shapes(config)):
        raise InputError(f"{path}: tensors do not fit the config: {'; '.join(problems)}")
    if not allow_nonfinite:
        check_finite(tensors, str(path))
    quantisation = None
    if "int8" in metadata:
        try:
            quantisation = Quantisation.from_json(metadata["int8"], config)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
    try:
        mpp = check_mpp(metadata["mpp"]) if "mpp" in metadata else None
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return FoldedWeights(config, tensors, names, source, quantisation, mpp)


def check_mpp(value: object) -> float:
    """Micrometres per px as a number.

    Raises:
        InputError: It is none, or none that a microscope has.
    """
    try:
        mpp = float(value)
    except (TypeError, ValueError):
        mpp = math.nan
    if not 0.01 <= mpp <= 100:
        raise InputError(f"mpp must be micrometres per px, such as 0.5, got {value!r}")
    return mpp


def _float32(value: Tensor) -> Tensor:
    """`value` as float32, converted on the calling thread.

    PyTorch wakes its threads for each of these small tensors; on a busy machine that takes longer
    than everything else about loading.
    """
    if value.dtype == torch.float16:
        return torch.from_numpy(value.numpy().astype(np.float32))
    return value.float()
