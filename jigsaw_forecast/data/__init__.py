"""Readers of GRIB, netCDF and zarr, forcings, regridding, statistics and the nature run."""
