"""Commands of the de novo strategy."""

from pathlib import Path

import anndata

from atlasmap.commands.parameters import Queries, Reference, Seed
from atlasmap.files import written_aside
from atlasmap.settings import UmapSettings


def join_query(*queries: Queries, reference: Reference, out: Path) -> None:
    """Put a prepared reference and query batches together, to be trained on as one.

    Example: atlasmap join-query donor1.h5ad --reference reference.h5ad --out joined.h5ad

    Parameters
    ----------
    out
        Reference and query (.h5ad): the query's cells have no label.
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
    """Take the latent of a model of reference and query apart again, and fit the map on the first.

    Example: atlasmap split-latent latent.h5ad --reference reference.h5ad --query query.h5ad --map
    umap.npz

    Parameters
    ----------
    latent
        reference_latent.h5ad of the model's bundle.
    reference
        The reference's cells (.h5ad).
    query
        The query's cells (.h5ad), as mappings write them.
    map
        The fitted map (.npz).
    """
    from atlasmap.commands.reference import fit_umap
    from atlasmap.mapping.de_novo import apart

    parts = apart(anndata.read_h5ad(latent))
    for path, part in zip((reference, query), parts, strict=True):
        with written_aside(path) as aside:
            part.write_h5ad(aside)
    fit_umap(reference, map, seed, umap)
