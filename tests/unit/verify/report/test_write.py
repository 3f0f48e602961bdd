"""Claims about the whole report: its numbers, pictures, names, and what it does without files."""

import base64
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from PIL import Image

from jigsaw_forecast.errors import DataError, OutputError
from jigsaw_forecast.verify.report import write_report
from tests.unit.verify.report.made_up import (
    HOURS,
    LEVELS,
    REGIONS,
    init_times,
    scores,
    statistics,
    write_folder,
)

NASTY = '<img src=x onerror=alert(1)> & "quotes" $x_1$'


class Reader(HTMLParser):
    """Tags, attributes, text and the cells of all tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.tables: dict[str, dict[str, list[float]]] = {}
        self._caption, self._row, self._within = "", "", ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.tags.append((tag, found))
        if tag == "caption" or (tag == "th" and found.get("scope") == "row"):
            self._within = tag
            if tag == "caption":
                self._caption = ""
            else:
                self._row = ""
        if tag == "data":
            row = self.tables.setdefault(self._caption, {}).setdefault(self._row, [])
            row.append(float(found["value"]))

    def handle_endtag(self, tag: str) -> None:
        if tag == self._within:
            self._within = ""

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._within == "caption":
            self._caption += data
        elif self._within == "th":
            self._row += data

    def named(self, tag: str) -> list[dict[str, str]]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of all parts: three models, members, maps, spectra, ranks; coarse pictures."""
    folder = tmp_path_factory.mktemp("report") / "scores"
    write_folder(folder, ("forecast", "persistence", "hres"), num_members=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jigsaw_forecast.verify.report.pictures.DOTS_PER_INCH", 80)
        write_report(folder)
    return folder


@pytest.fixture(scope="module")
def read(whole: Path) -> Reader:
    return Reader((whole / "report.html").read_text(encoding="utf-8"))


def small(folder: Path, change: Callable[[dict[str, object]], None] | None = None) -> Path:
    """Scores of two surface variables in one region and nothing else; few pictures, so fast."""
    folder.mkdir()
    per_init = statistics(100.0, 1)[["2m_temperature", "mean_sea_level_pressure"]]
    data = per_init.mean("init_time").rename(statistic="metric")
    mse = data.sel(region=["global"])
    rmse = np.sqrt(mse).assign_coords(metric=["rmse"])
    xr.concat([mse, rmse], "metric").to_netcdf(folder / "scores.nc")
    if change is not None:
        protocol: dict[str, object] = {"models": [{"name": "forecast", "kind": "forecast"}]}
        change(protocol)
        (folder / "protocol.json").write_text(json.dumps(protocol), encoding="utf-8")
    return folder


def html_of(folder: Path) -> str:
    write_report(folder)
    return (folder / "report.html").read_text(encoding="utf-8")


def test_headline_numbers_are_those_of_the_scores(whole: Path, read: Reader) -> None:
    days = [24, 72, 120, 168, 240]
    for file, row in (("scores.nc", "forecast.zarr"), ("scores_hres.nc", "hres")):
        with xr.open_dataset(whole / file) as data:
            rmse = data.sel(metric="rmse", region="global", lead_time=days)
            expected = {
                "500 hPa geopotential: RMSE (m²/s²)": rmse["geopotential"].sel(level=500),
                "700 hPa specific humidity: RMSE (g/kg)": rmse["specific_humidity"].sel(level=700),
                "850 hPa wind vector: RMSE (m/s)": rmse["wind_vector"].sel(level=850),
                "10 m wind vector: RMSE (m/s)": rmse["10m_wind_vector"],
                "sea-level pressure: RMSE (Pa)": rmse["mean_sea_level_pressure"],
            }
            for caption, values in expected.items():
                assert read.tables[caption][row] == values.values.tolist()
            acc = data["temperature"].sel(metric="acc", region="global", lead_time=days, level=850)
            assert read.tables["850 hPa temperature: ACC"][row] == acc.values.tolist()


def test_numbers_are_shown_in_the_units_of_the_caption(whole: Path) -> None:
    with xr.open_dataset(whole / "scores.nc") as data:
        place = {"metric": "rmse", "region": "global", "lead_time": 24, "level": 700}
        humidity = float(data["specific_humidity"].sel(place))
    text = (whole / "report.html").read_text(encoding="utf-8")
    shown = re.search(rf'<data value="{humidity!r}">([^<]*)</data>', text)
    assert shown is not None
    assert float(shown[1]) == pytest.approx(1000.0 * humidity, rel=1e-3)


def test_regions_are_those_of_the_scores(whole: Path, read: Reader) -> None:
    table = read.tables["RMSE of forecast.zarr by region at 5 d"]
    with xr.open_dataset(whole / "scores.nc") as data:
        rmse = data.sel(metric="rmse", lead_time=120)
        assert len(table) == len(REGIONS)
        assert table["Tropics, land"][0] == float(
            rmse["geopotential"].sel(region="tropics_land", level=500)
        )
        assert table["Northern hemisphere"][-1] == float(
            rmse["mean_sea_level_pressure"].sel(region="northern-hemisphere")
        )


def test_scorecard_numbers_are_relative_differences(whole: Path, read: Reader) -> None:
    table = read.tables["Geopotential: RMSE against hres, %"]
    assert list(table) == [f"{level} hPa" for level in LEVELS]
    place = {"metric": "rmse", "region": "global", "lead_time": HOURS[1:], "level": 500}
    with (
        xr.open_dataset(whole / "scores.nc") as main,
        xr.open_dataset(whole / "scores_hres.nc") as other,
    ):
        ratio = main["geopotential"].sel(place) / other["geopotential"].sel(place)
        assert table["500 hPa"] == pytest.approx((100.0 * (ratio - 1.0)).values, rel=1e-9)


def test_pictures_are_in_the_page_and_in_the_folder(whole: Path, read: Reader) -> None:
    files = {path.read_bytes(): path.name for path in (whole / "figures").iterdir()}
    shown = [base64.b64decode(one["src"].partition(",")[2]) for one in read.named("img")]
    assert len(files) == len(shown) == len(set(shown)) > 30  # all differ
    assert set(shown) == set(files)
    names = set(files.values())
    for name in (
        "scorecard_hres_global.png",
        "scorecard_hres_northern-hemisphere.png",
        "scorecard_persistence_global.png",
        "rmse_z500.png",
        "acc_t850.png",
        "bias_forecast_z500_120h.png",
        "bias_hres_2t_120h.png",
        "spectrum_z500_120h.png",
        "ranks_forecast_z500_024h.png",
        "spread_z500.png",
        "crps_z500.png",
    ):
        assert name in names
    for content in files:
        with Image.open(io.BytesIO(content)) as picture:
            colours = picture.convert("RGB").getcolors(1 << 20)
            assert colours is not None
            assert len(colours) > 8


def test_pictures_have_alternative_texts_and_sizes(read: Reader) -> None:
    images = read.named("img")
    assert len({one["alt"] for one in images}) == len(images)
    for one in images:
        assert len(one["alt"]) > 40
        assert int(one["width"]) > 300
        assert int(one["height"]) > 200


def test_page_is_moderate_and_fetches_nothing(whole: Path, read: Reader) -> None:
    assert (whole / "report.html").stat().st_size < 5e6
    assert not read.named("script")
    for _, attrs in read.tags:
        for key in ("src", "href"):
            assert attrs.get(key, "#").startswith(("#", "data:"))
    text = (whole / "report.html").read_text(encoding="utf-8")
    assert "url(" not in text
    assert "@import" not in text
    viewport = [one for one in read.named("meta") if one.get("name") == "viewport"]
    assert viewport[0]["content"].startswith("width=device-width")


def test_headings_descend_and_links_lead_somewhere(read: Reader) -> None:
    levels = [int(tag[1]) for tag, _ in read.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    names = [attrs["id"] for _, attrs in read.tags if "id" in attrs]
    assert len(set(names)) == len(names)
    targets = [one["href"][1:] for one in read.named("a") if one["href"].startswith("#")]
    assert len(targets) == 8
    assert set(targets) <= set(names)


def test_protocol_is_stated(read: Reader) -> None:
    for words in (
        "/data/truth.zarr",
        "/data/climatology.zarr",
        "64x32",
        "40: 2026-01-01 00 UTC to 2026-01-20 12 UTC every 12 h",
        "mean over initial times",
        "NaN stays",
        "5 members",
        "persistence (baseline)",
        "Geer 2016",
    ):
        assert words in read.text


def test_scores_alone_make_a_report_that_says_what_it_lacks(tmp_path: Path) -> None:
    text = html_of(small(tmp_path / "scores"))
    found = Reader(text)
    assert "2 m temperature: RMSE (K)" in found.tables
    for words in (
        "missing protocol.json",
        "it needs a climatology",
        "nothing to compare with",
        "missing spectra.nc",
        "missing maps_forecast.nc",
        "the forecast has no members",
        "only one was scored",
    ):
        assert words in found.text
    assert {path.stem for path in (tmp_path / "scores" / "figures").iterdir()} == {
        "rmse_2t",
        "rmse_msl",
    }


def test_no_scores_no_report(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"missing .*scores\.nc"):
        write_report(tmp_path)
    xr.Dataset({"a": ("time", [1.0])}).to_netcdf(tmp_path / "scores.nc")
    with pytest.raises(DataError, match="holds no scores: missing dims metric, region, lead_time"):
        write_report(tmp_path)
    (tmp_path / "scores.nc").write_bytes(b"CDF?")
    with pytest.raises(DataError, match=r"scores\.nc cannot be read"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_report_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    folder = small(tmp_path / "scores")
    (folder / "figures").write_text("a file in the way")
    with pytest.raises(OutputError, match="cannot write the report"):
        write_report(folder)
    assert not (folder / "report.html").exists()


def test_scores_of_nothing_but_nan_are_said_to_be_empty(tmp_path: Path) -> None:
    folder = small(tmp_path / "scores")
    with xr.open_dataset(folder / "scores.nc") as data:
        empty = data.load() * np.nan
    empty.to_netcdf(folder / "scores.nc")
    assert "the scores hold no number" in html_of(folder)


def test_broken_files_are_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    folder = small(tmp_path / "scores")
    for name in ("spectra.nc", "maps_forecast.nc", "rank_histogram.nc", "scores_hres.nc"):
        (folder / name).write_bytes(b"broken")
    (folder / "protocol.json").write_text("{", encoding="utf-8")
    found = Reader(html_of(folder))
    for words in (
        "spectra.nc cannot be read",
        "maps_forecast.nc cannot be read",
        "rank_histogram.nc cannot be read",
        "hres is left out",
        "protocol.json cannot be read",
    ):
        assert words in found.text
    assert "2 m temperature: RMSE (K)" in found.tables


def test_names_of_users_are_text_and_nothing_else(tmp_path: Path) -> None:
    def nasty(protocol: dict[str, object]) -> None:
        protocol["models"] = [
            {
                "name": "forecast",
                "label": NASTY,
                "kind": "forecast",
                "path": NASTY,
                "notes": [NASTY],
                "num_missing": 1,
                "missing": [{"why": NASTY}],
            }
        ]
        protocol |= {"truth": NASTY, "warnings": [NASTY], "notice": NASTY, "acc": NASTY}

    found = Reader(html_of(small(tmp_path / "scores", nasty)))
    assert all("onerror" not in attrs for _, attrs in found.tags)
    assert all(one["src"].startswith("data:") for one in found.named("img"))
    assert found.text.count(NASTY) >= 8


def test_simulated_planet_is_said_first(tmp_path: Path) -> None:
    def nature(protocol: dict[str, object]) -> None:
        protocol["models"] = [{"name": "forecast", "attributes": {"source": "jcm nature run, T31"}}]

    found = Reader(html_of(small(tmp_path / "scores", nature)))
    assert 0 < found.text.index("simulated planet, not of the Earth") < found.text.index("Protocol")


def test_notice_of_the_data_is_shown_as_it_is(tmp_path: Path) -> None:
    notice = "Weather of a made-up world."
    text = html_of(small(tmp_path / "scores", lambda protocol: protocol.update(notice=notice)))
    assert f'<p class="warning" role="note">{notice}</p>' in text
    assert "not of the Earth" not in text


def test_forced_comparison_is_labelled(tmp_path: Path) -> None:
    def force(protocol: dict[str, object]) -> None:
        protocol["models"] = [
            {"name": "forecast"},
            {
                "name": "hres",
                "kind": "compare",
                "comparable": False,
                "comparison": "another truth: analysis.zarr",
            },
        ]

    folder = small(tmp_path / "scores", force)
    (folder / "scores_hres.nc").write_bytes((folder / "scores.nc").read_bytes())
    text = html_of(folder)
    assert text.count("another truth: analysis.zarr") == 2  # at the top and at its scorecard


def test_other_initial_times_of_a_comparison_are_said(tmp_path: Path) -> None:
    folder = small(tmp_path / "scores")
    with xr.open_dataset(folder / "scores.nc") as data:
        whole = data.load()
    for name, count in (("scores.nc", 40), ("scores_hres.nc", 38)):
        counts = ("lead_time", np.full(HOURS.size, count))
        whole.assign_coords(num_init_times=counts).to_netcdf(folder / name)
    assert "same number of initial times: forecast 40, hres 38." in html_of(folder)


def test_missing_pairs_are_counted_by_reason(tmp_path: Path) -> None:
    def lack(protocol: dict[str, object]) -> None:
        gaps = [{"init_time": "2018-10-10T12:00:00", "why": "truth has no 2018-10-10T18:00:00"}]
        protocol["models"] = [
            {
                "name": "forecast",
                "init_times": [str(one)[:19] for one in np.delete(init_times(6), 3)],
                "missing": gaps * 3,
                "num_missing": 3,
            }
        ]

    found = Reader(html_of(small(tmp_path / "scores", lack)))
    assert "3 pairs missing" in found.text
    assert "truth has no 2018-10-10T18:00:00 (3 pairs)" in found.text
    assert (
        "5: 2026-01-01 00 UTC to 2026-01-02 00 UTC every 12 h; "
        "2026-01-03 00 UTC; 2026-01-03 12 UTC" in found.text
    )


def test_pictures_of_an_earlier_report_go(tmp_path: Path) -> None:
    folder = small(tmp_path / "scores")
    (folder / "figures").mkdir()
    (folder / "figures" / "rmse_z500.png").write_bytes(b"old")
    write_report(folder)
    assert sorted(path.name for path in (folder / "figures").iterdir()) == [
        "rmse_2t.png",
        "rmse_msl.png",
    ]
    assert not list(folder.glob(".*"))


def test_pictures_that_would_make_the_page_too_large_stay_in_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = small(tmp_path / "scores")
    write_report(folder)
    size = (folder / "figures" / "rmse_2t.png").stat().st_size
    monkeypatch.setattr("jigsaw_forecast.verify.report.write.MOST_BYTES", size + 10)
    found = Reader(html_of(folder))
    assert len(found.named("img")) == 1
    assert "too large: figures/rmse_msl.png" in found.text
    assert (folder / "figures" / "rmse_msl.png").exists()


def test_made_up_scores_are_the_roots_of_their_statistics() -> None:
    """The tests above compare with both files, so they had better agree."""
    per_init = statistics(120.0, 0)
    found = scores(per_init, 120.0)["temperature"].sel(metric="rmse")
    mean = per_init["temperature"].sel(statistic="mse").mean("init_time")
    np.testing.assert_allclose(found, np.sqrt(mean), rtol=1e-12)
