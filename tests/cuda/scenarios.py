"""Runs one scenario with the extension against the driver that stand_in.cpp makes.

    python scenarios.py <path of the extension> <scenario> <arguments as JSON>

A driver is loaded once a process, so every scenario has a process of its own, in which
LD_LIBRARY_PATH decides about the driver. Printed, as JSON: what the scenario returns, and the
stand-in's books after everything was released.
"""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import json
import os
import struct
import sys
import threading
import time
from collections.abc import Callable
from types import ModuleType

# In the language of stand_in.cpp. "beta" stands for a cubin.
IMAGES = {
    "alpha": b"// PTX\n.entry first 64 0,40 0\n.entry second 32 16 2048\n",
    "beta": b"\x7fELF" + bytes(60) + b"\n.entry third 24 8 0\n",
}
BYTES = 1000  # of each of the plan's four buffers

# Mirrors of the structures, so that a scenario can call the driver itself.
NODE_PARAMS = "PIIIIIIIPPPP"


class Driver:
    """The stand-in's functions, called as torch would call them: without the interpreter's lock."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL("libcuda.so.1")
        self.library.stand_in_report.restype = ctypes.c_char_p

    def __getattr__(self, name: str) -> Callable:
        return getattr(self.library, name)

    def call(self, name: str, *arguments: object) -> None:
        result = getattr(self.library, name)(*arguments)
        assert result == 0, f"{name} returned {result}"

    def made(self, name: str, *arguments: object) -> int:
        """What a function that fills in a handle or an address makes."""
        handle = ctypes.c_uint64()
        self.call(name, ctypes.byref(handle), *arguments)
        return handle.value

    def fail(self, text: str) -> None:
        self.library.stand_in_fail(text.encode())

    def report(self) -> dict:
        return json.loads(self.library.stand_in_report())


class Device:
    """A device as another library in the process uses it: context, streams, memory."""

    def __init__(self, driver: Driver, index: int = 0) -> None:
        self.driver, self.index = driver, index
        driver.call("cuInit", 0)
        self.context = driver.made("cuDevicePrimaryCtxRetain", index)
        self.memory: list[int] = []

    def inside(self, name: str, *arguments: object) -> int:
        self.driver.call("cuCtxPushCurrent_v2", ctypes.c_uint64(self.context))
        try:
            return self.driver.made(name, *arguments)
        finally:
            self.driver.made("cuCtxPopCurrent_v2")

    def stream(self) -> int:
        return self.inside("cuStreamCreate", 0)

    def buffers(self) -> list[int]:
        made = [self.inside("cuMemAlloc_v2", ctypes.c_size_t(BYTES)) for _ in range(4)]
        self.memory += made
        return made

    def free(self, addresses: list[int]) -> None:
        for address in addresses:
            self.memory.remove(address)
            self.driver.call("cuMemFree_v2", ctypes.c_uint64(address))

    def begin_capture(self, stream: int, mode: int = 0) -> None:
        self.driver.call("cuCtxPushCurrent_v2", ctypes.c_uint64(self.context))
        self.driver.call("cuStreamBeginCapture_v2", ctypes.c_uint64(stream), mode)
        self.driver.made("cuCtxPopCurrent_v2")

    def end_capture(self, stream: int) -> int:
        graph = ctypes.c_uint64()
        return self.driver.cuStreamEndCapture(ctypes.c_uint64(stream), ctypes.byref(graph))

    def synchronize(self) -> int:
        self.driver.call("cuCtxPushCurrent_v2", ctypes.c_uint64(self.context))
        result = self.driver.cuCtxSynchronize()
        self.driver.made("cuCtxPopCurrent_v2")
        return result

    def close(self) -> None:
        self.free(list(self.memory))
        self.driver.call("cuDevicePrimaryCtxRelease_v2", self.index)


def numbers(count: int, seed: int) -> bytes:
    """Bytes that are all unlike their neighbours'."""
    return bytes((37 * i + seed) % 251 for i in range(count))


def plan(native: ModuleType, second_shared: int = 100, third_shared: int = 0):
    """Three launches of two modules; the second has 2048 bytes of static shared memory."""
    launch, at, role = native.Launch, native.Relocation, native.Role
    return native.Plan(
        [
            launch("alpha", "first", (2, 3, 4), 128, 0, numbers(64, 1), [at(0, 0), at(40, 3, 999)]),
            launch(
                "alpha", "second", (5, 1, 1), 256, second_shared, numbers(32, 2), [at(16, 3, 8)]
            ),
            launch("beta", "third", (1, 6, 1), 32, third_shared, numbers(24, 3), [at(8, 1, 16)]),
        ],
        [
            native.Buffer("image", role.input, BYTES),
            native.Buffer("labels", role.output, BYTES),
            native.Buffer("unused", role.weights, BYTES),
            native.Buffer("scratch", role.workspace, BYTES, 0),
        ],
        BYTES,
    )


def expected(addresses: list[int]) -> list[str]:
    """The parameters that the launches of `plan` deliver, hexadecimal."""
    blocks = [bytearray(numbers(64, 1)), bytearray(numbers(32, 2)), bytearray(numbers(24, 3))]
    struct.pack_into("<Q", blocks[0], 0, addresses[0])
    struct.pack_into("<Q", blocks[0], 40, addresses[3] + 999)
    struct.pack_into("<Q", blocks[1], 16, addresses[3] + 8)
    struct.pack_into("<Q", blocks[2], 8, addresses[1] + 16)
    return [block.hex() for block in blocks]


def runner_with_images(native: ModuleType, index: int = 0):
    runner = native.Runner(index)
    for name, image in IMAGES.items():
        runner.load(name, image)
    return runner


def caught(function: Callable, *arguments: object) -> list[str] | None:
    """Name and message of what a call raises."""
    try:
        function(*arguments)
    except Exception as error:
        return [type(error).__name__, str(error)]
    return None


# --- scenarios ------------------------------------------------------------------------------------


def problem(native, driver):
    return {
        "problem": native.driver_problem(),
        "again": native.driver_problem(),
        "count": native.device_count(),
        "runner": caught(native.Runner, 0),
        "properties": caught(native.device_properties, 0),
    }


def devices(native, driver):
    found = native.device_properties(1)
    return {
        "problem": native.driver_problem(),
        "count": native.device_count(),
        "properties": [
            found.capability,
            found.multiprocessors,
            found.shared_bytes_block,
            found.shared_bytes_sm,
        ],
        "runner": repr(native.Runner(1)),
        "wrong": [caught(native.Runner, 2), caught(native.device_properties, -1)],
    }


def launches(native, driver):
    """Two runs with other buffers and streams, while another device's context is current."""
    device, other = Device(driver), Device(driver, 1)
    runner = runner_with_images(native)
    network = plan(native)
    driver.call("cuCtxPushCurrent_v2", ctypes.c_uint64(other.context))
    runs = [(device.buffers(), device.stream()), (device.buffers(), 0)]
    for addresses, stream in runs:
        runner.launch(network, addresses, stream)
    current, depth = driver.made("cuCtxGetCurrent"), driver.report()["stack"]
    driver.made("cuCtxPopCurrent_v2")
    device.close()
    other.close()
    return {
        "loaded": runner.loaded,
        "expected": [[stream, expected(addresses)] for addresses, stream in runs],
        "current": [current == other.context, depth],
    }


def graph(native, driver):
    """A graph with its first buffers, with one other buffer, with the same, with all others."""
    device = Device(driver)
    runner = runner_with_images(native)
    stream, first, second = device.stream(), device.buffers(), device.buffers()
    one_other = [*first[:1], second[1], *first[2:]]
    made = runner.graph(plan(native), first)
    counts = []
    for addresses in (first, one_other, one_other, second):
        before = driver.report()["order"].count("cuGraphExecKernelNodeSetParams_v2")
        made.launch(addresses, stream)
        after = driver.report()["order"].count("cuGraphExecKernelNodeSetParams_v2")
        counts.append(after - before)
    # Not even the nodes that are no longer wanted may keep an address that is dead.
    device.free(first)
    made.launch(second, stream)
    del runner  # the graph keeps it
    gc.collect()
    made.launch(second, stream)
    device.close()
    return {
        "updates": counts,
        "stream": stream,
        "expected": [expected(a) for a in (first, one_other, one_other, second, second, second)],
        "repr": repr(made),
    }


def shared_memory(native, driver):
    """Shared memory of "second" (2048 bytes static) and "third" in turn; who opts in, and when."""
    device = Device(driver)
    runner, addresses = runner_with_images(native), device.buffers()
    kib = 1024
    opted = []
    for second, third in ((46, 48), (47, 48), (47, 49), (100, 49), (60, 49), (225, 227)):
        driver.stand_in_forget()
        runner.launch(plan(native, second * kib, third * kib), addresses, 0)
        opted.append(driver.report()["order"].count("cuFuncSetAttribute"))
        assert not driver.report()["violations"], driver.report()["violations"]
    too_much = caught(runner.launch, plan(native, 226 * kib), addresses, 0)
    # What was refused was not noted down as allowed.
    again = caught(runner.graph, plan(native, 226 * kib), addresses)
    device.close()
    return {"opted": opted, "too_much": too_much, "again": again}


def life(native, driver, device, forward: Callable[[], None] = lambda: None) -> None:
    """Everything that a runner and a graph can do; `forward` is called before they are released."""
    addresses, others, stream = device.buffers(), device.buffers(), device.stream()
    network = plan(native, 60 * 1024, 50 * 1024)
    driver.stand_in_forget()
    driver.fail(life.failure)
    native.device_properties(0)
    runner = runner_with_images(native)
    runner.launch(network, addresses, stream)
    made = runner.graph(network, addresses)
    made.launch(others, stream)
    forward()
    del made
    gc.collect()
    del runner


life.failure = ""


def every_failure(native, driver, calls):
    """Each call of each function fails once; how that shows, and what is left behind."""
    device = Device(driver)
    assert native.driver_problem() is None  # initialised, once for all
    before_release: list[str] = []
    life(native, driver, device, lambda: before_release.extend(driver.report()["order"]))
    all_calls = driver.report()["order"]
    outcomes = []
    for name in calls:
        for turn in range(1, all_calls.count(name) + 1):
            before = driver.report()
            life.failure = f"{name}:1:{turn}"
            error = caught(life, native, driver, device)
            gc.collect()
            driver.fail("")
            after = driver.report()
            left = {
                kind: after["live"][kind] - before["live"][kind]
                for kind in after["live"]
                if after["live"][kind] != before["live"][kind]
            }
            if after["retained"]["0"] != before["retained"]["0"]:
                left["retained"] = after["retained"]["0"] - before["retained"]["0"]
            if after["stack"]:
                left["stack"] = after["stack"]
            for _ in range(after["stack"]):
                driver.made("cuCtxPopCurrent_v2")
            mode = ctypes.c_int(0)
            driver.call("cuThreadExchangeStreamCaptureMode", ctypes.byref(mode))
            outcomes.append(
                {
                    "call": name,
                    "turn": turn,
                    "releasing": turn > before_release.count(name),
                    "error": error,
                    "left": left,
                    "violations": after["violations"],
                }
            )
    return {"outcomes": outcomes, "called": sorted(set(all_calls))}


def nameless_error(native, driver):
    """The driver knows neither name nor text of its error."""
    device = Device(driver)
    runner, addresses = runner_with_images(native), device.buffers()
    driver.fail("cuLaunchKernel:998")
    error = caught(runner.launch, plan(native), addresses, 0)
    device.close()
    return error


def images(native, driver):
    """Images that are not what they should be."""
    runner = native.Runner(0)
    whole = bytearray(IMAGES["beta"])
    struct.pack_into("<Q", whole, 40, len(whole) - 64)  # one section header at the end
    struct.pack_into("<HH", whole, 58, 64, 1)
    whole += b"\n"
    result = {
        "invalid": caught(runner.load, "bad", b".error line 3: no such instruction\n"),
        "long log": caught(runner.load, "bad", b".error " + b"x" * 100_000),
        "empty": caught(runner.load, "bad", b""),
        "header": caught(runner.load, "bad", bytes(whole[:63])),
        "cut": caught(runner.load, "bad", bytes(whole[:-2])),
        "text": caught(runner.load, "bad", "text"),
        "nothing": runner.loaded,
        "whole": caught(runner.load, "good", bytes(whole)),
        "same": caught(runner.load, "good", bytes(whole)),
        "other": caught(runner.load, "good", IMAGES["beta"]),
        "loaded": runner.loaded,
    }
    driver.fail("cuModuleLoadDataEx:222")
    result["version"] = caught(runner.load, "bad", IMAGES["alpha"])
    return result


def image_file(native, driver, path):
    """A compiler's image, whole and without its last byte."""
    runner = native.Runner(0)
    with open(path, "rb") as file:
        image = file.read()
    return [caught(runner.load, "whole", image), caught(runner.load, "cut", image[:-1])]


def bad_plans(native, driver):
    """Plans and addresses that must be refused before anything is launched."""
    device = Device(driver)
    runner, addresses = runner_with_images(native), device.buffers()
    good = plan(native)
    made = runner.graph(good, addresses)

    def changed(module="alpha", kernel="first", parameters=64, relocation=(0, 0, 0)):
        last = native.Launch(
            module,
            kernel,
            (1, 1, 1),
            32,
            0,
            bytes(parameters),
            [native.Relocation(*relocation)] if relocation else [],
        )
        return native.Plan([*good.launches, last], good.buffers, BYTES)

    def every_way(network, given):
        errors = [caught(runner.launch, network, given, 0), caught(runner.graph, network, given)]
        assert errors[0] is not None, "no error"
        assert [e.split(": ", 1)[-1] for e in errors[0]] == [
            e.split(": ", 1)[-1] for e in errors[1]
        ], errors
        return errors[0]

    driver.stand_in_forget()
    result = {
        "few": every_way(good, addresses[:-1]),
        "few for graph": caught(made.launch, addresses[:-1], 0),
        "null": every_way(good, [0, *addresses[1:]]),
        "null for graph": caught(made.launch, [0, *addresses[1:]], 0),
        "overflow": every_way(good, [2**64 - 500, *addresses[1:]]),
        "end": every_way(changed(relocation=(60, 0, 0)), addresses),
        "far": every_way(changed(relocation=(2**32 - 8, 0, 0)), addresses),
        "odd": every_way(changed(relocation=(4, 0, 0)), addresses),
        "buffer": every_way(changed(relocation=(0, 4, 0)), addresses),
        "addend": every_way(changed(relocation=(0, 0, BYTES + 1)), addresses),
        "no parameters": every_way(changed(parameters=0, relocation=None), addresses),
        "module": every_way(changed(module="gamma"), addresses),
        "kernel": every_way(changed(kernel="fourth"), addresses),
        "size": every_way(changed(parameters=56), addresses),
        "negative": caught(runner.launch, good, [-1, *addresses[1:]], 0),
    }
    launched = driver.report()["launches"]
    unused = caught(runner.launch, good, [*addresses[:2], 0, addresses[3]], 0)
    device.close()
    return {"errors": result, "launched": launched, "null but unused": unused}


def unchecked_size(native, driver):
    """On a driver that does not tell the sizes of parameters, only the check of them is missing."""
    device = Device(driver)
    runner, addresses = runner_with_images(native), device.buffers()
    runner.launch(plan(native), addresses, 0)
    device.close()
    return expected(addresses)


def churn(native, driver, times):
    device = Device(driver)
    network, addresses = plan(native, 60 * 1024), device.buffers()
    for _ in range(times):
        runner = runner_with_images(native)
        runner.launch(network, addresses, 0)
        del runner
    runner = runner_with_images(native)
    for _ in range(times):
        runner.graph(network, addresses).launch(addresses, 0)
    live = driver.report()["live"]
    device.close()
    return live


def threads(native, driver, count, device_number, times):
    """Threads with buffers and streams of their own on shared runners and a shared graph each."""
    used = [Device(driver, index) for index in range(device_number)]
    shared = [native.Runner(index) for index in range(device_number)]
    network = plan(native, 60 * 1024)
    graphs: list = [None] * device_number
    made = threading.Lock()
    work = []
    for number in range(count):
        index = number % device_number
        work.append((index, used[index].buffers(), used[index].stream()))
    driver.stand_in_delay(20)
    errors: list[str] = []
    begin = threading.Barrier(count)

    def run(index: int, addresses: list[int], stream: int) -> None:
        try:
            begin.wait()
            for name, image in IMAGES.items():
                shared[index].load(name, image)
            with made:
                graphs[index] = graphs[index] or shared[index].graph(network, addresses)
            for turn in range(times):
                if turn % 4 == 0:
                    shared[index].launch(network, addresses, stream)
                graphs[index].launch(addresses, stream)
                if turn % 8 == 0:
                    shared[index].graph(network, addresses).launch(addresses, stream)
        except Exception as error:
            errors.append(repr(error))

    started = [threading.Thread(target=run, args=one) for one in work]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    driver.stand_in_delay(0)
    graphs.clear()
    shared.clear()
    gc.collect()
    for device in used:
        device.close()
    return {"errors": errors, "work": [[s, i, expected(a)] for i, a, s in work]}


def capture(native, driver, mode):
    """The very first launch is captured by the caller: modules, look-ups and opt-in included."""
    device = Device(driver)
    stream, addresses = device.stream(), device.buffers()
    device.begin_capture(stream, mode)
    runner = runner_with_images(native)
    runner.launch(plan(native, 60 * 1024), addresses, stream)
    ended = device.end_capture(stream)
    runner.launch(plan(native), addresses, stream)
    device.close()
    return {"ended": ended, "expected": expected(addresses)}


def release_during_capture(native, driver):
    """The driver cannot be waited for while a stream is captured."""
    device = Device(driver)
    stream, addresses = device.stream(), device.buffers()
    runner = runner_with_images(native)
    runner.launch(plan(native), addresses, 0)
    idle = runner_with_images(native)
    device.begin_capture(stream, 0)
    del idle  # it launched nothing, so there is nothing to wait for
    before = driver.report()["invalidated_captures"]
    del runner
    gc.collect()
    device.end_capture(stream)
    device.close()
    return before


def synchronous(native, driver, kernel, code):
    """A kernel fails while it runs: which call says so, and what."""
    device = Device(driver)
    runner, addresses, stream = runner_with_images(native), device.buffers(), device.stream()
    made = runner.graph(plan(native), addresses)
    driver.stand_in_forget()
    made.launch(addresses, stream)
    order = [name for name in driver.report()["order"] if "Synchronize" in name or "Launch" in name]
    driver.stand_in_fault(kernel.encode(), code)
    errors = [caught(runner.launch, plan(native), addresses, stream)]
    errors += [caught(made.launch, addresses, stream)]
    device.close()
    return {"order": order, "errors": errors}


def failed_before(native, driver):
    """What was in the stream before is at fault, and is not blamed on the plan."""
    device = Device(driver)
    runner, addresses, stream = runner_with_images(native), device.buffers(), device.stream()
    driver.fail("cuStreamSynchronize:719:1")
    error = caught(runner.launch, plan(native), addresses, stream)
    device.close()
    return error


def captured_synchronous(native, driver):
    """DSSNET_FAST_CUDA_SYNC=1 must not wait for a stream under capture."""
    device = Device(driver)
    runner, addresses, stream = runner_with_images(native), device.buffers(), device.stream()
    device.begin_capture(stream)
    runner.launch(plan(native), addresses, stream)
    ended = device.end_capture(stream)
    device.close()
    return ended


def failed_update(native, driver):
    """A node whose update failed is updated by the next launch, whichever address that wants."""
    device = Device(driver)
    runner = runner_with_images(native)
    first, second = device.buffers(), device.buffers()
    made = runner.graph(plan(native), first)
    results = []
    for wanted in (first, second):
        driver.stand_in_forget()
        driver.fail("cuGraphExecKernelNodeSetParams_v2:1:2")
        error = caught(made.launch, second, 0)
        made.launch(wanted, 0)
        updates = driver.report()["order"].count("cuGraphExecKernelNodeSetParams_v2")
        results.append([error, updates, driver.report()["launches"], expected(wanted)])
        made.launch(first, 0)
    device.close()
    return results


def free_interpreter(native, driver):
    """While one thread waits in the driver, another runs Python; for every entry point."""
    device = Device(driver)
    addresses = device.buffers()
    progress = {}

    def during(name: str, function: Callable, *arguments: object) -> object:
        count, done = 0, threading.Event()

        def counting() -> None:
            nonlocal count
            while not done.is_set():
                count += 1
                time.sleep(0.001)

        thread = threading.Thread(target=counting)
        thread.start()
        driver.stand_in_delay(30_000)
        result = function(*arguments)
        driver.stand_in_delay(0)
        done.set()
        thread.join()
        progress[name] = count
        return result

    network = plan(native)
    during("device_properties", native.device_properties, 0)
    kept = {"runner": during("Runner", native.Runner, 0)}
    for name, image in IMAGES.items():
        during(f"load {name}", kept["runner"].load, name, image)
    during("launch", kept["runner"].launch, network, addresses, 0)
    kept["graph"] = during("graph", kept["runner"].graph, network, addresses)
    during("graph launch", kept["graph"].launch, addresses, 0)
    during("release graph", kept.__delitem__, "graph")
    during("release runner", kept.__delitem__, "runner")
    device.close()
    return progress


def fork(native, driver):
    """A child of a process that used CUDA must not call the driver, not even to release."""
    device = Device(driver)
    runner, addresses = runner_with_images(native), device.buffers()
    made = runner.graph(plan(native), addresses)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        calls = len(driver.report()["order"])
        told = {
            "problem": native.driver_problem(),
            "count": native.device_count(),
            "launch": caught(runner.launch, plan(native), addresses, 0),
            "graph launch": caught(made.launch, addresses, 0),
            "graph": caught(runner.graph, plan(native), addresses),
            "load": caught(runner.load, "more", IMAGES["alpha"]),
            "runner": caught(native.Runner, 0),
        }
        del made, runner
        gc.collect()
        told["calls"] = len(driver.report()["order"]) - calls
        os.write(writing, json.dumps(told).encode())
        os._exit(0)
    os.close(writing)
    with open(reading) as answers:
        told = json.load(answers)
    assert os.waitpid(child, 0)[1] == 0
    runner.launch(plan(native), addresses, 0)
    device.close()
    return told


def alive_at_exit(native, driver):
    """Nothing is released before the interpreter ends."""
    device = Device(driver)
    runner = runner_with_images(native)
    addresses = device.buffers()
    sys.kept = [runner, runner.graph(plan(native), addresses)]
    sys.kept[1].launch(addresses, 0)


def plan_types(native, driver):
    network = plan(native)
    launch, buffer = network.launches[0], network.buffers[3]
    at = launch.relocations[1]
    device = native.DeviceProperties(capability=90, multiprocessors=132)

    def assign(instance, name):
        return caught(setattr, instance, name, 1)

    return {
        "launch": [launch.module, launch.kernel, launch.grid, launch.threads, launch.shared_bytes],
        "parameters": launch.parameters == numbers(64, 1),
        "buffer": [buffer.name, buffer.role.name, buffer.bytes, buffer.offset],
        "relocation": [at.offset, at.buffer, at.addend],
        "plan": [len(network.launches), len(network.buffers), network.workspace_bytes],
        "device": [device.capability, device.shared_bytes_block, device.shared_bytes_sm],
        "default": [
            native.DeviceProperties().capability,
            native.DeviceProperties().multiprocessors,
        ],
        "repr": [repr(one) for one in (launch, buffer, at, network, device)],
        "assign": [
            assign(launch, "threads"),
            assign(buffer, "bytes"),
            assign(at, "offset"),
            assign(network, "workspace_bytes"),
            assign(device, "capability"),
        ],
        "wrong": [
            caught(native.Relocation, -1, 0),
            caught(native.Relocation, 2**32, 0),
            caught(native.Launch, "m", "k", (1, 2), 1, 0, b"", []),
            caught(native.Launch, "m", "k", (1, 2, 3), 1, 0, "text", []),
        ],
    }


# --- what the stand-in must notice ----------------------------------------------------------------


def planted(native, driver, fault):
    """Commits one fault; the report must tell of it."""
    u64, i32 = ctypes.c_uint64, ctypes.c_int
    if fault == "before cuInit":
        count = i32()
        return driver.cuDeviceGetCount(ctypes.byref(count))
    device = Device(driver)
    addresses, stream = device.buffers(), device.stream()
    driver.call("cuCtxPushCurrent_v2", u64(device.context))

    def load(name="alpha"):
        return driver.made("cuModuleLoadDataEx", IMAGES[name], 0, None, None)

    def function(module, name=b"first"):
        return driver.made("cuModuleGetFunction", u64(module), name)

    def parameters(block=64, at=(0, 40), given=None, shift=0):
        kept = ctypes.create_string_buffer(block + 32)
        start = (ctypes.addressof(kept) + 15) // 16 * 16 + shift
        for offset, address in zip(at, given or addresses, strict=False):
            ctypes.memmove(start + offset, struct.pack("<Q", address), 8)
        array = (ctypes.c_void_p * 1)(start)
        array.kept = kept
        return array

    def launch(which, array=None, shared=0, into=0):
        array = parameters() if array is None else array
        return driver.cuLaunchKernel(u64(which), 1, 1, 1, 32, 1, 1, shared, u64(into), array, None)

    def node_params(which, array):
        return struct.pack(
            NODE_PARAMS, which, 1, 1, 1, 32, 1, 1, 0, ctypes.addressof(array), 0, 0, 0
        )

    def node(graph, which, array):
        return driver.made(
            "cuGraphAddKernelNode_v2",
            u64(graph),
            None,
            ctypes.c_size_t(0),
            node_params(which, array),
        )

    def executable():
        graph = driver.made("cuGraphCreate", 0)
        array = parameters()
        which = function(load())
        made = node(graph, which, array)
        return graph, made, driver.made("cuGraphInstantiateWithFlags", u64(graph), u64(0)), which

    def pop():
        driver.made("cuCtxPopCurrent_v2")

    if fault == "lock held":
        ctypes.PyDLL("libcuda.so.1").cuCtxSynchronize()
    elif fault == "no context":
        pop()
        driver.cuCtxSynchronize()
    elif fault == "pop of nothing":
        pop()
        driver.cuCtxPopCurrent_v2(ctypes.byref(u64()))
    elif fault == "context left":
        return None
    elif fault == "wrong context":
        other = Device(driver, 1)
        which = function(load())
        driver.call("cuCtxPushCurrent_v2", u64(other.context))
        launch(which)
    elif fault == "wrong stream":
        other = Device(driver, 1)
        launch(function(load()), into=other.stream())
    elif fault == "dead context":
        driver.call("cuDevicePrimaryCtxRelease_v2", 0)
        driver.cuCtxSynchronize()
    elif fault == "released too often":
        driver.call("cuDevicePrimaryCtxRelease_v2", 0)
        driver.cuDevicePrimaryCtxRelease_v2(0)
    elif fault == "context before modules":
        load()
        driver.call("cuDevicePrimaryCtxRelease_v2", 0)
    elif fault == "context before graphs":
        executable()
        driver.call("cuDevicePrimaryCtxRelease_v2", 0)
    elif fault == "module left":
        load()
    elif fault == "graph left":
        driver.made("cuGraphCreate", 0)
    elif fault == "executable left":
        executable()
    elif fault == "dead module":
        module = load()
        driver.call("cuModuleUnload", u64(module))
        driver.cuModuleUnload(u64(module))
    elif fault == "dead function":
        module = load()
        which = function(module)
        driver.call("cuModuleUnload", u64(module))
        launch(which)
    elif fault == "no handle":
        driver.cuGraphDestroy(u64(12345))
    elif fault == "handle of another kind":
        driver.cuGraphDestroy(u64(load()))
    elif fault == "dead stream":
        driver.call("cuStreamDestroy_v2", u64(stream))
        launch(function(load()), into=stream)
    elif fault == "dead graph":
        graph, *_ = executable()
        driver.call("cuGraphDestroy", u64(graph))
        driver.cuGraphDestroy(u64(graph))
    elif fault == "dead node":
        graph, made, exec_, which = executable()
        driver.call("cuGraphDestroy", u64(graph))
        driver.cuGraphExecKernelNodeSetParams_v2(
            u64(exec_), u64(made), node_params(which, parameters())
        )
    elif fault == "dead executable":
        *_, exec_, _ = executable()
        driver.call("cuGraphExecDestroy", u64(exec_))
        driver.cuGraphLaunch(u64(exec_), u64(0))
    elif fault == "node of another graph":
        _, _, exec_, which = executable()
        _, made, _, _ = executable()
        driver.cuGraphExecKernelNodeSetParams_v2(
            u64(exec_), u64(made), node_params(which, parameters())
        )
    elif fault == "shared memory":
        launch(function(load(), b"second"), parameters(32, (16,)), shared=46 * 1024 + 1)
    elif fault == "shared memory of a node":
        graph, which, array = driver.made("cuGraphCreate", 0), function(load()), parameters()
        params = struct.pack(
            NODE_PARAMS, which, 1, 1, 1, 32, 1, 1, 49 * 1024, ctypes.addressof(array), 0, 0, 0
        )
        driver.cuGraphAddKernelNode_v2(
            ctypes.byref(u64()), u64(graph), None, ctypes.c_size_t(0), params
        )
    elif fault == "needless opt-in":
        driver.call("cuFuncSetAttribute", u64(function(load())), 8, 1024)
    elif fault == "no parameters":
        launch(function(load()), (ctypes.c_void_p * 1)(0))
    elif fault == "alignment":
        launch(function(load()), parameters(shift=8))
    elif fault == "dead address":
        device.free(addresses[:1])
        launch(function(load()))
    elif fault == "address past the end":
        launch(function(load()), parameters(given=[addresses[0] + BYTES, addresses[1]]))
    elif fault == "address of another device":
        launch(function(load()), parameters(given=Device(driver, 1).buffers()))
    elif fault == "dead address in a node":
        graph, made, exec_, which = executable()
        other = device.buffers()
        array = parameters(given=other)
        device.free(other)
        driver.cuGraphExecKernelNodeSetParams_v2(u64(exec_), u64(made), node_params(which, array))
    elif fault == "dead address in a launched graph":
        *_, exec_, _ = executable()
        device.free(addresses[:1])
        driver.cuGraphLaunch(u64(exec_), u64(0))
    elif fault == "unloaded while running":
        module = load()
        launch(function(module))
        driver.cuModuleUnload(u64(module))
    elif fault == "unloaded below a graph":
        module, graph = load(), driver.made("cuGraphCreate", 0)
        node(graph, function(module), parameters())
        driver.cuModuleUnload(u64(module))
    elif fault == "unloaded below an executable":
        module, graph = load(), driver.made("cuGraphCreate", 0)
        node(graph, function(module), parameters())
        driver.made("cuGraphInstantiateWithFlags", u64(graph), u64(0))
        driver.call("cuGraphDestroy", u64(graph))
        driver.cuModuleUnload(u64(module))
    elif fault == "unsafe under capture":
        driver.call("cuStreamBeginCapture_v2", u64(stream), 0)
        driver.cuModuleLoadDataEx(ctypes.byref(u64()), IMAGES["alpha"], 0, None, None)
    elif fault == "wait under capture":
        driver.call("cuStreamBeginCapture_v2", u64(stream), 2)
        driver.cuStreamSynchronize(u64(stream))
    elif fault == "mode left":
        driver.call("cuThreadExchangeStreamCaptureMode", ctypes.byref(i32(2)))
    elif fault == "two threads in a graph":
        *_, exec_, _ = executable()
        driver.stand_in_delay(100_000)

        def go():
            driver.cuCtxPushCurrent_v2(u64(device.context))
            driver.cuGraphLaunch(u64(exec_), u64(0))

        started = [threading.Thread(target=go) for _ in range(2)]
        for thread in started:
            thread.start()
        for thread in started:
            thread.join()
        driver.stand_in_delay(0)
    elif fault == "missing dependency":
        graph, module = driver.made("cuGraphCreate", 0), load()
        node(graph, function(module), parameters())
        node(graph, function(module, b"second"), parameters(32, (16,)))
        exec_ = driver.made("cuGraphInstantiateWithFlags", u64(graph), u64(0))
        driver.call("cuGraphLaunch", u64(exec_), u64(0))
    elif fault == "forked child":
        child = os.fork()
        if child == 0:
            driver.cuCtxSynchronize()
            os._exit(7 if driver.report()["violations"] else 0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        driver.library.stand_in_forget()
    else:
        raise AssertionError(fault)
    return None


def main() -> None:
    path, scenario, arguments = sys.argv[1:]
    spec = importlib.util.spec_from_file_location("_native", path)
    native = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(native)
    try:
        driver = Driver()
    except OSError:
        driver = None  # the scenario of a driver that is not there
    result = globals()[scenario](native, driver, *json.loads(arguments))
    gc.collect()
    report = driver.report() if driver else None
    print(json.dumps({"result": result, "report": report}), flush=True)


if __name__ == "__main__":
    main()
