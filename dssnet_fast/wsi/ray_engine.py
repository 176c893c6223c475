"""Workers of a Ray cluster, or of a local one that is started for the run.

Slides must be readable under the same path on every node; results are written by the driver.
"""

from __future__ import annotations

import logging
import os
from concurrent.futures import Future

from dssnet_fast.python_ref.errors import InputError
from dssnet_fast.wsi.engines import Computed, PortableNet, Workers, compute
from dssnet_fast.wsi.network import Network
from dssnet_fast.wsi.pipeline import Threads
from dssnet_fast.wsi.timing import Timing
from dssnet_fast.wsi.work import TileTask


class _Actor:
    """What runs on a worker of the cluster."""

    def __init__(self, net: PortableNet, cores: int, on_gpu: bool, batch: int) -> None:
        self._threads = Threads.for_cores(cores, batch)
        # Ray shows a worker the GPU that it has, and no other.
        self._net = net.unpack(cores, "cuda:0" if on_gpu else "cpu")

    def run(self, group: list[TileTask]) -> Computed:
        """See `engines.compute`."""
        return compute(self._net, group, self._threads)


class RayWorker:
    """An actor of the cluster; see `engines.Worker`."""

    def __init__(self, net: object, cores: int, on_gpu: bool, batch: int) -> None:
        import ray

        options = {"num_cpus": cores, "num_gpus": int(on_gpu)}
        self._actor = ray.remote(**options)(_Actor).remote(net, cores, on_gpu, batch)

    def submit(self, group: list[TileTask]) -> Future[Computed]:
        """See `engines.Worker`."""
        return self._actor.run.remote(group).future()

    def is_loss(self, error: BaseException) -> bool:
        """See `engines.Worker`."""
        from ray.exceptions import RayActorError

        return isinstance(error, RayActorError)

    def close(self) -> None:
        """See `engines.Worker`."""
        import ray

        ray.kill(self._actor)


def ray_workers(
    net: Network,
    count: int | None,
    threads: Threads,
    timing: Timing,
    address: str | None,
    deterministic: bool = False,
) -> Workers:
    """Workers of the cluster at `address`, or of one that is started here.

    Args:
        net: The network.
        count: How many workers; None for one a GPU, or one a node where the network is on a CPU.
        threads: For the size of batches.
        timing: Where to count what took how long.
        address: Of a cluster, `auto` for the one this machine belongs to, None to start one.
        deterministic: See `determinism`.

    Raises:
        InputError: Ray is not installed, or there is no cluster.
    """
    try:
        import ray
    except ImportError as error:
        raise InputError("--engine ray needs Ray: pip install 'dssnet_fast[ray]'") from error
    # Nothing is sent to anybody.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not ray.is_initialized():
        try:
            ray.init(
                address=address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                **({} if address else {"include_dashboard": False}),
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise InputError(f"--ray-address {address}: {error}") from error
    on_gpu = net.device.type == "cuda"
    resources = ray.cluster_resources()
    nodes = max(sum(node["Alive"] for node in ray.nodes()), 1)
    if count is None:
        count = int(resources.get("GPU", 0)) if on_gpu else nodes
    if not count:
        raise InputError("--engine ray: the cluster has no GPU; use --device cpu")
    cores = max(int(resources.get("CPU", 1)) // count, 1)
    portable = ray.put(PortableNet.of(net, deterministic))
    return Workers(lambda _: RayWorker(portable, cores, on_gpu, threads.batch), count, timing)
