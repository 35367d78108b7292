"""Which points are near which: exact distances to the nearest neighbours, in chunks of rows.

Squared distances are matrix products, ‖y‖² - 2x·y with the constant ‖x‖² of a row left out while its smallest
entries are selected. Their absolute error is of the order of ε‖x‖², so that rows with a close neighbour are
searched again in higher precision, and at last by direct differences.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from observatory.dimension.pairs import nearest_by_pairs, worthwhile
from observatory.dimension.selection import smallest, smallest_values

CLOSE = 1e4  # rows with r₁² below this many ε max‖x‖² are searched again with smaller errors
LOOSE = 1e10  # ... and in float64 below this many, the distances that were selected are computed again
CACHED = 2**23  # bytes of a chunk on a CPU: what was just written is read again from the cache
FEW = 16  # of less than one row in so many the smallest entries are selected without groups
TREE_DIMENSIONS = 6  # up to here a k-d tree takes differences, which keep ties, at no higher cost
TREE_AT_MOST = 8  # dimensions; so far it is faster for many points, from c k^¾ 1.65^D on: by timing
TREE_POINTS = {True: 20, False: 32}  # c, with indices and without
SINGLE = 1.7  # times as many if products are in float32
LEAF = 32  # points
TIED = 1e-9  # relative difference of squares in float64 that may be rounding
NARROW = 128  # dimensions up to which choosing the smallest takes longer than the matrix product


def nearest(
    x: Tensor, k: int, *, dtype: torch.dtype, chunk_bytes: int, rows: Tensor | None = None
) -> tuple[Tensor, Tensor, int]:
    """Distances to the k nearest other points and their indices, ascending.

    Args:
        x: distinct points, centred, float64, (N, D).
        k: 1 ≤ k < N.
        dtype: of the matrix product, float32 or float64.
        chunk_bytes: upper bound of the memory for distances.
        rows: points to search the neighbours of; default all.

    Returns:
        Distances (rows, k) in float64, indices (rows, k), and the number of rows that had to be searched
        again.
    """
    if rows is None and (_few_dimensions(x) or _many_points(x, k, dtype, indices=True)):
        return *_by_tree(x, k), 0
    every = rows is None
    rows = torch.arange(len(x), device=x.device) if rows is None else rows
    working = x.to(dtype)
    if every and _wide(x) and worthwhile(len(x), k, chunk_bytes):
        squares, indices = nearest_by_pairs(working, k, chunk_bytes)
        if len(left := squares[:, 0].isnan().nonzero().squeeze(1)):
            squares[left], indices[left] = _by_product(working, left, k, chunk_bytes)
    else:
        squares, indices = _by_product(working, rows, k, chunk_bytes)
    unit = _unit(x, dtype)
    close = squares[:, 0] < CLOSE * unit
    distances = squares.clamp_min(0).sqrt()
    if dtype == torch.float64:
        _refine(x, rows, distances, indices, squares[:, 0] < LOOSE * unit, chunk_bytes)
    again = close.nonzero().squeeze(1)
    if len(again):
        if dtype == torch.float64:
            found = _by_differences(x, rows[again], k, chunk_bytes)
        else:
            found = nearest(x, k, dtype=torch.float64, chunk_bytes=chunk_bytes, rows=rows[again])[:2]
        distances[again], indices[again] = found
    return distances, indices, len(again)


def distances_alone(
    x: Tensor, k: int, *, dtype: torch.dtype, chunk_bytes: int
) -> tuple[Tensor, Tensor | None, int]:
    """The same without the indices, where these cost more than the distances; None instead of them."""
    if _many_points(x, k, dtype, indices=False):
        return *_by_tree(x, k), 0
    if _few_dimensions(x):
        return _ties_by_tree(x, k, chunk_bytes), None, 0
    if x.device.type != "cpu" or _wide(x):
        return nearest(x, k, dtype=dtype, chunk_bytes=chunk_bytes)
    squares = _values_by_product(x.to(dtype), k, chunk_bytes)
    again = squares[:, 0] < (LOOSE if dtype == torch.float64 else CLOSE) * _unit(x, dtype)
    again = again.nonzero().squeeze(1)
    distances = squares.clamp_min_(0).sqrt_()
    if not len(again):
        return distances, None, 0
    distances[again], _, closest = nearest(x, k, dtype=torch.float64, chunk_bytes=chunk_bytes, rows=again)
    return distances, None, closest if dtype == torch.float64 else len(again)


def _ties_by_tree(x: Tensor, k: int, chunk_bytes: int) -> Tensor:
    """Distances in few dimensions: by the product in float64; by differences where it cannot tell ties."""
    squares = _values_by_product(x, k, chunk_bytes)
    tied = (squares.diff(dim=1) <= TIED * squares[:, 1:]).any(1)
    again = (tied | (squares[:, 0] < LOOSE * _unit(x, x.dtype))).nonzero().squeeze(1)
    distances = squares.clamp_min_(0).sqrt_()
    if len(again):
        distances[again] = _by_tree(x, k, again)[0]
    return distances


def _unit(x: Tensor, dtype: torch.dtype) -> float:
    """ε max‖x‖², of whose order errors of squares are."""
    return torch.finfo(dtype).eps * float(torch.linalg.vector_norm(x, dim=1).max()) ** 2


def _wide(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.shape[1] > NARROW


def _few_dimensions(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.shape[1] <= TREE_DIMENSIONS


def _many_points(x: Tensor, k: int, dtype: torch.dtype, *, indices: bool) -> bool:
    """Whether a k-d tree takes less time than the distances of all pairs."""
    n, d = x.shape
    if x.device.type != "cpu" or d > TREE_AT_MOST:
        return False
    single = dtype == torch.float32 and d > TREE_DIMENSIONS
    return n > TREE_POINTS[indices] * k**0.75 * 1.65**d * (SINGLE if single else 1.0)


def _by_tree(x: Tensor, k: int, rows: Tensor | slice = slice(None)) -> tuple[Tensor, Tensor]:
    from scipy.spatial import cKDTree

    found = cKDTree(x.numpy(), leafsize=LEAF).query(x[rows].numpy(), k=k + 1)
    distances, indices = (torch.from_numpy(one)[:, 1:] for one in found)  # the first is the point itself
    return distances.contiguous(), indices.contiguous()


def _values_by_product(x: Tensor, k: int, chunk_bytes: int) -> Tensor:
    """Squared distances in float64, of narrow points on a CPU."""
    n = len(x)
    norms = torch.linalg.vector_norm(x, dim=1, keepdim=True).square()
    left, right = torch.cat([-2 * x, torch.ones_like(norms)], 1), torch.cat([x, norms], 1).T
    squares = torch.empty(n, k, dtype=torch.float64)
    size = chunk_rows(n, x, chunk_bytes)
    buffer = x.new_empty(min(size, n), n)
    for start in range(0, n, size):
        part = left[start : start + size]
        block = torch.mm(part, right, out=buffer[: len(part)])
        block.diagonal(start).fill_(math.inf)  # not its own neighbour
        squares[start : start + size] = torch.from_numpy(smallest_values(block.numpy(), k))
    return squares.add_(norms)


def _by_product(x: Tensor, rows: Tensor, k: int, chunk_bytes: int) -> tuple[Tensor, Tensor]:
    """Squared distances in float64, and indices."""
    n = len(x)
    on_cpu = x.device.type == "cpu"
    groups = 1 if on_cpu or len(rows) <= n // FEW else max(1, round(math.sqrt(n / k)))
    padded = torch.nn.functional.pad(x, (0, 0, 0, -n % groups)) if n % groups else x
    norms = torch.linalg.vector_norm(x, dim=1).square()
    offset = torch.nn.functional.pad(norms, (0, -n % groups), value=torch.inf)
    squares = torch.empty(len(rows), k, dtype=torch.float64, device=x.device)
    indices = torch.empty(len(rows), k, dtype=torch.int64, device=x.device)
    size = chunk_rows(len(padded), x, chunk_bytes)
    buffer = x.new_empty(min(size, len(rows)), len(padded))
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        block = torch.addmm(offset, x[part], padded.T, alpha=-2, out=buffer[: len(part)])
        block.scatter_(1, part[:, None], torch.inf)  # not its own neighbour
        if on_cpu:
            values, indices[start : start + size] = map(torch.from_numpy, smallest(block.numpy(), k))
        else:
            values, indices[start : start + size] = _smallest(block, k, groups)
        squares[start : start + size] = values.double() + norms[part, None].double()
    return squares, indices


def chunk_rows(columns: int, x: Tensor, chunk_bytes: int) -> int:
    """How many rows of distances are computed together."""
    budget = min(chunk_bytes, CACHED) if x.device.type == "cpu" else chunk_bytes
    return max(1, budget // (columns * x.element_size()))


def _smallest(block: Tensor, k: int, groups: int) -> tuple[Tensor, Tensor]:
    """The k smallest entries of each row, ascending, and their columns.

    They lie in the k strided groups with the smallest minima: three small passes are several times faster
    than one selection over the row.
    """
    if groups == 1:
        columns = _least(block, k)
        values, order = block.gather(1, columns).sort(1)
        return values, columns.gather(1, order)
    parts = block.view(len(block), groups, -1)
    width = parts.shape[2]
    k_groups = min(k, width)
    near = _least(parts.amin(1), k_groups)  # (B, k)
    candidates = parts.gather(2, near[:, None].expand(-1, groups, -1)).flatten(1)
    chosen = _least(candidates, k)
    values, order = candidates.gather(1, chosen).sort(1)
    chosen = chosen.gather(1, order)
    return values, (chosen // k_groups) * width + near.gather(1, chosen % k_groups)


def _least(rows: Tensor, k: int) -> Tensor:
    """Columns of the k smallest entries of each row, in no order."""
    return rows.topk(k, largest=False, sorted=False).indices


def _refine(
    x: Tensor, rows: Tensor, distances: Tensor, indices: Tensor, flagged: Tensor, chunk_bytes: int
) -> None:
    """Replace the distances of flagged rows to the neighbours found by those from direct differences."""
    size = max(1, min(chunk_bytes, CACHED) // (indices.shape[1] * x.shape[1] * x.element_size()))
    for part in flagged.nonzero().squeeze(1).split(size):
        exact = (x[indices[part]] - x[rows[part], None]).square().sum(2).sqrt()
        distances[part], order = exact.sort(1)
        indices[part] = indices[part].gather(1, order)


def _by_differences(x: Tensor, rows: Tensor, k: int, chunk_bytes: int) -> tuple[Tensor, Tensor]:
    distances, indices = [], []
    for part in rows.split(chunk_rows(len(x), x, chunk_bytes)):
        block = torch.cdist(x[part], x, compute_mode="donot_use_mm_for_euclid_dist")
        found = block.scatter_(1, part[:, None], torch.inf).topk(k, largest=False)
        distances.append(found.values)
        indices.append(found.indices)
    return torch.cat(distances), torch.cat(indices)
