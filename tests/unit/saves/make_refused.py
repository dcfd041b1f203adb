"""Tiny saves of scvi-tools that are refused: other classes, TOTALVI of a MuData, an old SCVI.

python make_refused.py FOLDER, in an environment of make.py; those of 0.15.5, 0.20.3, 1.2.2 and
1.4.2 were kept.
"""

import sys
from pathlib import Path

import anndata
import mudata
import pandas as pd
from make import TINY, cells, trained


def simple(name: str, **setup):
    """A class that takes an AnnData and sizes."""
    import scvi

    cls, adata = getattr(scvi.model, name), cells()
    cls.setup_anndata(adata, **setup)
    return cls(adata, **TINY)


def modalities(second: str) -> mudata.MuData:
    """The cells' genes as modality rna, their proteins as modality `second`."""
    adata = cells()
    table = adata.obsm.pop("proteins")
    var = pd.DataFrame(index=table.columns)
    other = anndata.AnnData(table.to_numpy(), obs=adata.obs, var=var)
    return mudata.MuData({"rna": adata, second: other})


def totalvi():
    """TOTALVI of a MuData."""
    from scvi.model import TOTALVI

    both = modalities("protein")
    where = {"rna_layer": "rna", "protein_layer": "protein", "batch_key": "rna"}
    TOTALVI.setup_mudata(both, batch_key="plate", modalities=where)
    return TOTALVI(both, **TINY)


def multivi():
    """MULTIVI of a MuData, or of an AnnData in versions that take no other."""
    from scvi.model import MULTIVI

    if not hasattr(MULTIVI, "setup_mudata"):
        adata = cells()
        MULTIVI.setup_anndata(adata, batch_key="plate")
        return MULTIVI(adata, n_genes=N_RNA, n_regions=adata.n_vars - N_RNA, **TINY)
    both = modalities("atac")
    MULTIVI.setup_mudata(both, modalities={"rna_layer": "rna", "atac_layer": "atac"})
    return MULTIVI(both, **TINY)


def destvi():
    """DestVI on a CondSCVI."""
    from scvi.model import DestVI

    adata = cells()
    DestVI.setup_anndata(adata)
    return DestVI.from_rna_model(adata, trained(simple("CondSCVI", labels_key="type")))


def lda():
    """AmortizedLDA, whose pyro parameters are saved with it."""
    from scvi.model import AmortizedLDA

    adata = cells()
    AmortizedLDA.setup_anndata(adata)
    return AmortizedLDA(adata, n_topics=3, n_hidden=8)


def cellassign():
    """CellAssign, whose arguments hold a table."""
    import scvi

    adata = cells()
    adata.obs["size"] = 1.0
    scvi.external.CellAssign.setup_anndata(adata, size_factor_key="size")
    markers = pd.DataFrame({"a": 1, "b": [0, 1] * (adata.n_vars // 2)}, index=adata.var_names)
    return scvi.external.CellAssign(adata, markers)


def gimvi():
    """GIMVI, which has two registries and no var_names."""
    import scvi

    both = [cells(), cells()]
    for adata in both:
        scvi.external.GIMVI.setup_anndata(adata, batch_key="plate")
    return scvi.external.GIMVI(*both, n_latent=3)


N_RNA = 30
MODELS = {
    "TOTALVI": totalvi,
    "MULTIVI": multivi,
    "CondSCVI": lambda: simple("CondSCVI", labels_key="type"),
    "DestVI": destvi,
    "LinearSCVI": lambda: simple("LinearSCVI", batch_key="plate"),
    "AUTOZI": lambda: simple("AUTOZI", batch_key="plate"),
    "PEAKVI": lambda: simple("PEAKVI", batch_key="plate"),
    "JaxSCVI": lambda: simple("JaxSCVI", batch_key="plate"),
    "CellAssign": cellassign,
    "GIMVI": gimvi,
    "AmortizedLDA": lda,  # the last one: others saved after it would hold its parameters, too
}
OLD = {"SCVI": lambda: simple("SCVI", batch_key="plate"), "CondSCVI": MODELS["CondSCVI"]}


def main(folder: Path) -> None:
    """Save what this version can make, and say what it cannot."""
    import scvi

    old = scvi.__version__ < "0.20"  # its Lightning does not train in Python 3.11
    for name, make in (OLD if old else MODELS).items():
        scvi.settings.seed = 0
        try:
            model = make()
            if name != "DestVI" and not old:  # DestVI's training wants more cells
                trained(model)
        except Exception as error:  # what this version lacks
            print(f"{name} cannot be made: {type(error).__name__} {str(error)[:300]}")
            continue
        model.save(str(folder / f"refused_{name}"), overwrite=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
