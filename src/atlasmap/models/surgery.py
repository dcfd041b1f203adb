"""Surgery (scArches, Lotfollahi et al. 2021): append rows for new categories, train only those.

Other implementations mask the gradients of whole matrices, which does not stop weight decay from
moving the reference's weights; here these are frozen and never given to the optimiser.
"""

import torch
from torch import Tensor, nn

from atlasmap.models.classifier import Classifier
from atlasmap.models.layers import CategoryTable
from atlasmap.models.random import keyed_generator
from atlasmap.models.vae import Vae

NewCategories = dict[int, list[str]]  # covariate index (0: the batch) → names of its new categories


def vae_of(model: nn.Module) -> Vae:
    """The VAE of the counts: the scVI inside scANVI, or `model` itself (scVI, totalVI)."""
    return model if isinstance(model, Vae) else model.scvi


def classifier_of(model: nn.Module) -> Classifier | None:
    """The model's classifier of latent positions; None if it has none."""
    return getattr(model, "classifier", None)


def append_categories(
    model: nn.Module, new: NewCategories, seed: int, starts: dict[str, Tensor] | None = None,
    *, frozen: bool = False,
) -> list[nn.Parameter]:  # fmt: skip
    """Freeze `model` and append rows for `new` categories to the tables of their covariates.
    Returns the trainable parameters, which are the new rows.

    `starts`: start values computed from the query's cells, by table name (new batches × width).
    `frozen`: other new rows start at the mean of the reference's rows. Otherwise start values are
    random and keyed by (seed, category name, table), so they do not depend on which other
    categories are mapped with it.
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
    """The model's state dict in two parts: (reference, appended rows)."""
    state = model.state_dict()
    appended = {k: v for k, v in state.items() if k.endswith(".appended")}
    return {k: v for k, v in state.items() if k not in appended}, appended


def encoder_sees(model: nn.Module, new: NewCategories) -> bool:
    """Whether the encoder of z reads any new row; if not, surgery cannot change the latent."""
    return any(
        isinstance(module, CategoryTable) and new.get(module.covariate)
        for module in vae_of(model).encoder.modules()
    )
