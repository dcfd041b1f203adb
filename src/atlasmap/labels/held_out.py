"""Which reference batches are held out, so that calibration meets cells of batches never seen."""

import anndata
import numpy as np
import pandas as pd

from atlasmap.data.registry import unlabeled_in
from atlasmap.models.random import keyed_seed

STAND_IN = "held out"


def held_out_batches(obs: pd.DataFrame, share: float, unlabeled: str) -> list[str]:
    """Batches of about `share` of the cells (`obs`: batch, label), in an order that is always the
    same. No label is left without a cell elsewhere; empty where that cannot be."""
    batch, label = obs["batch"].astype(str), obs["label"].astype(str)
    table = pd.crosstab(batch, label).drop(columns=unlabeled, errors="ignore")
    sizes = batch.value_counts()
    order = sorted(sizes.index, key=lambda name: keyed_seed(0, "held out", name))
    chosen, left = [], table
    for name in order:
        rest = left.drop(index=name)
        fits = sizes[[*chosen, name]].sum() <= share * len(obs)
        if len(rest) and fits and (rest.sum() > 0).all():
            chosen, left = [*chosen, name], rest
    if chosen:
        return chosen
    for name in sorted(order, key=lambda name: sizes[name]):
        rest = table.drop(index=name)
        if len(rest) and (rest.sum() > 0).all():
            return [name]
    return []


def split_off(adata: anndata.AnnData, share: float) -> tuple[anndata.AnnData, anndata.AnnData]:
    """A prepared reference as (what the twin is trained on, cells held out).

    Where no whole batch can be spared, a random share of each batch stands in for one: easier than
    a real query, and said so (its batches are called "held out: …").
    """
    chosen = held_out_batches(adata.obs, share, unlabeled_in(adata))
    out = adata.obs["batch"].astype(str).isin(chosen).to_numpy()
    if chosen:
        return adata[~out].copy(), adata[out].copy()
    rng = np.random.default_rng(keyed_seed(0, "held out", "cells"))
    out = rng.random(adata.n_obs) < share
    held = adata[out].copy()
    held.obs["batch"] = [f"{STAND_IN}: {name}" for name in held.obs["batch"].astype(str)]
    return adata[~out].copy(), held
