"""What defines a WeatherMixer: grid, fields, patches and widths; and the presets."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, field_validator
from pydantic import Field as Setting

from jigsaw_forecast.errors import ForecastError, GridError, MeshError, RecipeError
from jigsaw_forecast.fields import (
    NATURE_RUN_FIELDS,
    WEATHERBENCH_FIELDS,
    Field,
    find_variable,
)
from jigsaw_forecast.grid import Grid

Positive = Annotated[int, Setting(gt=0)]


def field_from_name(name: str) -> Field:
    """The field written as `z500`, `2t` or a WeatherBench surface name.

    Raises:
        ForecastError: No such field.
    """
    variable = find_variable(name)
    if variable is not None:
        return Field(variable.name)
    digits = len(name) - len(name.rstrip("0123456789"))
    variable = find_variable(name[:-digits].rstrip("_")) if digits else None
    if variable is None:
        raise ForecastError(_unknown([name]))
    return Field(variable.name, int(name[-digits:]))


def fields_from_names(names: Sequence[str]) -> tuple[Field, ...]:
    """The fields of `field_from_name`, in order.

    Raises:
        ForecastError: Some are none; lists them all.
    """
    found, unknown, problems = [], [], []
    for name in names:
        try:
            found.append(field_from_name(name))
        except ForecastError as error:
            if str(error) == _unknown([name]):
                unknown.append(name)
            else:
                problems.append(f"{name}: {error}")
    if unknown:
        problems.insert(0, _unknown(unknown))
    if problems:
        raise ForecastError("; ".join(problems))
    return tuple(found)


def _unknown(names: Sequence[str]) -> str:
    return f"no such fields: {', '.join(names)}; write them as z500, t850, 2t, msl or tp"


class ModelConfig(BaseModel):
    """Architecture of a WeatherMixer.

    Lists of fields hold short names: `z500`, `2t`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    grid: str  # LONxLAT; odd row counts lie on the poles
    fields: tuple[str, ...]  # prognostic, in order
    diagnostics: tuple[str, ...] = ()  # predicted only
    forcings: tuple[str, ...]  # names of data.forcings
    patch: tuple[Positive, Positive]  # rows, columns
    overlap: Annotated[int, Setting(ge=0)]  # margin read and written around each patch
    channels: Positive
    token_hidden: Positive  # D_n
    channel_hidden: Positive  # D_c
    num_blocks: Positive
    step_hours: Positive = 6

    @field_validator("grid")
    @classmethod
    def _is_grid(cls, name: str) -> str:
        try:
            Grid.parse(name)
        except GridError as error:
            raise ValueError(str(error)) from None  # pydantic adds it to the list of all faults
        return name

    @field_validator("fields", "diagnostics")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return tuple(field.short_name for field in fields_from_names(names))
        except ForecastError as error:
            raise ValueError(str(error)) from None  # as above

    @property
    def grid_object(self) -> Grid:
        """The grid."""
        return Grid.parse(self.grid)

    @property
    def prognostic_fields(self) -> tuple[Field, ...]:
        """The prognostic fields as objects."""
        return tuple(field_from_name(name) for name in self.fields)

    @property
    def diagnostic_fields(self) -> tuple[Field, ...]:
        """The diagnostic fields as objects."""
        return tuple(field_from_name(name) for name in self.diagnostics)

    @property
    def token_rows(self) -> int:
        """Rows of patches."""
        return self.grid_object.num_model_lat // self.patch[0]

    @property
    def token_columns(self) -> int:
        """Columns of patches."""
        return self.grid_object.num_lon // self.patch[1]

    @property
    def num_tokens(self) -> int:
        """N."""
        return self.token_rows * self.token_columns

    @property
    def window(self) -> tuple[int, int]:
        """Rows and columns that a token reads and writes."""
        return self.patch[0] + 2 * self.overlap, self.patch[1] + 2 * self.overlap

    def check(self) -> None:
        """Refuses patches that do not tile the grid.

        Raises:
            RecipeError: Says which does not.
        """
        grid = self.grid_object
        problems = []
        if grid.num_model_lat % self.patch[0]:
            problems.append(f"patch rows {self.patch[0]} do not divide {grid.num_model_lat} rows")
        if grid.num_lon % self.patch[1]:
            problems.append(f"patch columns {self.patch[1]} do not divide {grid.num_lon} columns")
        if self.overlap > min(self.patch):
            problems.append(f"overlap {self.overlap} is larger than the patch {self.patch}")
        if problems:
            raise RecipeError(f"model on grid {self.grid}: {'; '.join(problems)}")

    def check_mesh(self, domain: int, tensor: int) -> None:
        """Refuses a mesh that does not divide the model, naming the degrees that do.

        Raises:
            MeshError: A degree does not divide.
        """
        problems = []
        if self.token_rows % domain or self.token_hidden % domain:
            usable = common_divisors(self.token_rows, self.token_hidden)
            problems.append(
                f"domain={domain} does not divide {self.token_rows} token rows and "
                f"{self.token_hidden} token-mixing features; use {_either(usable)}"
            )
        if self.channels % tensor or self.channel_hidden % tensor:
            usable = common_divisors(self.channels, self.channel_hidden)
            problems.append(
                f"tensor={tensor} does not divide {self.channels} channels and "
                f"{self.channel_hidden} channel-mixing features; use {_either(usable)}"
            )
        if problems:
            raise MeshError("; ".join(problems))


def common_divisors(*numbers: int) -> list[int]:
    """Divisors of all numbers, ascending."""
    return [n for n in range(1, min(numbers) + 1) if all(number % n == 0 for number in numbers)]


def _either(numbers: list[int], most: int = 16) -> str:
    shown = [str(number) for number in numbers[:most]]
    if len(shown) == 1:
        return shown[0]
    more = " or more" if len(numbers) > most else ""
    return f"{', '.join(shown[:-1])} or {shown[-1]}{more}"


_EARTH_FORCINGS = (
    "land_sea_mask",
    "geopotential_at_surface",
    "cos_solar_zenith",
    "insolation",
    "sin_day",
    "cos_day",
    "sin_year",
    "cos_year",
    "sin_latitude",
    "cos_latitude",
    "sin_longitude",
    "cos_longitude",
)
_PLANET_FORCINGS = (
    "land_sea_mask",
    "geopotential_at_surface",
    "insolation",
    "sin_year",
    "cos_year",
    "sin_latitude",
    "sin_longitude",
    "cos_longitude",
)
_WEATHERBENCH_NAMES = tuple(field.short_name for field in WEATHERBENCH_FIELDS)


def _earth(
    grid: str, patch: tuple[int, int], widths: tuple[int, int, int], num_blocks: int
) -> ModelConfig:
    channels, token_hidden, channel_hidden = widths
    return ModelConfig(
        grid=grid,
        fields=_WEATHERBENCH_NAMES,
        forcings=_EARTH_FORCINGS,
        patch=patch,
        overlap=1,
        channels=channels,
        token_hidden=token_hidden,
        channel_hidden=channel_hidden,
        num_blocks=num_blocks,
    )


PRESETS: dict[str, ModelConfig] = {
    "wm-nature": ModelConfig(
        grid="64x32",
        fields=tuple(field.short_name for field in NATURE_RUN_FIELDS),
        diagnostics=("tp",),
        forcings=_PLANET_FORCINGS,
        patch=(4, 4),
        overlap=1,
        channels=384,
        token_hidden=512,
        channel_hidden=1536,
        num_blocks=6,
    ),
    "wm-9m-5.625": _earth("64x32", (4, 4), (384, 512, 1536), 5),
    "wm-70m-1.5": _earth("240x121", (5, 6), (768, 1536, 3072), 8),
    "wm-300m-0.25": _earth("1440x721", (9, 8), (1024, 1024, 2048), 8),
    "wm-1b-0.25": _earth("1440x721", (9, 8), (2048, 3072, 4096), 9),
    "wm-3.2b": _earth("1440x721", (9, 8), (4608, 8192, 8192), 10),
    "wm-3.2b-0.125": _earth("2880x1441", (18, 16), (4608, 8192, 8192), 10),
}
