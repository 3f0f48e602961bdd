"""Opens what a recipe's `data.path` names: a training set, or a WeatherBench-layout store."""

import json
from collections.abc import Sequence
from pathlib import Path

from jigsaw_forecast.data.store import Store, shorten
from jigsaw_forecast.data.training_store import (
    FORMAT,
    PARTIAL_SUFFIX,
    PROGRESS_FOLDER,
    TrainingStore,
    read_attributes,
)
from jigsaw_forecast.data.weather_store import WeatherStore
from jigsaw_forecast.errors import DataError
from jigsaw_forecast.fields import Field

PLAN_FILE = "plan.json"


def open_store(path: Path, fields: Sequence[Field], num_threads: int | None = None) -> Store:
    """Opens a store to train on, its kind told by content.

    Args:
        path: The store.
        fields: Fields that it must hold.
        num_threads: Threads that read and decode; default this rank's share of the cores.

    Raises:
        DataError: It is not there, half converted, damaged or lacks fields; all that is wrong.
        GridError: Its grid is not a global regular one.
    """
    attributes = read_attributes(path)
    is_training_set = attributes is not None and attributes.get("format") == FORMAT
    # a set gets its name when it is whole, and only then loses its plan
    is_whole = is_training_set and path.suffix != PARTIAL_SUFFIX
    if (path / PLAN_FILE).exists() and not is_whole:
        raise DataError(_describe_half(path))
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    if not path.exists() and (partial / PLAN_FILE).exists():
        raise DataError(f"missing {path}; {_describe_half(partial)}")
    if is_training_set:
        return TrainingStore(path, fields, num_threads)
    return WeatherStore(path, fields, num_threads)


def _describe_half(partial: Path) -> str:
    """What a conversion that was stopped still lacks."""
    try:
        plan = json.loads((partial / PLAN_FILE).read_bytes())
        times, per_shard = plan["times"], plan["times_per_shard"]
    except (OSError, ValueError, KeyError):
        return f"{partial} is a conversion that was stopped and its plan cannot be read; delete it"
    done = {file.stem for file in (partial / PROGRESS_FOLDER).glob("*.npz")}
    starts = range(0, len(times), per_shard)
    missing = [times[start] for number, start in enumerate(starts) if str(number) not in done]
    if not missing:
        return f"{partial} is converted and not yet finished; run the same `data convert` again"
    spans = f"shards of {per_shard} times from " if per_shard > 1 else "times "
    return (
        f"{partial} is half converted: missing {len(missing)} of {len(starts)} "
        f"{spans}{shorten(missing)}; run the same `data convert` again to go on"
    )
