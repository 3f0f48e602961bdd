"""The products of a run while it goes on: opened, written by all ranks, named when whole."""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Self

from jigsaw_forecast.forecast.exchange import assign_units, bands_to_maps
from jigsaw_forecast.forecast.output import OutputSpec, Product, Writer, open_writer
from jigsaw_forecast.model.config import ModelConfig
from jigsaw_forecast.parallel.collectives import together
from jigsaw_forecast.parallel.mesh import Mesh
from jigsaw_forecast.state import State

_log = logging.getLogger(__name__)


class Products:
    """The products of a run: each is opened at its first time and named when it is whole."""

    def __init__(
        self, mesh: Mesh, products: Sequence[Product], spec: OutputSpec, *, overwrite: bool
    ) -> None:
        """Opens nothing yet.

        Args:
            mesh: This rank's mesh.
            products: With the times that each holds.
            spec: What they hold, for all times.
            overwrite: Whether products that exist are replaced when theirs are whole.
        """
        self._mesh = mesh
        self._products = products
        self._spec = spec
        self._overwrite = overwrite
        self._open: dict[Path, Writer] = {}
        self._finished: set[Path] = set()
        self.num_bytes_written = 0

    def __enter__(self) -> Self:
        """The products, to be written within."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        """Aborts what is not whole; nothing of it stays."""
        for writer in self._open.values():
            writer.abort()

    def write(self, config: ModelConfig, state: State) -> None:
        """Turns bands into whole maps, lets each rank write its own, and marks the time as done.

        Communication:
            For each product that holds the time, one all-to-all over the model group; the ranks
            agree after opening, writing and marking.
        """
        for product in self._products:
            if not product.holds(state.init_time, state.lead_time):
                continue
            writer = self._writer(product)
            owners = assign_units(writer.units(), self._mesh.model.size)
            maps = bands_to_maps(config, self._mesh, state, owners)
            together(self._mesh, partial(self._write_own, writer, maps))
            together(self._mesh, partial(self._mark_done, writer, state))
            if self._is_whole(product, state):
                self._finish(product, writer)

    def _writer(self, product: Product) -> Writer:
        """The product's writer, opened on rank 0 first."""
        if product.path not in self._open:
            is_creator = self._mesh.rank == 0
            opening = partial(self._open_on, product, is_creator)
            together(self._mesh, opening if is_creator else _nothing)
            together(self._mesh, _nothing if is_creator else opening)
        return self._open[product.path]

    def _open_on(self, product: Product, is_creator: bool) -> None:
        self._open[product.path] = open_writer(
            product.path,
            self._spec.narrowed(product),
            overwrite=self._overwrite,
            is_creator=is_creator,
        )

    def _write_own(self, writer: Writer, maps: State) -> None:
        if maps.fields:
            writer.write(maps)

    def _mark_done(self, writer: Writer, state: State) -> None:
        if writer.is_creator:
            writer.mark_done(state.init_time, state.lead_time)

    def _is_whole(self, product: Product, state: State) -> bool:
        # times come in order, so every rank knows the last one without asking
        return (state.init_time, state.lead_time) == (
            product.init_times[-1],
            product.lead_times[-1],
        )

    def _finish(self, product: Product, writer: Writer) -> None:
        """Closes the product on all ranks, then gives it its name on the rank that made it."""
        is_creator = writer.is_creator
        together(self._mesh, _nothing if is_creator else writer.finish)
        together(self._mesh, writer.finish if is_creator else _nothing)
        self.num_bytes_written += writer.bytes_written
        del self._open[product.path]
        _log.info("wrote %s", product.path)


def _nothing() -> None:
    """What a rank does while another one acts."""
