"""Recipes: what is read, what is refused and in which words."""

from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict, Field

from jigsaw_forecast.errors import RecipeError
from jigsaw_forecast.recipe import dump_recipe, load_recipe, to_toml


class _Phase(BaseModel):
    model_config = ConfigDict(extra="forbid")
    num_steps: int = Field(ge=1)
    rate: float = 1e-3


class _Train(BaseModel):
    model_config = ConfigDict(extra="forbid")
    log_every: int = 10
    precision: str = "float32"
    phases: list[_Phase] = []


class _Recipe(BaseModel):
    model_config = ConfigDict(extra="forbid")
    seed: int
    train: _Train = _Train()
    note: str | None = None


def _write(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


TEXT = """seed = 3
[train]
log_every = 5
[[train.phases]]
num_steps = 100
rate = 1e-3
[[train.phases]]
num_steps = 20
"""


def test_numbers_with_exponents_are_numbers(tmp_path: Path) -> None:
    recipe = load_recipe(_write(tmp_path, TEXT), _Recipe)
    assert recipe.train.phases[0].rate == 0.001


def test_settings_reach_any_key(tmp_path: Path) -> None:
    settings = ["train.phases.1.num_steps=7", "seed=9", "train.precision=bfloat16", "note='a b'"]
    recipe = load_recipe(_write(tmp_path, TEXT), _Recipe, settings)
    assert recipe.seed == 9
    assert [phase.num_steps for phase in recipe.train.phases] == [100, 7]
    assert (recipe.train.precision, recipe.note) == ("bfloat16", "a b")


def test_an_unknown_key_is_named_with_the_nearest_known_one(tmp_path: Path) -> None:
    path = _write(tmp_path, TEXT.replace("log_every", "log_evry"))
    with pytest.raises(
        RecipeError, match=r"unknown key 'train.log_evry': did you mean 'log_every'"
    ):
        load_recipe(path, _Recipe)


def test_an_unknown_key_in_a_list_is_named_with_its_place(tmp_path: Path) -> None:
    path = _write(tmp_path, TEXT + "rat = 2.0\n")
    with pytest.raises(RecipeError, match=r"'train.phases.1.rat': did you mean 'rate'"):
        load_recipe(path, _Recipe)


def test_all_problems_come_in_one_message(tmp_path: Path) -> None:
    path = _write(
        tmp_path, "[train]\nlog_every = 'often'\nzzz = 1\n[[train.phases]]\nnum_steps=0\n"
    )
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, _Recipe, ["nonsense"])
    message = str(caught.value)
    assert str(path) in message
    for part in ("'nonsense'", "'train.log_every'", "missing key 'seed'", "'train.zzz'", "0.num_"):
        assert part in message
    assert "\n" not in message


def test_a_duplicate_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="not valid TOML"):
        load_recipe(_write(tmp_path, "seed = 1\nseed = 2\n"), _Recipe)


def test_a_recipe_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such recipe"):
        load_recipe(tmp_path / "none.toml", _Recipe)


def test_a_setting_beyond_a_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"train\.phases is a list of 2"):
        load_recipe(_write(tmp_path, TEXT), _Recipe, ["train.phases.2.num_steps=1"])


def test_a_written_recipe_reads_back_equal(tmp_path: Path) -> None:
    recipe = load_recipe(_write(tmp_path, TEXT), _Recipe, ["note='tab\\t \"quote\" é'"])
    dump_recipe(recipe, tmp_path / "again.toml")
    assert load_recipe(tmp_path / "again.toml", _Recipe) == recipe


def test_toml_of_nested_tables_is_as_written_by_hand() -> None:
    tree = {"a": 1, "b": {"c": [1.5, 2.0], "d": {"e": True}}, "f": [{"g": "x"}]}
    assert to_toml(tree) == ('a = 1\n\n[b]\nc = [1.5, 2.0]\n\n[b.d]\ne = true\n\n[[f]]\ng = "x"\n')


def test_a_key_given_twice_is_named_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"given twice: .*at line 2, column 9\): seed = 4"):
        load_recipe(_write(tmp_path, "seed = 3\nseed = 4\n"), _Recipe)
