"""W x + b of sparse counts: the encoder's first layer, whose input is mostly zero."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from atlasmap.models.negative_binomial import Entries

DENSE = 0.2  # share of entries from which a dense product is faster


class SparseProduct(torch.autograd.Function):
    """The compiled product: `weight` outputs × genes, `values` one an entry."""

    @staticmethod
    def forward(ctx, weight, bias, entries: Entries, values):
        from atlasmap.models.kernels import sparse_product
        from atlasmap.models.parts import side_by_side

        told = entries.starts, entries.gene, values
        out = weight.new_empty(len(entries.starts) - 1, len(weight))
        by_gene = weight.detach().t().contiguous()
        side_by_side(sparse_product, len(out), *told, by_gene, bias, out)
        ctx.save_for_backward(*told)
        ctx.n_genes = weight.shape[1]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        from atlasmap.models.kernels import sparse_product_slopes
        from atlasmap.models.parts import side_by_side

        if not ctx.needs_input_grad[0]:
            return None, upstream.sum(0), None, None
        of_weight = upstream.new_empty(ctx.n_genes, upstream.shape[1])
        told = *ctx.saved_tensors, upstream.contiguous(), of_weight
        side_by_side(sparse_product_slopes, len(of_weight), *told)
        return of_weight.t(), upstream.sum(0), None, None


def product_of_entries(
    weight: Tensor, bias: Tensor, entries: Entries, values: Tensor, n_genes: int
) -> Tensor:
    """W x + b (cells × outputs) of an x that is `values` at the `entries` and zero elsewhere."""
    sparse = len(values) < DENSE * n_genes * (len(entries.starts) - 1)
    if sparse and weight.device.type == "cpu" and weight.dtype == torch.float32:
        return SparseProduct.apply(weight, bias, entries, values)
    return F.linear(entries.dense(values, n_genes), weight, bias)
