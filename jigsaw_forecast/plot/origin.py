"""What a picture must say of where its forecast came from."""

import json
from collections.abc import Mapping
from pathlib import Path

TITLE, NOTICE, INPUT = "title", "notice", "input"  # attributes of a product
UNKNOWN_ORIGIN = "This GRIB file does not say which model made it, nor for which planet."
_RECORD_SUFFIX = ".json"  # of the record that a run writes beside each product
_OWN_INPUT = "initial.zarr"  # of a checkpoint


def recorded_attributes(forecast: Path) -> dict[str, str]:
    """The attributes that GRIB cannot hold, from the record beside it; none without a record."""
    try:
        record = json.loads(forecast.with_name(forecast.name + _RECORD_SUFFIX).read_text())
        checkpoint = record["checkpoint"]
        return {
            TITLE: f"Forecast by {checkpoint['name']}",
            NOTICE: str(checkpoint.get("notice") or ""),
            INPUT: str(record["run"]["input"]),
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {NOTICE: UNKNOWN_ORIGIN}


def notice_of(attributes: Mapping[str, str], given: str | None) -> str:
    """What must be said, empty where there is nothing.

    A notice is the model's. A forecast that began with other data than the model's own begins
    with a state that the notice does not describe, and the picture says so.

    Args:
        attributes: Of the product.
        given: What the caller says in place of the product.
    """
    if given is not None:
        return given
    notice, source = attributes.get(NOTICE, ""), attributes.get(INPUT, "")
    if not notice or not source:
        return notice
    own = Path(source)
    title = f"Forecast by {own.parent.name}"
    if own.name == _OWN_INPUT and attributes.get(TITLE, title) == title:
        return notice
    return f"Started from {source}. Of the model: {notice}"
