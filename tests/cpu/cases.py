"""Networks and instruction sets that the tests of the backend share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache

import torch

from dssnet_fast import calibrate
from dssnet_fast.backends import Backend, native
from dssnet_fast.backends.cpu import instruction_set
from dssnet_fast.backends.cpu.engine import CpuBackend
from dssnet_fast.checkpoint import from_state
from dssnet_fast.python_ref.network import DSSNet
from dssnet_fast.python_ref.released import released_state
from dssnet_fast.weights import FoldedWeights, fold_checkpoint
from laboratory import specimen
from networks import CONFIGS, noise, random_network


def _found() -> dict[str, Mapping[str, object]]:
    if native.problem() is not None:
        return {}
    return {one["name"]: one for one in instruction_set.found() if one["runs_here"]}


# What this machine can run, slowest first. None without the extension.
INSTRUCTION_SETS = _found()
# Two that share no line of intrinsics, for what does not depend on the instruction set.
ENDS = list(dict.fromkeys([*list(INSTRUCTION_SETS)[:1], *list(INSTRUCTION_SETS)[-1:]]))

# Those with instructions for bfloat16, whether they are fast here or not.
NATIVE_BF16 = [name for name in INSTRUCTION_SETS if name in ("avx512_bf16", "amx", "neon_bf16")]


def folded_weights(network: DSSNet) -> FoldedWeights:
    """What a backend is given for a network."""
    return fold_checkpoint(from_state(released_state(network)))


@cache
def calibrated(name: str, strange: bool = False) -> FoldedWeights:
    """The network of a config with steps for int8; `strange` ones have large biases."""
    config = CONFIGS[name]
    network = specimen(config, (1, 8, 8))[0] if strange else random_network(config)
    folded = folded_weights(network)
    images = [noise(*size, config.in_channels) for size in ((24, 40), (48, 16))]
    return replace(folded, quantisation=calibrate.calibrate(folded, images))


def backend(
    weights: FoldedWeights,
    precision: str = "fp32",
    name: str | None = None,
    winograd: bool = True,
    fast_bf16: bool | None = None,
) -> CpuBackend:
    """The engine, for an instruction set or the best; `fast_bf16` if not as the processor is."""
    chosen = dict(INSTRUCTION_SETS[name or ENDS[-1]])
    if fast_bf16 is not None:
        chosen["fast_bf16"] = fast_bf16
    return CpuBackend(weights, precision, native.module(), chosen, winograd)


def run(backend: Backend, stage: str, given: list[torch.Tensor]) -> list[torch.Tensor]:
    """The maps, or the logits, that a stage or `infer` makes."""
    kind = ("logits",) if stage in ("segment", "infer") else ()
    answer = getattr(backend, stage)(*given, *kind)
    return list(answer) if isinstance(answer, tuple) else [answer]


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Within this, torch uses that many."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
