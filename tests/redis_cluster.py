"""A Redis Cluster of real servers."""

import itertools
import random
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import redis

from service.history.embedded import find_redis_server


@contextmanager
def cluster(
    directory: Path, num_nodes: int, *, has_replicas: bool = False, node_timeout_ms: int = 20_000
) -> Iterator[list[int]]:
    """Ports of real servers that have met and share all slots; stopped at the end.

    `has_replicas`: one for each, which takes its place some time after it has not answered for `node_timeout_ms`. By
    default so long that nodes which a busy machine holds up do not take each other for dead.
    """
    with ExitStack() as stack:
        num_servers = 2 * num_nodes if has_replicas else num_nodes
        nodes = [_cluster_node(directory / f"node{i}", node_timeout_ms) for i in range(num_servers)]
        ports = [stack.enter_context(node) for node in nodes]
        clients = [redis.Redis(port=port, decode_responses=True) for port in ports]
        for i, client in enumerate(clients[:num_nodes]):
            client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", i + 1)
            client.execute_command("CLUSTER", "ADDSLOTS", *range(i * 16384 // num_nodes, (i + 1) * 16384 // num_nodes))
        # Everybody meets everybody: gossip alone takes seconds.
        for client, other in itertools.permutations(clients, 2):
            client.execute_command("CLUSTER", "MEET", "127.0.0.1", other.get_connection_kwargs()["port"])
        _until(lambda: all(client.cluster("INFO")["cluster_state"] == "ok" for client in clients))
        for primary, replica in zip(clients, clients[num_nodes:], strict=False):
            replica.execute_command("CLUSTER", "REPLICATE", primary.execute_command("CLUSTER", "MYID"))
            _until(lambda: replica.info("replication").get("master_link_status") == "up")  # noqa: B023
        for client in clients:
            client.close()
        yield ports[:num_nodes]


@contextmanager
def _cluster_node(directory: Path, node_timeout_ms: int, num_tries: int = 5) -> Iterator[int]:
    """One server that answers, at the port given; another port is tried when it ends, for somebody took the first."""
    directory.mkdir(parents=True)
    log = directory / "log"
    for _ in range(num_tries):
        port = _free_cluster_port()
        options = ["--port", port, "--bind", "127.0.0.1", "--dir", directory, "--save", "", "--logfile", log]
        options += ["--cluster-enabled", "yes", "--cluster-node-timeout", node_timeout_ms]
        command = [find_redis_server(), *options]
        server = subprocess.Popen([str(word) for word in command])
        try:
            with redis.Redis(port=port) as client:
                _until(lambda: server.poll() is not None or client.ping())  # noqa: B023 - called in this round only
            if server.poll() is None:
                yield port
                return
        finally:
            server.kill()
            server.wait()
    pytest.fail(f"no node of a cluster would start: {log.read_text()[-2000:]}")


def _free_cluster_port() -> int:
    """A port below those that the kernel gives to clients; so is the one that the node's bus takes, 10,000 above."""
    for port in random.SystemRandom().sample(range(10_000, 22_000), 100):
        with socket.socket() as client_probe, socket.socket() as bus_probe:
            try:
                client_probe.bind(("127.0.0.1", port))
                bus_probe.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
        return port
    pytest.fail("no two free ports for a node of a cluster")


def _until(holds: Callable[[], bool], timeout_s: float = 20.0) -> None:
    end_s = time.monotonic() + timeout_s
    while time.monotonic() < end_s:
        try:
            if holds():
                return
        except redis.ConnectionError:
            pass
        time.sleep(0.05)
    pytest.fail(f"the cluster was not ready after {timeout_s} s")
