"""Claims about the picture of a forecast; what is drawn, not its pixels."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from matplotlib.figure import Figure
from PIL import Image

from jigsaw_forecast.errors import DataError, OutputError
from jigsaw_forecast.fields import Field
from jigsaw_forecast.forecast.output import OutputSpec, open_writer
from jigsaw_forecast.grid import Grid
from jigsaw_forecast.plot.drawing_grid import LATITUDES, LONGITUDES
from jigsaw_forecast.plot.forecast_maps import draw, plot_forecast
from jigsaw_forecast.plot.labels import mark_extremes
from jigsaw_forecast.plot.origin import UNKNOWN_ORIGIN
from jigsaw_forecast.plot.panels import default_panels, field_panel
from jigsaw_forecast.plot.projection import project
from jigsaw_forecast.plot.reading import open_maps
from jigsaw_forecast.state import State

INIT = np.datetime64("2026-06-24T00:00:00", "s")
GRID = Grid(16, 32, has_poles=False)
HEIGHT, TEMPERATURE = Field("geopotential", 500), Field("temperature", 850)
WIND = (Field("10m_u_component_of_wind"), Field("10m_v_component_of_wind"))
PRESSURE, RAIN = Field("mean_sea_level_pressure"), Field("total_precipitation_6hr")
FIELDS = (HEIGHT, TEMPERATURE, *WIND, PRESSURE, RAIN)
MEANS = {HEIGHT: 5.4e4, TEMPERATURE: 280.0, PRESSURE: 1.01e5, RAIN: 2e-3}
SPREADS = {HEIGHT: 2e3, TEMPERATURE: 15.0, PRESSURE: 1.5e3, RAIN: 1e-3}
NOTICE = "A simulated planet, not the Earth."


def wave(field: Field, lead_hours: int) -> np.ndarray:
    """A few travelling waves on top of a difference between equator and poles."""
    lat, lon = np.deg2rad(GRID.latitudes)[:, None], np.deg2rad(GRID.longitudes)
    phase = 2 * np.pi * lead_hours / 240
    waves = np.cos(2 * lat) + 0.5 * np.cos(lat) ** 2 * np.cos(4 * lon - phase)
    return np.asarray(MEANS.get(field, 0.0) + SPREADS.get(field, 10.0) * waves / 1.5)


def write(path: Path, lead_hours: tuple[int, ...], fields: tuple[Field, ...] = FIELDS) -> Path:
    leads = tuple(np.timedelta64(hours, "h") for hours in lead_hours)
    spec = OutputSpec(fields, GRID, (INIT,), leads, {"title": "Test", "notice": NOTICE}, {})
    writer = open_writer(path, spec, overwrite=False)
    for hours, lead in zip(lead_hours, leads, strict=True):
        data = torch.tensor(np.stack([wave(field, hours) for field in fields]))
        if RAIN in fields and hours == 0:
            data[fields.index(RAIN)] = torch.nan
        writer.write(State(data, fields, GRID, INIT, lead))
        writer.mark_done(INIT, lead)
    writer.finish()
    return path


def texts(figure: Figure) -> list[str]:
    inside = [text.get_text() for axes in figure.axes for text in axes.texts]
    return [text.get_text() for text in figure.texts] + inside


@pytest.mark.parametrize("name", ["f.zarr", "f.nc", "f.grib2"])
def test_picture_is_made_from_every_kind_of_product(tmp_path: Path, name: str) -> None:
    forecast = write(tmp_path / name, (0, 24))
    output = plot_forecast(forecast, tmp_path / "f.png")
    assert output == tmp_path / "f.png"
    with Image.open(output) as picture:
        assert picture.width > 1000
        assert picture.height > 800
        colours = np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)
    assert len(colours) > 50
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([name, "f.png"])


@pytest.mark.parametrize("name", ["f.zarr", "f.nc", "f.grib2"])
def test_maps_read_are_those_written(tmp_path: Path, name: str) -> None:
    maps = open_maps(write(tmp_path / name, (0, 24)))
    assert set(maps.fields) == set(FIELDS)
    assert maps.init_times == (INIT,)
    for field in (HEIGHT, RAIN, WIND[0]):
        found = maps.read(field, INIT, np.timedelta64(24, "h"))
        assert found is not None
        expected = wave(field, 24)
        # GRIB packs in 16 bits
        assert np.abs(found.values - expected).max() <= 2.0**-15 * np.ptp(expected)
        assert found.latitudes == pytest.approx(GRID.latitudes)


@pytest.mark.parametrize("name", ["f.zarr", "f.nc", "f.grib2"])
def test_one_member_of_an_ensemble_is_drawn(tmp_path: Path, name: str) -> None:
    lead = np.timedelta64(24, "h")
    spec = OutputSpec((HEIGHT,), GRID, (INIT,), (lead,), {}, {}, members=(0, 1), num_members=2)
    writer = open_writer(tmp_path / name, spec, overwrite=False)
    for member in (0, 1):
        data = torch.tensor(np.stack([wave(HEIGHT, 24) + 10 * member]))
        writer.write(State(data, (HEIGHT,), GRID, INIT, lead), member)
        writer.mark_done(INIT, lead, member)
    writer.finish()
    first, second = (open_maps(tmp_path / name, wanted) for wanted in (None, 1))
    assert (first.member, second.member) == (0, 1)
    maps = [one.read(HEIGHT, INIT, lead) for one in (first, second)]
    assert maps[0] is not None
    assert maps[1] is not None
    np.testing.assert_allclose(maps[1].values - maps[0].values, 10.0, atol=0.2)
    assert any(
        "member 1" in text for text in texts(draw(second, [field_panel(HEIGHT)], INIT, [lead]))
    )
    assert plot_forecast(tmp_path / name, tmp_path / "f.png", member=1).exists()
    with pytest.raises(DataError, match="missing member 7; it has members 0, 1"):
        open_maps(tmp_path / name, 7)


def test_a_store_of_one_initial_time_needs_no_dim_for_it(tmp_path: Path) -> None:
    with xr.open_zarr(write(tmp_path / "f.zarr", (0, 24), (HEIGHT,))) as data:
        one = data.isel(time=0).drop_attrs()
        one["temperature"] = one["geopotential"].expand_dims("experiment")
        one.to_netcdf(tmp_path / "one.nc")
    maps = open_maps(tmp_path / "one.nc")
    assert maps.fields == (HEIGHT,)
    found = maps.read(HEIGHT, INIT, np.timedelta64(24, "h"))
    assert found is not None
    np.testing.assert_allclose(found.values, wave(HEIGHT, 24), rtol=1e-6)


def test_absent_precipitation_reads_as_none(tmp_path: Path) -> None:
    maps = open_maps(write(tmp_path / "f.zarr", (0, 24)))
    assert maps.read(RAIN, INIT, np.timedelta64(0, "h")) is None


def test_rows_are_the_initial_state_and_days_that_exist(tmp_path: Path) -> None:
    maps = open_maps(write(tmp_path / "f.zarr", (0, 24, 48, 72)))
    leads = [np.timedelta64(hours, "h") for hours in (0, 24, 72)]
    found = texts(draw(maps, default_panels(maps.fields), INIT, leads))
    for words in ("Initial state", "Day 1", "Day 3", "Sat 27 June 2026, 00 UTC"):
        assert found.count(words) == len(default_panels(maps.fields))
    assert "Test, started Wed 24 June 2026, 00 UTC" in found


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that `plot_forecast` makes, in order, none of them painted."""
    made: list[Figure] = []

    def keep(figure: Figure) -> Image.Image:
        made.append(figure)
        return Image.new("P", (1, 1))

    monkeypatch.setattr("jigsaw_forecast.plot.forecast_maps._picture", keep)
    return made


def test_notice_of_the_product_is_printed(tmp_path: Path, figures: list[Figure]) -> None:
    plot_forecast(write(tmp_path / "f.zarr", (0, 24)), tmp_path / "f.png")
    assert NOTICE in texts(figures[0])


def test_first_row_says_its_lead_time_where_the_initial_state_is_not_written(
    tmp_path: Path, figures: list[Figure]
) -> None:
    plot_forecast(write(tmp_path / "f.zarr", (6, 24)), tmp_path / "f.png")
    found = texts(figures[0])
    for words in ("+6 h", "Wed 24 June 2026, 06 UTC", "Day 1"):
        assert found.count(words) == len(default_panels(FIELDS))
    assert "Initial state" not in found


def write_record(product: Path, notice: str, source: str) -> None:
    record = {"checkpoint": {"name": "small", "notice": notice}, "run": {"input": source}}
    product.with_name(f"{product.name}.json").write_text(json.dumps(record))


def test_grib_takes_its_title_and_notice_from_the_record_beside_it(
    tmp_path: Path, figures: list[Figure]
) -> None:
    forecast = write(tmp_path / "f.grib2", (24,))
    plot_forecast(forecast, tmp_path / "f.png")
    assert UNKNOWN_ORIGIN in texts(figures[0])
    write_record(forecast, NOTICE, "small/initial.zarr")
    plot_forecast(forecast, tmp_path / "f.png")
    assert NOTICE in texts(figures[1])
    assert "Forecast by small, started Wed 24 June 2026, 00 UTC" in texts(figures[1])
    write_record(forecast, "", "small/initial.zarr")
    plot_forecast(forecast, tmp_path / "f.png")
    assert UNKNOWN_ORIGIN not in texts(figures[2])


def test_notice_is_the_models_where_the_initial_state_is_not(
    tmp_path: Path, figures: list[Figure]
) -> None:
    forecast = write(tmp_path / "f.grib2", (0,))
    write_record(forecast, NOTICE, "gfs.grb")
    plot_forecast(forecast, tmp_path / "f.png")
    said = " ".join(" ".join(texts(figures[0])).split())
    assert f"Started from gfs.grb. Of the model: {NOTICE}" in said


def test_all_of_a_small_product_is_drawn(tmp_path: Path, figures: list[Figure]) -> None:
    warm = Field("2m_temperature")
    plot_forecast(write(tmp_path / "f.nc", (6, 12), (warm, PRESSURE)), tmp_path / "f.png")
    found = texts(figures[0])
    assert "Sea-level pressure (lines every 5 hPa) over 2 m temperature (colours)" in found
    assert {"+6 h", "+12 h"} <= set(found)


@pytest.mark.parametrize("fields", [(PRESSURE,), (HEIGHT,), (PRESSURE, HEIGHT)])
def test_no_lines_are_drawn_without_colours(fields: tuple[Field, ...]) -> None:
    assert all(panel.shading is not None for panel in default_panels(fields))


def test_what_is_not_drawn_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fields = (*FIELDS, *(Field("specific_humidity", level) for level in (500, 700, 850)))
    forecast = write(tmp_path / "f.zarr", (6, 24, 48), fields)
    with caplog.at_level("INFO"):
        plot_forecast(forecast, tmp_path / "f.png")
    assert caplog.messages == [
        f"{forecast}: not drawn: q500, q700, q850, tp (plot --variables); +48 h (plot --lead-times)"
    ]
    with caplog.at_level("INFO"):
        plot_forecast(forecast, tmp_path / "f.png")
    assert f"{tmp_path / 'f.png'}: an older picture was replaced" in caplog.messages


@pytest.mark.parametrize("num_columns", [1, 2])
def test_no_text_is_cut_at_the_edge_of_the_page(tmp_path: Path, num_columns: int) -> None:
    maps = open_maps(write(tmp_path / "f.zarr", (0, 24)))
    panels = [field_panel(HEIGHT)] * num_columns
    notice = "A notice of many words that says from where all of this came. " * 8
    figure = draw(maps, panels, INIT, [np.timedelta64(24, "h")], notice)
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    inside = [text for axes in figure.axes for text in axes.texts]
    for text in (*figure.texts, *inside):
        extent = text.get_window_extent(renderer)
        assert extent.x0 >= 0.0, text
        assert extent.x1 <= figure.bbox.x1, text


def test_labels_of_lines_lie_inside_the_map(tmp_path: Path) -> None:
    maps = open_maps(write(tmp_path / "f.zarr", (24,)))
    figure = draw(maps, [field_panel(HEIGHT)], INIT, [np.timedelta64(24, "h")])
    labels = [text for text in figure.axes[0].texts if text.get_text().isdigit()]
    assert labels
    for label in labels:
        x, y = label.get_position()
        assert abs(y) < 1.2
        assert abs(x) < 2.5


def test_file_that_is_no_forecast_is_refused_in_a_line(tmp_path: Path) -> None:
    picture = tmp_path / "m.png"
    picture.write_bytes(b"PNG")
    with pytest.raises(DataError, match="no forecast: neither a zarr store nor") as refused:
        plot_forecast(picture, tmp_path / "f.png")
    assert "http" not in str(refused.value)


@pytest.mark.parametrize("name", ["f.zarr", "f.nc", "f.grib2"])
def test_unfinished_forecast_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, (0, 24)).rename(tmp_path / f"{name}.partial")
    with pytest.raises(DataError, match=f"is not finished: .* expected .*{name}, which"):
        plot_forecast(tmp_path / f"{name}.partial", tmp_path / "f.png")


def test_wind_speed_is_shaded_in_metres_per_second(tmp_path: Path) -> None:
    panel = default_panels(FIELDS)[1]
    assert panel.shading is not None
    three, four = np.full((2, 2), 3.0), np.full((2, 2), -4.0)
    assert panel.shading.compute([three, four]).tolist() == [[5.0, 5.0], [5.0, 5.0]]


def test_heights_are_drawn_in_decametres() -> None:
    contours = field_panel(HEIGHT).contours
    assert contours is not None
    assert 9.80665 * 5640 * contours.scale == pytest.approx(564.0)


def test_forecast_without_the_usual_fields_shows_what_it_has(tmp_path: Path) -> None:
    humidity = Field("specific_humidity", 700)
    (panel,) = default_panels([humidity])
    assert panel.fields == (humidity,)
    assert panel.title == "700 hPa specific humidity"


def test_chosen_variables_have_a_column_each(tmp_path: Path) -> None:
    forecast = write(tmp_path / "f.zarr", (6,))
    plot_forecast(forecast, tmp_path / "f.png", variables=[RAIN, TEMPERATURE, PRESSURE])
    with Image.open(tmp_path / "f.png") as picture:
        assert picture.width > 3 * 750


def test_missing_variables_and_lead_times_are_named(tmp_path: Path) -> None:
    forecast = write(tmp_path / "f.zarr", (0, 24))
    with pytest.raises(DataError, match=r"missing z850; it has z500"):
        plot_forecast(forecast, tmp_path / "f.png", variables=[Field("geopotential", 850)])
    with pytest.raises(DataError, match=r"missing lead times 48 h; it has 0, 24 h"):
        plot_forecast(forecast, tmp_path / "f.png", lead_times=[np.timedelta64(48, "h")])
    with pytest.raises(DataError, match="missing initial time"):
        plot_forecast(forecast, tmp_path / "f.png", init_time=INIT + np.timedelta64(1, "h"))


def test_forecast_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="missing forecast"):
        plot_forecast(tmp_path / "f.zarr", tmp_path / "f.png")


def test_store_that_is_no_forecast_is_refused(tmp_path: Path) -> None:
    import xarray as xr

    xr.Dataset({"geopotential": ("time", [1.0])}, {"time": [0]}).to_netcdf(tmp_path / "a.nc")
    with pytest.raises(DataError, match="not a forecast: missing dims prediction_timedelta"):
        plot_forecast(tmp_path / "a.nc", tmp_path / "f.png")


def test_folder_that_takes_no_picture_is_refused(tmp_path: Path) -> None:
    forecast = write(tmp_path / "f.zarr", (0,))
    with pytest.raises(OutputError, match="cannot write"):
        plot_forecast(forecast, tmp_path / "nowhere" / "f.png")


def test_highs_and_lows_of_pressure_are_marked_where_they_are(tmp_path: Path) -> None:
    y, x = np.meshgrid(LATITUDES, LONGITUDES, indexing="ij")
    high = 20.0 * np.exp(-((x - 40.0) ** 2 + (y - 30.0) ** 2) / 200.0)
    low = -30.0 * np.exp(-((x + 60.0) ** 2 + (y + 45.0) ** 2) / 200.0)
    axes = Figure().add_subplot()
    places = mark_extremes(axes, 1010.0 + high + low, *project(x, y), step=5.0)
    assert [text.get_text() for text in axes.texts] == ["H", "L"]
    expected = [project(40.0, 30.0), project(-60.0, -45.0)]
    assert np.array(places) == pytest.approx(np.array(expected), abs=0.02)
