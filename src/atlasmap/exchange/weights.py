"""Convert weights from and to scvi-tools' names and shapes.

A layer with covariates has one matrix over [x, one-hot categories] in scvi-tools, and a weight plus
one table per covariate here.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from atlasmap.models.layers import CategoryTable, CovariateLinear, GaussianHead, Linear, Stack
from atlasmap.models.scanvi import Scanvi
from atlasmap.models.scvi import Scvi
from atlasmap.models.surgery import vae_of
from atlasmap.models.totalvi import Totalvi
from atlasmap.models.vae import Vae

Model = Scvi | Scanvi | Totalvi
Weights = dict[str, Tensor]


def whole(table: CategoryTable) -> Tensor:
    """Returns all rows of a table, including those appended in surgery."""
    return torch.cat([table.reference, table.appended]).detach()


def head(theirs: str, parent: str, ours: GaussianHead) -> Iterator[tuple[str, nn.Module]]:
    """Yield (scvi-tools' name, module) of a Gaussian encoder: its stack, mean and log-variance."""
    yield f"{theirs}.fc_layers", ours.stack
    yield f"{parent}.mean_encoder", ours.mean
    yield f"{parent}.var_encoder", ours.log_var


def modules(model: Model) -> Iterator[tuple[str, nn.Module]]:
    """Yield (scvi-tools' name, module) for every module with weights."""
    if isinstance(model, Totalvi):
        yield from modules_of_totalvi(model)
        return
    scvi = vae_of(model)
    yield from head("z_encoder.encoder", "z_encoder", scvi.encoder)
    if hasattr(scvi, "library_encoder"):
        yield from head("l_encoder.encoder", "l_encoder", scvi.library_encoder)
    yield "decoder.px_decoder.fc_layers", scvi.decoder
    yield "decoder.px_scale_decoder.0", scvi.scale
    if hasattr(scvi, "zero_inflation"):
        yield "decoder.px_dropout_decoder", scvi.zero_inflation
    if isinstance(model, Scanvi):
        linear = model.variant == "linear"
        yield "classifier.classifier.0.fc_layers", model.classifier.stack
        yield f"classifier.classifier.{0 if linear else 1}", model.classifier.out
        yield from head("encoder_z2_z1.encoder", "encoder_z2_z1", model.encoder_z2)
        for name, ours in head("decoder_z1_z2.decoder", "decoder_z1_z2", model.decoder_z1):
            yield name.replace("_encoder", "_decoder"), ours


def modules_of_totalvi(model: Totalvi) -> Iterator[tuple[str, nn.Module]]:
    """Yield the same for totalVI; a classifier has no counterpart in scvi-tools' TOTALVI."""
    yield "encoder.encoder.fc_layers", model.encoder.stack
    yield "encoder.z_mean_encoder", model.encoder.mean
    yield "encoder.z_var_encoder", model.encoder.log_var
    if hasattr(model, "library_encoder"):
        yield "encoder.l_gene_encoder.fc_layers", model.library_encoder.stack
        yield "encoder.l_gene_mean_encoder", model.library_encoder.mean
        yield "encoder.l_gene_var_encoder", model.library_encoder.log_var
    for name, ours, outs in (
        ("px_decoder", model.genes, {"scale": "px_scale_decoder"}),
        ("py_back_decoder", model.background,
         {"mean": "py_back_mean_log_alpha", "sd": "py_back_mean_log_beta"}),
        ("py_fore_decoder", model.foreground, {"scale": "py_fore_scale_decoder"}),
        ("sigmoid_decoder", model.mixture,
         {"mixing": "py_background_decoder", "zero_inflation": "px_dropout_decoder_gene"}),
    ):  # fmt: skip
        yield f"decoder.{name}.fc_layers", ours.stack
        for key, layer in ours.outs.items():
            yield f"decoder.{outs[key]}.fc_layers.Layer 0.0", layer


def tables(model: Model) -> Iterator[tuple[str, CategoryTable]]:
    """Yield (scvi-tools' name, table) for tables that are single parameters in scvi-tools.

    Shapes there: features × batches, or (features,) if not per batch.
    """
    vae = vae_of(model)
    if hasattr(vae, "log_theta"):
        yield "px_r", vae.log_theta
    if isinstance(vae, Totalvi):
        yield "py_r", vae.protein_log_theta
        yield "log_per_batch_efficiency", vae.log_efficiency
        yield "background_pro_alpha", vae.background_prior_mean
        yield "background_pro_log_beta", vae.background_prior_log_sd


def linear_out(name: str, layer: CovariateLinear) -> Weights:
    """Returns a layer's weights under scvi-tools' names.

    A covariate with a single category has no column in scvi-tools' matrix.
    """
    columns = [rows.T for rows in map(whole, layer.tables) if len(rows) > 1]
    weight = torch.cat([layer.weight.detach(), *columns], 1)
    return {f"{name}.weight": weight, f"{name}.bias": layer.bias.detach()}


def linear_in(name: str, layer: CovariateLinear, weights: Weights) -> None:
    """Copy scvi-tools' weights into a layer without appended rows, in place."""
    tables = [table.reference for table in layer.tables if len(table.reference) > 1]
    widths = [layer.weight.shape[1], *map(len, tables)]
    n_in, *columns = weights[f"{name}.weight"].split(widths, 1)
    layer.weight.copy_(n_in)
    layer.bias.copy_(weights[f"{name}.bias"])
    for table, rows in zip(tables, columns, strict=True):
        table.copy_(rows.T)


def stack_out(name: str, stack: Stack) -> Weights:
    """Returns a stack's weights under scvi-tools' names."""
    out = {}
    for k, layer in enumerate(stack.layers):
        out |= linear_out(f"{name}.Layer {k}.0", layer)
    for k, norm in enumerate(stack.norms):
        out |= {f"{name}.Layer {k}.1.{key}": value for key, value in norm.state_dict().items()}
        out[f"{name}.Layer {k}.1.num_batches_tracked"] = torch.tensor(0)
    return out


def stack_in(name: str, stack: Stack, weights: Weights) -> None:
    """Copy scvi-tools' weights into a stack without appended rows, in place."""
    for k, layer in enumerate(stack.layers):
        linear_in(f"{name}.Layer {k}.0", layer, weights)
    for k, norm in enumerate(stack.norms):
        for key, value in norm.state_dict().items():
            value.copy_(weights[f"{name}.Layer {k}.1.{key}"])


def weights_out(model: Model) -> Weights:
    """Returns the model's weights under the names and in the shapes of scvi-tools 1.4.2."""
    vae, out = vae_of(model), {}
    for name, module in modules(model):
        if isinstance(module, Linear):
            out |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
        elif isinstance(module, CovariateLinear):
            out |= linear_out(name, module)
        else:
            out |= stack_out(name, module)
    for name, table in tables(model):
        rows = whole(table)
        out[name] = rows[0] if table.covariate is None else rows.T
    if hasattr(vae, "library_prior"):
        means, variances = whole(vae.library_prior).T
        out |= {"library_log_means": means[None], "library_log_vars": variances[None]}
    if isinstance(model, Scanvi):
        out["y_prior"] = torch.full((1, model.n_labels), 1 / model.n_labels)
    return {name: value.detach().cpu().clone() for name, value in out.items()}


def unused(model: Model) -> Weights:
    """Returns zeros for parameters that scvi-tools 1.4.2 has and loads, but never uses."""
    if isinstance(model, Totalvi):
        return unused_of_totalvi(model)
    scvi = vae_of(model)
    n_genes, hidden = scvi.shape.n_genes, scvi.settings.n_hidden
    out = {}
    for name in ("decoder.px_r_decoder", "decoder.px_dropout_decoder"):
        out |= {
            f"{name}.weight": torch.zeros(n_genes, hidden),
            f"{name}.bias": torch.zeros(n_genes),
        }
    if scvi.settings.gene_likelihood == "poisson":
        rows = len(whole(scvi.decoder.layers[0].tables[0]))
        by_batch = scvi.settings.dispersion == "gene-batch"
        out["px_r"] = torch.zeros((n_genes, rows) if by_batch else n_genes)
    if not hasattr(scvi, "library_encoder"):
        out |= idle_library_encoder(scvi, "l_encoder.encoder.fc_layers", "l_encoder.{}_encoder")
    return {name: value.cpu() for name, value in out.items()}


def idle_library_encoder(vae: Vae, stack: str, ends: str) -> Weights:
    """Returns zeros for an unused encoder of the library size, shaped like q(z | x)'s first layer.

    `stack`: name of its layers; `ends`: name of its mean and variance, with a {} for either.
    """
    out = {
        key: torch.zeros_like(value)
        for key, value in stack_out(stack, vae.encoder.stack).items()
        if ".Layer 0." in key
    }
    for end in ("mean", "var"):
        for part, shape in (("weight", (1, vae.settings.n_hidden)), ("bias", (1,))):
            out[f"{ends.format(end)}.{part}"] = torch.zeros(shape)
    return out


def unused_of_totalvi(model: Totalvi) -> Weights:
    """Returns the same for totalVI."""
    out = {}
    if not hasattr(model, "library_encoder"):
        names = ("encoder.l_gene_encoder.fc_layers", "encoder.l_gene_{}_encoder")
        out |= idle_library_encoder(model, *names)
    if "zero_inflation" not in model.mixture.outs:
        name = "decoder.px_dropout_decoder_gene.fc_layers.Layer 0.0"
        like = linear_out(name, model.genes.outs["scale"])
        out |= {key: torch.zeros_like(value) for key, value in like.items()}
    return {name: value.cpu() for name, value in out.items()}


def differences(model: Model, weights: Weights) -> list[str]:
    """Returns why `weights` (scvi-tools' names) do not fit the model; empty if they do."""
    idle = unused(model)
    wanted = {name: tuple(value.shape) for name, value in weights_out(model).items()}
    given = {name: tuple(value.shape) for name, value in weights.items()}
    out = [f"{name} is missing" for name in wanted.keys() - given.keys()]
    out += [f"{name} is not known" for name in given.keys() - wanted.keys() - idle.keys()]
    out += [
        f"{name} is {given[name]}, not {wanted[name]}"
        for name in wanted.keys() & given.keys()
        if given[name] != wanted[name]
    ]
    return sorted(out)


@torch.no_grad()
def weights_in(model: Model, weights: Weights) -> None:
    """Copy `weights` (scvi-tools' names, without `differences`) into the model, in place.

    The model must have no rows appended in surgery.
    """
    vae = vae_of(model)
    for name, module in modules(model):
        if isinstance(module, Linear):
            module.weight.copy_(weights[f"{name}.weight"])
            module.bias.copy_(weights[f"{name}.bias"])
        elif isinstance(module, CovariateLinear):
            linear_in(name, module, weights)
        else:
            stack_in(name, module, weights)
    for name, table in tables(model):
        table.reference.copy_(weights[name][None] if table.covariate is None else weights[name].T)
    if hasattr(vae, "library_prior"):
        moments = [weights["library_log_means"][0], weights["library_log_vars"][0]]
        vae.library_prior.reference.copy_(torch.stack(moments, 1))
