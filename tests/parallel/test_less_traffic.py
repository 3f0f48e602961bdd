"""Traffic below that of Megatron-style tensor parallelism, counted for both on the same ranks."""

import pytest

from jigsaw_forecast.model.config import PRESETS, ModelConfig
from tests.conftest import ROOT

BFLOAT16_BYTES = 2
# Both schemes receive so much a block; ours, so much more for embed and head: what holds for two
# blocks holds for the preset's ten.
CONFIG: ModelConfig = PRESETS["wm-3.2b"].model_copy(update={"num_blocks": 2})


def test_every_claim_holds_up_to_64_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import traffic

    rows = traffic.compare(CONFIG, 64)
    assert len(rows) == 24  # every mesh but 1 x 1 that divides 80 token rows and the widths
    assert traffic.failures(rows) == []
    for row in rows:
        ranks = row["ranks"]
        # an all-reduce of N C for each of two mixings a block, by a ring
        ring = 2 * (ranks - 1) / ranks * BFLOAT16_BYTES * CONFIG.num_tokens * CONFIG.channels
        assert row["rival"]["forward"] == pytest.approx(2 * CONFIG.num_blocks * ring)
        assert row["rival"]["training"] == pytest.approx(4 * CONFIG.num_blocks * ring)
        assert row["own"]["forward weights"] == 0
    # what two ranks buy is memory: there the weights make the total larger
    two = {row["domain"]: row for row in rows if row["ranks"] == 2}
    for row in two.values():
        total = row["own"]["training activations"] + row["own"]["training weights"]
        assert total > row["rival"]["training"]


def test_more_than_the_rival_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import traffic

    own = {"forward activations": 5, "training activations": 9, "training weights": 2}
    row = {"ranks": 8, "domain": 4, "tensor": 2, "own": own}
    assert traffic.failures([row | {"rival": {"forward": 6, "training": 12}}]) == []
    (line,) = traffic.failures([row | {"rival": {"forward": 6, "training": 11}}])
    assert line == "8 ranks: the best mesh's training total is 1.000 of tensor parallelism's"
    lines = traffic.failures([row | {"ranks": 4, "rival": {"forward": 5, "training": 9}}])
    assert lines == [
        "4x2: forward activations are not below tensor parallelism's",
        "4x2: training activations are not below tensor parallelism's",
    ]
