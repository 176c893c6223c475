#!/usr/bin/env bash
# OpenVINO's default precision makes a convolution network nearly twice as slow as float32, and
# less exact, on Intel processors that have AVX-512 BF16 but no AMX in reach.
#
# Why one would guess otherwise: the processor says that it has instructions for bfloat16, OpenVINO
# lists BF16 among its capabilities and takes it by itself, and on AMD's Zen 4 and on Intel's own
# processors with AMX that is right: bfloat16 is much faster there. A vdpbf16ps adds twice as many
# products as the vfmadd231ps of float32, so at the worst it should be as fast.
#
# What happens: Intel's cores start a vdpbf16ps every other cycle only (AMX is what they are meant to
# use), so it does half of float32's products a second. Virtual machines on Sapphire Rapids and newer often pass on
# AVX-512 BF16 and not AMX. INFERENCE_PRECISION_HINT=f32 is the remedy.
#
# Needs python3, a network, and such a processor. Exit status: 0 behaves as told here, 1 it has
# changed, 2 not tried.
set -euo pipefail

has() { grep -qw "$1" /proc/cpuinfo; }
has GenuineIntel && has avx512_bf16 && ! has amx_bf16 || {
    echo "not tried: needs an Intel processor with avx512_bf16 and without amx_bf16" >&2
    exit 2
}

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet openvino==2026.4.1 numpy==2.4.6

cat > run.py <<'PY'
"""Times one network at OpenVINO's default and in float32, by turns, in processor time of a thread."""
import statistics
import sys
import time

import numpy as np
import openvino as ov
from openvino import opset13 as op

numbers = np.random.default_rng(0)
image = op.parameter([1, 64, 128, 128], np.float32)
last = image
for _ in range(6):
    weights = op.constant(numbers.normal(0, 0.05, (64, 64, 3, 3)).astype(np.float32))
    last = op.relu(op.convolution(last, weights, [1, 1], [1, 1], [1, 1], [1, 1]))
model, core = ov.Model([last], [image]), ov.Core()
options = {"default": {}, "float32": {"INFERENCE_PRECISION_HINT": "f32"}}
compiled = {
    name: core.compile_model(
        model, "CPU", {**one, "INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
    )
    for name, one in options.items()
}
pixels = numbers.normal(size=(1, 64, 128, 128)).astype(np.float32)
seconds, answers = {name: [] for name in compiled}, {}
for _ in range(15):
    for name, one in compiled.items():
        begin = time.process_time()
        answers[name] = next(iter(one(pixels).values()))
        seconds[name].append(time.process_time() - begin)
print(f"OpenVINO {ov.__version__}, {core.get_property('CPU', 'FULL_DEVICE_NAME')}")
print("capabilities", core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
for name, one in compiled.items():
    hint = one.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    print(f"{name:8} {hint}: {1e3 * statistics.median(seconds[name]):.1f} ms")
slower = statistics.median(a / b for a, b in zip(seconds["default"], seconds["float32"]))
error = np.linalg.norm(answers["default"] - answers["float32"]) / np.linalg.norm(answers["float32"])
print(f"the default takes {slower:.2f} times as long and differs by {error:.1e}")
chosen = compiled["default"].get_property("INFERENCE_PRECISION_HINT").get_type_name()
sys.exit(0 if chosen == "bf16" and slower > 1.3 else 1)
PY
venv/bin/python run.py
