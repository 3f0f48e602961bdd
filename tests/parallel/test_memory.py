"""A rank's activations in training: its share, two chunks and two layers' gathered weights.

The ranks are those of described meshes; torch's memory tracker counts their meta tensors.
"""

from functools import cache

import pytest
import torch

from benchmarks.activation_memory import allowed_bytes, peak_activation_bytes
from jigsaw_forecast.model.config import PRESETS
from jigsaw_forecast.plan.trace import busiest_rank, make_traced_model
from jigsaw_forecast.train.bench import training_step

CONFIG = PRESETS["wm-3.2b"].model_copy(update={"num_blocks": 4})


@cache
def peak(domain: int, tensor: int) -> int:
    mesh = busiest_rank({"domain": domain, "tensor": tensor})
    model = make_traced_model(CONFIG, mesh, torch.bfloat16, matrices_in_dtype=False)
    with torch.device("meta"):
        return peak_activation_bytes(model, training_step(1))


def allowed_by_name(domain: int, tensor: int) -> dict[str, float]:
    degrees = {"domain": domain, "tensor": tensor}
    return allowed_bytes(CONFIG, degrees, peak(1, 1), item_bytes=2)


@pytest.mark.parametrize(("domain", "tensor"), [(2, 1), (1, 2), (2, 2), (4, 2)])
def test_the_peak_is_within_the_share_and_its_buffers(domain: int, tensor: int) -> None:
    allowed = allowed_by_name(domain, tensor)
    assert peak(domain, tensor) <= allowed["allowed"]


def test_one_more_layer_of_gathered_weights_would_be_seen() -> None:
    allowed = allowed_by_name(1, 2)
    assert peak(1, 2) + allowed["weights"] > allowed["allowed"]
