"""The nature run: its arithmetic against closed forms, and the parent that starts its script."""

import fcntl
import io
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jigsaw_forecast.cli.main import main
from jigsaw_forecast.data import nature_run
from jigsaw_forecast.data import nature_run_script as script
from jigsaw_forecast.data.nature_run import NatureRunProgress, parse_progress, run_nature_run
from jigsaw_forecast.errors import ForecastError, StoppedError

SIGMA = np.array([0.025, 0.095, 0.2, 0.34, 0.51, 0.685, 0.835, 0.95])  # SPEEDY, 8 levels
LEVELS = (100, 300, 500, 700, 850, 925)
R, G = script.R_DRY, script.GRAVITY


def isothermal_columns(t: float, ps: np.ndarray, phi_surface: np.ndarray) -> dict[str, np.ndarray]:
    """Dry columns of one temperature: phi = phi_s - R T ln(sigma)."""
    log_sigma = np.log(SIGMA).reshape(-1, *[1] * ps.ndim)
    return {
        "geopotential": phi_surface - R * t * log_sigma + 0.0 * ps,
        "temperature": np.full((8, *ps.shape), t),
        "specific_humidity": np.zeros((8, *ps.shape)),
        "u_component_of_wind": log_sigma + np.log(ps),  # linear in ln p
    }


def test_geopotential_of_an_isothermal_atmosphere_is_the_closed_form() -> None:
    """phi(p) = phi_s + R T ln(ps / p) above the lowest level, whatever the surface."""
    ps = np.array([101000.0, 95000.0, 88000.0])
    phi_surface = np.array([0.0, 4000.0, 9000.0])
    fields = isothermal_columns(270.0, ps, phi_surface)
    out = script.to_pressure_levels(fields, SIGMA, ps, phi_surface, LEVELS)
    for i, level in enumerate(LEVELS[:4]):
        expected = phi_surface + R * 270.0 * np.log(ps / (level * 100.0))
        np.testing.assert_allclose(out["geopotential"][i], expected, rtol=1e-12)
        np.testing.assert_allclose(out["temperature"][i], 270.0, rtol=1e-12)


def test_fields_linear_in_ln_p_are_interpolated_exactly() -> None:
    """A wind equal to ln p gives ln p on every level between the sigma levels."""
    ps = np.array([101000.0, 99000.0])
    fields = isothermal_columns(270.0, ps, np.zeros(2))
    out = script.to_pressure_levels(fields, SIGMA, ps, np.zeros(2), LEVELS)
    for i, level in enumerate(LEVELS[:5]):
        expected = np.log(level * 100.0)
        np.testing.assert_allclose(out["u_component_of_wind"][i], expected, rtol=1e-12)


def test_geopotential_is_hydrostatic_where_temperature_is_linear_in_ln_p() -> None:
    """T = a + b ln p integrates to phi = phi_0 - R (a x + b x^2 / 2), kinked by no layer."""
    ps = np.array([100000.0])
    a, b = 100.0, 16.0
    x = np.log(SIGMA[:, None] * ps)
    fields = isothermal_columns(270.0, ps, np.zeros(1))
    fields["temperature"] = a + b * x
    fields["geopotential"] = -R * (a * x + b * x * x / 2.0) + 5.0e5
    out = script.to_pressure_levels(fields, SIGMA, ps, np.zeros(1), LEVELS)
    for i, level in enumerate(LEVELS[:5]):
        p = np.log(level * 100.0)
        expected = -R * (a * p + b * p * p / 2.0) + 5.0e5
        np.testing.assert_allclose(out["geopotential"][i], expected, rtol=1e-12)


def test_below_ground_the_standard_atmosphere_goes_on() -> None:
    """T = Ts (p/ps)^(R lapse / g) and phi = phi_s - g (T - Ts) / lapse, to the series' third order.

    Winds and humidity keep the lowest level's values.
    """
    ps, phi_surface = np.array([80000.0]), np.array([19000.0])
    fields = isothermal_columns(270.0, ps, phi_surface)
    out = script.to_pressure_levels(fields, SIGMA, ps, phi_surface, LEVELS)
    t_surface = script.surface_temperature(np.array([270.0]), 0.95)
    for i in (4, 5):
        t = t_surface * (LEVELS[i] * 100.0 / ps) ** (R * 0.0065 / G)
        np.testing.assert_allclose(out["temperature"][i], t, rtol=1e-12)
        expected = phi_surface - G / 0.0065 * (t - t_surface)
        np.testing.assert_allclose(out["geopotential"][i], expected, atol=0.1)
        np.testing.assert_array_equal(
            out["u_component_of_wind"][i], fields["u_component_of_wind"][-1]
        )


def test_geopotential_and_temperature_have_no_step_at_the_ground() -> None:
    """A pressure level a hair above the surface gives what a hair below gives."""
    phi_surface = np.array([5000.0])
    values = []
    for ps in (85000.001, 84999.999):
        fields = isothermal_columns(270.0, np.array([ps]), phi_surface)
        values.append(script.to_pressure_levels(fields, SIGMA, np.array([ps]), phi_surface, [850]))
    for name in ("geopotential", "temperature"):
        np.testing.assert_allclose(values[0][name], values[1][name], rtol=1e-6)


def test_surface_geopotential_is_recovered_from_the_lowest_level() -> None:
    """phi_N = phi_s - R Tv ln(sigma_N) inverted, humidity included."""
    t, q, phi = np.array([285.0]), np.array([0.012]), np.array([12345.0])
    t_virtual = t * (1.0 + (461.51 / R - 1.0) * q)
    phi_lowest = phi - R * t_virtual * np.log(0.95)
    found = script.surface_geopotential(phi_lowest, t, q, 0.95)
    np.testing.assert_allclose(found, phi, rtol=1e-12)


def test_sea_level_pressure_at_sea_level_is_the_surface_pressure() -> None:
    """No height, no reduction, at any temperature."""
    t = np.array([220.0, 270.0, 300.0])
    ps = np.full(3, 99000.0)
    np.testing.assert_array_equal(script.sea_level_pressure(ps, np.zeros(3), t), ps)


def test_sea_level_pressure_of_the_standard_atmosphere_is_1013_hpa() -> None:
    """Surface pressures of the ICAO atmosphere between 0 and 1500 m reduce to 1013.25 hPa."""
    height = np.array([0.0, 300.0, 800.0, 1500.0])
    t = 288.15 - 0.0065 * height
    ps = 101325.0 * (t / 288.15) ** (G / (R * 0.0065))
    found = script.sea_level_pressure(ps, G * height, t)
    np.testing.assert_allclose(found, 101325.0, atol=2.0)


@pytest.mark.parametrize("threshold", [255.0, 290.5])
def test_sea_level_pressure_is_continuous_in_temperature(threshold: float) -> None:
    """The special cases for cold and hot ground join without a step."""
    t = threshold + np.array([-1e-6, 1e-6])
    found = script.sea_level_pressure(np.full(2, 80000.0), np.full(2, 15000.0), t)
    assert abs(found[1] - found[0]) < 0.01


def gaussian_latitude(num: int) -> np.ndarray:
    """Latitudes of a full Gaussian grid from north to south, degrees."""
    return np.degrees(np.arcsin(np.polynomial.legendre.leggauss(num)[0]))[::-1]


@pytest.mark.parametrize("grid", [(64, 32), (96, 48), (128, 64), (36, 19)])
def test_regridding_keeps_the_area_mean_and_constants(grid: tuple[int, int]) -> None:
    """Area means by Gaussian weights and by cell areas agree; a constant stays itself."""
    field = np.random.default_rng(0).normal(size=(3, 48, 96))
    matrices = script.regrid_matrices(gaussian_latitude(48), 96, grid)
    found = script.regrid(field, matrices)
    edges = np.sin(np.radians(90.0 - np.arange(grid[1] + 1) * 180.0 / grid[1]))
    areas = edges[:-1] - edges[1:]
    source_areas = np.polynomial.legendre.leggauss(48)[1]
    np.testing.assert_allclose(
        (found.mean(axis=-1) * areas).sum(-1) / 2.0,
        (field.mean(axis=-1) * source_areas).sum(-1) / 2.0,
        atol=1e-13,
    )
    np.testing.assert_allclose(script.regrid(np.full((48, 96), 7.0), matrices), 7.0, rtol=1e-13)


def test_regridding_does_not_shift_a_wave() -> None:
    """The crest of cos(longitude) stays at 0 and that of sin(latitude) in the north."""
    matrices = script.regrid_matrices(gaussian_latitude(48), 96, (64, 32))
    longitude = np.radians(np.arange(96) * 3.75)
    wave = script.regrid(np.broadcast_to(np.cos(longitude), (48, 96)), matrices)[0]
    assert wave.argmax() == 0
    np.testing.assert_allclose(wave[1:], wave[1:][::-1], atol=1e-12)
    tilt = np.sin(np.radians(gaussian_latitude(48)))[:, None] * np.ones(96)
    assert (np.diff(script.regrid(tilt, matrices)[:, 0]) < 0).all()


def test_gaussian_bounds_refuse_another_grid() -> None:
    """Evenly spaced latitudes are told apart from Gaussian ones."""
    with pytest.raises(script.NatureRunError, match="Gaussian"):
        script.gaussian_bounds(np.linspace(88.0, -88.0, 48))


def test_the_grid_has_no_poles_and_runs_from_north_to_south() -> None:
    """64 x 32 is 87.1875 to -87.1875 by 5.625."""
    latitude, longitude = script.regular_grid(64, 32)
    assert (latitude[0], latitude[-1]) == (87.1875, -87.1875)
    assert (longitude[0], longitude[1], longitude[-1]) == (0.0, 5.625, 354.375)


def test_maps_turn_from_jcm_order_to_north_up() -> None:
    """Element (x, y from the south) becomes (y from the north, x)."""
    field = np.arange(6.0).reshape(1, 3, 2)
    np.testing.assert_array_equal(script.north_up(field)[0], [[1.0, 3.0, 5.0], [0.0, 2.0, 4.0]])


@pytest.mark.parametrize(
    "arguments", [["--grid", "64"], ["--grid", "0x32"], ["--years", "0"], ["--seed", "-1"]]
)
def test_the_script_refuses_nonsense_with_exit_code_2(arguments: list[str]) -> None:
    """Wrong options end before anything is simulated."""
    with pytest.raises(SystemExit) as stopped:
        script.parse_arguments(["out.zarr", *arguments])
    assert stopped.value.code == 2


def test_the_script_refuses_a_product_of_another_recipe(tmp_path: Path) -> None:
    """A store made with seed 0 is not passed off as seed 1."""
    store = tmp_path / "out.zarr"
    store.mkdir()
    recipe = '{\\"seed\\": 0}'
    (store / "zarr.json").write_text(f'{{"attributes": {{"recipe": "{recipe}"}}}}')
    with pytest.raises(script.NatureRunError, match=r"seed=0 \(asked 1\)"):
        script.run(script.parse_arguments([str(store), "--seed", "1"]))


def test_the_script_refuses_a_second_run_on_one_output(tmp_path: Path) -> None:
    """The lock of the first run holds off the second."""
    with (tmp_path / "out.zarr.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(script.NatureRunError, match="another run is writing"):
            script.run(script.parse_arguments([str(tmp_path / "out.zarr")]))


# ---- the parent ---------------------------------------------------------------------------------


def fake_python(tmp_path: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts a program in the place of the environment's interpreter."""
    program = tmp_path / "python"
    program.write_text(f"#!{sys.executable}\nimport sys, time, signal\n{body}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("JIGSAW_NATURE_PYTHON", str(program))


def start(output: Path) -> None:
    """Runs the parent with the options that do not matter here."""
    run_nature_run(output, num_years=2, end_year=2026, grid="64x32", seed=5, spinup_days=90)


def test_a_missing_environment_names_what_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says `make nature` and the variable."""
    monkeypatch.delenv("JIGSAW_NATURE_PYTHON", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(nature_run, "__file__", str(tmp_path / "a" / "b" / "c.py"))
    with pytest.raises(ForecastError, match=r"missing.*make nature.*JIGSAW_NATURE_PYTHON"):
        start(tmp_path / "out.zarr")


def test_a_wrong_interpreter_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that points nowhere is not passed over in silence."""
    monkeypatch.setenv("JIGSAW_NATURE_PYTHON", str(tmp_path / "none"))
    with pytest.raises(ForecastError, match="is not a program"):
        start(tmp_path / "out.zarr")


def test_the_environment_in_the_current_folder_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`.venv-nature/bin/python` under the current folder comes first."""
    monkeypatch.delenv("JIGSAW_NATURE_PYTHON", raising=False)
    monkeypatch.chdir(tmp_path)
    python = tmp_path / ".venv-nature" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    assert nature_run.find_interpreter() == python


def test_progress_lines_are_read_and_others_are_not() -> None:
    """JSON with the two counts is progress; text and other JSON are not."""
    line = '{"done_months": 3, "total_months": 122, "valid_time": "2017-03-31T18:00:00"}\n'
    assert parse_progress(line) == NatureRunProgress(3, 122, "2017-03-31T18:00:00")
    assert parse_progress("a warning") is None
    assert parse_progress("[1]") is None
    assert parse_progress('{"done_months": 1}') is None


def test_the_parent_passes_the_options_and_shows_months(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The child sees the script and its options; each month is a plain line off a terminal."""
    body = (
        f"open({str(tmp_path / 'argv')!r}, 'w').write(' '.join(sys.argv[1:]))\n"
        'print(\'{"done_months": 0, "total_months": 2, "valid_time": null, "phase": "spin-up"}\')\n'
        'print(\'{"done_months": 1, "total_months": 2, "valid_time": "2025-01-30T18:00:00"}\')'
    )
    fake_python(tmp_path, body, monkeypatch)
    start(tmp_path / "out.zarr")
    script_path, *options = (tmp_path / "argv").read_text().split()
    assert Path(script_path).name == "nature_run_script.py"
    assert " ".join(options[1:]) == (
        "--years 2 --end-year 2026 --grid 64x32 --seed 5 --spinup-days 90"
    )
    shown = capsys.readouterr().err
    assert "month 0 of 2 spin-up" in shown
    assert "month 1 of 2 2025-01-30T18:00:00" in shown


def test_a_month_can_be_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = f"open({str(tmp_path / 'argv')!r}, 'w').write(' '.join(sys.argv[1:]))"
    fake_python(tmp_path, body, monkeypatch)
    arguments = ["data", "nature-run", str(tmp_path / "month.zarr"), "--years", "1", "--days", "30"]
    assert main(arguments) == 0
    assert (tmp_path / "argv").read_text().endswith("--spinup-days 90 --days 30")


def test_a_refusal_is_raised_with_the_childs_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 2 and its line become a ForecastError, noise before it left out."""
    fake_python(tmp_path, "sys.exit(print('w\\nerror: bad', file=sys.stderr) or 2)", monkeypatch)
    with pytest.raises(ForecastError, match=r"\(exit code 2\): bad$"):
        start(tmp_path / "out.zarr")


def test_a_crash_is_raised_with_the_childs_last_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A traceback of the child is shown."""
    fake_python(tmp_path, "raise KeyError('jcm')", monkeypatch)
    with pytest.raises(ForecastError, match=r"(?s)exit code 1.*KeyError: 'jcm'"):
        start(tmp_path / "out.zarr")


def test_a_resumable_fault_is_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 3 becomes StoppedError."""
    fake_python(tmp_path, "sys.exit(print('error: x', file=sys.stderr) or 3)", monkeypatch)
    with pytest.raises(StoppedError, match="nature run: x"):
        start(tmp_path / "out.zarr")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_signals_reach_the_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signum: signal.Signals
) -> None:
    """A signal to the parent ends the child, and the parent reports a stop."""
    ready = tmp_path / "ready"
    body = (
        "def stop(*_):\n    print('error: told to stop', file=sys.stderr)\n    sys.exit(3)\n"
        "signal.signal(signal.SIGINT, stop); signal.signal(signal.SIGTERM, stop)\n"
        f"open({str(ready)!r}, 'w').close()\ntime.sleep(60)"
    )
    fake_python(tmp_path, body, monkeypatch)
    code = (
        "from pathlib import Path\n"
        "from jigsaw_forecast.data.nature_run import run_nature_run\n"
        "from jigsaw_forecast.errors import StoppedError\n"
        "try:\n"
        f"    run_nature_run(Path({str(tmp_path / 'out.zarr')!r}), num_years=1, end_year=2026,"
        " grid='64x32', seed=0, spinup_days=1)\n"
        "except StoppedError as error:\n    print(error)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=os.environ.copy()
    ) as parent:
        deadline = time.monotonic() + 30
        while not ready.exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        parent.send_signal(signum)
        out, _ = parent.communicate(timeout=30)
    assert out.strip() == "nature run: told to stop"
    assert parent.returncode == 0


def test_unreadable_lines_are_kept_for_the_error() -> None:
    """Text between progress lines is handed back."""
    assert nature_run._show_progress(io.StringIO("hello\n")) == ["hello"]
