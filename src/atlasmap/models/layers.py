"""Layers whose covariate weights are parameters of their own.

The first layer of scvi-tools has one weight matrix over [x, continuous, batch, cov1, …]. Here the
columns of each categorical covariate are a `CategoryTable`: surgery appends rows to the tables and
gives only these rows to the optimiser (promise 1 of the design: the reference cannot move).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from atlasmap.models import ops
from atlasmap.models.normal import Normal
from atlasmap.models.operands import Affine, Layers
from atlasmap.models.random import Noise, uniform

Codes = tuple[Tensor, ...]  # one integer tensor per categorical covariate, broadcast to the cells


class CategoryTable(nn.Module):
    """One row per category of one covariate; surgery appends rows.

    Parameters
    ----------
    rows
        Start values, categories × width.
    covariate
        Index of the categorical covariate (0: the batch). None: surgery appends no rows (labels;
        parameters that do not depend on the batch).
    start_bound
        New rows start uniform in ± this bound; None: at the mean of the reference's rows.
    trains
        Whether the rows are trained; None: only if there is more than one. False also keeps
        appended rows fixed.
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
        """Mean of the reference's rows (width), on the CPU."""
        return self.reference.detach().mean(0).cpu()

    def append(self, rows: Tensor) -> None:
        """Freeze the reference's rows and append `rows` (new categories × width), trainable unless
        the table was made with `trains=False`."""
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
        """Rows for batch `codes` (cells): cells × width; 1 × width if the table is not by batch."""
        return self(torch.zeros_like(codes[:1]) if self.covariate is None else codes)


class CovariateLinear(nn.Module):
    """W x + b + one row of each covariate's table, initialised as torch's Linear over the features
    and one-hot covariates.

    A covariate with one category has no influence: its row is zero and is not trained.
    """

    def __init__(self, n_in: int, n_out: int, n_categories: tuple[int, ...], labels: bool, rng):
        super().__init__()
        fan_in = n_in + sum(n for n in n_categories if n > 1)
        bound = 1 / math.sqrt(fan_in)
        # A new category is one more one-hot input.
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
        """Returns (rows to add to W x, each cell's index in them). The rows include b; there is one
        per category with one covariate, otherwise one per cell."""
        if len(self.tables) == 1:
            return self.tables[0].rows() + self.bias, codes[0]
        rows = self.bias + self.shift(codes)
        return rows, torch.arange(len(rows), device=rows.device)

    def table(self, codes: Codes) -> Tensor | None:
        """What the covariates add: categories × n_out with one covariate, cells × n_out with
        several, None without any. Raises ValueError if `codes` has another number of covariates."""
        if len(codes) != len(self.tables):
            raise ValueError(f"{len(codes)} codes a cell for {len(self.tables)} covariates")
        if len(codes) == 1:
            return self.tables[0].rows()
        return self.shift(codes)

    def shift(self, codes: Codes) -> Tensor | None:
        """Sum of each cell's rows over the covariates (cells × n_out); None without covariates."""
        rows = [table(code) for table, code in zip(self.tables, codes, strict=True)]
        return sum(rows[1:], rows[0]) if rows else None


class Linear(nn.Module):
    """Affine map initialised as torch's Linear, from the generator `rng`."""

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
        """`x` (…, width); uses (and updates running statistics with) the minibatch's statistics if
        `noise.batch_statistics`, else the running ones."""
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


class Stack(nn.Module):
    """n_layers of linear → batch norm → layer norm → ReLU → dropout.

    Covariates enter every layer (`deep`) or only the first. Batch and layer norm are optional;
    layer norm has no weights (eps 1e-5). `labels`: the covariate is the label, to which surgery
    appends no categories.
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

    def forward(
        self, x: Tensor, codes: Codes, noise: Noise | None, head: Affine | None = None,
        *, known: bool = False,
    ) -> Tensor:  # fmt: skip
        """`x` (…, n_in) → (…, last width), or `head` applied to it.

        `codes`: per covariate, the category code of each row of `x`. `known`: `x` is already the
        first layer's W x + b.
        """
        code = codes[0] if len(codes) == 1 else None
        return ops.network(x, self.operands(codes, head), code, noise, known=known)

    def operands(self, codes: Codes, head: Affine | None = None, floor: float = 0.0) -> Layers:
        """The layers as `Layers`, the argument of `ops`."""
        layers = list(self.layers)
        return Layers(
            [layer.weight for layer in layers],
            [layer.bias for layer in layers],
            [layer.table(codes if len(layer.tables) else ()) for layer in layers],
            list(self.norms), self.layer_norm, self.dropout_rate, head, floor,
        )  # fmt: skip


class GaussianHead(nn.Module):
    """A stack, then mean and variance of a diagonal normal; variance = exp(·) + `floor`."""

    def __init__(self, stack: Stack, n_hidden: int, n_out: int, floor: float, rng: torch.Generator):
        super().__init__()
        self.stack, self.floor = stack, floor
        self.mean = Linear(n_hidden, n_out, rng)
        self.log_var = Linear(n_hidden, n_out, rng)

    def forward(self, x: Tensor, codes: Codes, noise: Noise | None) -> Normal:
        """Normals (…, n_out)."""
        return Normal(self.stack(x, codes, noise, self.last()), self.floor)

    def after(self, product: Tensor, codes: Codes, noise: Noise | None) -> Normal:
        """As `forward`, from W x + b of the stack's first layer (`product`)."""
        return Normal(self.stack(product, codes, noise, self.last(), known=True), self.floor)

    def operands(self, codes: Codes) -> Layers:
        """The stack with the output layer as its head, as `Layers`."""
        return self.stack.operands(codes, self.last(), self.floor)

    def last(self) -> Affine:
        """Weight and bias of the output layer: means and log variances stacked, so that one matrix
        product computes both."""
        weight = torch.cat([self.mean.weight, self.log_var.weight])
        return weight, torch.cat([self.mean.bias, self.log_var.bias])
