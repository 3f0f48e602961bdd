"""The plan of a mesh: memory, traffic and time out of the model's own code on meta tensors."""

import dataclasses

import pytest
import torch

from jigsaw_forecast.errors import ForecastError
from jigsaw_forecast.forecast.rollout import one_step
from jigsaw_forecast.model.config import PRESETS
from jigsaw_forecast.parallel.accounting import Operation
from jigsaw_forecast.plan.devices import find_device_kind
from jigsaw_forecast.plan.meshes import Workload, all_meshes, plan_meshes
from jigsaw_forecast.plan.simulate import simulate
from jigsaw_forecast.plan.trace import (
    Begin,
    Compute,
    End,
    GradientReady,
    described_mesh,
    make_traced_model,
    trace,
)
from jigsaw_forecast.train.bench import training_step
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


def rows(mode: str, num_ranks: int, memory_bytes: float = 1e12) -> list[dict]:
    step = training_step if mode == "training" else lambda _: one_step
    device = dataclasses.replace(find_device_kind("h200"), memory_bytes=memory_bytes)
    workload = Workload(cases.CONFIG, mode, "float32", mode == "training", step)
    return plan_meshes(workload, num_ranks, device)


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


@pytest.mark.parametrize(("domain", "tensor"), [(1, 1), (2, 1), (1, 2), (2, 4), (8, 8)])
def test_parameters_gradients_and_moments_of_3_2_billion_are_held_once(
    domain: int, tensor: int
) -> None:
    config = PRESETS["wm-3.2b"]
    whole = sum(
        p.numel() for p in make_traced_model(
            config, described_mesh({}), torch.bfloat16, matrices_in_dtype=False
        ).parameters()
    )  # fmt: skip
    degrees = {"domain": domain, "tensor": tensor}
    for place in ((0, 0), (domain - 1, tensor - 1)):
        model = make_traced_model(
            config, described_mesh(degrees, *place), torch.bfloat16, matrices_in_dtype=False
        )
        traced = trace(model, training_step(1))
        optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
        optimizer.step()
        held = [
            *model.parameters(),
            *(p.grad for p in model.parameters() if p.grad is not None),
            *(s[m] for s in optimizer.state.values() for m in ("exp_avg", "exp_avg_sq")),
        ]
        assert sum(t.numel() for t in held) <= 1.01 * 4 * whole / (domain * tensor)
        assert traced.gradient_bytes == 4 * sum(p.numel() for p in model.parameters())


def test_an_unknown_device_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ForecastError, match="a100, h100, h200, cpu"):
        find_device_kind("tpu")
