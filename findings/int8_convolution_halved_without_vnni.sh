#!/usr/bin/env bash
# One quantised ONNX model, two answers: on an x86-64 processor without VNNI (one with AVX2 only)
# ONNX Runtime and OpenVINO compute 32.4 where they compute 64 on one with VNNI.
#
# Why one would guess otherwise: the model is nothing but QuantizeLinear, DequantizeLinear and Conv.
# Its scales and zero points say exactly what the result is: 64 ones times one. Which instructions
# an engine chooses should change its speed only, and sums of integers are exact in any order, so
# int8 looks *more* portable than float32. The guides to quantising mention a loss of accuracy on
# such processors; that is half of the answer here, and nothing warns: not when the model is
# checked, nor when it is loaded, nor when it runs.
#
# What happens: without VNNI both multiply by vpmaddubsw, which adds two products of a byte and a
# signed byte in 16 bits and clamps: 2 * 255 * 127 = 64770 becomes 32767. Uint8 activations with int8
# weights, the usual combination, fall into it as soon as two neighbouring products are large.
# Weights of at most 64 (reduce_range in ONNX Runtime, overflow_fix in NNCF) are right everywhere, and
# ONNX Runtime has a switch of the session, off by default: session.x64quantprecision.
#
# Needs python3, a network, an x86-64 processor with VNNI, and qemu-x86_64 7.2 or newer (Debian:
# qemu-user) to be one without. Exit status: 0 behaves as told here, 1 it has changed, 2 not tried.
set -euo pipefail

command -v qemu-x86_64 >/dev/null || { echo "not tried: needs qemu-x86_64" >&2; exit 2; }
grep -qE 'avx512_vnni|avx_vnni' /proc/cpuinfo || { echo "not tried: no VNNI here" >&2; exit 2; }

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet onnx==1.23.2 onnxruntime==1.32.0 openvino==2026.4.1

cat > run.py <<'PY'
"""Prints `what value`: one output of a 1x1 convolution that has 64 everywhere."""
import sys

import numpy as np
import onnx
import onnxruntime
import openvino
from onnx import TensorProto, helper, numpy_helper

CHANNELS = 64


def model(largest):
    """Ones in CHANNELS channels times weights of one, stored as `largest` steps of 1 / largest."""
    values = {
        "x_step": np.float32(1 / 255),
        "y_step": np.float32(CHANNELS / 255),
        "w_step": np.float32(1 / largest),
        "zero": np.uint8(0),
        "signed_zero": np.int8(0),
        "w": np.full((8, CHANNELS, 1, 1), largest, np.int8),
    }
    node = helper.make_node
    nodes = [
        node("QuantizeLinear", ["x", "x_step", "zero"], ["x8"]),
        node("DequantizeLinear", ["x8", "x_step", "zero"], ["xf"]),
        node("DequantizeLinear", ["w", "w_step", "signed_zero"], ["wf"]),
        node("Conv", ["xf", "wf"], ["c"]),
        node("QuantizeLinear", ["c", "y_step", "zero"], ["c8"]),
        node("DequantizeLinear", ["c8", "y_step", "zero"], ["y"]),
    ]
    shapes = {"x": [1, CHANNELS, 16, 16], "y": [1, 8, 16, 16]}
    given, wanted = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in shapes.items()
    )
    constants = [numpy_helper.from_array(np.asarray(v), name) for name, v in values.items()]
    graph = helper.make_graph(nodes, "one_convolution", [given], [wanted], constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made, full_check=True)
    return made.SerializeToString()


def by_onnxruntime(data, image, precise="0"):
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", precise)
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": image})[0]


def by_openvino(data, image):
    core = openvino.Core()
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    return core.compile_model(core.read_model(data), "CPU", options)([image])[0]


image = np.ones((1, CHANNELS, 16, 16), np.float32)
for name, answer in {
    "onnxruntime_8_bits": by_onnxruntime(model(127), image),
    "onnxruntime_8_bits_x64quantprecision": by_onnxruntime(model(127), image, "1"),
    "onnxruntime_7_bits": by_onnxruntime(model(64), image),
    "openvino_8_bits": by_openvino(model(127), image),
    "openvino_7_bits": by_openvino(model(64), image),
}.items():
    assert (answer == answer.flat[0]).all(), name
    print(f"{name} {answer.flat[0]:.1f}")
print(f"onnxruntime {onnxruntime.__version__}, openvino {openvino.__version__}", file=sys.stderr)
PY

echo "with VNNI, this processor:"
venv/bin/python run.py | tee native.txt
echo "without, qemu's Haswell:"
qemu-x86_64 -cpu Haswell venv/bin/python run.py 2>messages.txt | tee haswell.txt
echo "messages beside qemu's own:"
grep -v "TCG doesn't support" messages.txt || true

cat > native.expected <<'EOF'
onnxruntime_8_bits 64.0
onnxruntime_8_bits_x64quantprecision 64.0
onnxruntime_7_bits 64.0
openvino_8_bits 64.0
openvino_7_bits 64.0
EOF
sed -E 's/^((onnxruntime|openvino)_8_bits) 64.0$/\1 32.4/' native.expected > haswell.expected
diff native.expected native.txt && diff haswell.expected haswell.txt || {
    echo "the behaviour has changed" >&2
    exit 1
}
echo "as told: half the sum without VNNI, and no warning"
