"""Twenty train steps on any mesh are those of one rank, whether they are interrupted or not."""

from collections.abc import Callable
from math import prod
from pathlib import Path

import pytest

from jigsaw_forecast.parallel.mesh import single_rank_mesh
from tests.parallel import training
from tests.parallel.ranks import RankPool

MESHES = [
    {"data": data, "domain": domain, "tensor": tensor}
    for data in (1, 2)
    for domain in (1, 2)
    for tensor in (1, 2)
    if data * domain * tensor > 1
]
TOLERANCE = {"float64": 1e-10, "float32": 1e-5}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training.write_twenty_steps(tmp_path_factory.mktemp("training"))


Twenty = Callable[[dict[str, int], str], Path]


@pytest.fixture(scope="module")
def twenty(recipe: Path, ranks: Callable[[int], RankPool]) -> Twenty:
    """The output of twenty steps on a mesh in a precision; each is trained once."""

    def output(degrees: dict[str, int], precision: str) -> Path:
        path = recipe.parent / f"{precision}-{'-'.join(map(str, degrees.values()))}"
        if not path.exists():
            arguments = (str(recipe), str(path), (f"train.precision={precision}",))
            if degrees:
                ranks(prod(degrees.values())).run(degrees, training.train_on, *arguments)
            else:
                training.train_on(single_rank_mesh(), *arguments)
        return path

    return output


@pytest.mark.parametrize("precision", list(TOLERANCE))
@pytest.mark.parametrize("degrees", MESHES, ids=str)
def test_a_mesh_trains_as_one_rank_does(
    degrees: dict[str, int], precision: str, twenty: Twenty
) -> None:
    found = training.differences(twenty(degrees, precision), twenty({}, precision))
    assert len(found) > 4 * 20
    assert {name: value for name, value in found.items() if value > TOLERANCE[precision]} == {}


def test_a_gradient_that_is_twice_what_it_should_be_shows(
    recipe: Path, twenty: Twenty, ranks: Callable[[int], RankPool], tmp_path: Path
) -> None:
    arguments = (str(recipe), str(tmp_path / "out"))
    ranks(2).run({"domain": 2}, training.train_with_doubled_gradient, *arguments)
    found = training.differences(tmp_path / "out", twenty({}, "float64"))
    assert found[f"exp_avg.{training.PLANTED}"] > 0.5
    assert found[f"exp_avg_sq.{training.PLANTED}"] > 1.0
    assert found["loss"] < 0.01  # which is why losses alone are not compared


# sums of four replicas round by their order, which a start must not change
FOUR_REPLICAS = {"data": 4, "domain": 1, "tensor": 1}


@pytest.mark.parametrize("degrees", [FOUR_REPLICAS, {"data": 1, "domain": 2, "tensor": 2}], ids=str)
def test_seven_and_thirteen_steps_are_twenty_bit_for_bit(
    degrees: dict[str, int],
    recipe: Path,
    twenty: Twenty,
    ranks: Callable[[int], RankPool],
    tmp_path: Path,
) -> None:
    arguments = (str(recipe), str(tmp_path), ("train.precision=float32",))
    ranks(4).run(degrees, training.train_on, *arguments, False, 7)
    ranks(4).run(degrees, training.train_on, *arguments, True)
    assert set(training.differences(tmp_path, twenty(degrees, "float32")).values()) == {0.0}


@pytest.mark.parametrize(
    ("first", "then"), [({"domain": 2}, {"data": 2, "tensor": 2}), ({"tensor": 2}, {})], ids=str
)
def test_another_mesh_goes_on_with_the_same_numbers(
    first: dict[str, int],
    then: dict[str, int],
    recipe: Path,
    twenty: Twenty,
    ranks: Callable[[int], RankPool],
    tmp_path: Path,
) -> None:
    ranks(2).run(first, training.train_on, str(recipe), str(tmp_path), (), False, 10)
    if then:
        ranks(4).run(then, training.train_on, str(recipe), str(tmp_path), (), True)
    else:
        training.train_on(single_rank_mesh(), str(recipe), str(tmp_path), (), True)
    assert max(training.differences(tmp_path, twenty({}, "float64")).values()) <= 1e-10
