"""Ranks of this machine that wait for orders: what benchmarks of several ranks start and time."""

import multiprocessing
import socket
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any


class Crew:
    """Processes that do the same thing at the same time.

    Each runs `serve(orders, rank, port, *arguments)`: it sends something once it is ready, then
    answers every order until it receives None. The port is free for their process group.
    """

    def __init__(
        self, num_processes: int, serve: Callable[..., None], *arguments: Any, method: str = "spawn"
    ) -> None:
        """Starts them and waits until all are ready."""
        context: Any = multiprocessing.get_context(method)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._connections: list[Connection] = []
        self._processes = []
        for rank in range(num_processes):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=serve, args=(theirs, rank, port, *arguments), daemon=True
            )
            process.start()
            theirs.close()
            self._connections.append(ours)
            self._processes.append(process)
        self._answers()

    def ask(self, order: object) -> list[Any]:
        """Every process's answer to an order, which is not None."""
        for connection in self._connections:
            connection.send(order)
        return self._answers()

    def close(self) -> None:
        """Ends them."""
        for connection in self._connections:
            connection.send(None)
        for process in self._processes:
            process.join()

    def _answers(self) -> list[Any]:
        return [connection.recv() for connection in self._connections]
