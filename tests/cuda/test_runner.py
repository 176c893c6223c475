"""The runner against a driver that keeps books (stand_in.cpp), driven down every path.

Under sanitizers too, in the tests marked large.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent
CLEAN = {"module": 0, "graph": 0, "exec": 0}


def run(
    extension: str | Path,
    library: Path | None,
    scenario: str,
    *arguments: object,
    environment: dict[str, str] | None = None,
    devices: int = 2,
) -> tuple[object, dict, str]:
    """A scenario of scenarios.py in a process whose driver is `library`.

    Returns:
        What the scenario returned, the stand-in's books, and what went to stderr.
    """
    own = {name: value for name, value in os.environ.items() if name != "DSSNET_FAST_CUDA_SYNC"}
    own |= {"STAND_IN_DEVICES": str(devices)} | (environment or {})
    own["LD_LIBRARY_PATH"] = str(library.parent if library else HERE)
    command = [sys.executable, str(HERE / "scenarios.py"), str(extension), scenario]
    done = subprocess.run(
        [*command, json.dumps(arguments)], env=own, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-6000:]
    answer = json.loads(done.stdout)
    return answer["result"], answer["report"], done.stderr


def assert_clean(report: dict) -> None:
    """Nothing forbidden was done, and nothing is left."""
    assert report["violations"] == []
    assert report["live"] == CLEAN
    assert not any(report["retained"].values())
    assert report["stack"] == 0
    assert report["capture_mode"] == 0
    assert report["invalidated_captures"] == 0


class Stage:
    """Runs scenarios with the extension and the stand-in that the fixtures built."""

    def __init__(self, native: ModuleType, library: Path) -> None:
        self.native, self.library = native, library

    def __call__(self, scenario: str, *arguments: object, **options) -> tuple[object, dict]:
        result, report, _ = run(self.native.__file__, self.library, scenario, *arguments, **options)
        return result, report

    def clean(self, scenario: str, *arguments: object, **options) -> tuple[object, dict]:
        result, report = self(scenario, *arguments, **options)
        assert_clean(report)
        return result, report


@pytest.fixture(scope="module")
def stage(native, stand_in) -> Stage:
    return Stage(native, stand_in)


@pytest.fixture(scope="module")
def used_calls() -> set[str]:
    """The functions of the driver that driver.h names."""
    text = (HERE.parent.parent / "csrc" / "runtime" / "driver.h").read_text()
    found = set(re.findall(r"CALL\(\w+, (cu\w+),", text))
    assert len(found) > 20
    return found


# --- a driver that cannot be used -----------------------------------------------------------------


def assert_unusable(result: dict, *words: str) -> None:
    """The problem has these words, and is what every entry point says."""
    for word in words:
        assert word in result["problem"]
    assert result["again"] == result["problem"]
    assert result["count"] == 0
    assert result["runner"] == result["properties"] == ["CudaError", result["problem"]]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (100, ["CUDA_ERROR_NO_DEVICE (100)", "nvidia-smi", 'CUDA_VISIBLE_DEVICES is set to "7"']),
        (803, ["CUDA_ERROR_SYSTEM_DRIVER_MISMATCH (803)", "restart the machine", "container"]),
        (999, ["CUDA_ERROR_UNKNOWN (999)", "nvidia-uvm"]),
        (3, ["(3)", "spawn"]),
        (34, ["(34)", "stubs"]),
        (101, ["(101)", "CUDA_VISIBLE_DEVICES"]),
        (802, ["(802)", "nvidia-fabricmanager"]),
        (804, ["(804)", "cuda-compat"]),
        (77, ["(77)", "nvidia-smi"]),
    ],
)
def test_initialisation_that_fails_says_what_to_do(stage, code, words):
    environment = {"STAND_IN_FAIL": f"cuInit:{code}", "CUDA_VISIBLE_DEVICES": "7"}
    result, report = stage("problem", environment=environment)
    assert_unusable(result, "cuInit", "libcuda.so.1 (CUDA 12.4)", *words)
    assert report["violations"] == []
    assert report["order"].count("cuInit") == 1


def test_no_devices(stage):
    result, _ = stage.clean("problem", devices=0, environment={"CUDA_VISIBLE_DEVICES": ""})
    assert_unusable(result, "no GPU can be seen", 'CUDA_VISIBLE_DEVICES is set to ""')


def test_devices_that_cannot_be_counted(stage):
    environment = {"STAND_IN_FAIL": "cuDeviceGetCount:999"}
    result, _ = stage.clean("problem", environment=environment)
    assert_unusable(result, "cuDeviceGetCount", "CUDA_ERROR_UNKNOWN (999)")


def test_version_that_is_not_told(stage):
    environment = {"STAND_IN_FAIL": "cuDriverGetVersion:1,cuInit:999"}
    result, _ = stage("problem", environment=environment)
    assert_unusable(result, "of an unknown CUDA version", "CUDA_ERROR_UNKNOWN (999)")


def test_old_drivers_lack_functions(native, builder, used_calls):
    """Whichever function is missing is named; only one of newer drivers is not needed."""
    for name in sorted(used_calls - {"cuFuncGetParamInfo"}):
        library = builder.stand_in(without=name)
        result, report, _ = run(
            native.__file__, library, "problem", environment={"STAND_IN_VERSION": "11040"}
        )
        version = "of an unknown CUDA version" if name == "cuDriverGetVersion" else "CUDA 11.4"
        assert_unusable(result, f"{version}) lacks {name}:", "CUDA 12.0", "525")
        assert set(report["order"]) <= {"cuDriverGetVersion"}


def test_driver_that_tells_no_sizes_of_parameters(native, builder):
    library = builder.stand_in(without="cuFuncGetParamInfo")
    expected, report, _ = run(native.__file__, library, "unchecked_size")
    assert_clean(report)
    assert [launch["parameters"] for launch in report["launches"]] == expected


def test_library_that_is_none(native, tmp_path):
    library = tmp_path / "libcuda.so.1"
    library.write_text("no library")
    result, _, _ = run(native.__file__, library, "problem")
    assert_unusable(
        result, "libcuda.so.1 cannot be loaded", str(library), "installed", "--gpus all"
    )


def test_no_library(native):
    code = "import ctypes; ctypes.CDLL('libcuda.so.1')"
    elsewhere = {name: value for name, value in os.environ.items() if name != "LD_LIBRARY_PATH"}
    if not subprocess.run(
        [sys.executable, "-c", code], env=elsewhere, capture_output=True
    ).returncode:
        pytest.skip("this machine has a driver")
    result, report, _ = run(native.__file__, None, "problem")
    assert_unusable(result, "libcuda.so.1 cannot be loaded", "No such file", "installed")
    assert report is None


def test_devices(stage):
    result, _ = stage.clean("devices")
    assert result["problem"] is None
    assert result["count"] == 2
    assert result["properties"] == [96, 84, 227 * 1024, 228 * 1024]
    assert result["runner"] == "Runner(device=1)"
    assert [kind for kind, _ in result["wrong"]] == ["ValueError", "ValueError"]
    assert "less than the number of GPUs seen, 2, got 2" in result["wrong"][0][1]
    assert "got -1" in result["wrong"][1][1]


# --- launches -------------------------------------------------------------------------------------

SHAPES = {
    "first": ([2, 3, 4], [128, 1, 1], 0),
    "second": ([5, 1, 1], [256, 1, 1], 100),
    "third": ([1, 6, 1], [32, 1, 1], 0),
}


def as_recorded(how: str, stream: int, parameters: list[str]) -> list[dict]:
    """A run of the scenarios' plan as the stand-in records it."""
    return [
        {
            "how": how,
            "kernel": kernel,
            "grid": grid,
            "block": block,
            "shared_bytes": shared_bytes,
            "device": 0,
            "stream": stream,
            "parameters": block_of_parameters,
        }
        for (kernel, (grid, block, shared_bytes)), block_of_parameters in zip(
            SHAPES.items(), parameters, strict=True
        )
    ]


def test_launches_deliver_everything(stage):
    result, report = stage.clean("launches")
    assert result["loaded"] == ["alpha", "beta"]
    assert report["launches"] == [
        one
        for stream, parameters in result["expected"]
        for one in as_recorded("launch", stream, parameters)
    ]
    assert result["current"] == [True, 1], "the caller's context is current again"
    for name in ("cuModuleGetFunction", "cuFuncGetAttribute"):
        assert report["order"].count(name) == 3, "functions are looked up once"
    assert "cuFuncSetAttribute" not in report["order"]
    assert "cuStreamSynchronize" not in report["order"]


def test_graph_updates_only_what_changed(stage):
    result, report = stage.clean("graph")
    assert result["updates"] == [0, 1, 0, 2]
    assert report["launches"] == [
        one
        for parameters in result["expected"]
        for one in as_recorded("graph", result["stream"], parameters)
    ]
    assert result["repr"] == "Graph(3 launches)"
    assert report["order"].count("cuGraphInstantiateWithFlags") == 1


def test_everything_is_released_in_order(stage):
    """The runner outlives the scenario's own use of the context, so it is the last to leave."""
    _, report = stage.clean("graph")
    releases = (
        *("cuGraphExecDestroy", "cuGraphDestroy", "cuCtxSynchronize"),
        *("cuModuleUnload", "cuDevicePrimaryCtxRelease_v2"),
    )
    order = [name for name in report["order"] if name in releases]
    own = order.pop(0)
    assert own == "cuDevicePrimaryCtxRelease_v2"
    assert order == [*releases[:3], "cuModuleUnload", *releases[3:]]


def test_shared_memory_is_opted_in_once_and_raised(stage):
    result, _ = stage.clean("shared_memory")
    assert result["opted"] == [0, 1, 1, 1, 0, 2]
    for refused in (result["too_much"], result["again"]):
        assert refused[0] == "CudaError"
        assert refused[1].startswith("cuFuncSetAttribute: alpha/second on device 0")
        assert "231424 bytes of dynamic shared memory beside 2048 static" in refused[1]


def test_images_that_cannot_be_loaded(stage):
    result, report = stage.clean("images")
    kind, message = result["invalid"]
    assert kind == "CudaError"
    assert message.startswith('cuModuleLoadDataEx: module "bad" (PTX, 35 bytes) on device 0')
    assert "CUDA_ERROR_INVALID_PTX (218)" in message
    assert message.endswith("log of the driver's compiler:\n line 3: no such instruction")
    assert result["long log"][1].count("x" * 16_000) == 1
    for name in ("empty", "header", "cut"):
        assert result[name][0] == "ValueError"
        assert 'the image of module "bad" must be whole' in result[name][1]
    assert result["text"][0] == "TypeError"
    assert result["nothing"] == []
    assert result["whole"] is result["same"] is None
    assert result["other"][0] == "ValueError"
    assert 'module "good" must not be loaded already with another image' in result["other"][1]
    assert result["loaded"] == ["good"]
    assert report["order"].count("cuModuleLoadDataEx") == 4
    assert "newer than this driver (CUDA 12.4)" in result["version"][1]


@pytest.mark.parametrize("architecture", [80, 90, 120])
def test_what_compilers_write_is_whole(stage, tmp_path, architecture):
    if not shutil.which("nvcc"):
        pytest.skip("needs nvcc")
    source, image = tmp_path / "one.cu", tmp_path / "one.cubin"
    source.write_text('extern "C" __global__ void one(int* p) { *p = 1; }')
    command = ["nvcc", "-cubin", f"-arch=sm_{architecture}", str(source), "-o", str(image)]
    subprocess.run(command, check=True)
    (whole, cut), _ = stage.clean("image_file", str(image))
    assert whole is None
    assert cut[0] == "ValueError"
    assert f"must be whole, got {image.stat().st_size - 1} bytes" in cut[1]


BAD_PLANS = {
    "few": ["ValueError", "one entry for each of the plan's 4 buffers, got 3"],
    "few for graph": ["ValueError", "one entry for each of the plan's 4 buffers, got 3"],
    "null": ["ValueError", 'alpha/first needs the address of buffer "image", got 0'],
    "null for graph": ["ValueError", 'needs the address of buffer "image", got 0'],
    "overflow": ["ValueError", "leaves room for its 1000 bytes, got 18446744073709551116"],
    "end": ["ValueError", "a multiple of 8 within the 64 bytes of parameters, got offset 60"],
    "far": ["ValueError", "got offset 4294967288"],
    "odd": ["ValueError", "got offset 4"],
    "buffer": ["ValueError", "one of the 4 buffers, got 4"],
    "addend": ["ValueError", 'within the 1000 bytes of buffer "image", got byte 1001'],
    "no parameters": ["ValueError", "parameters of alpha/first must not be empty"],
    "module": [
        "ValueError",
        'module "gamma" of kernel first must be loaded first; loaded: alpha, b',
    ],
    "kernel": ["CudaError", "cuModuleGetFunction: alpha/fourth on device 0"],
    "size": ["ValueError", "parameters of alpha/first must have 64 bytes, got 56"],
    "negative": ["TypeError", "-1"],
}


def test_plans_that_contradict_themselves_launch_nothing(stage):
    result, _ = stage.clean("bad_plans")
    assert result["errors"].keys() == BAD_PLANS.keys()
    for name, (kind, message) in BAD_PLANS.items():
        assert result["errors"][name][0] == kind, name
        assert message in result["errors"][name][1], name
    assert result["launched"] == []
    assert result["null but unused"] is None


def test_plan_types(stage):
    result, _ = stage.clean("plan_types")
    assert result["launch"] == ["alpha", "first", [2, 3, 4], 128, 0]
    assert result["parameters"] is True
    assert result["buffer"] == ["scratch", "workspace", 1000, 0]
    assert result["relocation"] == [40, 3, 999]
    assert result["plan"] == [3, 4, 1000]
    assert result["device"] == [90, 0, 0]
    assert result["default"] == [80, 108]
    assert result["repr"] == [
        'Launch("alpha", "first", grid=(2, 3, 4), threads=128, shared_bytes=0, '
        "64 bytes of parameters, 2 relocations)",
        'Buffer("scratch", Role.workspace, bytes=1000, offset=0)',
        "Relocation(offset=40, buffer=3, addend=999)",
        "Plan(3 launches, 4 buffers, workspace_bytes=1000)",
        "DeviceProperties(capability=90, multiprocessors=132, shared_bytes_block=0, "
        "shared_bytes_sm=0)",
    ]
    assert [kind for kind, _ in result["assign"]] == ["AttributeError"] * 5
    assert [kind for kind, _ in result["wrong"]] == ["TypeError"] * 4


# --- failures of the driver -----------------------------------------------------------------------

# What each function is called in messages, where that is not its symbol without "_v2".
SPOKEN = {"cuGraphInstantiateWithFlags": "cuGraphInstantiate"}
# What a failure to release leaves behind, function by function.
LEFT = {
    "cuModuleUnload": [{"module": 1}],
    "cuGraphDestroy": [{"graph": 1}],
    "cuGraphExecDestroy": [{"exec": 1}],
    "cuDevicePrimaryCtxRelease_v2": [{"retained": 1}],
    "cuCtxSynchronize": [{"module": 2, "retained": 1}],
    # Of the graph, which needs no context; of the runner, which does.
    "cuCtxPushCurrent_v2": [{}, {"module": 2, "retained": 1}],
    "cuCtxPopCurrent_v2": [{"stack": 1}, {"stack": 1}],
}
ONCE = {"cuInit", "cuDriverGetVersion", "cuGetErrorName", "cuGetErrorString"}
ONLY_SYNCHRONOUS = {"cuStreamIsCapturing", "cuStreamSynchronize"}
ONLY_GRAPHS = {"cuGraphLaunch", "cuGraphExecKernelNodeSetParams_v2"}


@pytest.mark.parametrize("synchronous", [False, True], ids=["", "synchronous"])
def test_every_failure_is_told_and_leaks_nothing(stage, used_calls, synchronous):
    calls = used_calls - ONCE - (ONLY_GRAPHS if synchronous else ONLY_SYNCHRONOUS)
    environment = {"DSSNET_FAST_CUDA_SYNC": "1"} if synchronous else {}
    result, _ = stage("every_failure", sorted(calls), environment=environment)
    assert calls == set(result["called"]), "all that driver.h names is called"
    releasing: Counter[str] = Counter()
    for outcome in result["outcomes"]:
        call, error = outcome["call"], outcome["error"]
        # The driver keeps the graph then, and nobody can launch it.
        kept = outcome["releasing"] and call in ("cuGraphDestroy", "cuGraphExecDestroy")
        complaints = [one for one in outcome["violations"] if "graph uses its kernels" not in one]
        assert (complaints if kept else outcome["violations"]) == [], outcome
        if outcome["releasing"]:
            assert error is None, outcome  # destructors do not throw
            left = LEFT.get(call, [])
            turn = releasing[call]
            releasing[call] += 1
            assert outcome["left"] == (left[min(turn, len(left) - 1)] if left else {}), outcome
            continue
        # A thread's context or mode that the driver refuses to restore cannot be restored.
        assert outcome["left"] == ({"stack": 1} if call == "cuCtxPopCurrent_v2" else {}), outcome
        if call == "cuFuncGetParamInfo":
            assert error is None, outcome  # the size is not checked then
        elif call == "cuThreadExchangeStreamCaptureMode" and error is None:
            assert outcome["turn"] in restoring_turns(result), outcome
        else:
            kind, message = error
            assert kind == "CudaError", outcome
            spoken = SPOKEN.get(call, call.removesuffix("_v2"))
            assert message.startswith(f"{spoken}: "), outcome
            assert "CUDA_ERROR_INVALID_VALUE (1): words of the driver" in message, outcome
            assert "device" in message, outcome
            if call in ("cuLaunchKernel", "cuGraphAddKernelNode_v2", "cuModuleGetFunction"):
                assert re.search(r"(alpha|beta)/\w+ on device 0, grid \(\d", message), outcome
    assert len(result["outcomes"]) > 60


def restoring_turns(result: dict) -> set[int]:
    """The turns in which the mode of stream capture was set back, which no error can come of.

    Every scope sets it twice, and scopes are nested at most once: of n calls, n / 2 set it back.
    """
    turns = [
        one["turn"]
        for one in result["outcomes"]
        if one["call"] == "cuThreadExchangeStreamCaptureMode" and not one["releasing"]
    ]
    silent = {
        one["turn"]
        for one in result["outcomes"]
        if one["call"] == "cuThreadExchangeStreamCaptureMode"
        and not one["releasing"]
        and one["error"] is None
    }
    assert len(silent) == len(turns) // 2
    return silent


def test_errors_without_a_name(stage):
    (kind, message), _ = stage.clean("nameless_error")
    assert kind == "CudaError"
    assert message.startswith("cuLaunchKernel: alpha/first on device 0, grid (2, 3, 4)")
    assert message.endswith(": error (998): no text")


def test_failed_update_is_repeated(stage):
    """Of three nodes, one was set, one may have been, one was not."""
    results, _ = stage.clean("failed_update")
    for (error, updates, launches, parameters), repeated in zip(results, (2, 2), strict=True):
        assert error[1].startswith("cuGraphExecKernelNodeSetParams: alpha/second")
        assert updates == 2 + repeated
        assert launches == as_recorded("graph", 0, parameters)


def test_kernels_that_fail_later_are_called_asynchronous(stage):
    """Whoever comes next is told of the error; the message says that it may be innocent."""
    result, report = stage("synchronous", "first", 700)
    assert result["order"] == ["cuGraphLaunch"]
    for error, call in zip(result["errors"], ("cuLaunchKernel", "cuGraphLaunch"), strict=True):
        kind, message = error
        assert kind == "CudaError"
        assert message.startswith(f"{call}: ")
        assert "CUDA_ERROR_ILLEGAL_ADDRESS (700)" in message
        assert "an earlier launch, of any library, may be the cause" in message
        assert "DSSNET_FAST_CUDA_SYNC=1" in message
    assert result["errors"][0][1].startswith("cuLaunchKernel: beta/third"), "two kernels later"
    assert report["violations"] == []


@pytest.mark.parametrize("kernel", ["alpha/first", "alpha/second", "beta/third"])
def test_synchronous_runs_name_the_kernel_that_fails(stage, kernel):
    environment = {"DSSNET_FAST_CUDA_SYNC": "1"}
    result, report = stage("synchronous", kernel.split("/")[1], 700, environment=environment)
    assert result["order"] == [
        "cuStreamSynchronize",
        *["cuLaunchKernel", "cuStreamSynchronize"] * 3,
    ]
    kind, message = result["errors"][0]
    assert kind == "CudaError"
    assert message.startswith(f"cuStreamSynchronize: {kernel} on device 0, grid")
    assert "CUDA_ERROR_ILLEGAL_ADDRESS (700)" in message
    assert "this launch failed while it ran" in message
    assert report["violations"] == []


@pytest.mark.parametrize("value", ["0", "", "2"])
def test_only_1_makes_runs_synchronous(stage, value):
    _, report = stage.clean("launches", environment={"DSSNET_FAST_CUDA_SYNC": value})
    assert "cuStreamSynchronize" not in report["order"]


def test_synchronous_runs_blame_nobody_for_what_was_before(stage):
    (kind, message), report = stage.clean(
        "failed_before", environment={"DSSNET_FAST_CUDA_SYNC": "1"}
    )
    assert kind == "CudaError"
    assert message.startswith(
        "cuStreamSynchronize: work that was in the stream before, on device 0"
    )
    assert report["launches"] == []


# --- streams under capture ------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0, 1, 2], ids=["global", "thread-local", "relaxed"])
def test_launches_are_captured(stage, mode):
    result, report = stage.clean("capture", mode)
    assert result["ended"] == 0
    captured = as_recorded("capture", report["launches"][0]["stream"], result["expected"])
    captured[1]["shared_bytes"] = 60 * 1024
    assert report["launches"][:3] == captured
    assert [launch["how"] for launch in report["launches"][3:]] == ["launch"] * 3


def test_synchronous_runs_do_not_wait_under_capture(stage):
    ended, report = stage.clean("captured_synchronous", environment={"DSSNET_FAST_CUDA_SYNC": "1"})
    assert ended == 0
    assert [launch["how"] for launch in report["launches"]] == ["capture"] * 3


def test_modules_stay_where_nobody_can_wait_for_them(stage):
    invalidated, report = stage("release_during_capture")
    assert invalidated == 0, "a runner that launched nothing disturbs no capture"
    assert report["violations"] == []
    assert report["live"] == CLEAN | {"module": 2}
    assert report["retained"] == {"0": 1}
    assert report["order"].count("cuModuleUnload") == 2, "those of the idle runner"


# --- lifetimes, threads, processes ----------------------------------------------------------------


def test_a_thousand_lives_leak_nothing(stage):
    live, report = stage.clean("churn", 1000)
    assert live == CLEAN | {"module": 2}
    assert report["order"].count("cuGraphExecDestroy") == 1000
    assert report["order"].count("cuModuleUnload") == 2002


def assert_threads(result: dict, report: dict, count: int, times: int) -> None:
    """Every thread's launches came, complete, with its own addresses in its own stream."""
    assert result["errors"] == []
    per_thread = -(-times // 4) + times + -(-times // 8)
    assert len(report["launches"]) == count * per_thread * 3
    by_stream: dict[int, Counter] = {}
    for launch in report["launches"]:
        key = (launch["kernel"], launch["device"], launch["parameters"])
        by_stream.setdefault(launch["stream"], Counter())[key] += 1
    for stream, device, parameters in result["work"]:
        expected = {
            (kernel, device, block): per_thread
            for kernel, block in zip(SHAPES, parameters, strict=True)
        }
        assert by_stream[stream] == expected
    devices = len({device for _, device, _ in result["work"]})
    assert report["order"].count("cuModuleLoadDataEx") == 2 * devices
    assert report["order"].count("cuModuleGetFunction") == 3 * devices
    assert report["order"].count("cuFuncSetAttribute") == devices


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("count", [2, 8])
def test_threads_share_runners_and_graphs(stage, count, devices):
    result, report = stage.clean("threads", count, devices, 24)
    assert_threads(result, report, count, 24)


def test_the_interpreter_is_free_while_the_driver_works(stage):
    """The stand-in also complains of every call during which the lock is held."""
    progress, _ = stage.clean("free_interpreter")
    assert len(progress) == 9
    assert all(count >= 5 for count in progress.values()), progress


def test_forked_children_leave_the_driver_alone(stage):
    result, report = stage.clean("fork")
    assert "forked" in result["problem"]
    assert "spawn" in result["problem"]
    assert result["count"] == 0
    for name in ("launch", "graph launch", "graph", "load", "runner"):
        assert result[name] == ["CudaError", result["problem"]]
    assert result["calls"] == 0
    assert len(report["launches"]) == 3, "the parent goes on"


def test_interpreters_may_end_first(stage):
    _, report = stage("alive_at_exit")
    assert report["violations"] == []


# --- the stand-in itself --------------------------------------------------------------------------

PLANTED = {
    "before cuInit": "cuDeviceGetCount: before cuInit",
    "lock held": "cuCtxSynchronize: the interpreter's lock is held",
    "no context": "cuCtxSynchronize: no context is current",
    "pop of nothing": "cuCtxPopCurrent_v2: no context is current",
    "wrong context": "cuLaunchKernel: another context is current",
    "wrong stream": "cuLaunchKernel: another context is current",
    "dead context": "cuCtxSynchronize: this context is used after its release",
    "released too often": "cuDevicePrimaryCtxRelease_v2: released more often than retained",
    "context before modules": "cuDevicePrimaryCtxRelease_v2: the last owner leaves while modules",
    "context before graphs": "cuDevicePrimaryCtxRelease_v2: the last owner leaves while there are",
    "dead module": "cuModuleUnload: this module is used after its release",
    "dead function": "cuLaunchKernel: this function is used after its release",
    "no handle": "cuGraphDestroy: this graph was never made",
    "handle of another kind": "cuGraphDestroy: this graph was never made",
    "dead stream": "cuLaunchKernel: this stream is used after its release",
    "dead graph": "cuGraphDestroy: this graph is used after its release",
    "dead node": "cuGraphExecKernelNodeSetParams_v2: this node is used after its release",
    "dead executable": "cuGraphLaunch: this exec is used after its release",
    "node of another graph": "cuGraphExecKernelNodeSetParams_v2: the node is of another graph",
    "shared memory": "cuLaunchKernel: second has more dynamic shared memory than was opted in",
    "shared memory of a node": "cuGraphAddKernelNode_v2: first has more dynamic shared memory",
    "needless opt-in": "cuFuncSetAttribute: allows no more than was allowed before",
    "no parameters": "cuLaunchKernel: first is given no parameters",
    "alignment": "cuLaunchKernel: parameters are not at a multiple of 16",
    "dead address": "cuLaunchKernel: first is given an address of no live memory",
    "address past the end": "cuLaunchKernel: first is given an address of no live memory",
    "address of another device": "cuLaunchKernel: first is given an address of another device",
    "dead address in a node": "cuGraphExecKernelNodeSetParams_v2: first is given an address of no",
    "dead address in a launched graph": "cuGraphLaunch: first is given an address of no live",
    "unloaded while running": "cuModuleUnload: its kernels may still be running",
    "unloaded below a graph": "cuModuleUnload: a graph uses its kernels",
    "unloaded below an executable": "cuModuleUnload: an executable graph uses its kernels",
    "unsafe under capture": "cuModuleLoadDataEx: not safe while a stream is captured",
    "wait under capture": "cuStreamSynchronize: the stream is being captured",
    "two threads in a graph": "cuGraphLaunch: two threads use one graph at once",
}
LEFT_BEHIND = {
    "context left": ("stack", 1),
    "module left": ("live", CLEAN | {"module": 1}),
    "graph left": ("live", CLEAN | {"graph": 1}),
    "executable left": ("live", CLEAN | {"module": 1, "graph": 1, "exec": 1}),
    "mode left": ("capture_mode", 2),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_the_stand_in_notices(stage, fault):
    _, report = stage("planted", fault)
    assert any(text.startswith(PLANTED[fault]) for text in report["violations"]), report[
        "violations"
    ]
    with pytest.raises(AssertionError):
        assert_clean(report)


@pytest.mark.parametrize("fault", LEFT_BEHIND)
def test_the_stand_in_notices_what_is_left(stage, fault):
    _, report = stage("planted", fault)
    field, value = LEFT_BEHIND[fault]
    assert report["violations"] == []
    assert report[field] == value


def test_the_stand_in_notices_a_missing_dependency(stage):
    """Nodes that need not wait for each other run in the order that nobody expects."""
    _, report = stage("planted", "missing dependency")
    assert [launch["kernel"] for launch in report["launches"]] == ["second", "first"]


def test_the_stand_in_notices_calls_of_a_child(stage):
    stage("planted", "forked child")


# --- sanitizers -----------------------------------------------------------------------------------

SCENARIOS = (
    *(("launches",), ("graph",), ("shared_memory",), ("images",), ("bad_plans",), ("plan_types",)),
    *(("churn", 20), ("threads", 8, 2, 12), ("capture", 0), ("release_during_capture",)),
    *(("failed_update",), ("nameless_error",), ("synchronous", "second", 700), ("fork",)),
    *(("free_interpreter",), ("alive_at_exit",), ("problem",), ("devices",)),
)


def sanitizer_library(name: str) -> str:
    """Path of a sanitizer's run-time library, which the interpreter must load first."""
    done = subprocess.run(
        ["g++", f"-print-file-name=lib{name}.so"], capture_output=True, text=True, check=True
    )
    if not Path(done.stdout.strip()).is_absolute():
        pytest.skip(f"g++ has no lib{name}.so")
    return str(Path(done.stdout.strip()).resolve())


def sanitized(builder, flags: tuple[str, ...], environment: dict[str, str], scenario: tuple):
    """What `run` returns, of a build with a sanitizer; findings end the process with an error."""
    extension, library = builder.extension(*flags), builder.stand_in(*flags)
    result, report, said = run(extension, library, *scenario, environment=environment)
    assert report["violations"] == []
    return result, report, said


@pytest.mark.large
def test_addresses_and_undefined_behaviour(builder, used_calls):
    """All scenarios and every failure under AddressSanitizer and UndefinedBehaviorSanitizer.

    Leaks count where the extension is among those who allocated; the interpreter leaks by design.
    """
    flags = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    environment = {
        # libstdc++ too, for else exceptions are not seen to be thrown.
        "LD_PRELOAD": f"{sanitizer_library('asan')} {sanitizer_library('stdc++')}",
        # Leaks are judged below; everything else ends the process.
        "ASAN_OPTIONS": "detect_leaks=1:exitcode=0:abort_on_error=1",
        "PYTHONMALLOC": "malloc",
    }
    failing = sorted(used_calls - ONCE - ONLY_SYNCHRONOUS)
    for scenario in (*SCENARIOS, ("every_failure", failing)):
        _, _, said = sanitized(builder, flags, environment, scenario)
        leaks = [one for one in said.split("\n\n") if "leak of" in one and "dssnet::" in one]
        assert not leaks, "\n\n".join(leaks)


@pytest.mark.large
def test_races(builder):
    """The threads' scenarios under ThreadSanitizer."""
    flags = ("-g", "-fsanitize=thread")
    environment = {"LD_PRELOAD": f"{sanitizer_library('tsan')} {sanitizer_library('stdc++')}"}
    for count, devices in ((2, 1), (8, 1), (8, 2)):
        result, report, _ = sanitized(builder, flags, environment, ("threads", count, devices, 12))
        assert_threads(result, report, count, 12)


def test_extension_needs_no_library_but_the_systems(native):
    """Neither CUDA's nor torch's: one build for all versions of both."""
    if not shutil.which("readelf"):
        pytest.skip("needs readelf")
    done = subprocess.run(
        ["readelf", "-d", native.__file__], capture_output=True, text=True, check=True
    )
    needed = set(re.findall(r"NEEDED.*\[(.*?)\.so", done.stdout))
    python = Path(sysconfig.get_config_var("LDLIBRARY") or "libpython").name.split(".so")[0]
    system = {"libc", "libm", "libdl", "libstdc++", "libgcc_s", "libpthread", "ld-linux-x86-64"}
    assert needed <= system | {python, "ld-linux-aarch64"}, needed
