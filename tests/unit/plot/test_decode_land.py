"""Claims about decoding TopoJSON, on a topology made by hand."""

from typing import Any

import numpy as np

from jigsaw_forecast.plot.decode_land import coast_of, decode_arcs, rings_of

# two arcs that together close a square from (10, 20) to (12, 22); deltas as TopoJSON has them
TOPOLOGY: dict[str, Any] = {
    "transform": {"scale": [0.5, 0.5], "translate": [10.0, 20.0]},
    "arcs": [[[0, 0], [4, 0], [0, 4]], [[0, 0], [0, 4], [4, 0]]],
    "objects": {"land": {"geometries": [{"type": "Polygon", "arcs": [[0, -2]]}]}},
}


def test_arcs_are_sums_of_scaled_steps() -> None:
    assert decode_arcs(TOPOLOGY)[0].tolist() == [[10, 20], [12, 20], [12, 22]]


def test_ring_joins_arcs_and_turns_negative_ones() -> None:
    (ring,) = rings_of(TOPOLOGY, "land")
    assert ring.tolist() == [[10, 20], [12, 20], [12, 22], [10, 22], [10, 20]]


def test_coast_leaves_out_edges_along_and_across_the_dateline() -> None:
    along = np.array([[170.0, 0], [180, 0], [180, 5], [170, 5], [170, 0]])
    across = np.array([[179.0, 1], [-179, 1], [-179, 2]])
    coast = coast_of([along, across])
    finite = [
        part[~np.isnan(part[:, 0])].tolist()
        for part in np.split(coast, np.flatnonzero(np.isnan(coast[:, 0])))
    ]
    assert [part for part in finite if part] == [
        [[170, 0], [180, 0]],
        [[180, 5], [170, 5], [170, 0]],
        [[-179, 1], [-179, 2]],
    ]
