"""What is drawn in a panel: shading, contours, units and colours of each variable."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from jigsaw_forecast.fields import GRAVITY_M_S2, Field

FloatArray = npt.NDArray[np.float64]
ZERO_CELSIUS_K = 273.15
MOST_PANELS = 4  # columns of a picture that nobody chose


@dataclass(frozen=True)
class Shading:
    """A shaded quantity.

    Attributes:
        fields: What it is computed from.
        compute: From the maps of `fields`, in their order, to the quantity in `units`.
        label: What the colour bar says, without units.
        units: As the colour bar says them.
        colours: Name of a matplotlib colour map.
        is_signed: Whether zero is the middle of the colours.
        is_positive: Whether the colours begin at zero.
    """

    fields: tuple[Field, ...]
    compute: Callable[[Sequence[FloatArray]], FloatArray]
    label: str
    units: str
    colours: str
    is_signed: bool = False
    is_positive: bool = False


@dataclass(frozen=True)
class Contours:
    """Lines of one field, `step` apart in `units`, every other one labelled.

    Attributes:
        field: What it is computed from.
        scale: From SI units to `units`.
        label: What the title says, without units.
        units: As the title says them.
        step: Distance of lines.
    """

    field: Field
    scale: float
    label: str
    units: str
    step: float


@dataclass(frozen=True)
class Panel:
    """One column of the figure: shading, contours or both."""

    shading: Shading | None
    contours: Contours | None

    @property
    def fields(self) -> tuple[Field, ...]:
        """All fields that the panel needs."""
        lines = (self.contours.field,) if self.contours else ()
        return (*(self.shading.fields if self.shading else ()), *lines)

    @property
    def title(self) -> str:
        """`500 hPa height (lines every 8 dam) over 850 hPa temperature (colours)`."""
        lines, colours = self.contours, self.shading
        parts = []
        if lines:
            parts.append(f"{lines.label} (lines every {lines.step:g} {lines.units})")
        if colours and not (lines and colours.label == lines.label):
            parts.append(f"{colours.label} (colours)" if lines else colours.label)
        text = " over ".join(parts)
        return text[:1].upper() + text[1:]


def default_panels(fields: Sequence[Field]) -> list[Panel]:
    """What forecasters look at first, as far as a forecast has it.

    500 hPa height over 850 hPa temperature, and sea-level pressure over 10 m wind speed or else
    precipitation or 2 m temperature; then each other field, where all fit into a few columns.
    Without any of these the first fields.
    """
    temperature, height = Field("temperature", 850), Field("geopotential", 500)
    pressure = Field("mean_sea_level_pressure")
    wind = (Field("10m_u_component_of_wind"), Field("10m_v_component_of_wind"))
    below = None
    if set(wind) <= set(fields):
        below = Shading(wind, _speed, "10 m wind speed", "m/s", "YlGnBu", is_positive=True)
    else:
        beside = (Field("total_precipitation_6hr"), Field("2m_temperature"))
        below = next((shading_of(one) for one in beside if one in fields), None)
    above = shading_of(temperature) if temperature in fields else None
    panels = [
        panel
        for panel in (_over(height, above, fields), _over(pressure, below, fields))
        if panel is not None
    ]
    rest = left_out(fields, panels)
    if not panels:
        return [field_panel(chosen) for chosen in rest[:MOST_PANELS]]
    if len(panels) + len(rest) <= MOST_PANELS:
        panels += [field_panel(chosen) for chosen in rest]
    return panels


def left_out(fields: Sequence[Field], panels: Sequence[Panel]) -> list[Field]:
    """The fields that no panel shows."""
    drawn = {chosen for panel in panels for chosen in panel.fields}
    return [chosen for chosen in fields if chosen not in drawn]


def _over(lines: Field, shading: Shading | None, fields: Sequence[Field]) -> Panel | None:
    """Lines of one field over shading; of the two what there is, None where neither is."""
    if lines not in fields:
        return None if shading is None else Panel(shading, None)
    # lines on white would look like coasts
    return Panel(shading, contours_of(lines)) if shading else field_panel(lines)


def field_panel(chosen: Field) -> Panel:
    """One field, shaded; heights and pressures have lines as well."""
    has_lines = chosen.variable in ("geopotential", "mean_sea_level_pressure")
    return Panel(shading_of(chosen), contours_of(chosen) if has_lines else None)


def shading_of(chosen: Field) -> Shading:
    """The usual colours and units of one field."""
    name = chosen.spec.short_name
    scale, offset, units, colours = {
        "z": (0.1 / GRAVITY_M_S2, 0.0, "dam", "viridis"),
        "t": (1.0, -ZERO_CELSIUS_K, "°C", "RdYlBu_r"),
        "2t": (1.0, -ZERO_CELSIUS_K, "°C", "RdYlBu_r"),
        "q": (1e3, 0.0, "g/kg", "YlGnBu"),
        "msl": (0.01, 0.0, "hPa", "viridis"),
        "tp": (1e3, 0.0, "mm in 6 h", "Blues"),
        "lsm": (1.0, 0.0, "share of land", "YlGn"),
        "zs": (0.1 / GRAVITY_M_S2, 0.0, "dam", "viridis"),
    }.get(name, (1.0, 0.0, "m/s", "PuOr_r"))
    return Shading(
        (chosen,),
        lambda maps: maps[0] * scale + offset,
        label_of(chosen),
        units,
        colours,
        is_signed=chosen.spec.units == "m s-1",
        is_positive=name in ("q", "tp"),
    )


def contours_of(chosen: Field) -> Contours:
    """Lines of height in dam or of pressure in hPa."""
    if chosen.variable == "geopotential":
        return Contours(chosen, 0.1 / GRAVITY_M_S2, label_of(chosen), "dam", 8.0)
    return Contours(chosen, 0.01, label_of(chosen), "hPa", 5.0)


def label_of(chosen: Field) -> str:
    """`850 hPa temperature`, `2 m temperature`, `sea-level pressure`."""
    words = {
        "geopotential": "height",
        "u_component_of_wind": "eastward wind",
        "v_component_of_wind": "northward wind",
        "2m_temperature": "2 m temperature",
        "10m_u_component_of_wind": "10 m eastward wind",
        "10m_v_component_of_wind": "10 m northward wind",
        "mean_sea_level_pressure": "sea-level pressure",
        "total_precipitation_6hr": "precipitation",
        "geopotential_at_surface": "height of the surface",
    }.get(chosen.variable, chosen.variable.replace("_", " "))
    return f"{chosen.level_hpa} hPa {words}" if chosen.level_hpa else words


def _speed(maps: Sequence[FloatArray]) -> FloatArray:
    speed: FloatArray = np.hypot(maps[0], maps[1])
    return speed
