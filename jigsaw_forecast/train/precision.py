"""Which dtype computes and which is kept."""

import torch

from jigsaw_forecast.data.training_set import Batch


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of the products that a recipe's precision means on a device.

    `auto` is bfloat16 on GPUs and on CPUs with instructions for it (measured 2.5 to 3 times as
    fast there, see docs/log.md; slower than float32 elsewhere).
    """
    if precision == "auto":
        # older versions of torch cannot tell: then float32 is the safe answer
        found: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
        has_bfloat16 = device.type == "cuda" or any(
            found.get(name, False) for name in ("avx512_bf16", "amx_bf16")
        )
        precision = "bfloat16" if has_bfloat16 else "float32"
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
    return dtypes[precision]


def master_dtype(precision: str) -> torch.dtype:
    """The dtype of weights, residual stream, moments and averages: float32 unless float64."""
    return torch.float64 if precision == "float64" else torch.float32


def in_precision(batch: Batch, dtype: torch.dtype) -> Batch:
    """A batch in the dtype of the weights."""
    return Batch(batch.states.to(dtype), batch.diagnostics.to(dtype), batch.forcings.to(dtype))


def micro_batches(batch: Batch, count: int) -> list[Batch]:
    """A batch in so many parts of one size."""
    if count == 1:
        return [batch]
    parts = (part.chunk(count) for part in (batch.states, batch.diagnostics, batch.forcings))
    return [Batch(*part) for part in zip(*parts, strict=True)]
