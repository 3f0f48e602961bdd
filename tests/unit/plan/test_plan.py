"""The plan of a mesh: memory, traffic and time out of the model's own code on meta tensors."""

import dataclasses

import pytest
import torch

from jigsaw_forecast.errors import ForecastError
from jigsaw_forecast.forecast.rollout import one_step
from jigsaw_forecast.parallel.accounting import Operation
from jigsaw_forecast.plan.devices import find_device_kind
from jigsaw_forecast.plan.meshes import Workload, all_meshes, plan_meshes
from jigsaw_forecast.plan.simulate import simulate
from jigsaw_forecast.plan.trace import (
    Begin,
    Compute,
    End,
    GradientReady,
    Trace,
    described_mesh,
    make_traced_model,
    trace,
)
from jigsaw_forecast.train.bench import training_step, training_tensors
from tests.parallel import cases

DEVICE = dataclasses.replace(
    find_device_kind("h200"),
    matrix_flops_per_second={"float32": 100.0},
    memory_bytes_per_second=10.0,
    link_bytes_per_second=5.0,
    node_link_bytes_per_second=1.0,
    latency_s=0.0,
    ranks_per_node=2,
)
DEVICE_WITH_ROOM = dataclasses.replace(find_device_kind("h200"), memory_bytes=1e12)


def test_what_travels_during_compute_costs_no_time() -> None:
    gather = Operation("all-gather", "tensor", "weights", 50)
    events = [Begin(gather), Compute(2000, 0), End(gather), Compute(0, 10)]
    times = simulate(events, DEVICE, "float32", {"tensor": 2})
    assert times.step == pytest.approx(20.0 + 1.0)  # 50 bytes take 10 s, within the 20 s
    assert times.communication == pytest.approx(10.0)


def test_what_does_not_fit_behind_compute_is_waited_for() -> None:
    gather = Operation("all-gather", "domain", "activations", 50)
    events = [Begin(gather), Compute(1000, 0), End(gather)]
    # domain x tensor spans 4 ranks of nodes of 2: 50 s at 1 byte/s
    assert simulate(events, DEVICE, "float32", {"domain": 2, "tensor": 2}).step == 50.0


def test_gradients_travel_during_the_rest_of_backward() -> None:
    events = [Compute(1000, 0), GradientReady(40), Compute(500, 0)]
    degrees = {"data": 2}
    assert simulate(events, DEVICE, "float32", degrees).step == pytest.approx(10.0 + 40.0 / 5.0)
    slow = simulate(events, DEVICE, "float32", {"data": 4})
    assert slow.step == pytest.approx(10.0 + 2 * 3 * 40 / 4 / 1.0)


def test_every_mesh_of_twelve_ranks_is_listed_once() -> None:
    meshes = list(all_meshes(12, with_data=True))
    assert len(meshes) == 18  # ordered triples with product 12
    assert len({tuple(mesh.values()) for mesh in meshes}) == 18
    assert all(mesh["data"] * mesh["domain"] * mesh["tensor"] == 12 for mesh in meshes)


def workload(mode: str) -> Workload:
    if mode == "inference":
        return Workload(cases.CONFIG, mode, "float32", False, lambda _: one_step)
    return Workload(cases.CONFIG, mode, "float32", True, training_step, training_tensors)


def rows(mode: str, num_ranks: int, memory_bytes: float = 1e12) -> list[dict]:
    device = dataclasses.replace(find_device_kind("h200"), memory_bytes=memory_bytes)
    return plan_meshes(workload(mode), num_ranks, device)


def test_meshes_that_do_not_divide_are_listed_last_with_the_reason() -> None:
    found = rows("inference", 5)
    assert [row["fits"] for row in found] == [False, False]
    assert any("domain=5 does not divide 24 token rows" in row["reason"] for row in found)


def test_a_mesh_without_memory_does_not_fit_and_says_what_it_needs() -> None:
    enough = rows("training", 4)
    assert all(row["fits"] for row in enough)
    least = min(row["per_rank"]["peak_bytes"] for row in enough)
    for row in rows("training", 4, memory_bytes=0.9 * least):
        assert not row["fits"]
        assert "needs" in row["reason"]


def test_moments_are_those_of_an_optimizer_that_exists() -> None:
    for row in rows("training", 4):
        held = row["per_rank"]
        # two moments like the parameter and a count of steps, a float32, for each parameter
        extra = held["moment_bytes"] - 2 * held["parameter_bytes"]
        assert 0 < extra <= 4 * (11 * cases.CONFIG.num_blocks + 20)
        assert held["average_bytes"] == held["gradient_bytes"] == held["parameter_bytes"]
        parts = ("parameter", "gradient", "moment", "average")
        assert held["peak_bytes"] > sum(held[f"{name}_bytes"] for name in parts)
    assert all(row["per_rank"]["moment_bytes"] == 0 for row in rows("inference", 4))


def test_groups_share_a_global_batch() -> None:
    own = dataclasses.replace(workload("training"), global_batch_size=4)
    found = {tuple(row["mesh"].values()): row for row in plan_meshes(own, 8, DEVICE_WITH_ROOM)}
    assert found[4, 2, 1]["batch_size"] == 1
    assert found[1, 2, 4]["batch_size"] == 4
    assert not found[8, 1, 1]["fits"]
    assert found[8, 1, 1]["reason"] == "data=8 does not divide 4 samples"
    # the same arithmetic for the same samples, but for 7 fields on 4 ranks counted as 4 times 2
    flops = {row["flops_per_step"] for row in found.values() if row["fits"]}
    assert max(flops) < 8 / 7 * min(flops)


def test_known_shapes_give_what_torch_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    def look() -> Trace:
        model = make_traced_model(
            cases.CONFIG, described_mesh({"domain": 2, "tensor": 4}), torch.bfloat16,
            matrices_in_dtype=False,
        )  # fmt: skip
        return trace(model, training_step(2), training_tensors)

    quick = look()
    monkeypatch.setattr(
        "jigsaw_forecast.plan.trace._Shapes.run",
        lambda self, func, args, kwargs, leaves: func(*args, **kwargs),
    )
    assert look() == quick


def test_an_unknown_device_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ForecastError, match="a100, h100, h200, cpu"):
        find_device_kind("tpu")
