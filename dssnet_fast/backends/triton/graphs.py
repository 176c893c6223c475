"""The network's launches replayed as CUDA graphs, where the caller asks for them.

Launching a kernel from Python takes longer than most of these kernels run. A graph takes one launch
for all of them, but its images, workspace and answers lie at fixed addresses: what it is asked is
copied in, and its answer is copied out.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

VARIABLE = "DSSNET_FAST_TRITON_GRAPHS"
KEPT = 16  # graphs; each holds its own workspace


class Graph:
    """What `run` does with an image, recorded.

    Args:
        run: Queues work on torch's current stream and returns its answer.
        image: Of the shape and dtype that the graph is for, on the GPU.
    """

    def __init__(self, run: Callable[[Tensor], Tensor], image: Tensor) -> None:
        self._lock = threading.Lock()
        self._image = image.clone()
        # Kernels are compiled, and tuned, when they are first launched: not while recording.
        run(self._image)
        torch.cuda.current_stream().synchronize()
        self._graph = torch.cuda.CUDAGraph()
        # Other threads may use the GPU meanwhile.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._answer = run(self._image)
        self._done = torch.cuda.Event()

    def __call__(self, image: Tensor) -> Tensor:
        """The answer for another image."""
        with self._lock:
            stream = torch.cuda.current_stream()
            # The call before may have been on another stream, and may not have been done.
            stream.wait_event(self._done)
            self._image.copy_(image, non_blocking=True)
            self._graph.replay()
            answer = self._answer.clone()
            self._done.record(stream)
        return answer


class Graphs:
    """The most recently used graphs of a network; safe from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._graphs: OrderedDict[Hashable, Graph] = OrderedDict()

    def run(self, key: Hashable, run: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
        """`run(image)`, replayed; recorded first where `key` is new.

        While the caller records a graph of its own, the launches become part of that one.

        Args:
            key: Everything that the launches depend on, besides the image's values.
            run: See `Graph`.
            image: On the current device.
        """
        if torch.cuda.is_current_stream_capturing():
            return run(image)
        with self._lock:
            if key not in self._graphs:
                self._graphs[key] = Graph(run, image)
                if len(self._graphs) > KEPT:
                    self._graphs.popitem(last=False)
            self._graphs.move_to_end(key)
            graph = self._graphs[key]
        return graph(image)
