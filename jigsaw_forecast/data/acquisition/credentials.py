"""What a source needs before it is asked: a Python package and the user's key."""

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from jigsaw_forecast.errors import DataError

EXTRA = "pip install 'jigsaw-forecast[remote]'"


@dataclass(frozen=True)
class _Access:
    """How a service is entered.

    Attributes:
        name: Its name.
        module: Module of its client.
        variables: Environment variables that hold the key, all of them needed.
        file_variable: Names another file of the key.
        file: Where the key is looked for.
        page: Where the key is found.
    """

    name: str
    module: str
    variables: tuple[str, ...]
    file_variable: str
    file: str
    page: str


_ACCESS = {
    "mars": _Access(
        "MARS",
        "ecmwfapi",
        ("ECMWF_API_URL", "ECMWF_API_KEY", "ECMWF_API_EMAIL"),
        "ECMWF_API_RC_FILE",
        "~/.ecmwfapirc",
        "https://api.ecmwf.int/v1/key/",
    ),
    "cds": _Access(
        "the Climate Data Store",
        "cdsapi",
        ("CDSAPI_URL", "CDSAPI_KEY"),
        "CDSAPI_RC",
        "~/.cdsapirc",
        "https://cds.climate.copernicus.eu/how-to-api",
    ),
    "ads": _Access(
        "the Atmosphere Data Store",
        "cdsapi",
        ("ADSAPI_URL", "ADSAPI_KEY"),
        "ADSAPI_RC",
        "~/.adsapirc",
        "https://ads.atmosphere.copernicus.eu/how-to-api",
    ),
}
_MARS_CLIENT = "/usr/local/bin/mars"


def check_credentials(source: str) -> None:
    """Refuses a source whose client or key is not there; nothing is sent.

    Raises:
        DataError: Says what is missing and where to put it.
    """
    access = _ACCESS.get(source)
    if access is None:
        return
    if source == "mars" and Path(os.environ.get("MARS_CLIENT_COMMAND", _MARS_CLIENT)).exists():
        return  # ECMWF's own client, which needs neither
    missing = []
    if importlib.util.find_spec(access.module) is None:
        missing.append(f"the Python package {access.module} ({EXTRA})")
    path = Path(os.environ.get(access.file_variable) or access.file).expanduser()
    has_variables = all(os.environ.get(name) for name in access.variables)
    if not has_variables and not path.is_file():
        missing.append(
            f"credentials: put the key from {access.page} into {path}, or set "
            f"{', '.join(access.variables)}"
        )
    if missing:
        raise DataError(f"{access.name} cannot be asked: missing {'; missing '.join(missing)}")
