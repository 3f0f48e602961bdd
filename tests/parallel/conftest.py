"""The rank pools as a fixture."""

from collections.abc import Callable, Iterator

import pytest

from tests.parallel.ranks import RankPool


@pytest.fixture(scope="package")
def ranks() -> Iterator[Callable[[int], RankPool]]:
    """The pool of a world size, started when first asked for.

    It ends with these tests: a rank that waits is not idle, its groups' threads look for work.
    """
    pools: dict[int, RankPool] = {}

    def pool(world_size: int) -> RankPool:
        if world_size not in pools:
            pools[world_size] = RankPool(world_size)
        return pools[world_size]

    yield pool
    for started in pools.values():
        started.close()
