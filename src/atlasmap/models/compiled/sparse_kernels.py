"""Kernels for the non-zero counts of a minibatch (CSR, float32)."""

from atlasmap.models.compiled.arithmetic import ZERO
from atlasmap.models.compiled.cache import compiled
from atlasmap.models.compiled.threads import in_parts


@compiled
def cells_of_sparse_product(first, last, starts, gene, values, weight, bias, out):
    """out = x W + b (cells × outputs), x in CSR form (`starts`, `gene`, `values`); `weight` is
    genes × outputs."""
    width = out.shape[1]
    for c in range(first, last):
        for j in range(width):
            out[c, j] = bias[j]
        begin, end = starts[c], starts[c + 1]
        whole = begin + (end - begin) // 4 * 4
        for i in range(begin, whole, 4):  # four at a time: `out` is read and written once for them
            v0, v1, v2, v3 = values[i], values[i + 1], values[i + 2], values[i + 3]
            g0, g1, g2, g3 = gene[i], gene[i + 1], gene[i + 2], gene[i + 3]
            for j in range(width):
                out[c, j] += (v0 * weight[g0, j] + v1 * weight[g1, j]) + (
                    v2 * weight[g2, j] + v3 * weight[g3, j]
                )
        for i in range(whole, end):
            value, g = values[i], gene[i]
            for j in range(width):
                out[c, j] += value * weight[g, j]


@compiled
def genes_of_sparse_product_grad(first, last, starts, gene, values, upstream, of_weight):
    """Gradient of Σ upstream · `sparse_product` for the weight (genes × outputs); the slice is over
    genes, so that no two threads write to the same row."""
    of_weight[first:last] = ZERO
    for c in range(len(upstream)):
        for i in range(starts[c], starts[c + 1]):
            value, g = values[i], gene[i]
            if first <= g < last:
                for j in range(upstream.shape[1]):
                    of_weight[g, j] += value * upstream[c, j]


@compiled
def rows_of_take(first, last, indptr, indices, data, index, starts, gene, count, depth):
    """Copies rows `index` of a CSR matrix to `gene` and `count`, and their sums to `depth`
    (rows × 1)."""
    for r in range(first, last):
        source, to, total = indptr[index[r]], starts[r], 0.0
        for k in range(starts[r + 1] - to):
            gene[to + k], count[to + k] = indices[source + k], data[source + k]
            total += data[source + k]
        depth[r, 0] = total


@compiled
def cells_of_spread(first, last, starts, gene, values, out):
    """Writes the entries of a CSR matrix into `out` (cells × genes), which is zero before."""
    for c in range(first, last):
        for k in range(starts[c], starts[c + 1]):
            out[c, gene[k]] = values[k]


@compiled
def sparse_product(threads, n, *given):
    """`cells_of_sparse_product` on threads."""
    in_parts(cells_of_sparse_product, n, threads, given)


@compiled
def sparse_product_grad(threads, n, *given):
    """`genes_of_sparse_product_grad` on threads."""
    in_parts(genes_of_sparse_product_grad, n, threads, given)


@compiled
def take_rows(threads, n, *given):
    """`rows_of_take` on threads."""
    in_parts(rows_of_take, n, threads, given)


@compiled
def spread(threads, n, *given):
    """`cells_of_spread` on threads."""
    in_parts(cells_of_spread, n, threads, given)
