"""Makes `land_110m.npz` from the topology file of the npm package `world-atlas`; run by hand.

    npm pack world-atlas@2.0.2 && tar xf world-atlas-2.0.2.tgz
    python -m jigsaw_forecast.plot.decode_land package/land-110m.json jigsaw_forecast/plot

Natural Earth's 1:110m land is in the public domain (https://www.naturalearthdata.com); the
package that carries it is under the ISC licence (Copyright 2013-2019 Michael Bostock). The format
is TopoJSON 1.0, https://github.com/topojson/topojson-specification.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

FILE_NAME = "land_110m.npz"
SOURCE = "Natural Earth 1:110m land, public domain, by way of the npm package world-atlas 2.0.2"

Points = npt.NDArray[np.float64]


def decode_arcs(topology: dict[str, Any]) -> list[Points]:
    """The arcs of a quantised topology in degrees, each of shape [n, 2] (longitude, latitude)."""
    scale = np.array(topology["transform"]["scale"])
    origin = np.array(topology["transform"]["translate"])
    return [np.cumsum(np.array(arc), axis=0) * scale + origin for arc in topology["arcs"]]


def rings_of(topology: dict[str, Any], name: str) -> list[Points]:
    """The closed rings of one object's polygons; a negative arc index means reversed."""
    arcs = decode_arcs(topology)
    rings = []
    for geometry in topology["objects"][name]["geometries"]:
        is_multiple = geometry["type"] == "MultiPolygon"
        for polygon in geometry["arcs"] if is_multiple else [geometry["arcs"]]:
            for indices in polygon:
                parts = [arcs[i] if i >= 0 else arcs[~i][::-1] for i in indices]
                # neighbouring arcs share an end point
                rings.append(np.concatenate([parts[0], *(part[1:] for part in parts[1:])]))
    return rings


def coast_of(rings: list[Points]) -> Points:
    """Coastlines as one array [n, 2] in which a row of NaN ends each line.

    Edges along or across the dateline and along the south pole close polygons on a flat map and
    are no coast.
    """
    gap = np.full((1, 2), np.nan)
    lines = []
    for ring in rings:
        start, end = ring[:-1], ring[1:]
        is_seam = (
            ((np.abs(start[:, 0]) > 179.99) & (np.abs(end[:, 0]) > 179.99))
            | (np.abs(start[:, 0] - end[:, 0]) > 180.0)
            | ((start[:, 1] < -89.99) | (end[:, 1] < -89.99))
        )
        for part in np.split(np.arange(len(ring)), np.flatnonzero(is_seam) + 1):
            if len(part) > 1:
                lines += [ring[part], gap]
    return np.concatenate(lines)


def main() -> None:
    """Decodes the file named first into the folder named second."""
    source, folder = map(Path, sys.argv[1:3])
    topology = json.loads(source.read_text(encoding="utf-8"))
    coast = coast_of(rings_of(topology, "land")).astype(np.float32)
    np.savez_compressed(folder / FILE_NAME, coast=coast, source=np.array(SOURCE))


if __name__ == "__main__":
    main()
