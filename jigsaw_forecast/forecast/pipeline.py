"""The output pipeline: while a step is computed, the steps before it are encoded and written.

The main thread sends bands to the ranks that write them, which takes a collective of the model
group, and puts what it gets into a queue of `DEPTH` lead times; a thread of each rank takes it out,
joins bands to whole maps, encodes and writes. On a GPU the maps are joined there and copied out.
The queue's length bounds the memory, whatever the length of the forecast: a step that finds it full
waits, and the report says how long.
"""

import logging
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from jigsaw_forecast.errors import ForecastError, StoppedError
from jigsaw_forecast.forecast.exchange import Bands, exchange_bands
from jigsaw_forecast.forecast.product import Slot
from jigsaw_forecast.forecast.restart import RestartFolder
from jigsaw_forecast.forecast.rollout import Snapshot
from jigsaw_forecast.forecast.stopping import Implausible
from jigsaw_forecast.forecast.writing import Job, Owners, Products
from jigsaw_forecast.model.config import ModelConfig
from jigsaw_forecast.parallel.mesh import Mesh
from jigsaw_forecast.parallel.watch import waiting
from jigsaw_forecast.state import State

_log = logging.getLogger(__name__)
DEPTH = 2  # lead times under way: one that is written and one that is ready
WORTH_TELLING_S = 1.0  # of back-pressure
LAST_WAIT_S = 5.0  # for the thread of a run that is given up


@dataclass
class PipelineSeconds:
    """What output costs the main thread.

    Attributes:
        exchange: Sending bands, and joining maps on a GPU.
        wait: Finding the queue full: back-pressure.
        drain: Waiting for the last lead times of a forecast.
    """

    exchange: float = 0.0
    wait: float = 0.0
    drain: float = 0.0


class OutputPipeline:
    """One rank's queue of lead times and the thread that writes them."""

    def __init__(self, mesh: Mesh, config: ModelConfig, products: Products) -> None:
        """Starts the thread.

        Args:
            mesh: This rank's mesh.
            config: The architecture.
            products: What to write; from now on the thread's.
        """
        self.seconds = PipelineSeconds()
        self._mesh = mesh
        self._config = config
        self._products = products
        self._room = threading.Semaphore(DEPTH)
        self._jobs: queue.SimpleQueue[_Ready | None] = queue.SimpleQueue()
        self._maps: dict[Owners, torch.Tensor] = {}  # of the lead time that is written
        self._buffers: list[torch.Tensor] = []  # pinned, of lead times that are written
        self._buffers_lock = threading.Lock()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="output", daemon=True)
        self._thread.start()

    def submit(
        self,
        slots: Sequence[Slot | None],
        state: State | None,
        rollout_step: int,
        restart: tuple[RestartFolder, Snapshot] | None,
        implausible: Sequence[Implausible] = (),
    ) -> None:
        """Hands a lead time of every model group over; waits where too many are under way.

        Args:
            slots: What every model group has made, None where it is idle; the same on all ranks.
            state: This rank's piece, None where its group is idle.
            rollout_step: The step that was made.
            restart: Where to save the model's state and what it is; None to save nothing.
            implausible: What left its plausible range since the last that was handed over.

        Communication:
            Point to point within the model group, for each way in which its fields are shared out.
        """
        began = time.perf_counter()
        with waiting("room in the output queue"):
            self._room.acquire()
        self.seconds.wait += time.perf_counter() - began
        began = time.perf_counter()
        own = slots[self._mesh.data.index]
        bands: dict[Owners, Bands] = {}
        if state is not None and own is not None:
            run = self._products.run
            kinds = [
                run.owners(product, self._mesh.model.size)
                for product in run.products
                if run.lacks(product, own)
            ]
            for owners in dict.fromkeys(kinds):
                bands[owners] = exchange_bands(self._config, self._mesh, state, dict(owners))
        folder = None if restart is None else restart[0]
        job = Job(tuple(slots), {}, rollout_step, folder, implausible=implausible)
        self._jobs.put(self._ready(job, bands, None if restart is None else restart[1].normalised))
        self.seconds.exchange += time.perf_counter() - began

    def failure(self) -> str:
        """Why nothing more can be written, empty where all is well.

        Raises:
            Exception: The thread failed in an unexpected way: a bug, with its traceback.
        """
        failure = self._failure
        if failure is None:
            return ""
        if not isinstance(failure, (ForecastError, StoppedError)):
            raise failure
        return str(failure)

    def restart_seconds(self) -> float:
        """Seconds that this rank has spent so far on states to go on from."""
        return self._products.seconds.restart

    def give_up(self) -> None:
        """Writes nothing more but what is being written: the ranks no longer act together."""
        self._failure = self._failure or StoppedError("the run was given up")

    def drain(self) -> None:
        """Waits until all that was handed over is written, or has failed on all ranks."""
        began = time.perf_counter()
        with waiting("the end of the output queue"):
            for _ in range(DEPTH):
                self._room.acquire()
        for _ in range(DEPTH):
            self._room.release()
        self.seconds.drain += time.perf_counter() - began

    def close(self) -> bool:
        """Ends the thread once it has written what it holds; whether it has ended in time."""
        self._jobs.put(None)
        if self.seconds.wait > WORTH_TELLING_S and self._mesh.rank == 0:
            _log.info(
                "computing stood still for %.0f s, until output was written: fewer --variables, "
                "a longer --output-frequency or a faster disk would help",
                self.seconds.wait,
            )
        self._thread.join(LAST_WAIT_S)
        return not self._thread.is_alive()

    def _ready(
        self, job: Job, bands: dict[Owners, Bands], normalised: torch.Tensor | None
    ) -> "_Ready":
        """Starts what has to be copied off the device."""
        buffers: list[torch.Tensor] = []
        event = None
        if self._mesh.device.type == "cuda":
            maps = {owners: part.join() for owners, part in bands.items()}
            maps = {
                owners: replace(state, data=self._pinned(state.data, buffers))
                for owners, state in maps.items()
            }
            job, bands = replace(job, maps=maps), {}
            normalised = None if normalised is None else self._pinned(normalised, buffers)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        if normalised is not None:
            job = replace(job, normalised=normalised.numpy())
        return _Ready(job, bands, buffers, event)

    def _joined(self, bands: Mapping[Owners, Bands]) -> dict[Owners, State]:
        """Whole maps, in memory that the next lead time uses again."""
        for owners, part in bands.items():
            if owners not in self._maps:
                # numpy asks for huge pages, which are much cheaper to touch first
                self._maps[owners] = torch.from_numpy(np.empty(part.shape, np.float32))
        return {owners: part.join(self._maps[owners]) for owners, part in bands.items()}

    def _pinned(self, data: torch.Tensor, buffers: list[torch.Tensor]) -> torch.Tensor:
        """A copy in pinned memory that is under way; buffers of earlier lead times are used."""
        with self._buffers_lock:
            shapes = [buffer.shape for buffer in self._buffers]
            kept = self._buffers.pop(shapes.index(data.shape)) if data.shape in shapes else None
        buffer = kept if kept is not None else torch.empty_like(data, device="cpu", pin_memory=True)
        buffer.copy_(data, non_blocking=True)
        buffers.append(buffer)
        return buffer

    def _run(self) -> None:
        while (ready := self._jobs.get()) is not None:
            try:
                if self._failure is None:
                    if ready.event is not None:
                        ready.event.synchronize()
                    with self._products.timed("join"):
                        job = replace(ready.job, maps=self._joined(ready.bands) or ready.job.maps)
                    ready.bands.clear()
                    self._products.write(job)
            except Exception as error:  # noqa: BLE001  raised on the main thread by `failure`
                self._failure = error
            finally:
                with self._buffers_lock:
                    self._buffers += ready.buffers
                del ready
                self._room.release()


@dataclass(frozen=True)
class _Ready:
    """A job whose maps are still bands, or under way from the device."""

    job: Job
    bands: dict[Owners, Bands]
    buffers: list[torch.Tensor]
    event: torch.cuda.Event | None
