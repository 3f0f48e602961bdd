"""What ranks tell each other of failures."""

import json

import pytest
import torch

from jigsaw_forecast.errors import DataError
from jigsaw_forecast.parallel import together as module
from jigsaw_forecast.parallel.mesh import make_mesh


def test_one_fault_on_many_ranks_is_a_few_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    failures = [{"kind": "DataError", "text": f"rows of rank {rank}"} for rank in range(9)]
    monkeypatch.setattr(
        module, "gather_texts", lambda mesh, text: [json.dumps(found) for found in failures]
    )
    with pytest.raises(DataError) as caught:
        module.together(make_mesh({}, torch.device("cpu")), lambda: None)
    lines = str(caught.value).splitlines()
    assert lines[:2] == ["rows of rank 0", "rows of rank 1"]
    assert lines[-1] == "and 5 more like these on other ranks"
    assert len(lines) == module.MAX_TEXTS + 1
