"""int8 answers of one processor beside another's: `python -m tests.int8_errors`.

`prepare` quantises as `dssnet_fast.bench` does and keeps the models, an image and the reference's
logits in a folder; `answer` runs them. So an emulated processor, on which quantising would take
hours, computes with the weights that the real one computes with:

    python -m tests.int8_errors prepare int8
    python -m tests.int8_errors answer int8
    qemu-x86_64 -cpu Haswell $(which python) -m tests.int8_errors answer int8
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from dssnet_fast import benchmark, onnxruntime_peer, openvino_peer, peers, weights
from dssnet_fast.model import FastDSSNet
from dssnet_fast.parity import relative_error
from dssnet_fast.python_ref.network import DSSNet

WAYS = {"int8": False, "int8-reduced": True}


def prepare(folder: Path, size: int, reference: DSSNet | None) -> None:
    """Write what `answer` reads.

    Args:
        folder: Where; made if it is not there.
        size: Side of the image in pixels.
        reference: See `benchmark.Arena`.

    Raises:
        benchmark.Unavailable: A package is missing.
    """
    import onnx
    import openvino

    openvino_peer.require("int8")
    onnxruntime_peer.require("int8")
    arena = benchmark.Arena(reference, torch.device("cpu"))
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "image.npy", arena.image(size, 1).numpy())
    np.save(folder / "expected.npy", arena.expected(size, 1).numpy())
    weights.save(arena._calibrated, folder / "fast-cpu-int8.safetensors")
    for graph in peers.GRAPHS:
        model = peers.onnx_model(arena.reference, graph)
        for way, reduced in WAYS.items():
            done = onnxruntime_peer.quantised(model, arena.samples, reduced)
            onnx.save(done, folder / f"onnxruntime-{graph}-{way}.onnx")
            given = openvino.Core().read_model(model.SerializeToString())
            done = openvino_peer.quantised(given, arena.samples, reduced)
            openvino.save_model(done, folder / f"openvino-{graph}-{way}.xml", False)


def _by_onnxruntime(path: Path, image: np.ndarray) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"image": image})[0]


def _by_openvino(path: Path, image: np.ndarray) -> np.ndarray:
    import openvino

    network = openvino.Core().read_model(path)
    network.reshape(list(image.shape))
    return openvino.compile_model(network, "CPU")([image])[0]


def _by_fast(path: Path, image: np.ndarray) -> np.ndarray:
    net = FastDSSNet.load(path, device="cpu", backend="cpu", precision="int8")
    with torch.no_grad():
        return net(torch.from_numpy(image)).numpy()


ENGINES: dict[str, Callable[[Path, np.ndarray], np.ndarray]] = {
    ".onnx": _by_onnxruntime,
    ".xml": _by_openvino,
    ".safetensors": _by_fast,
}


def answer(folder: Path) -> None:
    """Print for each contestant the error of its logits and the share of labels kept.

    Args:
        folder: That `prepare` wrote.
    """
    image, expected = np.load(folder / "image.npy"), np.load(folder / "expected.npy")
    for path in sorted(path for path in folder.iterdir() if path.suffix in ENGINES):
        logits = ENGINES[path.suffix](path, image)
        error = relative_error(logits, expected)
        same = float((logits.argmax(1) == expected.argmax(1)).mean())
        print(f"{path.stem:<34} {error:.1e} {same:8.2%}", flush=True)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.int8_errors", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("what", choices=("prepare", "answer"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=128, help="side of the image in pixels")
    parser.add_argument("--packaged", action="store_true", help="not random weights")
    arguments = parser.parse_args()
    if arguments.what == "prepare":
        reference = None
        if arguments.packaged:
            packaged = FastDSSNet.pretrained(device="cpu").folded_weights()
            reference = weights.unfold(packaged).float()
        prepare(arguments.folder, arguments.size, reference)
    else:
        answer(arguments.folder)


if __name__ == "__main__":
    main()
