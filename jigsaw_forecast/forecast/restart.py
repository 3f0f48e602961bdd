"""What a forecast goes on from after a stop: each rank's piece of the model's state, on disk.

`.NAME.restart/INIT/step-00012/rank-00001.safetensors` beside a product that has its name, and
loses its lock, only when all of the forecast is written: the first that holds its last lead time.
A file holds the digest of its content and appears under its name when it is whole; a step counts
only when the files of all ranks are there and match. The last two are kept. States are removed by
a forecast that ends, and by a run that begins and does not go on from them; by nobody else.
"""

import hashlib
import os
import shutil
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jigsaw_forecast.errors import OutputError
from jigsaw_forecast.forecast.product import Product
from jigsaw_forecast.forecast.schedule import Schedule, Start
from jigsaw_forecast.forecast.staging import remove_if_possible, reported

NUM_KEPT = 2
_KEY = "normalised"
_DIGEST = "sha256"


def restart_root(product: Path) -> Path:
    """The folder of the restart states of forecasts that keep them beside this product."""
    return product.with_name(f".{product.name}.restart")


def restart_product(products: Sequence[Product], start: Start, schedule: Schedule) -> Product:
    """The product beside which a forecast keeps its restart states."""
    last = start.at(schedule.lead_times[-1])
    return next(product for product in products if last in product.slots)


def keep_only(products: Sequence[Product], kept: Collection["RestartFolder"]) -> None:
    """Removes all restart states beside products but those of some forecasts."""
    folders = {restart.folder for restart in kept}
    for product in products:
        root = restart_root(product.path)
        for folder in root.glob("*"):
            if folder not in folders:
                remove_if_possible(folder)
        with suppress(OSError):
            root.rmdir()


@dataclass(frozen=True)
class RestartFolder:
    """The restart states of one forecast.

    Attributes:
        product: See `restart_product`.
        start: The forecast.
        num_ranks: Ranks of its model group, each of which has a file.
    """

    product: Path
    start: Start
    num_ranks: int

    @property
    def folder(self) -> Path:
        """Of this forecast."""
        text = str(self.start.init_time).replace("-", "").replace(":", "")
        member = "" if self.start.member is None else f"-member-{self.start.member:03d}"
        return restart_root(self.product) / f"{text}{member}"

    def save(self, rollout_step: int, rank: int, normalised: npt.NDArray[np.float32]) -> int:
        """Writes one rank's piece after a rollout step; returns its bytes.

        Raises:
            OutputError: The disk does not allow it.
        """
        target = self._file(rollout_step, rank)
        fresh = target.with_suffix(f".{os.getpid()}.tmp")
        values = np.ascontiguousarray(normalised)
        digest = hashlib.sha256(values.data).hexdigest()
        with reported(self.product, SafetensorError):
            target.parent.mkdir(parents=True, exist_ok=True)
            save_file({_KEY: values}, fresh, {_DIGEST: digest})
            os.replace(fresh, target)
        return normalised.nbytes

    def load(self, rollout_step: int, rank: int) -> npt.NDArray[np.float32]:
        """One rank's piece.

        Raises:
            OutputError: It is gone, damaged or altered.
        """
        path = self._file(rollout_step, rank)
        try:
            with safe_open(path, framework="numpy") as file:
                values: npt.NDArray[np.float32] = file.get_tensor(_KEY)
                expected = (file.metadata() or {}).get(_DIGEST)
        except (OSError, SafetensorError) as error:
            raise OutputError(f"cannot go on from {path}: {error}") from error
        if hashlib.sha256(values.data).hexdigest() != expected:
            raise OutputError(f"cannot go on from {path}: sha256 differs, the file is damaged")
        return values

    def whole_steps(self) -> list[int]:
        """Rollout steps of which every rank's piece is there and undamaged, newest first."""
        return [step for step in sorted(self._steps(), reverse=True) if self._is_whole(step)]

    def forget_older(self, rollout_step: int) -> None:
        """Deletes all but the last states up to this step."""
        for old in sorted(step for step in self._steps() if step <= rollout_step)[:-NUM_KEPT]:
            shutil.rmtree(self._step_folder(old), ignore_errors=True)

    def forget(self) -> None:
        """Deletes everything of this forecast, and the root where nothing else is in it."""
        remove_if_possible(self.folder)
        with suppress(OSError):
            self.folder.parent.rmdir()

    def _is_whole(self, rollout_step: int) -> bool:
        try:
            for rank in range(self.num_ranks):
                self.load(rollout_step, rank)
        except OutputError:
            return False
        return True

    def _steps(self) -> list[int]:
        names = [path.name.removeprefix("step-") for path in self.folder.glob("step-*")]
        return [int(name) for name in names if name.isdigit()]

    def _step_folder(self, rollout_step: int) -> Path:
        return self.folder / f"step-{rollout_step:05d}"

    def _file(self, rollout_step: int, rank: int) -> Path:
        return self._step_folder(rollout_step) / f"rank-{rank:05d}.safetensors"
