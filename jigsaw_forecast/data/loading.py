"""Which samples come when, and reading them ahead of the step that needs them."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from jigsaw_forecast.errors import DataError
from jigsaw_forecast.parallel.mesh import Mesh

READS_AHEAD = 2


@dataclass(frozen=True)
class Batch:
    """Samples of one train step, normalised: a start and the times that follow it.

    Attributes:
        states: Prognostic fields at steps 0..K, shape [B, K + 1, F_j, Y_i, X].
        diagnostics: Diagnostics at steps 1..K, shape [B, K, D_j, Y_i, X].
        forcings: Forcings at steps 0..K-1, shape [B, K, G_j, Y_i, X].
    """

    states: torch.Tensor
    diagnostics: torch.Tensor
    forcings: torch.Tensor

    def pinned(self) -> "Batch":
        """A copy in page-locked memory, from which a GPU takes it while the CPU goes on."""
        return Batch(*(part.pin_memory() for part in self._parts()))

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device."""
        return Batch(*(part.to(device, non_blocking=True) for part in self._parts()))

    def _parts(self) -> tuple[torch.Tensor, ...]:
        return self.states, self.diagnostics, self.forcings


class SampleOrder:
    """A seeded order of samples, cut over data replicas; a pure function of the position.

    Every epoch is a permutation of its own in which each sample comes once; a batch may begin in
    one epoch and end in the next. The order depends neither on the mesh nor on how many threads
    read: replica r of R takes the r-th part of each global batch.
    """

    def __init__(self, num_samples: int, seed: tuple[int, ...]) -> None:
        """Takes the number of samples and what the order depends on.

        Raises:
            DataError: There is no sample.
        """
        if num_samples < 1:
            raise DataError("the training period is shorter than one rollout of the recipe")
        self._num_samples = num_samples
        self._seed = seed
        self._epoch = -1
        self._permutation: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def starts(self, step: int, global_batch: int, mesh: Mesh) -> npt.NDArray[np.int64]:
        """This replica's samples of train step `step`, counted from 0 within the phase."""
        return self.starts_from(step * global_batch, global_batch, mesh)

    def starts_from(self, position: int, global_batch: int, mesh: Mesh) -> npt.NDArray[np.int64]:
        """This replica's samples of the next batch after `position` samples of all replicas."""
        local = global_batch // mesh.data.size
        first = position + mesh.data.index * local
        return np.array([self._sample(first + place) for place in range(local)], dtype=np.int64)

    def state(self, position: int) -> dict[str, Any]:
        """What a checkpoint must hold to go on at a position; JSON."""
        return {"position": position, "num_samples": self._num_samples, "seed": list(self._seed)}

    def check(self, state: Mapping[str, Any]) -> None:
        """Refuses the state of another order.

        Raises:
            DataError: It is of other data or another seed; both are named.
        """
        own = self.state(0)
        different = [
            f"{key} {state.get(key)}, now {own[key]}"
            for key in ("num_samples", "seed")
            if state.get(key) != own[key]
        ]
        if different:
            raise DataError(
                f"the checkpoint's order of samples is another one: {'; '.join(different)}; give "
                "the data and the seed that it was trained with"
            )

    def _sample(self, position: int) -> int:
        epoch, place = divmod(position, self._num_samples)
        if epoch != self._epoch:
            generator = np.random.default_rng([*self._seed, epoch])
            self._permutation = generator.permutation(self._num_samples)
            self._epoch = epoch
        return int(self._permutation[place])


class ReadAhead:
    """Batches in order, made by a thread while the last one is computed with.

    Memory: `num_ahead` batches, and the one that is in use.

    Attributes:
        wait_seconds: Time that `take` has waited in all.
    """

    def __init__(
        self, make: Callable[[int], Batch], start: int, stop: int, num_ahead: int = READS_AHEAD
    ) -> None:
        """Begins with the batch of step `start`; `make` runs in one thread only, in order."""
        self.wait_seconds = 0.0
        self._make = make
        self._next, self._stop, self._num_ahead = start, stop, num_ahead
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead")
        self._waiting: list[Future[Batch]] = []
        self._fill()

    def take(self) -> Batch:
        """The next batch.

        Raises:
            DataError: What reading it raised.
        """
        began = time.perf_counter()
        batch = self._waiting.pop(0).result()
        self._fill()
        self.wait_seconds += time.perf_counter() - began
        return batch

    def close(self) -> None:
        """Ends the thread."""
        self._pool.shutdown(cancel_futures=True)

    def _fill(self) -> None:
        while len(self._waiting) < self._num_ahead and self._next < self._stop:
            self._waiting.append(self._pool.submit(self._make, self._next))
            self._next += 1
