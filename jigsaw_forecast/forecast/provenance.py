"""Where a product came from: what every run notes, and the fingerprint that a resumed run needs."""

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from jigsaw_forecast import __version__
from jigsaw_forecast.checkpoint.format import Manifest
from jigsaw_forecast.forecast.product import OutputSpec, Product
from jigsaw_forecast.forecast.record import Fingerprint, StateDigests, now_text
from jigsaw_forecast.forecast.schedule import Start
from jigsaw_forecast.forecast.stopping import Implausible

_LIBRARIES = ("torch", "numpy", "zarr", "numcodecs", "eccodes", "netCDF4")
GRIB_DEFAULTS = "grib_keys"  # in a checkpoint's provenance


@dataclass(frozen=True)
class Identity:
    """What decides every bit of a run's output, apart from the times.

    Attributes:
        precision: Of the products.
        weights: Resident or streamed.
        mesh: `domain=2,tensor=2`.
        device: `cpu` or `cuda`.
        regrids: Whether the input is regridded.
    """

    precision: str
    weights: str
    mesh: str
    device: str
    regrids: bool


def fingerprint(
    manifest: Manifest, identity: Identity, spec: OutputSpec, product: Product
) -> Fingerprint:
    """What a run must have in common with the one whose product it goes on with.

    The names are those that a message shows.
    """
    own = spec.narrowed(product)
    is_grib = product.path.suffix in (".grib", ".grib2")
    keys = ",".join(f"{key}={value}" for key, value in own.grib_keys.items()) if is_grib else ""
    # each GRIB message says of how many members its ensemble is
    of_ensemble = {"ensemble size": str(own.num_members)} if is_grib and own.members else {}
    return {
        "checkpoint": f"{manifest.name} {manifest.digest[:16]}",
        "grid": own.grid.name,
        "fields": " ".join(map(str, own.fields)),
        "initial times": " ".join(map(str, own.init_times)),
        "lead times in hours": " ".join(map(str, own.lead_hours)),
        "members": " ".join(map(str, own.members)),
        **of_ensemble,
        "input": own.attributes.get("input", ""),
        "GRIB keys": keys,
        "regridding": "yes" if identity.regrids else "no",
        "precision": identity.precision,
        "weights": identity.weights,
        "mesh": identity.mesh,
        "device": identity.device,
        "jigsaw-forecast": __version__,
        "torch": str(torch.__version__),
    }


def product_attributes(manifest: Manifest, input_spec: str) -> dict[str, str]:
    """The global attributes of zarr and netCDF products.

    No time is among them, so that a product made again is the same to the last bit.
    """
    digests = sorted(shard.sha256[:12] for shard in manifest.shards.values())
    attributes = {
        "title": f"Forecast by {manifest.name}",
        "source": f"WeatherMixer checkpoint {manifest.name} (sha256 {', '.join(digests)})",
        "history": f"jigsaw-forecast {__version__} run; see the record beside the product",
        "input": input_spec,
    }
    if manifest.notice:
        attributes["notice"] = manifest.notice
    return attributes


def grib_defaults(manifest: Manifest) -> dict[str, str]:
    """The GRIB keys that a checkpoint asks for in its provenance, as `--grib` would give them."""
    given = manifest.provenance.get(GRIB_DEFAULTS, {})
    return {str(key): str(value) for key, value in given.items()} if isinstance(given, dict) else {}


def versions() -> dict[str, str]:
    """Of everything that decides the bytes of a product."""
    found = {"jigsaw-forecast": __version__, "python": platform.python_version()}
    return found | {name: importlib.metadata.version(name) for name in _LIBRARIES}


@dataclass
class RunHistory:
    """What a run notes for the records of its products as it goes on.

    Attributes:
        command: The command line.
        manifest: Of the checkpoint.
        folder: Of the checkpoint.
        identity: What decides every bit.
        hosts: Of every rank.
        inputs: Files, digests and times of the initial conditions.
        began: When the run began, UTC.
        resumed: Whether it went on with what an earlier run had done.
        states: Digests of initial states.
        implausible: Fields that left their range.
    """

    command: Sequence[str]
    manifest: Manifest
    folder: str
    identity: Identity
    hosts: Sequence[str]
    inputs: Sequence[Mapping[str, Any]]
    began: str
    resumed: bool
    states: dict[Start, StateDigests] = field(default_factory=dict)
    implausible: list[Implausible] = field(default_factory=list)
    _known: set[Implausible] = field(default_factory=set)
    _news: list[Implausible] = field(default_factory=list)

    def go_on(
        self, states: Mapping[Start, StateDigests], implausible: Sequence[Mapping[str, Any]]
    ) -> None:
        """Takes over what an earlier run, with whose products this one goes on, has noted."""
        self.states.update(states)
        self.note_implausible([Implausible(**item) for item in implausible])
        self._news.clear()

    def note_implausible(self, found: Sequence[Implausible]) -> None:
        """Notes fields that left their range; what is known is found again by steps made again."""
        fresh = [item for item in found if item not in self._known]
        self._known.update(fresh)
        self.implausible += fresh
        self._news += fresh

    def take_news(self) -> list[Implausible]:
        """What was noted by this run since the last call."""
        news, self._news = self._news, []
        return news

    def record(
        self, product: Product, run: Fingerprint, seconds: Mapping[str, float]
    ) -> dict[str, Any]:
        """The record of a product that is whole.

        Args:
            product: The product.
            run: What a run must have in common with this one to go on with the product.
            seconds: Where the time went so far.
        """
        manifest = self.manifest
        inits = {
            start: digests
            for start, digests in self.states.items()
            if start.init_time in product.init_times
            and (start.member is None or start.member in product.members)
        }
        return {
            "product": product.path.name,
            "run": dict(run),
            "command": list(self.command),
            "checkpoint": {
                "name": manifest.name,
                "folder": self.folder,
                "digest": manifest.digest,
                "parameters": manifest.num_parameters,
                "licence": manifest.licence,
                "notice": manifest.notice,
                "provenance": manifest.provenance,
            },
            "input": list(self.inputs),
            "initial_states": [
                {"init_time": str(start.init_time), "member": start.member, "sha256": dict(digests)}
                for start, digests in inits.items()
            ],
            "versions": versions(),
            "hosts": list(self.hosts),
            "began": self.began,
            "ended": now_text(),
            "resumed": self.resumed,
            "seconds": {name: round(value, 3) for name, value in seconds.items()},
            "implausible": [asdict(item) for item in self.implausible],
        }
