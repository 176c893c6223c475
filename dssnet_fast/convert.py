"""`python -m dssnet_fast.convert ckpt.pt`: a checkpoint becomes a weight file."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from dssnet_fast import cli
from dssnet_fast.python_ref.errors import InputError

# Worst relative error of logits and edges against the float64 reference. float32: the order of
# additions. fp16: rounding every weight to 11 bits; with random weights 1e-3 was measured.
TOLERANCE = {"fp32": 2e-5, "fp16": 1e-2}
_VERIFIED_SIDE_PX = 1024
_MEASURED_IMAGES = 32  # for layers to keep exact, which takes some dozens of runs over them


def make_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = cli.parser(
        "convert",
        "Fold a checkpoint (released, from our training, plain, or safetensors) into a weight file "
        "for FastDSSNet. What was written is read back and compared with the reference network.",
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument(
        "-o", "--out", type=Path, default=None, help="weight file (default: beside the checkpoint)"
    )
    parser.add_argument("--dtype", choices=tuple(TOLERANCE), default="fp32", help="of the file")
    parser.add_argument(
        "--no-edges",
        action="store_true",
        help="leave out the edge head, which tells touching nuclei apart, for a smaller file",
    )
    parser.add_argument("--class-names", default=None, help="comma-separated, background first")
    parser.add_argument(
        "--mpp",
        type=float,
        default=None,
        help="micrometres per px of the images that the network knows, for slides",
    )
    parser.add_argument(
        "--verify",
        type=Path,
        nargs="+",
        default=[],
        metavar="IMAGE",
        help="also compare on these images or folders",
    )
    parser.add_argument(
        "--onnx",
        type=Path,
        nargs="?",
        const=True,
        default=None,
        metavar="FILE",
        help="also write the folded graph up to the logits as ONNX, without the edge head "
        "(default: beside the weight file)",
    )
    parser.add_argument(
        "--int8", action="store_true", help="also store what int8 needs; see --calibrate"
    )
    parser.add_argument(
        "--calibrate",
        type=Path,
        nargs="+",
        default=[],
        metavar="IMAGE",
        help="images or folders for --int8, like those to be segmented; some dozens are enough",
    )
    parser.add_argument(
        "--allow-nonfinite", action="store_true", help="convert NaN and infinite weights too"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    return parser


def body(arguments: argparse.Namespace) -> None:
    """Convert as the arguments say."""
    from dssnet_fast import macs, parity, weights
    from dssnet_fast.checkpoint import read_checkpoint
    from dssnet_fast.model import FastDSSNet
    from dssnet_fast.python_ref.files import atomic_write
    from dssnet_fast.python_ref.images import find_images, read_image

    if arguments.int8 != bool(arguments.calibrate):
        raise InputError("--int8 and --calibrate IMAGES need each other")
    source = arguments.checkpoint
    out = arguments.out or default_out(source)
    onnx = out.with_suffix(".onnx") if arguments.onnx is True else arguments.onnx
    for path in filter(None, (out, onnx)):
        _check_free(path, source, arguments.overwrite)

    if weights.is_weight_file(source):
        folded = weights.load(source, arguments.allow_nonfinite)
        kind = "weight file of dssnet_fast"
        reference = weights.unfold(folded)
    else:
        checkpoint = read_checkpoint(source, arguments.allow_nonfinite)
        kind = checkpoint.kind
        folded = weights.fold_checkpoint(checkpoint)
        reference = checkpoint.reference()
    if arguments.no_edges:
        folded = folded.without_edges()
    if arguments.class_names is not None:
        folded = replace(
            folded, class_names=cli.class_names(arguments.class_names, folded.config.classes)
        )

    if arguments.mpp is not None:
        folded = replace(folded, mpp=weights.check_mpp(arguments.mpp))

    calibrated = None
    if arguments.int8:
        folded, calibrated = _calibrate(folded, find_images(arguments.calibrate), arguments.dtype)

    config = folded.config
    images = parity.random_images(config)
    for path in find_images(arguments.verify) if arguments.verify else []:
        image = read_image(path, channels=config.in_channels)
        images.append(image[:_VERIFIED_SIDE_PX, :_VERIFIED_SIDE_PX])

    with atomic_write(out) as temporary:
        weights.save(folded, temporary, arguments.dtype)
        back = weights.load(temporary, arguments.allow_nonfinite)
        net = FastDSSNet(back, device="cpu", backend="torch", precision="fp32")
        found = None
        if not arguments.allow_nonfinite:
            found = parity.compare(net, reference, images)
            errors = [error for error in (found.error, found.edge_error) if error is not None]
            if not all(error <= TOLERANCE[arguments.dtype] for error in errors):
                worst = ", edges by ".join(f"{error:.1e}" for error in errors)
                raise InputError(
                    f"{source}: converted weights differ from the reference by {worst} "
                    f"(limit {TOLERANCE[arguments.dtype]:.0e}); nothing was written"
                )

    before = sum(value.numel() for value in reference.parameters())
    after = sum(value.numel() for value in folded.tensors.values())
    side = 512
    macs_before = macs.reference(config, side, side) / 1e9
    stages = macs.folded(config, side, side)
    macs_of_edges = stages.pop("edges", 0) / 1e9
    macs_after = sum(stages.values()) / 1e9
    size = out.stat().st_size / 1e6
    print(f"{source}: {kind}, sha256 {folded.source_digest[:12]}")
    print(f"  network     {describe(config)}")
    print(f"  classes     {', '.join(folded.class_names)}")
    if folded.mpp is not None:
        print(f"  scale       {folded.mpp} micrometres per px")
    print(f"  parameters  {before:,} in training -> {after:,}")
    said = f", edges {macs_of_edges:.2f} G" if config.edge else ""
    print(f"  MACs        {macs_before:.2f} -> {macs_after:.2f} G for {side}x{side}{said}")
    if found is None:
        print("  parity      not checked: non-finite weights are allowed")
    else:
        print(
            f"  parity      worst relative error {found.error:.1e}, labels equal "
            f"{found.labels:.4%}, {found.images} images, against the reference in float64"
        )
    if found is not None and found.edge_error is not None:
        print(f"  edges       worst relative error {found.edge_error:.1e}")
    if calibrated is not None:
        print(f"  int8        {calibrated}")
    print(f"  written     {out} ({size:.1f} MB, {arguments.dtype})")
    if onnx:
        from dssnet_fast.onnx_export import OPSET, export_onnx

        error = export_onnx(back, onnx)
        print(
            f"  written     {onnx} ({onnx.stat().st_size / 1e6:.1f} MB, ONNX opset {OPSET}, "
            f"onnxruntime within {error:.1e})"
        )


def _calibrate(folded, paths: list[Path], dtype: str):
    """Add what int8 needs to folded weights, and say in a few words how well it does."""
    import torch

    from dssnet_fast import calibrate
    from dssnet_fast.backends import BackendUnavailable, check_environment
    from dssnet_fast.python_ref.images import read_image

    check_environment(torch.device("cpu"))
    # What will be read back is what is calibrated.
    folded = folded.rounded(dtype)

    def read(paths):
        for path in paths:
            image = read_image(path, channels=folded.config.in_channels)
            yield image[:_VERIFIED_SIDE_PX, :_VERIFIED_SIDE_PX]

    folded = replace(folded, quantisation=calibrate.calibrate(folded, read(paths)))
    said = f"steps from {len(paths)} image(s)"
    try:
        calibrate.int8_network(folded)
        some = list(read(paths[:: -(-len(paths) // _MEASURED_IMAGES)]))
        exact = calibrate.find_exact(folded, some, make=calibrate.int8_network)
        folded = replace(folded, quantisation=replace(folded.quantisation, exact=exact))
        truth, network = calibrate.float32_network(folded), calibrate.int8_network(folded)
        expected = (truth(image) for image in read(paths))
        found = calibrate.difference(network, read(paths), expected)
    except BackendUnavailable as error:
        # The steps are right on any machine; only what they are worth cannot be told on this one.
        return folded, f"{said}; not measured, and no layer kept exact: {error}"
    return folded, (
        f"{said}; exact: {', '.join(exact) or 'nothing'}; relative error {found.error:.1e}, "
        f"labels equal {found.labels:.4%}, against fp32 on these images"
    )


def default_out(checkpoint: Path) -> Path:
    """Where the weight file goes unless told otherwise; never the checkpoint itself."""
    out = checkpoint.with_suffix(".safetensors")
    return out if out != checkpoint else checkpoint.with_suffix(".folded.safetensors")


def describe(config) -> str:
    """A config on one line."""
    return (
        f"{config.blocks} {config.block} blocks, width {config.width}, features "
        f"{config.features}, {config.in_channels} -> {config.classes} channels, "
        f"{config.upsampling} up-sampling, {'with' if config.edge else 'no'} edge head"
    )


def _check_free(path: Path, source: Path, overwrite: bool) -> None:
    if path.exists() and source.exists() and path.samefile(source):
        raise InputError(f"{path}: is the checkpoint itself; choose another --out")
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give a file name")
    if path.exists() and not overwrite:
        raise InputError(f"{path}: exists; choose another --out or add --overwrite")
    if not path.parent.is_dir():
        raise InputError(f"{path.parent}: no such folder")


if __name__ == "__main__":
    sys.exit(cli.main("convert", make_parser, body))
