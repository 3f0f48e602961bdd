"""netCDF 4 files with the dims and names of a forecast store, by the CF conventions."""

from contextlib import suppress
from typing import Final

import netCDF4
import numpy as np

from jigsaw_forecast.errors import OutputError
from jigsaw_forecast.forecast.cf import (
    coordinates,
    global_attributes,
    variable_attributes,
    variable_dims,
)
from jigsaw_forecast.forecast.product import Maps, Writer
from jigsaw_forecast.forecast.staging import reported
from jigsaw_forecast.state import State

COMPRESSION_LEVEL: Final = 1  # zlib; higher levels cost much time for a few per cent


class NetcdfWriter(Writer):
    """Writes one netCDF file; one process writes all of it.

    Values are float32, shuffled, deflated and sealed with a Fletcher-32 checksum, one map a
    chunk. What is not written reads as NaN.
    """

    _dataset: netCDF4.Dataset | None = None

    def _open(self) -> None:
        if self._staging is not None:
            # RuntimeError is how netCDF4 reports a failure inside of HDF5
            with reported(self.path, RuntimeError):
                self._dataset = netCDF4.Dataset(self._staging.partial, "w", format="NETCDF4")
                self._define(self._dataset)
                self._dataset.sync()

    def _define(self, dataset: netCDF4.Dataset) -> None:
        dataset.setncatts(global_attributes(self.spec))
        axes = coordinates(self.spec)
        for axis in axes:
            dataset.createDimension(axis.name, axis.values.size)
            variable = dataset.createVariable(axis.name, axis.values.dtype, (axis.name,))
            variable.setncatts(axis.attributes)
            variable[:] = axis.values
        valid = dataset.createVariable("valid_time", np.int64, ("time", "prediction_timedelta"))
        units = axes[0].attributes["units"]
        valid.setncatts({**axes[0].attributes, "standard_name": "time", "long_name": "valid time"})
        lead = axes[1].values if units.startswith("hours") else axes[1].values * 3600
        valid[:] = axes[0].values[:, None] + lead[None, :]
        sizes = {axis.name: axis.values.size for axis in axes}
        for name in self.spec.variables:
            dims = variable_dims(self.spec, name)
            variable = dataset.createVariable(
                name,
                "f4",
                dims,
                compression="zlib",
                complevel=COMPRESSION_LEVEL,
                shuffle=True,
                fletcher32=True,
                chunksizes=[sizes[d] if d in ("latitude", "longitude") else 1 for d in dims],
                fill_value=float("nan"),
            )
            variable.setncatts({**variable_attributes(name), "coordinates": "valid_time"})

    def _write(self, states: State, maps: Maps) -> None:
        assert self._dataset is not None, "only the creator writes a netCDF file"
        inits = [init.astype("datetime64[s]") for init in self.spec.init_times]
        row = (inits.index(states.init_time), self.spec.lead_hours.index(states.lead_hours))
        with reported(self.path, RuntimeError):
            for field, values in zip(states.fields, maps, strict=True):
                level = (self.spec.levels_hpa.index(field.level_hpa),) if field.level_hpa else ()
                self._dataset[field.variable][(*row, *level)] = values

    def _record_done(self) -> None:
        assert self._dataset is not None
        with reported(self.path, RuntimeError):
            self._dataset.sync()
        self._count()

    def _close(self) -> None:
        dataset, self._dataset = self._dataset, None
        if dataset is None:
            return
        try:
            with reported(self.path, RuntimeError):
                dataset.close()
        except OutputError:
            with suppress(RuntimeError, OSError):
                dataset.close()
            raise
        self._count()

    def _count(self) -> None:
        assert self._staging is not None
        with reported(self.path):
            self.bytes_written = self._staging.partial.stat().st_size
