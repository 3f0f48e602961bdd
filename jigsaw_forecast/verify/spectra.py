"""Zonal energy spectra as WeatherBench 2 defines them."""

import numpy as np
import numpy.typing as npt

Array64 = npt.NDArray[np.float64]

EARTH_RADIUS_M = 6.3675e6  # weatherbench2.schema
DEGREES_OF_CIRCLE = 360.0


def circumference_m(latitudes: npt.ArrayLike) -> Array64:
    """Length of the circle of latitude, m."""
    lat = np.deg2rad(np.asarray(latitudes, dtype=np.float64))
    return np.asarray(2.0 * np.pi * EARTH_RADIUS_M * np.cos(lat))


def zonal_energy_spectrum(values: npt.NDArray[np.floating], latitudes: npt.ArrayLike) -> Array64:
    """Energy along circles of latitude by zonal wavenumber, m times the square of the units.

    With F the discrete Fourier transform over L points divided by L and C the length of the
    circle: C |F_0|^2 for the mean, 2 C |F_k|^2 for every k from 1 to L // 2. Sums over k give the
    integral of the square along the circle.

    Source: weatherbench2.derived_variables.ZonalEnergySpectrum.

    Args:
        values: Shape [..., Y, X], evenly spaced over the whole circle.
        latitudes: Degrees north, shape [Y].

    Returns:
        Shape [..., Y, X // 2 + 1].
    """
    transformed = np.fft.rfft(np.asarray(values, dtype=np.float64), axis=-1, norm="forward")
    power = transformed.real**2
    power += transformed.imag**2
    power[..., 1:] *= 2.0
    power *= circumference_m(latitudes)[:, None]
    return np.asarray(power)


def zonal_frequencies(latitudes: npt.ArrayLike, num_lon: int) -> Array64:
    """Waves a metre along each circle of latitude, shape [Y, X // 2 + 1]."""
    spacing_m = circumference_m(latitudes) / num_lon
    return np.asarray(np.fft.rfftfreq(num_lon)[None, :] / spacing_m[:, None])


def interpolate_frequencies(spectrum: Array64, frequencies: Array64) -> tuple[Array64, Array64]:
    """Spectra of all latitudes at common frequencies, linear between wavenumbers.

    Source: weatherbench2.derived_variables.interpolate_spectral_frequencies.

    Args:
        spectrum: Shape [..., Y, K].
        frequencies: Of `zonal_frequencies`, shape [Y, K].

    Returns:
        The common frequencies, shape [K]: evenly spaced over the range that every latitude has;
        and the spectra there, shape [..., Y, K].
    """
    lowest = frequencies.max(axis=0).min()
    highest = frequencies.min(axis=0).max()
    common = np.linspace(lowest, highest, spectrum.shape[-1])
    flat = spectrum.reshape(-1, *spectrum.shape[-2:])
    found = np.empty_like(flat)
    for row in range(flat.shape[1]):
        for index in range(flat.shape[0]):
            found[index, row] = np.interp(common, frequencies[row], flat[index, row])
    return common, found.reshape(spectrum.shape)
