"""Simulates years of weather on a planet of its own with jcm, as a WeatherBench 2 zarr store.

Run by the interpreter of an environment that holds jcm 3.0.0 and zarr 3 (`make nature`); it
imports nothing of this project. `docs/nature-run.md` tells the method and what is not realistic.
Exit codes: 0 done, 1 a bug, 2 wrong input or refused, 3 stopped by a fault or a signal, and
resumable: the same command goes on from the last whole month.
"""

# A program of its own, whose output is what its parent reads.
# ruff: noqa: T201

import argparse
import datetime
import fcntl
import json
import os
import signal
import sys
import types
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

GRAVITY = 9.81  # m s-2, jcm.constants.grav
R_DRY = 1004.64 * 2.0 / 7.0  # J kg-1 K-1, jcm.constants.rd = akap * cpd
VIRTUAL = 461.51 / R_DRY - 1.0  # rv / rd - 1, jcm.constants.vtmpc1
P0_PA = 1.0e5  # jcm.constants.p0, the unit of jcm's normalised surface pressure
WIND_10M_RATIO = 0.95  # SPEEDY's fwind0: near-surface wind over that of the lowest level

LAPSE_RATE = 0.0065  # K m-1, standard atmosphere; Trenberth, Berry and Buja (1993), section 3
WARM_SURFACE_K = 290.5  # ibid., thresholds of the sea-level reduction
COLD_SURFACE_K = 255.0
PLATEAU_K = 298.0  # ibid., sea-level temperature ceiling under high ground
PLATEAU_LOW_M, PLATEAU_HIGH_M = 2000.0, 2500.0

LEVELS_HPA = (100, 200, 300, 400, 500, 700, 850, 925)
HOURS_PER_STEP = 6
MONTH_DAYS = 30  # one "month" is one shard in time and one restart point
STEPS_PER_MONTH = MONTH_DAYS * 24 // HOURS_PER_STEP
EXIT_REFUSED, EXIT_RESUMABLE = 2, 3

# name: (units, long_name, standard_name, has levels)
VARIABLES: dict[str, tuple[str, str, str, bool]] = {
    "geopotential": ("m2 s-2", "Geopotential", "geopotential", True),
    "temperature": ("K", "Temperature", "air_temperature", True),
    "u_component_of_wind": ("m s-1", "U component of wind", "eastward_wind", True),
    "v_component_of_wind": ("m s-1", "V component of wind", "northward_wind", True),
    "specific_humidity": ("kg kg-1", "Specific humidity", "specific_humidity", True),
    "2m_temperature": ("K", "2 metre temperature", "air_temperature", False),
    "10m_u_component_of_wind": ("m s-1", "10 metre U wind component", "eastward_wind", False),
    "10m_v_component_of_wind": ("m s-1", "10 metre V wind component", "northward_wind", False),
    "mean_sea_level_pressure": (
        "Pa",
        "Mean sea level pressure",
        "air_pressure_at_mean_sea_level",
        False,
    ),
    "total_precipitation_6hr": (
        "m",
        "Total precipitation of the 6 hours before",
        "lwe_thickness_of_precipitation_amount",
        False,
    ),
}
STATICS = {
    "land_sea_mask": ("1", "Land-sea mask (land fraction)", "land_area_fraction"),
    "geopotential_at_surface": ("m2 s-2", "Geopotential at surface", "surface_geopotential"),
}
# goes with everything made of the data
NOTICE = "A simulated planet (jcm, SPEEDY physics at T31), not the Earth."
FLAWS = (
    "not the Earth: a simulated planet with the Earth's coasts, mountains and seasons; "
    "polar-night stratosphere far too cold; atmosphere heavier than the Earth's; spectral (T31) "
    "ringing in tropical rain and around mountains; no diurnal cycle; no variation of the sea "
    "surface between years; near-surface wind is 0.95 of the lowest level's (about 400 m), so too "
    "strong over land"
)


class NatureRunError(Exception):
    """A refusal or a fault with one clear message and an exit code."""

    def __init__(self, message: str, exit_code: int = EXIT_REFUSED) -> None:
        """Keeps the exit code that the message ends with."""
        super().__init__(message)
        self.exit_code = exit_code


# ---- columns: sigma levels to pressure levels ---------------------------------------------------


def surface_temperature(t_lowest: Array, sigma_lowest: float) -> Array:
    """Extends the lowest level's temperature to the ground with the standard lapse rate.

    Args:
        t_lowest: temperature of the lowest level, K, any shape.
        sigma_lowest: its pressure over the surface pressure.

    Source: Trenberth, Berry and Buja (1993), NCAR/TN-396, eq. 5.
    """
    factor = 1.0 + LAPSE_RATE * R_DRY / GRAVITY * (1.0 / sigma_lowest - 1.0)
    return np.asarray(factor * t_lowest)


def sea_level_pressure(ps: Array, phi_surface: Array, t_surface: Array) -> Array:
    """Reduces surface pressure to the geoid, as ECMWF does.

    Args:
        ps: surface pressure, Pa.
        phi_surface: surface geopotential, m2 s-2.
        t_surface: temperature at the ground of `surface_temperature`, K.

    Returns:
        Mean sea level pressure, Pa, same shape.

    Source: Trenberth, Berry and Buja (1993), NCAR/TN-396, eqs. 6 to 14; the ECMWF post-processing
    (IFS documentation, part VI, full-pos) uses the same thresholds.
    """
    t_ground, exponent = _reduction(phi_surface, t_surface)
    x = phi_surface / (R_DRY * t_ground)
    y = exponent * x
    return np.asarray(ps * np.exp(x * (1.0 - y / 2.0 + y * y / 3.0)))


def _reduction(phi_surface: Array, t_surface: Array) -> tuple[Array, Array]:
    """Gives the ground temperature and the exponent R * lapse / g that the reduction uses."""
    standard = LAPSE_RATE * R_DRY / GRAVITY
    t_sea = t_surface + LAPSE_RATE * phi_surface / GRAVITY
    t_ground = np.where(t_surface < COLD_SURFACE_K, 0.5 * (t_surface + COLD_SURFACE_K), t_surface)
    hot_sea = t_sea > WARM_SURFACE_K
    hot_ground = t_surface > WARM_SURFACE_K
    # A land point below sea level divides by its own phi, never by zero: phi > 0 where used.
    safe_phi = np.where(np.abs(phi_surface) < 1.0, 1.0, phi_surface)
    limited = R_DRY * (WARM_SURFACE_K - t_surface) / safe_phi
    exponent = np.where(hot_sea & ~hot_ground, limited, standard)
    exponent = np.where(hot_sea & hot_ground, 0.0, exponent)
    t_ground = np.where(hot_sea & hot_ground, 0.5 * (t_surface + WARM_SURFACE_K), t_ground)
    return t_ground, exponent


def _plateau_exponent(phi_surface: Array, t_surface: Array) -> Array:
    """Gives R * lapse / g for temperature below ground, limited under high ground (ibid. 16)."""
    standard = LAPSE_RATE * R_DRY / GRAVITY
    height = phi_surface / GRAVITY
    t_sea = t_surface + LAPSE_RATE * height
    weight = np.clip((height - PLATEAU_LOW_M) / (PLATEAU_HIGH_M - PLATEAU_LOW_M), 0.0, 1.0)
    limited = weight * np.minimum(t_sea, PLATEAU_K) + (1.0 - weight) * t_sea
    safe_phi = np.maximum(phi_surface, 1.0)
    exponent = R_DRY * np.maximum(limited - t_surface, 0.0) / safe_phi
    return np.asarray(np.where(height > PLATEAU_LOW_M, exponent, standard))


def surface_geopotential(
    phi_lowest: Array, t_lowest: Array, q_lowest: Array, sigma_lowest: float
) -> Array:
    """Recovers the surface geopotential that the dynamics use, m2 s-2.

    The spectral core holds a truncated orography and puts its lowest level R Tv (-ln sigma) above
    it, isothermal (Simmons and Burridge 1981, as in SPEEDY), so this holds at every instant.
    """
    t_virtual = t_lowest * (1.0 + VIRTUAL * q_lowest)
    return np.asarray(phi_lowest + R_DRY * t_virtual * np.log(sigma_lowest))


def to_pressure_levels(
    fields: dict[str, Array], sigma: Array, ps: Array, phi_surface: Array, levels_hpa: Any
) -> dict[str, Array]:
    """Interpolates columns in ln p; the geopotential stays hydrostatic, also below the ground.

    Args:
        fields: `geopotential`, `temperature`, `specific_humidity` and any others, each
            (level, ...) on sigma levels from top to bottom, SI units.
        sigma: full levels, (level,).
        ps: surface pressure, Pa, (...).
        phi_surface: surface geopotential, m2 s-2, (...).
        levels_hpa: pressure levels, hPa.

    Returns:
        The same fields, (pressure level, ...).

    Temperature and the others are linear in ln p. Where virtual temperature is, geopotential is
    the chord of the layer minus (R/2) dTv/dlnp (x - x0)(x - x1), x = ln p: it meets the model's
    own values and d(phi)/d(ln p) = -R Tv in slope's change. Below ground: winds and humidity of
    the lowest level, temperature and geopotential by Trenberth, Berry and Buja (1993), eqs. 14-16.
    """
    t_surface = surface_temperature(fields["temperature"][-1], float(sigma[-1]))
    columns = {name: np.concatenate([f, f[-1:]]) for name, f in fields.items()}
    columns["temperature"][-1] = t_surface
    columns["geopotential"][-1] = phi_surface
    t_virtual = columns["temperature"] * (1.0 + VIRTUAL * columns["specific_humidity"])
    log_sigma = np.log(np.concatenate([sigma, [1.0]]))
    t_ground, exponent = _reduction(phi_surface, t_surface)
    plateau = _plateau_exponent(phi_surface, t_surface)
    out = {name: np.empty((len(levels_hpa), *ps.shape)) for name in fields}
    for i, level in enumerate(levels_hpa):
        x = np.log(level * 100.0 / ps)  # ln sigma of this pressure
        lower = np.clip(np.searchsorted(log_sigma, x), 1, len(sigma))
        x0, x1 = log_sigma[lower - 1], log_sigma[lower]
        weight = np.clip((x - x0) / (x1 - x0), None, 1.0)
        below = x > 0.0
        for name, column in columns.items():
            f0 = np.take_along_axis(column, lower[None] - 1, 0)[0]
            f1 = np.take_along_axis(column, lower[None], 0)[0]
            out[name][i] = f0 + weight * (f1 - f0)
        tv0 = np.take_along_axis(t_virtual, lower[None] - 1, 0)[0]
        tv1 = np.take_along_axis(t_virtual, lower[None], 0)[0]
        bend = 0.5 * R_DRY * (tv1 - tv0) * (x1 - x0) * weight * (1.0 - weight)
        out["geopotential"][i] += bend
        y = exponent * x
        depth = phi_surface - R_DRY * t_ground * x * (1.0 + y / 2.0 + y * y / 6.0)
        out["geopotential"][i] = np.where(below, depth, out["geopotential"][i])
        out["temperature"][i] = np.where(
            below, t_surface * np.exp(plateau * x), out["temperature"][i]
        )
    return out


# ---- maps: Gaussian grid to regular grid --------------------------------------------------------


def gaussian_bounds(latitude_deg: Array) -> Array:
    """Gives the sines of the cell bounds of a full Gaussian grid, north to south, (Y + 1,).

    The bounds sum the Gaussian weights, so the cell areas are the quadrature weights.
    """
    nodes, weights = np.polynomial.legendre.leggauss(len(latitude_deg))
    if not np.allclose(np.sin(np.radians(latitude_deg)), nodes[::-1], atol=1e-6):
        raise NatureRunError("latitudes are not a Gaussian grid from north to south")
    return np.concatenate([[1.0], 1.0 - np.cumsum(weights[::-1])[:-1], [-1.0]])


def overlap_weights(source_bounds: Array, target_bounds: Array) -> Array:
    """Gives the share of each target cell that each source cell covers, (target, source).

    Args:
        source_bounds: ascending or descending cell bounds, (S + 1,).
        target_bounds: the same, (T + 1,), in the same direction.
    """
    sign = 1.0 if source_bounds[-1] > source_bounds[0] else -1.0
    source, target = sign * source_bounds, sign * target_bounds
    upper = np.minimum(target[1:, None], source[None, 1:])
    lower = np.maximum(target[:-1, None], source[None, :-1])
    return np.asarray(np.maximum(upper - lower, 0.0) / (target[1:] - target[:-1])[:, None])


def regular_grid(width: int, height: int) -> tuple[Array, Array]:
    """Gives latitudes (north to south, no poles) and longitudes (0 to 360), degrees."""
    latitude = 90.0 - (np.arange(height) + 0.5) * 180.0 / height
    return latitude, np.arange(width) * 360.0 / width


def regrid_matrices(latitude_deg: Array, num_lon: int, grid: tuple[int, int]) -> tuple[Any, Any]:
    """Gives first-order conservative weights from a Gaussian to a regular grid.

    Args:
        latitude_deg: Gaussian latitudes, north to south.
        num_lon: source longitudes, evenly spaced from 0.
        grid: width and height of the target.

    Returns:
        Matrices (target Y, source Y) and (target X, source X), rows summing to 1: overlap in sine
        of latitude and in longitude (Jones 1999, Mon. Wea. Rev. 127, first order).
    """
    width, height = grid
    rows = overlap_weights(
        gaussian_bounds(latitude_deg),
        np.sin(np.radians(90.0 - np.arange(height + 1) * 180.0 / height)),
    )
    source_edges = (np.arange(-num_lon, 2 * num_lon + 1) - 0.5) * 360.0 / num_lon
    target_edges = (np.arange(width + 1) - 0.5) * 360.0 / width
    cyclic = overlap_weights(source_edges, target_edges)
    return rows, cyclic.reshape(width, 3, num_lon).sum(axis=1)


def regrid(field: Array, matrices: tuple[Any, Any]) -> Array:
    """Averages (..., Y, X) over the target's cells; the area mean and constants are kept."""
    rows, cols = matrices
    return np.asarray(rows @ field @ cols.T)


# ---- the model ----------------------------------------------------------------------------------


class Planet:
    """jcm with SPEEDY physics at T31 and 8 levels, stepped a day at a time.

    Each day gives 4 frames. A frame holds the state at its time, the 2 m temperature that the
    physics computes from this very state at the start of the next step, and the precipitation of
    the 6 hours before.
    """

    def __init__(self, start: datetime.date, seed: int) -> None:
        """Builds the planet at rest at 0 UTC of a day, its surface pressure nudged by the seed."""
        # jcm and jax live in this environment only; the tests import the functions above.
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        warnings.filterwarnings("ignore", category=FutureWarning)
        self._jax = jax = import_module("jax")
        jcm = import_module("jcm")
        folder = Path(str(jcm.__file__)).parent / "data" / "bc" / "t30" / "clim"
        coords = import_module("jcm.physics.speedy.speedy_coords").get_speedy_coords()
        terrain = import_module("jcm.terrain").TerrainData.from_file(
            folder / "terrain.nc", coords=coords
        )
        self.version: str = jcm.__version__
        self.forcing = import_module("jcm.forcing").ForcingData.from_file(
            folder / "forcing.nc", coords=coords, align_mode="wrap_year"
        )
        self.model = import_module("jcm.model").Model(
            coords=coords, terrain=terrain, start_time=start.isoformat()
        )
        self.sigma = np.asarray(coords.vertical.centers, dtype=np.float64)
        # jcm orders (longitude, latitude from the south); maps here are (latitude from the north).
        self.latitude = np.degrees(np.asarray(coords.horizontal.latitudes, np.float64))[::-1]
        self.num_lon = len(coords.horizontal.longitudes)
        self.land = north_up(np.asarray(terrain.fmask, np.float64))
        self.model.bootstrap_state(self.model.initial_state(random_seed=seed))
        rain = jax.numpy.zeros(coords.horizontal.nodal_shape)
        leaves, self._structure = jax.tree.flatten((self.model.run_state, rain))
        # Through jax first: its default types are what the steps hand back and a restart holds.
        self._leaves = [np.asarray(jax.numpy.asarray(leaf)) for leaf in leaves]
        self._day = jax.jit(self._run_day)

    def _run_six_hours(self, carry: Any, forcing: Any) -> tuple[Any, dict[str, Any]]:
        run, rain = carry
        state = self.model.dycore.to_physics_state(run.dynamics)
        run, output = self.model.run_from_state_with_carry(
            run.dynamics,
            forcing,
            save_interval=f"{int(self.model.dt_si.m)} seconds",
            total_time=f"{HOURS_PER_STEP * 3600} seconds",
            initial_physics_state=run.physics,
            initial_time=run.time,
            initial_step=run.step,
        )
        frame = {
            "geopotential": state.geopotential,
            "temperature": state.temperature,
            "u_component_of_wind": state.u_wind,
            "v_component_of_wind": state.v_wind,
            "specific_humidity": state.specific_humidity,
            "surface_pressure": state.normalized_surface_pressure,
            "2m_temperature": output.physics["_surface_flux"].t0[0],
            "rain_rate": rain,
        }
        return (run, output.physics["surface_exchange"].precipitation.mean(axis=0)), frame

    def _run_day(self, carry: Any, forcing: Any) -> tuple[Any, Any]:
        carry, frames = self._jax.lax.scan(
            lambda c, _: self._run_six_hours(c, forcing), carry, None, length=24 // HOURS_PER_STEP
        )
        return carry, frames

    def run_days(self, num_days: int) -> dict[str, Array]:
        """Advances the planet; gives the frames of these days, (time, [level,] Y, X), float64."""
        carry = self._jax.tree.unflatten(
            self._structure, [self._jax.numpy.asarray(leaf) for leaf in self._leaves]
        )
        days = []
        for _ in range(num_days):
            carry, frames = self._day(carry, self.forcing)
            days.append({name: np.asarray(f, np.float64) for name, f in frames.items()})
        self._leaves = [np.asarray(leaf) for leaf in self._jax.tree.leaves(carry)]
        out = {name: north_up(np.concatenate([d[name] for d in days])) for name in days[0]}
        bad = sorted(name for name, field in out.items() if not np.isfinite(field).all())
        if bad:
            raise NatureRunError(
                f"the simulated state is not finite ({', '.join(bad)}); try another --seed",
                EXIT_RESUMABLE,
            )
        return out

    def save(self, path: Path, recipe: dict[str, Any], done_months: int) -> None:
        """Writes the whole state to an .npz, replaced atomically."""
        temporary = path.with_suffix(".tmp.npz")
        meta = np.array(json.dumps({"recipe": recipe, "done_months": done_months}))
        arrays: dict[str, Any] = {f"leaf_{i:03d}": leaf for i, leaf in enumerate(self._leaves)}
        with temporary.open("wb") as file:
            np.savez(file, meta=meta, **arrays)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    def restore(self, path: Path) -> None:
        """Reads back what `save` wrote; the run goes on bit for bit."""
        with np.load(path, allow_pickle=False) as saved:
            leaves = [saved[f"leaf_{i:03d}"] for i in range(len(self._leaves))]
        for new, old in zip(leaves, self._leaves, strict=True):
            if new.shape != old.shape or new.dtype != old.dtype:
                raise NatureRunError(f"{path} was written by another version of jcm; delete it")
        self._leaves = leaves


def north_up(field: Array) -> Array:
    """Turns jcm's (..., X, Y from the south) into (..., Y from the north, X)."""
    return np.swapaxes(field, -1, -2)[..., ::-1, :]


def to_product(
    frames: dict[str, Array], planet: Planet, matrices: tuple[Any, Any]
) -> dict[str, NDArray[np.float32]]:
    """Turns a month's frames on the model's grid into the variables of the store."""
    ps = frames["surface_pressure"] * P0_PA
    names = [name for name, spec in VARIABLES.items() if spec[3]]
    columns = {name: np.moveaxis(frames[name], 1, 0) for name in names}
    columns["specific_humidity"] = np.maximum(columns["specific_humidity"], 0.0)
    lowest = {name: column[-1] for name, column in columns.items()}
    phi_surface = surface_geopotential(
        lowest["geopotential"],
        lowest["temperature"],
        lowest["specific_humidity"],
        float(planet.sigma[-1]),
    )
    t_surface = surface_temperature(lowest["temperature"], float(planet.sigma[-1]))
    out = to_pressure_levels(columns, planet.sigma, ps, phi_surface, LEVELS_HPA)
    out = {name: np.moveaxis(field, 0, 1) for name, field in out.items()}
    out["2m_temperature"] = frames["2m_temperature"]
    out["10m_u_component_of_wind"] = WIND_10M_RATIO * lowest["u_component_of_wind"]
    out["10m_v_component_of_wind"] = WIND_10M_RATIO * lowest["v_component_of_wind"]
    out["mean_sea_level_pressure"] = sea_level_pressure(ps, phi_surface, t_surface)
    # kg m-2 s-1 over 6 hours, 1 kg m-2 being 1 mm
    out["total_precipitation_6hr"] = frames["rain_rate"] * (HOURS_PER_STEP * 3600 / 1000.0)
    out["geopotential_at_surface"] = phi_surface
    return {name: regrid(field, matrices).astype(np.float32) for name, field in out.items()}


# ---- the store ----------------------------------------------------------------------------------


def create_store(path: Path, recipe: dict[str, Any], num_times: int, version: str) -> Any:
    """Makes an empty zarr v3 group: one chunk per time, one shard per month, crc32c."""
    import zarr
    from zarr.codecs import BloscCodec, Crc32cCodec

    group: Any = zarr.create_group(
        store=str(path),
        overwrite=True,
        attributes={
            "title": "Nature run: simulated weather of a planet that is not the Earth",
            "source": f"jcm {version}, SPEEDY physics, T31, 8 levels, time step 30 minutes",
            "notice": NOTICE,
            "known_flaws": FLAWS,
            "recipe": json.dumps(recipe),
            "seed": recipe["seed"],
            "jcm_version": version,
            "Conventions": "CF-1.11",
        },
    )
    codecs = [BloscCodec(cname="zstd", clevel=5, shuffle="shuffle"), Crc32cCodec()]
    coordinates = coordinate_arrays(recipe, num_times)
    sizes = {name: len(values) for name, (values, _) in coordinates.items()}
    for name, (values, attributes) in coordinates.items():
        array = group.create_array(
            name,
            shape=values.shape,
            dtype=values.dtype,
            chunks=values.shape,
            compressors=codecs,
            dimension_names=(name,),
            attributes=attributes,
        )
        array[:] = values
    for name, spec in {**VARIABLES, **{k: (*v, False) for k, v in STATICS.items()}}.items():
        units, long_name, standard_name, has_levels = spec
        dims = (*(("level",) if has_levels else ()), "latitude", "longitude")
        shape = tuple(sizes[dim] for dim in dims)
        in_time = name in VARIABLES
        group.create_array(
            name,
            shape=(num_times, *shape) if in_time else shape,
            dtype="float32",
            chunks=(1, *shape) if in_time else shape,
            shards=(STEPS_PER_MONTH, *shape) if in_time else None,
            compressors=codecs,
            fill_value=float("nan"),
            dimension_names=("time", *dims) if in_time else dims,
            attributes={"units": units, "long_name": long_name, "standard_name": standard_name},
        )
    return group


def coordinate_arrays(
    recipe: dict[str, Any], num_times: int
) -> dict[str, tuple[Any, dict[str, str]]]:
    """Gives the values and CF attributes of the four coordinates."""
    latitude, longitude = regular_grid(*recipe["grid"])
    first = datetime.datetime.fromisoformat(recipe["first_time"])
    hours = int((first - datetime.datetime(1970, 1, 1)).total_seconds()) // 3600
    time = hours + HOURS_PER_STEP * np.arange(num_times, dtype=np.int64)
    time_units = {"units": "hours since 1970-01-01", "calendar": "proleptic_gregorian"}
    names = {"standard_name": "time", "long_name": "time (UTC)", "axis": "T"}
    level = {"standard_name": "air_pressure", "long_name": "pressure level", "axis": "Z"}
    y = {"standard_name": "latitude", "long_name": "latitude", "axis": "Y"}
    x = {"standard_name": "longitude", "long_name": "longitude", "axis": "X"}
    return {
        "time": (time, {**time_units, **names}),
        "level": (np.array(LEVELS_HPA, np.int32), {**level, "units": "hPa", "positive": "down"}),
        "latitude": (latitude, {**y, "units": "degrees_north"}),
        "longitude": (longitude, {**x, "units": "degrees_east"}),
    }


# ---- the run ------------------------------------------------------------------------------------


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """Reads the command line and refuses what cannot be run."""
    parser = argparse.ArgumentParser(prog="nature_run_script.py", description=__doc__)
    parser.add_argument("output", type=Path, help="store to write, e.g. nature.zarr")
    parser.add_argument("--years", type=int, default=10, help="years to simulate")
    parser.add_argument("--end-year", type=int, default=2026, help="last year, to 31 December 18 h")
    parser.add_argument("--grid", default="64x32", help="longitudes x latitudes, without poles")
    parser.add_argument("--seed", type=int, default=0, help="of the initial perturbation")
    parser.add_argument("--spinup-days", type=int, default=90, help="days before the first year")
    parser.add_argument("--days", type=int, default=None, help="only the first so many")
    options = parser.parse_args(arguments)
    width, _, height = options.grid.partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) > 3 and int(height) > 1):
        parser.error(f"--grid {options.grid}: expected WxH, e.g. 64x32, 96x48 or 128x64")
    options.grid = (int(width), int(height))
    for name in ("years", "spinup_days", "days"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} {value}: expected 1 or more")
    if options.seed < 0:
        parser.error(f"--seed {options.seed}: expected 0 or more")
    # numpy's and jax_datetime's clocks and CF readers agree on these years.
    if options.end_year - options.years < 1700 or options.end_year > 2200:
        parser.error("the years must lie in 1701 to 2200")
    return options


def report(**fields: Any) -> None:
    """Prints one line of JSON for the parent, at once."""
    print(json.dumps(fields), flush=True)


def simulate(options: argparse.Namespace, recipe: dict[str, Any], num_days: int) -> None:
    """Runs or resumes the simulation and leaves the complete store under its name."""
    # zarr costs half a second, which refusals need not wait for.
    import zarr

    output: Path = options.output
    partial = output.with_name(output.name + ".partial")
    restart = output.with_name(output.name + ".restart.npz")
    first = datetime.datetime.fromisoformat(recipe["first_time"])
    steps_per_day = 24 // HOURS_PER_STEP
    total_months = -(-num_days // MONTH_DAYS)
    planet = Planet(first.date() - datetime.timedelta(days=options.spinup_days), options.seed)
    matrices = regrid_matrices(planet.latitude, planet.num_lon, options.grid)
    if restart.exists() and partial.exists():
        done = check_recipe(restart, recipe)
        planet.restore(restart)
        group: Any = zarr.open_group(str(partial), mode="r+")
        report(done_months=done, total_months=total_months, valid_time=None, phase="resumed")
    else:
        done = 0
        for days in spinup_pieces(options.spinup_days):
            report(done_months=0, total_months=total_months, valid_time=None, phase="spin-up")
            planet.run_days(days)
        group = create_store(partial, recipe, num_days * steps_per_day, planet.version)
        group["land_sea_mask"][:] = regrid(planet.land, matrices).astype(np.float32)
        planet.save(restart, recipe, done)
    for month in range(done, total_months):
        days = min(MONTH_DAYS, num_days - month * MONTH_DAYS)
        product = to_product(planet.run_days(days), planet, matrices)
        phi_surface = product.pop("geopotential_at_surface").mean(axis=0)
        if month == 0:
            group["geopotential_at_surface"][:] = phi_surface
        begin = month * STEPS_PER_MONTH
        for name, values in product.items():
            group[name][begin : begin + len(values)] = values
        planet.save(restart, recipe, month + 1)
        valid_time = first + datetime.timedelta(days=month * MONTH_DAYS + days, hours=-6)
        report(done_months=month + 1, total_months=total_months, valid_time=valid_time.isoformat())
    with warnings.catch_warnings():
        # zarr warns that consolidated metadata is not in the v3 specification; xarray reads it.
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(str(partial))
    partial.rename(output)
    restart.unlink()


def spinup_pieces(num_days: int) -> Iterator[int]:
    """Splits the spin-up into months, so that progress and memory stay bounded."""
    for begin in range(0, num_days, MONTH_DAYS):
        yield min(MONTH_DAYS, num_days - begin)


def check_recipe(restart: Path, recipe: dict[str, Any]) -> int:
    """Gives the whole months of a restart file; refuses another recipe's."""
    with np.load(restart, allow_pickle=False) as saved:
        meta = json.loads(str(saved["meta"]))
    refuse_other_recipe(restart, meta["recipe"], recipe)
    return int(meta["done_months"])


def refuse_other_recipe(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raises where a product on disk was made with other options."""
    other = [f"{k}={found.get(k)} (asked {wanted[k]})" for k in wanted if found.get(k) != wanted[k]]
    if other:
        raise NatureRunError(
            f"{path} was made by another recipe: {', '.join(other)}; "
            "give the same options, another output, or delete it"
        )


def run(options: argparse.Namespace) -> None:
    """Checks what is on disk, then simulates under a lock."""
    output: Path = options.output
    first_year = options.end_year - options.years + 1
    first = datetime.date(first_year, 1, 1)
    num_days = options.days or (datetime.date(options.end_year + 1, 1, 1) - first).days
    recipe = {
        "first_time": f"{first.isoformat()}T00:00:00",
        "num_days": num_days,
        "grid": list(options.grid),
        "seed": options.seed,
        "spinup_days": options.spinup_days,
    }
    if output.exists():
        metadata = output / "zarr.json"
        if not metadata.is_file():
            raise NatureRunError(f"{output} exists and is not a nature run")
        attributes = json.loads(metadata.read_text())["attributes"]
        refuse_other_recipe(output, json.loads(attributes.get("recipe", "{}")), recipe)
        # A stop between the rename and the clean-up leaves these two.
        for suffix in (".restart.npz", ".lock"):
            output.with_name(output.name + suffix).unlink(missing_ok=True)
        print(f"{output} is complete already", file=sys.stderr)
        total = -(-num_days // MONTH_DAYS)
        report(done_months=total, total_months=total, valid_time=None, phase="complete")
        return
    if not output.parent.is_dir() or not os.access(output.parent, os.W_OK):
        raise NatureRunError(f"{output.parent} is not a writable folder")
    lock_path = output.with_name(output.name + ".lock")
    with lock_path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise NatureRunError(f"another run is writing {output}") from error
        simulate(options, recipe, num_days)
        lock_path.unlink()


def stop(signum: int, frame: types.FrameType | None) -> None:
    """Ends the run on a signal; the last whole month stands."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise NatureRunError(
        f"stopped by {signal.Signals(signum).name}; the same command goes on from the last month",
        EXIT_RESUMABLE,
    )


def main() -> int:
    """Runs the command line and gives the exit code."""
    options = parse_arguments(sys.argv[1:])
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    try:
        run(options)
    except NatureRunError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
