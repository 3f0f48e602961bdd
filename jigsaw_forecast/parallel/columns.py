"""Matrices whose columns arrive from several ranks, multiplied block by block.

What is gathered along columns lies rank after rank in memory. Joining the blocks would copy the
whole matrix before each use; multiplying them one after the other costs nothing. A gradient that
goes back along columns is made in the same blocks, so that it leaves as it lies.
"""

from collections.abc import Sequence

import torch

Tensor = torch.Tensor


class Columns:
    """A matrix W [m, n] as blocks of columns, side by side.

    Attributes:
        blocks: Each [m, n_r]; the widths add up to n.
    """

    def __init__(self, blocks: Sequence[Tensor]) -> None:
        """Takes at least one block."""
        self.blocks = tuple(blocks)
        self._widths = [block.shape[1] for block in self.blocks]

    @property
    def whole(self) -> Tensor:
        """The matrix, where it is one block."""
        (matrix,) = self.blocks
        return matrix

    def times(self, x: Tensor, bias: Tensor) -> Tensor:
        """`W x + bias` [m, k] for x [n, k] and bias [m, 1]."""
        parts = x.split(self._widths)
        total = torch.addmm(bias, self.blocks[0], parts[0])
        for block, part in zip(self.blocks[1:], parts[1:], strict=True):
            torch.addmm(total, block, part, out=total)
        return total

    def transposed_times(self, x: Tensor) -> Tensor:
        """`W^T x` [n, k] for x [m, k]."""
        if len(self.blocks) == 1:
            return torch.mm(self.blocks[0].mT, x)
        total = x.new_empty((sum(self._widths), x.shape[1]))
        for block, part in zip(self.blocks, total.split(self._widths), strict=True):
            torch.mm(block.mT, x, out=part)
        return total

    def put_times_rows(self, rows: Tensor, out: Tensor) -> None:
        """Puts `W rows^T` [m, k] for rows [k, n] into its place."""
        parts = rows.split(self._widths, 1)
        torch.mm(self.blocks[0], parts[0].mT, out=out)
        for block, part in zip(self.blocks[1:], parts[1:], strict=True):
            torch.addmm(out, block, part.mT, out=out)

    def of_rows(self, rows: Tensor, bias: Tensor) -> Tensor:
        """`rows W^T + bias` [k, m] for rows [k, n] and bias [m]."""
        parts = rows.split(self._widths, 1)
        total = torch.addmm(bias, parts[0], self.blocks[0].mT)
        for block, part in zip(self.blocks[1:], parts[1:], strict=True):
            torch.addmm(total, part, block.mT, out=total)
        return total

    def back_to_rows(self, rows: Tensor) -> Tensor:
        """`rows W` [k, n] for rows [k, m]."""
        if len(self.blocks) == 1:
            return torch.mm(rows, self.blocks[0])
        total = rows.new_empty((rows.shape[0], sum(self._widths)))
        for block, part in zip(self.blocks, total.split(self._widths, 1), strict=True):
            torch.mm(rows, block, out=part)
        return total


class GrowingProduct:
    """A product that grows by one chunk of its contracted dim after the other."""

    def __init__(self, widths: Sequence[int] | None = None) -> None:
        """Empty.

        Args:
            widths: Columns of each block, blocks laid out one after the other; None for one block.
        """
        self._widths = widths
        self._memory: Tensor | None = None
        self._blocks: list[Tensor] = []

    def add(self, left: Tensor, right: Tensor) -> None:
        """Adds `left right`."""
        widths = self._widths or [right.shape[1]]
        is_first = self._memory is None
        if self._memory is None:
            num_rows = left.shape[0]
            self._memory = left.new_empty(num_rows * sum(widths))
            parts = self._memory.split([num_rows * width for width in widths])
            self._blocks = [
                part.view(num_rows, width) for part, width in zip(parts, widths, strict=True)
            ]
        for block, part in zip(self._blocks, right.split(list(widths), 1), strict=True):
            if is_first:
                torch.mm(left, part, out=block)
            else:
                # with out=, since torch's counter of operations does not know addmm_
                torch.addmm(block, left, part, out=block)

    def value(self) -> Tensor:
        """The sum, taken out: flat where it has several blocks, else a matrix."""
        memory, block = self._memory, self._blocks[0]
        self._memory, self._blocks = None, []
        assert memory is not None
        return block if self._widths is None else memory
