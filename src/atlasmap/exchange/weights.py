"""The same weights under scvi-tools' names: one matrix over [x, categories] a layer there, a weight
and a table a covariate here."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from atlasmap.models.layers import CategoryTable, GaussianHead, Linear, Stack
from atlasmap.models.scanvi import Scanvi
from atlasmap.models.scvi import Scvi
from atlasmap.models.surgery import vae_of

Weights = dict[str, Tensor]


def whole(table: CategoryTable) -> Tensor:
    """All rows of a table, surgery's too."""
    return torch.cat([table.reference, table.appended]).detach()


def head(theirs: str, parent: str, ours: GaussianHead) -> Iterator[tuple[str, nn.Module]]:
    """A network with mean and variance."""
    yield f"{theirs}.fc_layers", ours.stack
    yield f"{parent}.mean_encoder", ours.mean
    yield f"{parent}.var_encoder", ours.log_var


def modules(model: Scvi | Scanvi) -> Iterator[tuple[str, nn.Module]]:
    """scvi-tools' name for each module of ours that has weights."""
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


def stack_out(name: str, stack: Stack) -> Weights:
    """A stack under their names."""
    out = {}
    for k, layer in enumerate(stack.layers):
        # A covariate with one category has no column there.
        columns = [rows.T for rows in map(whole, layer.tables) if len(rows) > 1]
        out[f"{name}.Layer {k}.0.weight"] = torch.cat([layer.weight.detach(), *columns], 1)
        out[f"{name}.Layer {k}.0.bias"] = layer.bias.detach()
    for k, norm in enumerate(stack.norms):
        out |= {f"{name}.Layer {k}.1.{key}": value for key, value in norm.state_dict().items()}
        out[f"{name}.Layer {k}.1.num_batches_tracked"] = torch.tensor(0)
    return out


def stack_in(name: str, stack: Stack, weights: Weights) -> None:
    """Fill a stack without appended rows from their names."""
    for k, layer in enumerate(stack.layers):
        tables = [table.reference for table in layer.tables if len(table.reference) > 1]
        widths = [layer.weight.shape[1], *map(len, tables)]
        n_in, *columns = weights[f"{name}.Layer {k}.0.weight"].split(widths, 1)
        layer.weight.copy_(n_in)
        layer.bias.copy_(weights[f"{name}.Layer {k}.0.bias"])
        for table, rows in zip(tables, columns, strict=True):
            table.copy_(rows.T)
    for k, norm in enumerate(stack.norms):
        for key, value in norm.state_dict().items():
            value.copy_(weights[f"{name}.Layer {k}.1.{key}"])


def weights_out(model: Scvi | Scanvi) -> Weights:
    """The model's weights under the names, and in the shapes, of scvi-tools 1.4.2."""
    scvi, out = vae_of(model), {}
    for name, module in modules(model):
        if isinstance(module, Linear):
            out |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
        else:
            out |= stack_out(name, module)
    if hasattr(scvi, "log_theta"):
        theta = whole(scvi.log_theta)
        out["px_r"] = theta.T if scvi.settings.dispersion == "gene-batch" else theta[0]
    if hasattr(scvi, "library_prior"):
        means, variances = whole(scvi.library_prior).T
        out |= {"library_log_means": means[None], "library_log_vars": variances[None]}
    if isinstance(model, Scanvi):
        out["y_prior"] = torch.full((1, model.n_labels), 1 / model.n_labels)
    return {name: value.detach().cpu().clone() for name, value in out.items()}


def unused(model: Scvi | Scanvi) -> Weights:
    """What scvi-tools 1.4.2 allocates, and wants to load, without computing anything from it."""
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
        first = {
            key.replace("z_encoder", "l_encoder"): torch.zeros_like(value)
            for key, value in stack_out("z_encoder.encoder.fc_layers", scvi.encoder.stack).items()
            if ".Layer 0." in key
        }
        ends = {
            f"l_encoder.{end}_encoder.{part}": torch.zeros(shape)
            for end in ("mean", "var")
            for part, shape in (("weight", (1, hidden)), ("bias", (1,)))
        }
        out |= first | ends
    return {name: value.cpu() for name, value in out.items()}


def differences(model: Scvi | Scanvi, weights: Weights) -> list[str]:
    """What hinders `weights` (their names) from filling the model; nothing if they fit."""
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
def weights_in(model: Scvi | Scanvi, weights: Weights) -> None:
    """Fill a model without appended rows with `weights` (their names, without `differences`)."""
    scvi = vae_of(model)
    for name, module in modules(model):
        if isinstance(module, Linear):
            module.weight.copy_(weights[f"{name}.weight"])
            module.bias.copy_(weights[f"{name}.bias"])
        else:
            stack_in(name, module, weights)
    if hasattr(scvi, "log_theta"):
        theta = weights["px_r"]
        scvi.log_theta.reference.copy_(theta.T if theta.dim() == 2 else theta[None])
    if hasattr(scvi, "library_prior"):
        moments = [weights["library_log_means"][0], weights["library_log_vars"][0]]
        scvi.library_prior.reference.copy_(torch.stack(moments, 1))
