"""Surgery (scArches, Lotfollahi et al. 2021): append rows for new categories, train only those.

Masking the gradients of whole matrices, as peers do, does not stop weight decay from moving the
rest; here the reference's parameters are frozen and never given to the optimiser.
"""

import torch
from torch import Tensor, nn

from atlasmap.models.layers import CategoryTable
from atlasmap.models.random import keyed_generator
from atlasmap.models.scvi import Scvi

NewCategories = dict[int, list[str]]  # covariate (0: the batch) → names of its new categories


def scvi_of(model: nn.Module) -> Scvi:
    """The scVI inside a model."""
    return model if isinstance(model, Scvi) else model.scvi


def append_categories(
    model: nn.Module, new: NewCategories, seed: int, library: Tensor | None = None,
    *, frozen: bool = False,
) -> list[nn.Parameter]:  # fmt: skip
    """Freeze `model` and append rows for `new` categories to every table that has them.

    Start values of a category are keyed by (seed, its name, the table), so they do not depend on
    what else is mapped with it. `library` (new batches × 2: mean and variance of log library size)
    is the new batches' prior where the library size is inferred. `frozen` leaves new rows at the
    mean of the reference's: a category like the average one.

    Returns the new rows: all that may train.
    """
    model.requires_grad_(False)
    for path, table in model.named_modules():
        if isinstance(table, CategoryTable) and new.get(table.covariate):
            rows = [
                table.mean_row()
                if frozen
                else table.start_row(keyed_generator(seed, "surgery", name, path))
                for name in new[table.covariate]
            ]
            table.append(torch.stack(rows))
    if library is not None:
        prior = scvi_of(model).library_prior
        prior.append(library)
        prior.requires_grad_(False)
    return [p for p in model.parameters() if p.requires_grad]


def split_state(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The model's state as (reference, appended)."""
    state = model.state_dict()
    appended = {k: v for k, v in state.items() if k.endswith(".appended")}
    return {k: v for k, v in state.items() if k not in appended}, appended


def encoder_sees(model: nn.Module, new: NewCategories) -> bool:
    """Whether any new row is one that the encoder of z reads; if none, surgery is a no-op."""
    return any(
        isinstance(module, CategoryTable) and new.get(module.covariate)
        for module in scvi_of(model).encoder.modules()
    )
