"""The text of `--input`: a path, or a remote source with its options."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jigsaw_forecast.errors import DataError

OPEN_DATA, MARS, CDS, URL = "open-data", "mars", "cds", "url"
# Sources of earthkit-data that make files; more of it has no place in an operational run.
EARTHKIT_SOURCES = ("ads", "ecfs", "fdb", "gribjump", "polytope", "s3", "wekeo", "wekeo-cds")
SOURCES = (OPEN_DATA, MARS, CDS, URL, *EARTHKIT_SOURCES)
_SCHEME = re.compile(r"([a-z][a-z0-9_-]+):(.*)", re.DOTALL)
_TEMPLATE = re.compile(r"\{(init|member)\b[^{}]*\}")

DEFAULT_DEADLINE_S = 1800.0
DEFAULT_ATTEMPTS = 5
DEFAULT_STALL_S = 60.0
DEFAULT_BACKOFF_S = 1.0
DEADLINE_VARIABLE = "JIGSAW_FETCH_DEADLINE"  # seconds, where the spec gives no deadline
_LIMITS = ("deadline", "attempts", "stall", "backoff", "refresh")
_LAST_LIMIT = re.compile(rf"(.*),\s*({'|'.join(_LIMITS)})=([^,&]*)", re.DOTALL)


@dataclass(frozen=True)
class FetchLimits:
    """How long a fetch may take; see `data.fetch.http.Limits`.

    Attributes:
        deadline_s: For all of it; then its process is killed.
        num_attempts: Of each request.
        stall_s: Longest silence of a server.
        backoff_s: Wait before the second attempt.
        is_refreshed: Whether the cache is passed over.
    """

    deadline_s: float = DEFAULT_DEADLINE_S
    num_attempts: int = DEFAULT_ATTEMPTS
    stall_s: float = DEFAULT_STALL_S
    backoff_s: float = DEFAULT_BACKOFF_S
    is_refreshed: bool = False


@dataclass(frozen=True)
class RemoteSpec:
    """A remote source.

    Attributes:
        source: One of `SOURCES`.
        arguments: Parts without a `=`, in order; of `url` the URL.
        options: Parts KEY=VALUE but for limits, lists still joined by `/`.
        limits: On time and attempts.
        text: As the user gave it.
    """

    source: str
    arguments: tuple[str, ...]
    options: Mapping[str, str]
    limits: FetchLimits
    text: str


def is_template(text: str) -> bool:
    """Whether a spec names `{init...}` or `{member...}`."""
    return _TEMPLATE.search(text) is not None


def fill_template(text: str, init_time: np.datetime64, member: int | None) -> str:
    """The spec of one initial time and member.

    Raises:
        DataError: The template is wrong, or names a member where the run has none.
    """
    if not is_template(text):
        return text
    start = init_time.astype("datetime64[s]").item()
    if member is None and re.search(r"\{member\b", text):
        raise DataError(f"--input {text} names {{member}}, but the run has no members: --members N")

    def fill(match: re.Match[str]) -> str:
        return match[0].format(init=start, member=member)

    try:
        return _TEMPLATE.sub(fill, text)
    except (ValueError, KeyError, IndexError, AttributeError) as fault:
        raise DataError(
            f"--input {text} is not a valid template ({fault}); use {{init:%Y%m%d%H}} and "
            "{member:03d}"
        ) from None


def parse_spec(text: str) -> RemoteSpec | Path:
    """What a filled spec names.

    Raises:
        DataError: The source is unknown, or an option is wrong; all that is wrong is listed.
    """
    if text.startswith(("http://", "https://")):
        return _url_spec(text, text)
    match = _SCHEME.fullmatch(text)
    if match is None or Path(text).exists():
        return Path(text).expanduser()
    source, rest = match[1], match[2]
    if source == "file":
        return Path(rest.removeprefix("//")).expanduser()
    if source not in SOURCES:
        raise DataError(
            f"--input {text}: there is no such file, and {source!r} is no source: use a path or "
            f"one of {', '.join(f'{name}:' for name in SOURCES)}"
        )
    if source == URL:
        return _url_spec(rest, text)
    arguments: list[str] = []
    options: dict[str, str] = {}
    problems = []
    for part in (part.strip() for part in rest.split(",")):
        key, separator, value = (piece.strip() for piece in part.partition("="))
        if not part:
            continue
        if not separator:
            arguments.append(part)
        elif not key or not value:
            problems.append(f"{part!r} is not KEY=VALUE")
        elif key in options:
            problems.append(f"{key} is given twice")
        else:
            options[key] = value
    if problems:
        raise DataError(f"--input {text}: {'; '.join(problems)}")
    limits = _limits(options, text)
    kept = {key: value for key, value in options.items() if key not in _LIMITS}
    return RemoteSpec(source, tuple(arguments), kept, limits, text)


def _url_spec(url: str, text: str) -> RemoteSpec:
    """A URL and the limits after it; any other comma or `=` belongs to the URL.

    Raises:
        DataError: A limit is wrong or given twice.
    """
    options: dict[str, str] = {}
    while match := _LAST_LIMIT.fullmatch(url):
        url, key = match[1], match[2]
        if key in options:
            raise DataError(f"--input {text}: {key} is given twice")
        options[key] = match[3].strip()
    return RemoteSpec(URL, (url.strip(),), {}, _limits(options, text), text)


def _limits(options: Mapping[str, str], text: str) -> FetchLimits:
    """The limits among options.

    Raises:
        DataError: A limit is no positive number.
    """
    problems: list[str] = []

    def number(key: str, default: float, variable: str = "") -> float:
        named = os.environ.get(variable, "") if variable else ""
        given, name = options.get(key, named), key if key in options else variable
        if not given:
            return default
        try:
            value = float(given)
        except ValueError:
            value = 0.0
        if not 0.0 < value < float("inf"):
            problems.append(f"{name}={given} is not a positive number")
        return value

    deadline_s = number("deadline", DEFAULT_DEADLINE_S, DEADLINE_VARIABLE)
    attempts = number("attempts", DEFAULT_ATTEMPTS)
    if attempts != int(attempts):
        problems.append(f"attempts={options['attempts']} is not a whole number")
    stall_s = number("stall", DEFAULT_STALL_S)
    backoff_s = number("backoff", DEFAULT_BACKOFF_S)
    refresh = options.get("refresh", "no").lower()
    if refresh not in ("yes", "no", "true", "false", "1", "0"):
        problems.append(f"refresh={refresh} is neither yes nor no")
    if problems:
        raise DataError(f"--input {text}: {'; '.join(problems)}")
    is_refreshed = refresh in ("yes", "true", "1")
    return FetchLimits(deadline_s, int(attempts), stall_s, backoff_s, is_refreshed)
