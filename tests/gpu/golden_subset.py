"""Golden models that stand in the tree, for machines without the development data.

A folder each: our bundle with scvi-tools' weights, cells.npz and what scvi-tools computes of these
cells. make_golden.py makes them from ../shared/golden.
"""

from pathlib import Path

import numpy as np
import torch
from golden_numbers import Golden
from scipy import sparse

from atlasmap.bundle import load, save
from atlasmap.models.vae import Minibatch

FOLDER = Path(__file__).with_name("golden")
# scVI with batch norm, zero inflation and gene-batch dispersion; each classifier of scANVI, the
# fixed one after surgery; totalVI with proteins that a batch lacks.
NAMES = ("scvi_batchnorm_zinb", "scanvi_fix_surgery", "scanvi_prefix", "scanvi_linear")
NAMES += ("totalvi_missing",)
LEFT_OUT = {"obs_names", "var_names", "batch_index", "pz1_mean", "pz1_var", "px_dropout"}
LEFT_OUT |= {"predict_labels", "protein_names"}
EVERY = 4  # of the cells, so many-th are taken


def thinned(values: np.ndarray, n_cells: int) -> np.ndarray:
    """Every so many-th along the axis that has the cells, if one has."""
    for axis, n in enumerate(values.shape):
        if n == n_cells:
            return values.take(range(0, n, EVERY), axis)
    return values


def write(golden: Golden, folder: Path = FOLDER) -> None:
    """Some cells of a golden model, and what of it our model needs."""
    cells, n = golden.cells, len(golden.cells)
    counts = sparse.csr_matrix(thinned(cells.x.numpy(), n))
    parts = {"data": counts.data, "indices": counts.indices, "indptr": counts.indptr}
    parts |= {"codes": cells.codes[0].numpy()[::EVERY]}
    if cells.proteins is not None:
        parts |= {"proteins": cells.proteins.numpy()[::EVERY],
                  "measured": cells.measured.numpy()[::EVERY]}  # fmt: skip
    expected = {key: thinned(value, n) for key, value in golden.expected.items()
                if key not in LEFT_OUT}  # fmt: skip
    save(golden.bundle, folder)
    np.savez_compressed(folder / "cells.npz", **parts)
    np.savez_compressed(folder / "expected.npz", **expected)


def arrays(path: Path) -> dict[str, np.ndarray]:
    """All of an .npz file."""
    with np.load(path) as file:
        return {key: file[key] for key in file.files}


def read(name: str, device: torch.device) -> Golden:
    """A golden model of the subset on a device."""
    bundle, parts = load(FOLDER / name, device), arrays(FOLDER / name / "cells.npz")
    codes, shape = parts.pop("codes"), (len(parts["indptr"]) - 1, len(bundle.registry.genes))
    counts = sparse.csr_matrix((parts["data"], parts["indices"], parts["indptr"]), shape).toarray()
    x, code, labels = (torch.as_tensor(values, device=device)
                       for values in (counts, codes, np.full(len(codes), -1)))  # fmt: skip
    proteins = [torch.as_tensor(parts[key], device=device)
                for key in ("proteins", "measured") if key in parts]  # fmt: skip
    cells = Minibatch.of(x, (code,), None, labels, *proteins)
    return Golden(bundle, cells, arrays(FOLDER / name / "expected.npz"))
