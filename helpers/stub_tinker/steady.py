"""Products in which a row's bits don't depend on how many rows there are, nor on its place among them.

oneDNN, MKL and cuBLAS choose a kernel by the whole shape: with other rows beside it, a row may be summed up
in another order, and its last digit changes. Which numbers of rows agree is up to the processor: with AVX-512
all do, with AMX some don't. So nothing is taken for granted. A number of rows is used only after a trial on
this very machine, in which a product with that many rows gave the bits of one with 16, at every place. What
doesn't agree is put together from smaller products that do. The attention of prompts is tried
likewise, by the number of prompts, against one prompt alone.
"""

import functools
import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

SIZES = (4, 8, 12, 16, 20, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
REFERENCE = 16  # rows; a tile of AMX has as many, and few enough to be quick with one row
ONE_PRODUCT = 32  # rows up to which filler costs less than a second pass over the weights
SLOT_SIZES = (1, 4, 16)  # slots of a product that must give what each has alone: few, as each is a new shape
FILLER = 8  # rows that cost less than another product, beyond that
GRAIN = (
    32768  # elements from which PyTorch cuts an element-wise operation into parts for its threads, anywhere
)


class Steady:
    """The numbers of rows that one kind of product may be asked for.

    Args:
        run: `run(n)` gives the results, (n, …), of one row at each of n places.
        like: another kind of product whose bits this one must give. If None, the row must give what it gives
            among 16, or alone if even that varies from place to place.
        alone: the row must give what it gives alone, in numbers of `SLOT_SIZES` and without filler.
    """

    def __init__(self, run: Callable[[int], torch.Tensor], like: "Steady | None" = None, alone: bool = False):
        self._run, self._alone = run, alone
        self._agrees: dict[int, bool] = {}
        self._sizes: dict[int, tuple[int, ...]] = {}
        if like:
            self.base, self.expected = like.base, like.expected
        else:
            self.base = 1 if alone else REFERENCE
            self.expected = run(self.base)[0].clone()
            if not alone and not self._try(REFERENCE):
                self.base, self.expected = 1, run(1)[0].clone()
        self.usable = self._try(self.base)

    def _try(self, size: int) -> bool:
        if size not in self._agrees:
            self._agrees[size] = bool((self._run(size) == self.expected).all())
        return self._agrees[size]

    def sizes(self, rows: int) -> tuple[int, ...]:
        """Numbers of rows, one after the other, of products that together take `rows` rows, and filler unless
        `alone`.
        """
        if rows not in self._sizes:
            self._sizes[rows] = tuple(self._cover(rows))
        return self._sizes[rows]

    def _cover(self, rows: int) -> Iterator[int]:
        while rows > 0:
            size = self._agreeing(_at_most(rows) if self._alone else _wanted(rows))
            yield size
            rows -= size

    def _agreeing(self, size: int) -> int:
        """`size`, or the next one towards the base that agrees with it."""
        sizes = SLOT_SIZES if self._alone else SIZES
        between = [s for s in sizes if min(size, self.base) <= s <= max(size, self.base)]
        for candidate in sorted(between, reverse=size > self.base):
            if self._try(candidate):
                return candidate
        return self.base


def _at_most(rows: int) -> int:
    return max(size for size in SLOT_SIZES if size <= rows)


def _wanted(rows: int) -> int:
    """Rows of the next product if all agreed: all of them, or less where that takes much filler."""
    size = next((s for s in SIZES if s >= rows), SIZES[-1])
    if size > ONE_PRODUCT and size > rows + FILLER:
        size = max(s for s in SIZES if s < rows)
    return size


def trial_operands(
    width: int, depth: int, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """A row (depth,) and a matrix (width, depth) whose product is zero, so that what comes out is rounding
    and nothing else: any other order of summation shows in most elements. The terms are of many magnitudes,
    or few sums would need rounding.
    """
    generator = torch.Generator().manual_seed(0)

    def numbers(count: int) -> torch.Tensor:
        exponents = torch.randint(0, 12, (count,), generator=generator)
        return (torch.randn(count, generator=generator) * 2.0**exponents).to(dtype)

    row, matrix = numbers(depth), numbers(min(width, 509) * depth).view(-1, depth)
    half, order = depth // 2, torch.randperm(depth, generator=generator)
    some, others = order[:half], order[half : 2 * half]
    row[others], matrix[:, others] = row[some], -matrix[:, some]
    row[order[2 * half :]] = 0
    matrix = matrix.repeat(math.ceil(width / len(matrix)), 1)[:width]
    return row.to(device), matrix.to(device)


def in_sizes(
    product: Callable[..., torch.Tensor], sizes: tuple[int, ...], *rows: torch.Tensor
) -> torch.Tensor:
    """product(*rows), computed from as many rows at once as `sizes` says, and filler rows at the end."""
    parts, start = [], 0
    for size in sizes:
        parts.append(product(*(fill(r[start : start + size], size) for r in rows)))
        start += size
    return (parts[0] if len(parts) == 1 else torch.cat(parts))[: len(rows[0])]


def fill(rows: torch.Tensor, size: int) -> torch.Tensor:
    """Rows of zeros added up to `size`."""
    return rows if len(rows) >= size else F.pad(rows, (0, 0) * (rows.dim() - 1) + (0, size - len(rows)))


@functools.cache
def batched(
    each: int,
    m: int,
    k: int,
    n: int,
    transposed: bool,
    dtype: torch.dtype,
    device: torch.device,
    threads: int,
    alone: bool = False,
) -> Steady:
    """The numbers of slots for products (slots·each, m, k) @ (slots·each, k, n), with as many threads.

    Args:
        transposed: the second factor lies in memory as (slots·each, n, k).
        alone: as `Steady` takes it.
    """

    @torch.inference_mode()
    def run(slots: int) -> torch.Tensor:
        row, matrix = trial_operands(n, k, dtype, device)
        a = row.expand(slots * each, m, k).contiguous()
        if transposed:
            return torch.bmm(a, matrix.expand(slots * each, n, k).contiguous().transpose(1, 2))
        return torch.bmm(a, matrix.T.expand(slots * each, k, n).contiguous())

    return Steady(run, alone=alone)


def by_rows(operation: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> torch.Tensor:
    """operation(*tensors), element-wise, in pieces of whole rows that PyTorch cuts between rows, if at all.

    A part that begins or ends within a row has elements there that are computed one by one, with another exp
    than in vectors.
    """
    rows, width = len(tensors[0]), math.prod(tensors[0].shape[1:])
    parts = max(1, min(torch.get_num_threads(), math.ceil(rows * width / GRAIN)))
    if rows % parts == 0:
        return operation(*tensors)
    pieces = zip(*(t.split(max(1, GRAIN // width)) for t in tensors), strict=True)
    return torch.cat([operation(*piece) for piece in pieces])
