"""Fetches through earthkit-data: MARS, the Climate Data Store and its other sources."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from jigsaw_forecast.data.fetch.faults import FetchError
from jigsaw_forecast.data.fetch.http import Limits

_LONGEST_TEXT = 2000
_PACKAGES = {
    "mars": "ecmwf-api-client",
    "cds": "cdsapi",
    "ads": "cdsapi",
    "polytope": "polytope-client",
    "fdb": "pyfdb",
}


def fetch_requests(task: Mapping[str, Any], limits: Limits, target: BinaryIO) -> dict[str, Any]:
    """Fetches all requests of a task, one after the other, into one file.

    Args:
        task: `source`, an earthkit-data name, and `requests`, each `arguments` and `options`.
        limits: Passed on to earthkit-data as far as it takes them; the parent's deadline bounds
            what its clients do by themselves.
        target: Takes the bytes as they come.

    Returns:
        Where it came from.

    Raises:
        FetchError: The source failed, with its own words.
    """
    name = task["source"]
    folder = Path(target.name).parent
    try:
        # seconds to import
        from earthkit.data import config, from_source

        config.autosave = False
        config.set("cache-policy", "temporary")
        config.set("temporary-cache-directory-root", str(folder))
        config.set("url-maximum-retries", limits.num_attempts)
        config.set("url-retry-after", max(int(limits.backoff_s), 1))
        for request in task["requests"]:
            options = dict(request["options"])
            if name in ("mars", "cds", "ads"):
                options["prompt"] = False
            _append(from_source(name, *request["arguments"], **options), folder, target)
    except ImportError as fault:
        package = _PACKAGES.get(name)
        how = f"pip install {package}" if package else "install it"
        raise FetchError(f"missing a Python package for {name}: {fault}; {how}") from None
    except FetchError:
        raise
    except Exception as fault:  # noqa: BLE001  the clients raise bare Exceptions and RuntimeErrors
        text = " ".join(str(fault).split())[:_LONGEST_TEXT]
        raise FetchError(f"{name}: {type(fault).__name__}: {text}") from None
    return {"origin": name, "num_messages": None, "num_bytes": target.tell()}


def _append(data: Any, folder: Path, target: BinaryIO) -> None:
    """Appends what a source holds, byte for byte where it is a file."""
    path = getattr(data, "path", None)
    paths = [path] if isinstance(path, str) else path
    if not paths or not all(isinstance(p, str) and Path(p).is_file() for p in paths):
        copy = folder / "stream"
        data.to_target("file", str(copy))
        paths = [str(copy)]
    for part in paths:
        with open(part, "rb") as stream:
            shutil.copyfileobj(stream, target)
