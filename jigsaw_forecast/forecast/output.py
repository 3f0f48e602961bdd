"""From `--output` to open writers: templates, kinds, and every reason to refuse at once."""

import errno
import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from string import Formatter
from typing import Any

import numpy as np

from jigsaw_forecast.errors import OutputError
from jigsaw_forecast.fields import Field, Role
from jigsaw_forecast.forecast.grib_keys import MAX_MEMBERS, check_grib_keys
from jigsaw_forecast.forecast.grib_writer import GribWriter
from jigsaw_forecast.forecast.netcdf_writer import NetcdfWriter
from jigsaw_forecast.forecast.product import (
    Mark,
    OutputSpec,
    Product,
    Slot,
    Writer,
    all_slots,
)
from jigsaw_forecast.forecast.staging import PARTIAL_SUFFIX, ProductLock, refusal
from jigsaw_forecast.forecast.zarr_writer import ZarrWriter

__all__ = [
    "OutputSpec",
    "Product",
    "Writer",
    "check_keys",
    "check_scoring",
    "describe_unwritable",
    "open_writer",
    "resolve_outputs",
    "scores_products",
    "writer_kind",
]

_log = logging.getLogger(__name__)
SCORES_SUFFIX = ".scores"
_LONGEST_SHOWN = 100  # of a name that is refused

_WRITERS: dict[str, type[Writer]] = {
    ".zarr": ZarrWriter,
    ".grib2": GribWriter,
    ".grib": GribWriter,
    ".nc": NetcdfWriter,
}

_SUFFIXES = sorted([*_WRITERS, SCORES_SUFFIX])


def resolve_outputs(
    paths: Sequence[str],
    init_times: Sequence[np.datetime64],
    lead_times: Sequence[np.timedelta64],
    *,
    overwrite: bool = False,
    resume: bool = False,
    fields: Sequence[Field] = (),
    members: Sequence[int] = (),
) -> list[Product]:
    """The products that the values of `--output` name, each with the times that it holds.

    `{init:%Y%m%d%H}` stands for the initial time, `{lead:03d}` for the lead time in hours and
    `{member:02d}` for the ensemble member. Times whose names are equal share a product, so a path
    without templates holds them all.
    A GRIB product of diagnostic fields alone does not hold lead time 0, where they have no
    value and GRIB has no message; it is not made where that leaves it without a lead time.

    Args:
        paths: Paths or templates; the suffix is the kind: `.zarr`, `.grib2`, `.grib`, `.nc` or,
            for scores, `.scores`.
        init_times: Initial times of the run.
        lead_times: Lead times that will be written.
        overwrite: Whether products that exist may be replaced.
        resume: Whether products that exist are looked at later, as what an earlier run has done.
        fields: Fields that will be written.
        members: Ensemble members; empty where the run is no ensemble.

    Raises:
        OutputError: Unknown suffix or template, a template that leaves its folder, missing or
            unwritable folder, existing product, two outputs with one name, or a GRIB output
            without any lead time; all of them in one message.
    """
    problems: list[str] = []
    products: list[Product] = []
    for text in paths:
        try:
            expanded = _expand(text, init_times, lead_times, members)
        except ValueError as error:
            problems.append(
                f"output {text!r} is not a valid template ({error}); use {{init:%Y%m%d%H}}, "
                "{lead:03d} and, with --members, {member:02d}"
            )
            continue
        kept = _with_values(expanded, fields)
        if expanded and not kept:
            problems.append(
                f"output {text!r} would be empty: {', '.join(map(str, fields))} have no value at "
                "lead time 0; add later lead times or other variables"
            )
        products += kept
    problems += _find_collisions(products)
    unwritable: dict[Path, str | None] = {}
    for product in products:
        path = product.path
        if path.suffix not in _SUFFIXES:
            problems.append(
                f"output {path} has unknown suffix {path.suffix!r}; use "
                f"{', '.join(_SUFFIXES)}{_GRIB_HINT if path.suffix in _GRIB_NAMES else ''}"
            )
            continue
        if why := _why_no_name(path):
            problems.append(f"output {str(path)[:_LONGEST_SHOWN]!r}: {why}")
            continue
        if path.parent not in unwritable:
            unwritable[path.parent] = describe_unwritable(path.parent)
            if (reason := unwritable[path.parent]) is not None:
                problems.append(f"output {path}: {reason}")
        if unwritable[path.parent] is None:
            existing = refusal(path, overwrite=overwrite or resume)
            problems += [f"output {existing}"] if existing else []
    if problems:
        raise OutputError("\n".join(dict.fromkeys(problems)))
    return products


_GRIB_NAMES = (".grb", ".grb2", ".grib1", ".gb2")
_GRIB_HINT = "; for GRIB .grib2"


def check_keys(products: Sequence[Product], spec: OutputSpec, given: Mapping[str, str]) -> None:
    """Refuses what GRIB cannot hold, and keys of `--grib`, before the first product is opened.

    Args:
        products: All products of the run.
        spec: What the run writes, with all of its times.
        given: Keys of `--grib`, without those that the checkpoint asks for.

    Raises:
        OutputError: There are keys but no GRIB product, or too many members; see
            `check_grib_keys` too.
    """
    own = [product for product in products if writer_kind(product.path) is GribWriter]
    if given and not own:
        keys = ",".join(f"{key}={value}" for key, value in given.items())
        raise OutputError(f"--grib {keys}: missing an --output that is GRIB (.grib2, .grib)")
    if own and spec.num_members > MAX_MEMBERS:
        raise OutputError(
            f"output {own[0].path}: GRIB 2 numbers at most {MAX_MEMBERS} members, not "
            f"{spec.num_members}; write .zarr or .nc, or fewer members"
        )
    for product in own:
        check_grib_keys(spec.narrowed(product))


def writer_kind(path: Path) -> type[Writer]:
    """The kind of writer that a path's suffix stands for."""
    if path.suffix == SCORES_SUFFIX:
        # brings a compiler along, for which runs without scores need not wait
        from jigsaw_forecast.forecast.scores_writer import ScoresWriter

        return ScoresWriter
    return _WRITERS[path.suffix]


def scores_products(products: Sequence[Product]) -> list[Product]:
    """Those that are scores."""
    return [product for product in products if product.path.suffix == SCORES_SUFFIX]


def check_scoring(products: Sequence[Product], spec: OutputSpec) -> dict[Path, str]:
    """Compares truth and climatology with what will be made, before anything is.

    Args:
        products: All products of the run.
        spec: What the run writes, with all of its times.

    Returns:
        A digest of what is scored, by product.

    Raises:
        OutputError: Scores of members, or without a truth.
        DataError: The files lack something or do not go with the forecast; all of it.
    """
    scores = scores_products(products)
    if not scores:
        return {}
    if spec.scoring is None:
        raise OutputError(f"output {scores[0].path} holds scores: missing --truth")
    if spec.members:
        raise OutputError(
            "--truth scores single forecasts while they are made; score members from their "
            "product: jigsaw-forecast score --forecast PRODUCT --truth PATH"
        )
    from jigsaw_forecast.forecast.scores_writer import plan_scores  # as in `writer_kind`

    return {product.path: plan_scores(product, spec) for product in scores}


def open_writer(
    path: Path,
    spec: OutputSpec,
    *,
    overwrite: bool,
    is_creator: bool = True,
    lock: ProductLock | None = None,
    finished: Mapping[Slot, Mark] | None = None,
) -> Writer:
    """The writer of the path's kind, with `NAME.partial` created or opened.

    Args:
        path: Final name, as `resolve_outputs` gives it.
        spec: What will be written, with the times of this product only.
        overwrite: Whether a product that exists is replaced when this one is finished.
        is_creator: Whether this process makes the product; the other ranks open it afterwards.
        lock: On the product, where it is held already.
        finished: What is done of a product that goes on; None to start it.

    Raises:
        OutputError: The name is taken or in use, the folder is not writable, a GRIB key is wrong.
    """
    return writer_kind(path)(
        path, spec, overwrite=overwrite, is_creator=is_creator, lock=lock, finished=finished
    )


def _expand(
    text: str,
    init_times: Sequence[np.datetime64],
    lead_times: Sequence[np.timedelta64],
    members: Sequence[int],
) -> list[Product]:
    # init, lead and member name a product together, so each product is a full block of them
    blocks: dict[str, tuple[dict[Any, None], dict[Any, None], dict[Any, None]]] = {}
    num_slots = 0
    for slot in all_slots(init_times, lead_times, members):
        known: dict[str, Any] = {"init": slot.init_time.item(), "lead": slot.lead_hours}
        if slot.member is not None:
            known["member"] = slot.member
        inits, leads, numbers = blocks.setdefault(_fill(text, known), ({}, {}, {}))
        inits[slot.init_time] = None
        leads[slot.lead_time] = None
        numbers[slot.member] = None
        num_slots += 1
    products = [
        Product(
            Path(name).expanduser(),
            tuple(inits),
            tuple(leads),
            tuple(number for number in numbers if number is not None),
        )
        for name, (inits, leads, numbers) in blocks.items()
    ]
    if sum(len(product.slots) for product in products) != num_slots:
        raise ValueError("different times get the same name")
    return products


def _fill(text: str, known: Mapping[str, Any]) -> str:
    """A template with its placeholders filled; they fill in names and stay below their folder."""
    result = ""
    for literal, name, form, conversion in Formatter().parse(text):
        result += literal
        if name is None:
            continue
        if name not in known or conversion:
            raise ValueError(
                f"unknown placeholder {{{name}{f'!{conversion}' if conversion else ''}}}"
            )
        try:
            filled = format(known[name], form or "")
        except (ValueError, TypeError) as error:
            raise ValueError(f"{{{name}:{form}}}: {error}") from None
        if ".." in filled.split("/") or (filled.startswith("/") and not result):
            raise ValueError(f"{{{name}:{form}}} leaves the folder")
        result += filled
    return result


def _with_values(products: Sequence[Product], fields: Sequence[Field]) -> list[Product]:
    """The products with the lead times of which they will hold a value."""
    if not fields or any(field.spec.role is not Role.DIAGNOSTIC for field in fields):
        return list(products)
    kept = []
    for product in products:
        leads = product.lead_times
        if _WRITERS.get(product.path.suffix) is GribWriter:
            leads = tuple(lead for lead in leads if lead)
        if leads:
            kept.append(replace(product, lead_times=leads))
        else:
            _log.info("no %s: none of its variables has a value at lead time 0", product.path)
    return kept


def _find_collisions(products: Sequence[Product]) -> list[str]:
    # every name that a product uses on its way belongs to it alone
    owners: dict[Path, Path] = {}
    problems = []
    for product in products:
        final = product.path.absolute()
        partial = final.with_name(final.name + PARTIAL_SUFFIX)
        taken = next((owners[name] for name in (final, partial) if name in owners), None)
        if taken is not None:
            problems.append(f"outputs {taken} and {product.path} have the same name")
        owners[final] = owners[partial] = product.path
    return problems


def _why_no_name(path: Path) -> str:
    """Why the system takes no such name, with what is added to it on the way; else empty."""
    try:
        os.lstat(path.with_name(f".{path.name}.restart"))
    except OSError as error:
        return os.strerror(error.errno) if error.errno == errno.ENAMETOOLONG else ""
    except ValueError as error:  # a zero byte
        return str(error)
    return ""


def describe_unwritable(folder: Path) -> str | None:
    """Why no file can be made in a folder, or None; tries it."""
    if not folder.exists():
        return f"missing folder {folder}; create it first"
    if not folder.is_dir():
        return f"{folder} is not a folder"
    try:
        # a real attempt: permission bits do not know of read-only mounts and quotas
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return f"cannot write into folder {folder}: {error.strerror}"
