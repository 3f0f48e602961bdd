"""Skill of a checkpoint over the test year of the nature run, as a markdown table.

    python benchmarks/nature_run_skill.py checkpoints/NAME nature.zarr

Latitude-weighted RMSE against persistence and the day-of-year climatology of the training years;
anomaly variance and patch seams at day 10; anomaly deviation and drift at day 60. Many initial
times step together as one batch on one rank: minutes on two cores for the year.
"""

import argparse
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from jigsaw_forecast.checkpoint.format import find_checkpoint
from jigsaw_forecast.checkpoint.load import LoadedModel, load_checkpoint
from jigsaw_forecast.data.statistics import row_weights
from jigsaw_forecast.data.weather_store import Period, WeatherStore
from jigsaw_forecast.errors import ForecastError
from jigsaw_forecast.fields import Field
from jigsaw_forecast.forecast.rollout import make_forcings
from jigsaw_forecast.parallel.mesh import single_rank_mesh
from jigsaw_forecast.verify.climatology import Climatology, ClimatologyBuilder
from jigsaw_forecast.verify.statistics import SquaredErrors, spatial_mean_square

HEADLINE = ("z500", "t850", "u850", "v850", "2t")
SHOWN_HOURS = (6, 24, 72, 120, 168, 240)
TEN_DAYS_HOURS, SIXTY_DAYS_HOURS = 240, 1440
NUM_LONG_ROLLOUTS = 12
TIMES_PER_READ = 120
BATCH = 32
DEFAULT_TRAINING_YEARS = "2017-01-01/2024-12-31"

Array = npt.NDArray[np.float32]


@dataclass
class TestYear:
    """The truth of the test year in memory, and what a rollout needs.

    Attributes:
        loaded: The checkpoint.
        times: Valid times, six hours apart.
        states: Normalised prognostic states, shape [T, F, Y, X].
        forcings: Shape [T, G, Y, X].
        climatology: Normalised, of the headline fields at `times`, shape [T, headline, Y, X].
        places: Where the headline fields lie among the prognostic ones.
        rows: Area weights over the number of rows, shape [Y].
    """

    loaded: LoadedModel
    times: npt.NDArray[np.datetime64]
    states: torch.Tensor
    forcings: torch.Tensor
    climatology: torch.Tensor
    places: list[int]
    rows: torch.Tensor

    @property
    def std(self) -> torch.Tensor:
        """Deviations of the headline fields, shape [headline, 1, 1]."""
        return self.loaded.normalisation.std[self.places]

    def headline(self, states: torch.Tensor) -> torch.Tensor:
        """The headline fields of states [..., F, Y, X]."""
        return states[..., self.places, :, :]


def read_year(loaded: LoadedModel, path: Path, test: Period, training: Period) -> TestYear:
    """Reads the truth and builds the climatology."""
    config = loaded.manifest.architecture
    fields = config.prognostic_fields
    store = WeatherStore(path, fields)
    rows = slice(0, config.grid_object.num_model_lat)
    norm = loaded.normalisation
    indices = store.indices(test)
    parts = [
        (torch.from_numpy(store.read(part, fields, rows)) - norm.mean) / norm.std
        for part in _parts(indices)
    ]
    times = store.times[indices]
    maps = make_forcings(loaded)
    forcings = np.stack([maps.at(valid_time) for valid_time in times])
    places = [config.fields.index(name) for name in HEADLINE]
    headline = [fields[place] for place in places]
    climatology = build_climatology(store, headline, rows, training).at(times)
    normalised = (torch.from_numpy(climatology) - norm.mean[places]) / norm.std[places]
    weights = row_weights(config.grid_object) / config.grid_object.num_model_lat
    return TestYear(
        loaded,
        times,
        torch.cat(parts),
        torch.from_numpy(forcings),
        normalised,
        places,
        torch.from_numpy(weights),
    )


def build_climatology(
    store: WeatherStore, fields: list[Field], rows: slice, training: Period
) -> Climatology:
    """The day-of-year climatology of some fields over the training years."""
    shape = (len(fields), rows.stop, store.grid.num_lon)
    builder = ClimatologyBuilder(shape)
    for part in _parts(store.indices(training)):
        builder.add(store.times[part], store.read(part, fields, rows))
    return builder.finish()


def _parts(indices: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
    for start in range(0, len(indices), TIMES_PER_READ):
        yield indices[start : start + TIMES_PER_READ]


@torch.inference_mode()
def roll_out(
    year: TestYear, starts: npt.NDArray[np.int64], num_steps: int
) -> Iterator[tuple[int, torch.Tensor, npt.NDArray[np.int64]]]:
    """Yields lead hours, normalised states [B, F, Y, X] and the places of the valid times."""
    model, hours = year.loaded.model, year.loaded.manifest.architecture.step_hours
    state = year.states[starts]
    for step in range(num_steps):
        state, _ = model(state, year.forcings[starts + step])
        yield (step + 1) * hours, state, starts + step + 1


@dataclass
class Scores:
    """Errors by lead time (one row for each model step) and headline field, in SI units."""

    model: SquaredErrors
    persistence: SquaredErrors
    climatology: SquaredErrors


def score(year: TestYear, starts: npt.NDArray[np.int64]) -> tuple[Scores, dict[str, list[float]]]:
    """Ten-day rollouts from all starts: errors, and variance and seams at day 10."""
    hours = year.loaded.manifest.architecture.step_hours
    num_steps = TEN_DAYS_HOURS // hours
    scores = Scores(*(SquaredErrors.empty(num_steps, len(HEADLINE)) for _ in range(3)))
    last = []
    for first in range(0, len(starts), BATCH):
        batch = starts[first : first + BATCH]
        initial = year.headline(year.states[batch])
        for lead, state, valid in roll_out(year, batch, num_steps):
            truth = year.headline(year.states[valid])
            place = lead // hours - 1
            for errors, guess in (
                (scores.model, year.headline(state)),
                (scores.persistence, initial),
                (scores.climatology, year.climatology[valid]),
            ):
                errors.add(place, spatial_mean_square((guess - truth) * year.std, year.rows))
            if lead == TEN_DAYS_HOURS:
                last.append(day_ten(year, state, valid))
    return scores, {key: np.mean([part[key] for part in last], 0).tolist() for key in last[0]}


def day_ten(
    year: TestYear, state: torch.Tensor, valid: npt.NDArray[np.int64]
) -> dict[str, npt.NDArray[np.float64]]:
    """Mean square anomaly and differences across and inside of patches, forecast and truth."""
    patch = year.loaded.manifest.architecture.patch
    found = {}
    for name, maps in (("forecast", state), ("truth", year.states[valid])):
        anomaly = year.headline(maps) - year.climatology[valid]
        found[f"{name} variance"] = spatial_mean_square(anomaly, year.rows).mean(0).numpy()
        across, inside = patch_differences(maps, patch)
        found[f"{name} across"] = across.mean(0).double().numpy()
        found[f"{name} inside"] = inside.mean(0).double().numpy()
    return found


def patch_differences(
    maps: torch.Tensor, patch: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean absolute difference of neighbours across patch edges and inside of patches, [B, F]."""
    north_south = maps.diff(dim=-2).abs()
    east_west = torch.diff(maps, dim=-1, append=maps[..., :1]).abs()  # periodic
    is_row_edge = torch.arange(1, maps.shape[-2]) % patch[0] == 0
    is_column_edge = torch.arange(1, maps.shape[-1] + 1) % patch[1] == 0

    def mean(is_row: torch.Tensor, is_column: torch.Tensor) -> torch.Tensor:
        rows, columns = north_south[..., is_row, :], east_west[..., is_column]
        return (rows.mean((-2, -1)) + columns.mean((-2, -1))) / 2

    return mean(is_row_edge, is_column_edge), mean(~is_row_edge, ~is_column_edge)


def long_rollouts(year: TestYear) -> tuple[list[float], float, bool]:
    """Sixty days from starts through the year: deviation ratios, drift of 2t, all finite."""
    hours = year.loaded.manifest.architecture.step_hours
    num_steps = SIXTY_DAYS_HOURS // hours
    starts = np.linspace(0, len(year.times) - num_steps - 1, NUM_LONG_ROLLOUTS).astype(np.int64)
    (last,) = deque(roll_out(year, starts, num_steps), maxlen=1)
    _, state, valid = last
    truth, forecast = year.headline(year.states[valid]), year.headline(state)
    variances = [
        spatial_mean_square(maps - year.climatology[valid], year.rows).mean(0)
        for maps in (forecast, truth)
    ]
    ratios = (variances[0] / variances[1]).sqrt().tolist()
    surface = HEADLINE.index("2t")
    error = (forecast - truth)[:, surface] * year.std[surface]
    drift = (error.double().mean(-1) * year.rows).sum(-1).mean()
    return ratios, float(drift), bool(state.isfinite().all())


def lead_until_climatology(model: npt.NDArray[np.float64], climate: npt.NDArray[np.float64],
                           hours: int) -> str:  # fmt: skip
    """Days until the model's error first passes climatology's, between steps linearly."""
    excess = model - climate
    worse = np.flatnonzero(excess > 0)
    if not worse.size:
        return f"beyond {len(model) * hours / 24:g}"
    place = int(worse[0])
    before = excess[place - 1] if place else -climate[0]
    return f"{(place + before / (before - excess[place])) * hours / 24:.1f}"


def report(year: TestYear, starts: npt.NDArray[np.int64]) -> None:
    """Prints everything."""
    hours = year.loaded.manifest.architecture.step_hours
    scores, ends = score(year, starts)
    by_name = {
        "model": scores.model.rmse(),
        "persistence": scores.persistence.rmse(),
        "climatology": scores.climatology.rmse(),
    }
    print(f"{len(starts)} initial times, {year.times[starts[0]]} to {year.times[starts[-1]]}\n")
    print("| field | forecast |", " | ".join(_lead(lead) for lead in SHOWN_HOURS),
          "| better than climatology to |")  # fmt: skip
    print("|---|---|" + "---|" * (len(SHOWN_HOURS) + 1))
    for place, name in enumerate(HEADLINE):
        for kind, rmse in by_name.items():
            values = " | ".join(f"{rmse[lead // hours - 1, place]:.4g}" for lead in SHOWN_HOURS)
            until = ""
            if kind == "model":
                until = lead_until_climatology(
                    rmse[:, place], by_name["climatology"][:, place], hours
                )
                until += " days"
            print(f"| {name} | {kind} | {values} | {until} |")
    worse = np.argwhere(by_name["model"] >= by_name["persistence"])
    print(f"\nworse than persistence at {len(worse)} of {by_name['model'].size} leads and fields")
    forecast, truth = np.array(ends["forecast variance"]), np.array(ends["truth variance"])
    print(f"day-10 anomaly variance over the truth's: {_by_field(forecast / truth)}")
    seams = {
        kind: np.array(ends[f"{kind} across"]) / np.array(ends[f"{kind} inside"])
        for kind in ("forecast", "truth")
    }
    for kind, ratio in seams.items():
        print(
            f"day-10 differences across patch edges over inside, {kind}: mean over all fields "
            f"{ratio.mean():.3f}, largest {ratio.max():.3f}; {_by_field(ratio[year.places])}"
        )
    if len(year.times) * hours <= SIXTY_DAYS_HOURS:
        print("day 60: the test period is shorter")
        return
    ratios, drift, is_finite = long_rollouts(year)
    print(f"day-60 anomaly deviation over the truth's: {_by_field(np.array(ratios))}")
    print(f"day-60 global mean 2t less the truth's: {drift:+.2f} K; all finite: {is_finite}")


def _lead(hours: int) -> str:
    return f"{hours} h" if hours < 24 else f"{hours // 24} d"


def _by_field(values: npt.NDArray[np.float64]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in zip(HEADLINE, values, strict=True))


def main(arguments: list[str]) -> None:
    """Reads the command line and reports."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("store", type=Path)
    parser.add_argument("--test", default="2026-01-01/2026-12-31", help="START/END")
    parser.add_argument("--training", help="START/END of the climatology; default the checkpoint's")
    parser.add_argument("--every", type=int, default=24, help="hours between initial times")
    parser.add_argument("--precision", default="bfloat16", choices=("bfloat16", "float32"))
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    loaded = load_checkpoint(
        find_checkpoint(options.checkpoint), single_rank_mesh(), getattr(torch, options.precision)
    )
    recipe = loaded.manifest.provenance.get("recipe", {})
    training = options.training or recipe.get("data", {}).get("train", DEFAULT_TRAINING_YEARS)
    year = read_year(loaded, options.store, Period.parse(options.test), Period.parse(training))
    hours = loaded.manifest.architecture.step_hours
    num_starts = len(year.times) - TEN_DAYS_HOURS // hours
    report(year, np.arange(0, num_starts, options.every // hours))
    print(f"\nmeasured in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ForecastError as error:
        sys.exit(f"error: {error}")
