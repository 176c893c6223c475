"""Every kernel, broken on purpose: the executor or the reference must notice."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass

import pytest
import torch

from dssnet_fast.python_ref.config import DSSNetConfig
from laboratory import Laboratory, Reference, last, specimen
from networks import CONFIGS
from ptx import errors
from ptx.plans import KERNELS, compile_kernels, shipped_kernels

pytestmark = pytest.mark.usefixtures("one_thread")

RELEASED = DSSNetConfig(classes=2, blocks=1)
SHAPE = (1, 72, 88)  # no multiple of a tile, more than one tile each way
WRONG = "wrong"


@dataclass(frozen=True)
class Mutation:
    """A change to a kernel's source, and what must come of it.

    Attributes:
        module: Which source.
        stage: Which stage shows it.
        old, new: What is replaced, once.
        after: Text that comes before `old`, where `old` alone is not unique.
        seen: The fault that the executor must raise, or WRONG for wrong numbers.
        config: The network.
    """

    module: str
    stage: str
    old: str
    new: str
    seen: type | str
    after: str = ""
    config: DSSNetConfig = RELEASED


WAIT = "wait_for_copies();"
SYNC = "__syncthreads();"
HAZARD, RACE = errors.AsyncCopyHazard, errors.SharedRace
UNWRITTEN, OUTSIDE = errors.UninitialisedRead, errors.OutOfBounds
LEARNED = CONFIGS["pixel_shuffle"]
MUTATIONS = {
    # stem and first down-sampler
    "stem: no barrier after the image": Mutation(
        "downsample", "downsample", SYNC, "", (UNWRITTEN, RACE), "load_image<T>(p, colors"
    ),
    "stem: halo one row off": Mutation(
        "downsample", "downsample", "top = 2 * row0 - 2", "top = 2 * row0 - 1", WRONG
    ),
    "stem: top border not corrected": Mutation(
        "downsample", "downsample", "if (y == 0) {", "if (y == 1) {", WRONG
    ),
    "stem: corner counted twice": Mutation(
        "downsample", "downsample", "if (y == 0) {", "if (y == 1) {", WRONG, "const float2 left"
    ),
    "stem: no barrier before the result is read back": Mutation(
        "downsample", "downsample", "__syncwarp();", "", (UNWRITTEN, RACE)
    ),
    # the other down-samplers
    "down: copies not waited for": Mutation(
        "downsample", "downsample", WAIT, "", (HAZARD, UNWRITTEN)
    ),
    "down: halo one column off": Mutation(
        "downsample",
        "downsample",
        "x = 2 * column0 - 1 + column",
        "x = 2 * column0 + column",
        WRONG,
    ),
    # W-NECK chain
    "wneck: copies not waited for": Mutation("extract", "extract", WAIT, "", (HAZARD, UNWRITTEN)),
    "wneck: no barrier between u and its restoring": Mutation(
        "extract", "extract", SYNC, "", (UNWRITTEN, RACE, HAZARD), WAIT
    ),
    "wneck: no barrier between restored and expanded": Mutation(
        "extract", "extract", SYNC, "", (UNWRITTEN, RACE), "to_expand3 = expand_weights"
    ),
    "wneck: no barrier between taps of the squeeze": Mutation(
        "extract", "extract", "sync_some(1 +", "if (tap != 4) sync_some(1 +", RACE
    ),
    "wneck: a tile's ring forgotten": Mutation(
        "extract", "extract", "from = at <= 0 ? -1", "from = at < 0 ? -1", WRONG
    ),
    "wneck: expanded cells outside the image": Mutation(
        "extract", "extract", "inside ? T::pack(low, high) : 0", "T::pack(low, high)", WRONG
    ),
    "wneck: one cell too many written": Mutation(
        "extract",
        "extract",
        "if (cell >= Tile::X_CELLS) continue;",
        "",
        (OUTSIDE, UNWRITTEN),
        "write_sums()",
    ),
    # FFM, nearest neighbour
    "fuse: copies not waited for": Mutation("fuse", "fuse", WAIT, "", (HAZARD, UNWRITTEN)),
    "fuse: no barrier between values and their use": Mutation(
        "fuse", "fuse", SYNC, "", (UNWRITTEN, RACE), "values(chunk * VALUES);"
    ),
    "fuse: cells beyond the ends not cleared": Mutation(
        "fuse", "fuse", "i < all - cells", "i < 0", UNWRITTEN
    ),
    "fuse: values one column off": Mutation(
        "fuse",
        "fuse",
        "v_column = 3 * column - 2 + j",
        "v_column = 3 * column - 1 + j",
        WRONG,
    ),
    "fuse: values outside the image": Mutation(
        "fuse",
        "fuse",
        "inside ? T::pack(low, high) : 0",
        "T::pack(low, high)",
        WRONG,
        "const int v_column",
    ),
    # FFM, learned
    "shuffle: no barrier between the two convolutions": Mutation(
        "fuse", "fuse", SYNC, "", (UNWRITTEN, RACE), "        smooth();", LEARNED
    ),
    "shuffle: halo one row off": Mutation(
        "fuse", "fuse", "y = row0 / 4 - 1 + cell", "y = row0 / 4 + cell", WRONG, config=LEARNED
    ),
    # segmentation head
    "segment: copies not waited for": Mutation("segment", "segment", WAIT, "", (HAZARD, UNWRITTEN)),
    "segment: no barrier after the first convolution": Mutation(
        "segment", "segment", SYNC, "", (UNWRITTEN, RACE), "narrow(to_narrow);"
    ),
    "segment: bottom border not corrected": Mutation(
        "segment", "segment", "bottom = y == p.height - 1", "bottom = y == p.height", WRONG
    ),
    "segment: labels written over what is still read": Mutation(
        "segment", "labels", SYNC, "", RACE, "void label_two"
    ),
}


def mutated(mutation: Mutation, folder) -> str:
    """PTX of the changed source, of fp16 kernels only."""
    shutil.copytree(KERNELS, folder, dirs_exist_ok=True)
    path = folder / f"{mutation.module}.cu"
    source = path.read_text()
    start = source.index(mutation.after)
    at = source.index(mutation.old, start)
    source = source[:at] + mutation.new + source[at + len(mutation.old) :]
    path.write_text(re.sub(r"\n\w+_KERNELS\(bf16\)", "", source))
    return compile_kernels(mutation.module, folder)


def run_stage(laboratory: Laboratory, reference: Reference, stage: str, image):
    """Outcome of a stage beside the reference's."""
    (x0,), _ = reference.stage("downsample", last(reference.image))
    if stage == "downsample":
        return laboratory.downsample(image), x0
    maps, _ = reference.stage("extract", x0)
    if stage == "extract":
        return laboratory.extract(x0)[1], maps[1]
    (y,), _ = reference.stage("fuse", *maps)
    if stage == "fuse":
        return laboratory.fuse(*maps), y
    (logits,), _ = reference.stage("segment", y)
    if stage == "labels":
        return laboratory.segment(y, "labels"), logits.argmax(3)
    return laboratory.segment(y, "logits"), logits


@pytest.mark.parametrize("name", MUTATIONS)
def test_mutation_is_noticed(native, kernels, tmp_path, name):
    mutation = MUTATIONS[name]
    try:
        ptx = mutated(mutation, tmp_path / "kernels")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    network, image = specimen(mutation.config, SHAPE)
    sources = {mutation.module: ptx}
    laboratory = Laboratory(
        native,
        network,
        ptx=lambda module: sources.get(module) or shipped_kernels(module),
        racecheck=True,
    )
    reference = Reference(network, torch.float16, image)
    if mutation.seen == WRONG:
        got, wanted = run_stage(laboratory, reference, mutation.stage, image)
        # Rounding moves no number by more than a thousandth of the largest.
        assert (got.double() - wanted).abs().max() > 0.01 * wanted.abs().max()
    else:
        with pytest.raises(mutation.seen):
            run_stage(laboratory, reference, mutation.stage, image)
