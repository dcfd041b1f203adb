"""Surgery (scArches, Lotfollahi et al. 2021): append rows for new categories, train only those.

Masking the gradients of whole matrices, as peers do, does not stop weight decay from moving the
rest; here the reference's parameters are frozen and never given to the optimiser.
"""

import torch
from torch import Tensor, nn

from atlasmap.models.classifier import Classifier
from atlasmap.models.layers import CategoryTable
from atlasmap.models.random import keyed_generator
from atlasmap.models.vae import Vae

NewCategories = dict[int, list[str]]  # covariate (0: the batch) → names of its new categories


def vae_of(model: nn.Module) -> Vae:
    """The model of the counts: scVI (scANVI has one inside), or totalVI."""
    return model if isinstance(model, Vae) else model.scvi


def classifier_of(model: nn.Module) -> Classifier | None:
    """What names labels from a latent position, where the model has it."""
    return getattr(model, "classifier", None)


def append_categories(
    model: nn.Module, new: NewCategories, seed: int, starts: dict[str, Tensor] | None = None,
    *, frozen: bool = False,
) -> list[nn.Parameter]:  # fmt: skip
    """Freeze `model` and append rows for `new` categories to every table that has them.

    Start values of a category are keyed by (seed, its name, the table), so they do not depend on
    what else is mapped with it. `starts` are those that the query's cells give, by the name of the
    table (new batches × width). `frozen` leaves new rows at the mean of the reference's: a category
    like the average one.

    Returns the new rows: all that may train.
    """
    model.requires_grad_(False)
    for path, table in model.named_modules():
        if isinstance(table, CategoryTable) and new.get(table.covariate):
            given = (starts or {}).get(path.rpartition(".")[2])
            rows = [
                table.mean_row()
                if frozen
                else table.start_row(keyed_generator(seed, "surgery", name, path))
                for name in new[table.covariate]
            ]
            table.append(torch.stack(rows) if given is None else given)
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
        for module in vae_of(model).encoder.modules()
    )
