"""Layers whose covariate weights are parameters of their own.

A first layer of scvi-tools holds one matrix over [x, continuous, batch, cov1, …]. Here the columns
of each categorical covariate are a `CategoryTable`, so that surgery appends rows to the tables and
gives nothing else to the optimiser (promise 1 of the design: the reference cannot move).
"""

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from atlasmap.models.network import Network, dropout, has_products
from atlasmap.models.normal import Normal
from atlasmap.models.random import Noise, uniform

Last = tuple[Tensor, Tensor]  # weight (outputs × inputs) and bias of a linear layer
Codes = tuple[Tensor, ...]  # one integer tensor a categorical covariate, broadcast to the cells


class CategoryTable(nn.Module):
    """One row a category of one covariate; surgery appends rows.

    Parameters
    ----------
    rows
        Start values, categories × width.
    covariate
        Which categorical covariate the rows belong to: 0 is the batch. None for tables that surgery
        leaves alone (labels).
    start_bound
        New rows start uniform in ± this; None: at the mean of the reference's rows.
    trains
        Whether rows are trained; None: if there is more than one.
    """

    def __init__(
        self, rows: Tensor, covariate: int | None, start_bound: float | None,
        trains: bool | None = None,
    ):  # fmt: skip
        super().__init__()
        self.covariate, self.start_bound, self.fixed = covariate, start_bound, trains is False
        trains = len(rows) > 1 if trains is None else trains
        self.reference = nn.Parameter(rows, requires_grad=trains)
        self.appended = nn.Parameter(rows[:0].clone(), requires_grad=False)

    def start_row(self, generator: torch.Generator) -> Tensor:
        """Start values (width) of one new category."""
        if self.start_bound is None:
            return self.mean_row()
        return uniform((self.reference.shape[1],), self.start_bound, generator)

    def mean_row(self) -> Tensor:
        """Mean of the reference's rows (width): a category like the average one."""
        return self.reference.detach().mean(0).cpu()

    def append(self, rows: Tensor) -> None:
        """Freeze the reference's rows and append new ones (new categories × width), trainable
        unless the table is fixed."""
        self.reference.requires_grad_(False)
        rows = torch.cat([self.appended.detach(), rows.to(self.appended)])
        self.appended = nn.Parameter(rows, requires_grad=len(rows) > 0 and not self.fixed)

    def rows(self) -> Tensor:
        """All rows, appended ones last (categories × width)."""
        return torch.cat([self.reference, self.appended]) if len(self.appended) else self.reference

    def forward(self, codes: Tensor) -> Tensor:
        """Rows for integer `codes` (…) → (…, width)."""
        return F.embedding(codes, self.rows())

    def of_batches(self, codes: Tensor) -> Tensor:
        """Rows for batch `codes` (cells → cells × width); one row for all if it is not by batch."""
        return self(torch.zeros_like(codes[:1]) if self.covariate is None else codes)


class CovariateLinear(nn.Module):
    """W x + b + one row of each covariate's table, drawn as torch's Linear over all columns.

    A covariate with one category has no influence: its row is zero and stays zero.
    """

    def __init__(self, n_in: int, n_out: int, n_categories: tuple[int, ...], labels: bool, rng):
        super().__init__()
        fan_in = n_in + sum(n for n in n_categories if n > 1)
        bound = 1 / math.sqrt(fan_in)
        new_bound = 1 / math.sqrt(fan_in + 1)
        self.weight = nn.Parameter(uniform((n_out, n_in), bound, rng))
        self.bias = nn.Parameter(uniform((n_out,), bound, rng))
        self.tables = nn.ModuleList(
            CategoryTable(
                uniform((n, n_out), bound, rng) if n > 1 else torch.zeros(n, n_out),
                covariate=None if labels else k,
                start_bound=new_bound,
            )
            for k, n in enumerate(n_categories)
        )

    def biases(self, codes: Codes) -> tuple[Tensor, Tensor]:
        """What is added to W x, a row a category of the covariate, or a cell if there are several
        covariates; and which row each cell has."""
        if len(self.tables) == 1:
            return self.tables[0].rows() + self.bias, codes[0]
        rows = self.bias + self.shift(codes)
        return rows, torch.arange(len(rows), device=rows.device)

    def rows(self, codes: Codes) -> Tensor:
        """What the covariates add (rows × n_out): a row a category, or a cell if there are several
        covariates; zero without any."""
        tables = list(self.tables)
        if len(tables) > 1:
            return self.shift(codes)
        return tables[0].rows() if tables else self.bias.new_zeros(1, len(self.bias))

    def product(self, x: Tensor) -> Tensor:
        """W x + b."""
        return F.linear(x, self.weight, self.bias)

    def shift(self, codes: Codes) -> Tensor | None:
        """What the covariates add; None without any."""
        rows = [table(code) for table, code in zip(self.tables, codes, strict=True)]
        return sum(rows[1:], rows[0]) if rows else None


class Linear(nn.Module):
    """An affine map with torch's default start values drawn from a given generator."""

    def __init__(self, n_in: int, n_out: int, rng: torch.Generator):
        super().__init__()
        bound = 1 / math.sqrt(n_in)
        self.weight = nn.Parameter(uniform((n_out, n_in), bound, rng))
        self.bias = nn.Parameter(uniform((n_out,), bound, rng))

    def forward(self, x: Tensor) -> Tensor:
        """`x` (…, n_in) → (…, n_out)."""
        return F.linear(x, self.weight, self.bias)


class BatchNorm(nn.Module):
    """Batch norm over all leading dimensions (momentum 0.01, eps 1e-3, as in scvi-tools)."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x: Tensor, noise: Noise | None) -> Tensor:
        """`x` (…, width); the minibatch's statistics if `noise` says so, running ones otherwise."""
        flat = F.batch_norm(
            x.reshape(-1, x.shape[-1]),
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            training=noise is not None and noise.batch_statistics,
            momentum=0.01,
            eps=1e-3,
        )
        return flat.view(x.shape)


def check_fits(x: Tensor, weight: Tensor, code: Tensor, rows: Tensor, *, known: bool) -> None:
    """A compiled pass would read beyond the end of what does not fit, where torch's raises."""
    width = weight.shape[0 if known else 1]
    if (x.dtype, x.shape[1]) != (weight.dtype, width):
        raise ValueError(f"{x.shape[1]} {x.dtype} values a row for {width} of {weight.dtype}")
    if len(code) and code.numpy().view(np.uint64).max() >= len(rows):
        raise IndexError(f"codes from {code.min()} to {code.max()} for {len(rows)} rows")


class Stack(nn.Module):
    """n_layers of linear → batch norm → layer norm → ReLU → dropout.

    Covariates enter every layer (`deep`) or the first alone. Batch and layer norm are optional;
    layer norm has no weights (eps 1e-5).
    """

    def __init__(
        self,
        n_in: int,
        widths: list[int],
        n_categories: tuple[int, ...],
        rng: torch.Generator,
        *,
        batch_norm: bool,
        layer_norm: bool,
        dropout_rate: float = 0.0,
        labels: bool = False,
        deep: bool = True,
    ):
        super().__init__()
        self.layer_norm, self.dropout_rate, self.deep = layer_norm, dropout_rate, deep
        inputs = [n_in, *widths][:-1]
        self.layers = nn.ModuleList(
            CovariateLinear(n, width, n_categories if k == 0 or deep else (), labels, rng)
            for k, (n, width) in enumerate(zip(inputs, widths, strict=True))
        )
        self.norms = nn.ModuleList(BatchNorm(width) for width in widths if batch_norm)
        self.is_plain = layer_norm and not batch_norm and len(set(widths)) == 1

    def forward(
        self, x: Tensor, codes: Codes, noise: Noise | None, last: Last | None = None
    ) -> Tensor:
        """`x` (…, n_in) → (…, last width), or what `last`, a linear layer, makes of that."""
        if self.compiles(x, codes):
            return self.compiled(x, codes, noise, last, known=False)
        x = self.after(self.layers[0].product(x), codes, noise) if len(self.layers) else x
        return x if last is None else F.linear(x, *last)

    def after(
        self, x: Tensor, codes: Codes, noise: Noise | None, last: Last | None = None
    ) -> Tensor:
        """The same, from the first layer's product (…, first width)."""
        if self.compiles(x, codes):
            return self.compiled(x, codes, noise, last, known=True)
        for k, layer in enumerate(self.layers):
            x = layer.product(x) if k else x
            shift = layer.shift(codes if k == 0 or self.deep else ())
            x = x if shift is None else x + shift
            if len(self.norms):
                x = self.norms[k](x, noise)
            if self.layer_norm:
                x = F.layer_norm(x, x.shape[-1:])
            x = torch.relu(x)
            if noise is not None:
                x = noise.drop(x, self.dropout_rate)
        return x if last is None else F.linear(x, *last)

    def compiles(self, x: Tensor, codes: Codes) -> bool:
        """Whether there is a compiled pass for `x`: rows, each with codes of its own (or of any
        leading shape where there are no codes)."""
        of_rows = all(x.dim() == 2 and code.shape == x.shape[:1] for code in codes)
        return self.is_plain and of_rows and has_products(x)

    def parts(
        self, codes: Codes, last: Last | None, *, known: bool
    ) -> tuple[list[Tensor], Tensor | None]:
        """As `Network` is given them: what each layer adds to its product (rows × width: a row a
        category of the covariate, or a cell if there are several), weights, and the last layer's
        weight and bias. And which of the rows each cell has (None: all the same).

        If the first product is `known`, it has its bias already.
        """
        layers = list(self.layers)
        if len(codes) != len(layers[0].tables):
            raise ValueError(f"{len(codes)} codes a cell for {len(layers[0].tables)} covariates")
        weights, shifts = [layer.weight for layer in layers], [layers[0].rows(codes)]
        code = torch.arange(len(shifts[0])) if len(codes) > 1 else codes[0] if codes else None
        for layer in layers[1:]:
            shifts.append(layer.bias + layer.rows(codes) if self.deep and codes
                          else layer.bias.expand(len(shifts[0]), -1))  # fmt: skip
        if known:
            weights[0] = weights[0].new_empty(0, 0)
        else:
            shifts[0] = shifts[0] + layers[0].bias
        none = weights[0].new_empty(0, shifts[0].shape[1])
        return [*shifts, *weights, *(last or (none, none[:, 0]))], code

    def how(self, noise: Noise | None, floor: float = 0.0) -> tuple:
        """Keys of the dropout, what it keeps, its scale, and the variances' floor."""
        return *dropout(self.dropout_rate, len(self.layers), noise), np.float32(floor)

    def compiled(
        self, x: Tensor, codes: Codes, noise: Noise | None, last: Last | None, *, known: bool
    ) -> Tensor:
        """`forward` or, if the first product is `known`, `after`, in one pass."""
        (parts, code), rows = self.parts(codes, last, known=known), x.reshape(-1, x.shape[-1])
        code = torch.zeros(len(rows), dtype=torch.long) if code is None else code
        check_fits(rows, self.layers[0].weight, code, parts[0], known=known)
        out = Network.apply(rows, known, code, self.how(noise), *parts)
        return out.view(*x.shape[:-1], out.shape[-1])


class GaussianHead(nn.Module):
    """A stack, then mean and variance of a normal: variance = exp(·) + `floor`."""

    def __init__(self, stack: Stack, n_hidden: int, n_out: int, floor: float, rng: torch.Generator):
        super().__init__()
        self.stack, self.floor = stack, floor
        self.mean = Linear(n_hidden, n_out, rng)
        self.log_var = Linear(n_hidden, n_out, rng)

    def forward(self, x: Tensor, codes: Codes, noise: Noise | None) -> Normal:
        """Normals (…, n_out)."""
        return Normal(self.stack(x, codes, noise, self.last()), self.floor)

    def after(self, product: Tensor, codes: Codes, noise: Noise | None) -> Normal:
        """The same, from the product of the stack's first layer."""
        return Normal(self.stack.after(product, codes, noise, self.last()), self.floor)

    def last(self) -> Last:
        """Weight and bias of means and variances together: one product, not two."""
        weight = torch.cat([self.mean.weight, self.log_var.weight])
        return weight, torch.cat([self.mean.bias, self.log_var.bias])
