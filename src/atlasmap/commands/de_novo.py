"""Commands of the de novo strategy: train one model jointly on reference and query."""

from pathlib import Path

import anndata

from atlasmap.commands.parameters import Queries, Reference, Seed
from atlasmap.files import written_aside
from atlasmap.settings import UmapSettings


def join_query(*queries: Queries, reference: Reference, out: Path) -> None:
    """Concatenate a prepared reference and query batches, to train one model on both.

    Example: atlasmap join-query donor1.h5ad --reference reference.h5ad --out joined.h5ad

    Parameters
    ----------
    out
        File to write (.h5ad): reference and query cells, the latter without labels.
    """
    from atlasmap.mapping.de_novo import with_query

    parts = [anndata.read_h5ad(path) for path in queries]
    whole = with_query(anndata.read_h5ad(reference), parts)
    with written_aside(out) as aside:
        whole.write_h5ad(aside)


def split_latent(
    latent: Path,
    *,
    reference: Path,
    query: Path,
    map: Path,
    seed: Seed = 0,
    umap: UmapSettings = UmapSettings(),
) -> None:
    """Split the latent of a joint model into reference and query cells, and fit UMAP on the
    reference.

    Example: atlasmap split-latent latent.h5ad --reference reference.h5ad --query query.h5ad --map
    umap.npz

    Parameters
    ----------
    latent
        reference_latent.h5ad of the joint model's bundle.
    reference
        File to write: latent of the reference cells (.h5ad).
    query
        File to write: latent of the query cells (.h5ad), in the format of a mapping's latent.h5ad.
    map
        File to write: the fitted UMAP (.npz).
    """
    from atlasmap.commands.reference import fit_umap
    from atlasmap.mapping.de_novo import apart

    parts = apart(anndata.read_h5ad(latent))
    for path, part in zip((reference, query), parts, strict=True):
        with written_aside(path) as aside:
            part.write_h5ad(aside)
    fit_umap(reference, map, seed, umap)
