"""Plans on disk, so that scores made in pieces can be merged and told apart."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from jigsaw_forecast.errors import DataError
from jigsaw_forecast.grid import Grid
from jigsaw_forecast.verify.request import Missing, ModelPlan, ScorePlan

FORMAT = 1
# what two scores must share to be parts of one
_SHARED = (
    "truth", "climatology", "resolution", "grid_name", "latitudes", "longitudes", "levels", "units",
    "lead_times", "regions", "with_acc", "with_seeps", "spectra_leads", "map_leads", "map_levels",
    "years", "skipna",
)  # fmt: skip


def plan_to_json(plan: ScorePlan) -> dict[str, Any]:
    """A plan as plain values; pairs and the land mask stay out."""
    return {
        "format": FORMAT,
        "models": [_model_to_json(model) for model in plan.models],
        "truth": [str(path) for path in plan.truth],
        "climatology": str(plan.climatology) if plan.climatology is not None else None,
        "resolution": plan.resolution.name if plan.resolution is not None else None,
        "grid_name": plan.grid_name,
        "latitudes": plan.latitudes.tolist(),
        "longitudes": plan.longitudes.tolist(),
        "levels": {name: list(held) for name, held in plan.levels.items()},
        "units": dict(plan.units),
        "init_times": [str(time) for time in plan.init_times],
        "lead_times": plan.lead_hours,
        "regions": list(plan.regions),
        "with_acc": list(plan.with_acc),
        "with_seeps": list(plan.with_seeps),
        "spectra_leads": list(plan.spectra_leads),
        "map_leads": list(plan.map_leads),
        "map_levels": dict(plan.map_levels),
        "years": list(plan.years),
        "skipna": plan.skipna,
        "warnings": list(plan.warnings),
        "notice": plan.notice,
    }


def _model_to_json(model: ModelPlan) -> dict[str, Any]:
    return {
        "name": model.name,
        "kind": model.kind,
        "paths": [str(path) for path in model.paths],
        "num_members": model.num_members,
        "missing": [
            [one.variable, str(one.init_time), int(one.lead_time / np.timedelta64(1, "h")), one.why]
            for one in model.missing
        ],
        "attributes": dict(model.attributes),
        "notes": list(model.notes),
        "comparison": model.comparison,
    }


def plan_from_json(stored: dict[str, Any]) -> ScorePlan:
    """The plan back, without pairs and land mask: enough to write its results."""
    models = [
        ModelPlan(
            name=one["name"],
            kind=one["kind"],
            paths=tuple(Path(path) for path in one["paths"]),
            pairs={},
            num_members=one["num_members"],
            missing=tuple(
                Missing(v, np.datetime64(i, "s"), np.timedelta64(h * 3600, "s"), why)
                for v, i, h, why in one["missing"]
            ),
            attributes=one["attributes"],
            notes=tuple(one["notes"]),
            comparison=one["comparison"],
        )
        for one in stored["models"]
    ]
    leads = np.array(stored["lead_times"], dtype=np.int64) * 3600
    return ScorePlan(
        models=tuple(models),
        truth=tuple(Path(path) for path in stored["truth"]),
        climatology=Path(stored["climatology"]) if stored["climatology"] else None,
        resolution=Grid.parse(stored["resolution"]) if stored["resolution"] else None,
        grid_name=stored["grid_name"],
        latitudes=np.array(stored["latitudes"], dtype=np.float64),
        longitudes=np.array(stored["longitudes"], dtype=np.float64),
        land=None,
        levels={name: tuple(held) for name, held in stored["levels"].items()},
        units=stored["units"],
        init_times=np.array(stored["init_times"], dtype="datetime64[s]"),
        lead_times=leads.astype("timedelta64[s]"),
        regions=tuple(stored["regions"]),
        with_acc=tuple(stored["with_acc"]),
        with_seeps=tuple(stored["with_seeps"]),
        spectra_leads=tuple(stored["spectra_leads"]),
        map_leads=tuple(stored["map_leads"]),
        map_levels=stored["map_levels"],
        years=tuple(stored["years"]),
        skipna=stored["skipna"],
        warnings=tuple(stored["warnings"]),
        notice=stored["notice"],
    )


def read_plans(path: Path) -> list[ScorePlan]:
    """Reads the plans of a finished score.

    Raises:
        DataError: There is none, or of another format.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise DataError(
            f"{path} is no plan of a score: {fault}; missing a finished score"
        ) from None
    plans = stored.get("plans", [])
    formats = {plan.get("format") for plan in plans}
    if formats != {FORMAT}:
        raise DataError(f"{path} has formats {formats}, expected {FORMAT}; score again")
    return [plan_from_json(plan) for plan in plans]


def digest_of(plan: ScorePlan) -> str:
    """Tells plans apart: equal only where the same work gives the same pieces."""
    stored = plan_to_json(plan)
    stored["land"] = None if plan.land is None else hashlib.sha256(plan.land.tobytes()).hexdigest()
    stored["pairs"] = {
        model.name: {name: np.packbits(mask).tobytes().hex() for name, mask in model.pairs.items()}
        for model in plan.models
    }
    return hashlib.sha256(json.dumps(stored, sort_keys=True).encode()).hexdigest()


def differences(first: ScorePlan, second: ScorePlan) -> list[str]:
    """What keeps two scores from being parts of one."""
    own, other = plan_to_json(first), plan_to_json(second)
    found = [f"{key}: {_short(own[key])} against {_short(other[key])}" for key in _SHARED
             if own[key] != other[key]]  # fmt: skip
    names = [[(m.name, m.num_members) for m in plan.models] for plan in (first, second)]
    if names[0] != names[1]:
        found.append(f"models: {names[0]} against {names[1]}")
    return found


def _short(value: object, limit: int = 80) -> str:
    text = str(value)
    return text if len(text) <= limit else f"{text[:limit]}..."
