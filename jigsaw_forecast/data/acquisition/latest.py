"""`--init latest`: the newest cycle that a source holds whole."""

import json
import logging
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from jigsaw_forecast.data.acquisition.cache import Cache, cache_folder, key_of
from jigsaw_forecast.data.acquisition.process import run_child
from jigsaw_forecast.data.acquisition.spec import OPEN_DATA, RemoteSpec, is_template, parse_spec
from jigsaw_forecast.data.acquisition.tasks import open_data_cycles, wanted_messages
from jigsaw_forecast.errors import DataError
from jigsaw_forecast.fields import Field

_log = logging.getLogger(__name__)

LATEST = "latest"
DEFAULT_MAX_AGE_HOURS = 30.0
# Ranks that a cluster's launcher starts ask each for itself: within this time they get one answer.
_KEPT_S = 60.0


def needs_latest(text: str) -> bool:
    """Whether a value of `--init` names the newest cycle."""
    return LATEST in (part.strip() for part in text.split(","))


def resolve_latest(
    spec: str | None, fields: Sequence[Field], members: Sequence[int] = ()
) -> np.datetime64:
    """The initial time of the newest cycle that has every field of an initial state.

    Args:
        spec: The text of `--input`.
        fields: Fields of an initial state.
        members: Ensemble members that it must have, empty where there are none.

    Returns:
        UTC, datetime64[s].

    Raises:
        DataError: The source cannot tell, cannot be reached, or has nothing that is new enough.
    """
    parsed = parse_spec(spec) if spec is not None and not is_template(spec) else None
    if not isinstance(parsed, RemoteSpec) or parsed.source != OPEN_DATA:
        what = "the input is a file" if parsed is None or isinstance(parsed, Path) else "it cannot"
        raise DataError(
            f"--init latest asks a remote source for its newest analysis, and {what}: use "
            "--input open-data: or name the time"
        )
    options = parsed.options
    try:
        max_age = float(options.get("max-age", DEFAULT_MAX_AGE_HOURS))
    except ValueError:
        max_age = 0.0
    if not 0.0 < max_age < float("inf"):
        raise DataError(f"--input {spec}: max-age={options['max-age']} is no number of hours")
    task = {
        "kind": LATEST,
        "cycles": open_data_cycles(parsed, members),
        "wanted": wanted_messages(fields),
        "members": list(members),
        "max_age_hours": max_age,
    }
    cache = Cache(cache_folder())
    key = key_of(task, LATEST)
    answer = cache.folder / f"{key}.answer"
    called_s = time.time()
    with cache.locked(key, parsed.limits.deadline_s) as has_waited:
        if has_waited and (failure := cache.failure_since(key, called_s)):
            raise DataError(failure)
        if (kept := _kept(answer)) is not None and not parsed.limits.is_refreshed:
            return kept
        now = datetime.now(UTC).replace(tzinfo=None)
        try:
            with cache.staged(key) as folder:
                said = run_child({**task, "now": now.isoformat()}, parsed.limits, folder)
        except DataError as fault:
            message = f"--input {spec}: no newest cycle: {fault}"
            cache.note_failure(key, message)
            raise DataError(message) from None
        answer.write_text(json.dumps(said))
    for cycle in said["skipped"]:
        _log.info("not taken: %s", cycle)
    _log.info("newest complete cycle: %s", said["init"])
    return np.datetime64(said["init"], "s")


def _kept(answer: Path) -> np.datetime64 | None:
    """The answer of a moment ago."""
    try:
        if time.time() - answer.stat().st_mtime > _KEPT_S:
            return None
        return np.datetime64(json.loads(answer.read_text())["init"], "s")
    except (OSError, ValueError, KeyError):
        return None
