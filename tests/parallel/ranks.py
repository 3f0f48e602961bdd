"""Pools of Gloo ranks that serve the whole pytest run: one pool for each world size."""

import importlib
import multiprocessing
import os
import socket
import traceback
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist

from jigsaw_forecast.parallel.mesh import Mesh, make_mesh

START_TIMEOUT_S = 120
CALL_TIMEOUT_S = 240


class RankPool:
    """Ranks of one world size that run functions of (mesh, *arguments) together."""

    def __init__(self, world_size: int) -> None:
        """Starts the ranks; each joins one process group."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch", "jigsaw_forecast.train.run"])
        port = _free_port()
        self.connections: list[Connection] = []
        self.processes = []
        for rank in range(world_size):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(theirs, rank, world_size, port), daemon=True
            )
            process.start()
            theirs.close()
            self.connections.append(ours)
            self.processes.append(process)

    def run(self, degrees: dict[str, int], function: Any, *arguments: Any) -> list[Any]:
        """What the function returned on each rank, called as function(mesh, *arguments)."""
        target = (function.__module__, function.__qualname__)
        for connection in self.connections:
            connection.send((degrees, target, arguments))
        results = []
        for rank, connection in enumerate(self.connections):
            assert connection.poll(CALL_TIMEOUT_S), f"rank {rank} gave no answer"
            results.append(connection.recv())
        failures = [f"rank {r}:\n{x[1]}" for r, x in enumerate(results) if x[0] == "error"]
        assert not failures, "\n".join(failures)
        return [result[1] for result in results]

    def close(self) -> None:
        """Ends the ranks."""
        for connection in self.connections:
            connection.close()
        for process in self.processes:
            process.join(10)
            process.kill()


def _serve(connection: Connection, rank: int, world_size: int, port: int) -> None:
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_ADDR="localhost", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    if world_size > 1:
        dist.init_process_group("gloo")
    meshes: dict[tuple[tuple[str, int], ...], Mesh] = {}
    while True:
        try:
            degrees, (module, name), arguments = connection.recv()
        except EOFError:
            return
        key = tuple(sorted(degrees.items()))
        try:
            if key not in meshes:
                meshes[key] = make_mesh(degrees)
            function = getattr(importlib.import_module(module), name)
            connection.send(("ok", function(meshes[key], *arguments)))
        except BaseException:  # noqa: BLE001  sent to the test, which shows it
            connection.send(("error", traceback.format_exc()))


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port: int = listener.getsockname()[1]
        return port
