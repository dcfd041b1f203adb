"""How many reference cells a label needs: PBMC, 3' v2 and 5' onto 3' v1, all but a few cells of one
label taken out of the reference, three seeds (docs/trust.md, `min_cells_per_label`)."""

import sys
import tempfile
from copy import deepcopy
from itertools import product
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import torch
from cases import SHARED, SURGERY, map_query, trained
from tasks import PBMC

from atlasmap.data.prepare import checked_dataset, prepare_query, prepare_reference
from atlasmap.data.registry import Registry
from atlasmap.data.sheet import Dataset
from atlasmap.settings import DataConfig, DataSettings

REFERENCE, QUERY = ["3pv2", "5p"], "3pv1"
CONFIG = DataConfig(data=DataSettings(n_top_genes=None, min_cells_per_label=1))


def one(label: str, kept: int, seed: int, folder: Path) -> dict:
    """`kept` reference cells of a label: how many of the query's are found, and called so."""
    whole, path = anndata.read_h5ad(SHARED / f"data/{PBMC}.h5ad"), folder / "few.h5ad"
    batch, own = whole.obs["batch"].astype(str), (whole.obs["cell_type"] == label).to_numpy()
    cells = np.flatnonzero(batch.isin(REFERENCE).to_numpy() & own)
    keep = np.ones(whole.n_obs, bool)
    keep[np.random.default_rng(seed).permutation(cells)[kept:]] = False
    whole[keep].copy().write_h5ad(path)
    roles = ("reference", "label_key", REFERENCE), ("query", "truth_key", [QUERY])
    rows = [
        Dataset(id=role, path=str(path), role=role, batch_key="batch", obs_filter=f"batch in {of}",
                **{key: "cell_type"})
        for role, key, of in roles
    ]  # fmt: skip
    reference = prepare_reference(rows[:1], [path], CONFIG).adata
    bundle, _ = trained(reference, seed)
    checked = checked_dataset(rows[1], path, CONFIG)
    query = prepare_query(checked, rows[1], QUERY, Registry.of(reference), CONFIG).adata
    mapping = map_query(deepcopy(bundle), query, SURGERY, "per_batch", seed)
    names = np.array(bundle.registry.labels, object)
    said = names[np.asarray(mapping.latent.obsm["soft_labels"]).argmax(1)]
    truth = query.obs["truth"].astype(str).to_numpy()
    own, called = truth == label, said == label
    return {
        "label": label, "kept": kept, "seed": seed, "n": own.sum(), "found": called[own].mean(),
        "others_called_so": called[~own].sum(), "others_right": (said == truth)[~own].mean(),
    }  # fmt: skip


def main() -> None:
    if not (SHARED / "data").is_dir():
        sys.exit("needs the development data in ../shared/data")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        cases = product(("B", "NK"), (1, 2, 3, 5, 10), (0, 1, 2))
        rows = [one(*case, Path(folder)) for case in cases]
    print(pd.DataFrame(rows).groupby(["label", "kept"]).mean(numeric_only=True).round(3))


if __name__ == "__main__":
    main()
