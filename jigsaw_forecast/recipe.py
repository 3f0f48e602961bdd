"""Recipes: TOML files read into a pydantic model that the caller gives."""

import difflib
import json
import re
import tomllib
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from jigsaw_forecast.errors import RecipeError

ModelT = TypeVar("ModelT", bound=BaseModel)


def load_recipe(path: Path, model: type[ModelT], settings: Sequence[str] = ()) -> ModelT:
    """Reads a recipe, applies settings to it and checks it as a whole.

    Args:
        path: TOML file.
        model: Schema; `extra="forbid"` in it and in its sections makes unknown keys errors.
        settings: `key=value` with a dotted key, `train.log_every=10`; numbers index lists,
            `train.phases.0.num_steps=10`. The value is TOML, or else a plain string.

    Raises:
        RecipeError: The file or a setting cannot be read, or keys are unknown, missing or have
            bad values; one message lists them all.
    """
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path}: not valid TOML: {_why_no_toml(error, path)}") from None
    problems = [problem for setting in settings if (problem := _apply(tree, setting))]
    try:
        recipe = model.model_validate(tree)
    except ValidationError as error:
        problems += [_describe(dict(item), model) for item in error.errors()]
    if problems:
        raise RecipeError(f"{path}: " + "; ".join(problems))
    return recipe


def dump_recipe(recipe: BaseModel, path: Path) -> None:
    """Writes a recipe as TOML that `load_recipe` reads back to an equal one; None is left out."""
    path.write_text(to_toml(recipe.model_dump(mode="json", exclude_none=True)), encoding="utf-8")


def to_toml(tree: Mapping[str, Any]) -> str:
    """TOML text of tables, lists of tables, lists, strings, numbers and booleans."""
    return "\n".join(_table_lines(tree, "")).strip() + "\n"


def _table_lines(table: Mapping[str, Any], prefix: str) -> list[str]:
    lines, below = [], []
    for key, value in table.items():
        name = f"{prefix}{_key(key)}"
        if isinstance(value, Mapping):
            below += ["", f"[{name}]", *_table_lines(value, f"{name}.")]
        elif isinstance(value, list) and value and all(isinstance(v, Mapping) for v in value):
            for entry in value:
                below += ["", f"[[{name}]]", *_table_lines(entry, f"{name}.")]
        else:
            lines.append(f"{_key(key)} = {_value(value)}")
    return lines + below


def _key(key: str) -> str:
    is_bare = key.replace("_", "").replace("-", "").isalnum() and key.isascii()
    return key if is_bare else json.dumps(key)


def _value(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_value(entry) for entry in value) + "]"
    if isinstance(value, float):
        return repr(value)  # shortest text that reads back to the same float; inf and nan as TOML
    # JSON strings, integers and booleans are TOML; DEL is the one character TOML escapes and
    # JSON does not
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")


def _why_no_toml(error: tomllib.TOMLDecodeError, path: Path) -> str:
    """What the parser says, with the line that it means."""
    found = re.search(r"at line (\d+)", str(error))
    lines = path.read_text(encoding="utf-8").splitlines()
    line = lines[int(found[1]) - 1].strip() if found and int(found[1]) <= len(lines) else ""
    is_double = str(error).startswith(("Cannot overwrite", "Cannot declare", "Cannot mutate"))
    why = f"a key or table is given twice: {error}" if is_double else str(error)
    return f"{why}: {line}" if line else why


def _apply(tree: dict[str, Any], setting: str) -> str:
    """Puts one `key=value` into the tree; a non-empty result is what is wrong with it."""
    key, equals, text = setting.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        return f"setting {setting!r} is not key=value"
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    node: Any = tree
    for position, part in enumerate(parts):
        is_last = position == len(parts) - 1
        if isinstance(node, list):
            if not part.isdigit() or int(part) >= len(node):
                where = ".".join(parts[:position])
                return f"setting {setting!r}: {where} is a list of {len(node)}, counted from 0"
            index: Any = int(part)
        elif isinstance(node, dict):
            index = part
            if not is_last:
                node.setdefault(part, {})
        else:
            return f"setting {setting!r}: {'.'.join(parts[:position])} is not a table"
        if is_last:
            node[index] = value
        else:
            node = node[index]
    return ""


def _describe(error: Mapping[str, Any], model: type[BaseModel]) -> str:
    """One line for one of pydantic's errors: the key and what is wrong with it."""
    location = tuple(error["loc"])
    key = ".".join(str(part) for part in location)
    kind = error["type"]
    if kind == "extra_forbidden":
        known = _known_keys(model, location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
        return f"unknown key {key!r}: {hint}"
    if kind == "missing":
        return f"missing key {key!r}"
    message = str(error["msg"]).removeprefix("Value error, ")
    if not key:  # a check of several keys together names them itself
        return message
    found = "" if isinstance(error["input"], dict | list) else f", found {error['input']!r}"
    return f"key {key!r}: {message[0].lower()}{message[1:]}{found}"


def _known_keys(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """The keys of the section at `location`."""
    section: type[BaseModel] | None = model
    for part in location:
        if isinstance(part, int) or section is None:
            continue
        field = section.model_fields.get(str(part))
        section = None if field is None else _section(field.annotation)
    return sorted(section.model_fields) if section is not None else []


def _section(annotation: Any) -> type[BaseModel] | None:
    """The pydantic model inside of an annotation such as `list[Phase]` or `Phase | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_section(argument) for argument in typing.get_args(annotation))
    return next((section for section in found if section is not None), None)
