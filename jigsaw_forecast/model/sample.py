"""Which part of a sample each rank of a mesh holds."""

from dataclasses import dataclass

from jigsaw_forecast.model.config import ModelConfig
from jigsaw_forecast.parallel.layout import split_range
from jigsaw_forecast.parallel.mesh import Mesh

# Field groups are cut with the larger parts first, these two with the larger parts last, so that
# the ranks' sums stay even; the sample and the weights must agree on it.
FORCINGS_LARGER_LAST = True
DIAGNOSTICS_LARGER_LAST = True


@dataclass(frozen=True)
class Pieces:
    """Which part of the sample a rank holds: slices into the config's lists and model rows."""

    fields: slice
    diagnostics: slice
    forcings: slice
    rows: slice
    token_rows: slice


def sample_pieces(config: ModelConfig, mesh: Mesh) -> Pieces:
    """The part of the sample that this rank holds."""
    tensor, domain = mesh.tensor, mesh.domain
    token_rows = split_range(config.token_rows, domain.size, domain.index)

    def group(length: int, *, larger_last: bool) -> slice:
        return split_range(length, tensor.size, tensor.index, larger_last=larger_last)

    return Pieces(
        fields=group(len(config.fields), larger_last=False),
        diagnostics=group(len(config.diagnostics), larger_last=DIAGNOSTICS_LARGER_LAST),
        forcings=group(len(config.forcings), larger_last=FORCINGS_LARGER_LAST),
        rows=slice(token_rows.start * config.patch[0], token_rows.stop * config.patch[0]),
        token_rows=token_rows,
    )
