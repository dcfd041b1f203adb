"""Commands that fetch, check and prepare data."""

import json
from pathlib import Path
from typing import Annotated

import anndata
from cyclopts import Parameter

from atlasmap.commands.parameters import DataFile, Facts, Row, TreeFile
from atlasmap.data.sheet import Dataset
from atlasmap.files import write_json, written_aside
from atlasmap.settings import DataConfig, SimulateSettings


def write_cells(adata: anndata.AnnData, path: Path) -> None:
    """Write prepared cells to `path`, under a temporary name first, so that no half-written file
    can be taken for a result."""
    from atlasmap.data.blocks import write_h5ad

    with written_aside(path) as aside:
        write_h5ad(adata, aside, "gzip")


def simulate(
    *,
    out: Path,
    simulation: Annotated[SimulateSettings, Parameter(name="*")] = SimulateSettings(),
) -> None:
    """Simulate a labelled atlas of reference and query batches with known labels (.h5ad).

    Example: atlasmap simulate --out atlas.h5ad --n_cells 20000 --proteins 30

    Parameters
    ----------
    out
        File to write.
    simulation
        Size and seed of the simulation.
    """
    from atlasmap.data.sources import fetch

    fetch("builtin:simulated", out, "", simulation)
    print(f"{simulation.n_cells} cells × {simulation.n_genes} genes in {out}")


def fetch(
    source: str,
    *,
    out: Path,
    sha256: str = "",
    simulation: SimulateSettings = SimulateSettings(),
) -> None:
    """Download a data set, or make a built-in one.

    Example: atlasmap fetch builtin:pbmc68k --out data/pbmc68k.h5ad

    Parameters
    ----------
    source
        URL, builtin:pbmc68k or builtin:simulated.
    out
        File to write; its checksum is written beside it, as {out}.json.
    sha256
        Expected SHA-256 checksum of the file; empty: not checked.
    simulation
        Size and seed, for builtin:simulated.
    """
    from atlasmap.data.sources import fetch

    write_json(
        out.with_name(out.name + ".json"),
        {"source": source, "sha256": fetch(source, out, sha256, simulation)},
    )


def prepare_reference(
    *paths: Path,
    datasets: list[Dataset],
    out: Path,
    facts: Facts,
    queries: list[Dataset] | None = None,
    label_tree: TreeFile = None,
    tree_key: str = "",
    ontology: bool = True,
    config: DataConfig = DataConfig(),
) -> None:
    """Check reference data sets, join them, and choose genes.

    Example: atlasmap prepare-reference raw.h5ad --datasets '{"id": "raw", "path": "raw.h5ad",
    "role": "reference", "batch_key": "donor", "label_key": "cell_type"}' --out reference.h5ad
    --facts reference.json

    Parameters
    ----------
    paths
        Files of the data sets, in the order of `datasets`, then of `queries`.
    datasets
        Rows of the sheet (JSON).
    out
        Prepared reference (.h5ad).
    queries
        Rows of query data sets (JSON) whose cells also count in the choice of genes.
    tree_key
        Text printed by tree-key, recorded in `facts`. If it changes, the workflow prepares the
        reference again.
    ontology
        Without `label_tree`, take the tree of labels from the Cell Ontology, for labels that are
        its terms.
    """
    from atlasmap.data.label_tree import LabelTree, read_tree
    from atlasmap.data.prepare import prepare_reference
    from atlasmap.labels.own_leaf import keep_own_leaves

    tree = read_tree(label_tree) if label_tree else None if ontology else LabelTree({})
    prepared = prepare_reference(datasets, list(paths), config, queries or [], tree)
    keep_own_leaves(prepared.adata, prepared.facts)
    write_cells(prepared.adata, out)
    write_json(facts, prepared.facts | {"tree_key": tree_key})


def find_batches(
    path: DataFile, *, dataset: Row, out: Path, config: DataConfig = DataConfig()
) -> None:
    """List the batches of a query data set.

    Example: atlasmap find-batches new.h5ad --dataset '{"id": "new", "path": "new.h5ad", "role":
    "query", "batch_key": "donor"}' --out batches.json

    Parameters
    ----------
    out
        File with the list of batch names (.json).
    """
    from atlasmap.data.prepare import sizes_of_batches

    write_json(out, sorted(sizes_of_batches(dataset, path, config)))


def check_kept(
    *paths: Path, datasets: list[Dataset], contract: Path, config: DataConfig = DataConfig()
) -> None:
    """Check that no batch has fewer cells than the results that a run would overwrite.

    Example: atlasmap check-kept raw.h5ad --datasets '{"id": "raw", "path": "raw.h5ad", "role":
    "reference", "batch_key": "donor"}' --contract results/ATLAS/data/contract.json

    Parameters
    ----------
    paths
        Files of the data sets, in the order of `datasets`.
    datasets
        Rows of the sheet (JSON).
    contract
        contract.json of the existing results.
    """
    from atlasmap.data.contract import check_kept, sizes_in
    from atlasmap.data.prepare import sizes_of_batches

    found = [sizes_of_batches(*of, config) for of in zip(datasets, paths, strict=True)]
    now = {name: n for sizes in found for name, n in sizes.items()}
    check_kept(sizes_in(contract, [dataset.id for dataset in datasets]), now, contract)


def tree_key(*, facts: Path, label_tree: TreeFile = None) -> None:
    """Print a key of the label tree that changes only if the reference must be prepared again.

    Example: atlasmap tree-key --label_tree tree.tsv --facts results/ATLAS/data/reference.json

    Parameters
    ----------
    facts
        reference.json of the existing reference; the file may be missing.
    """
    from atlasmap.data.label_tree import LabelTree, read_tree, tree_key

    print(tree_key(read_tree(label_tree) if label_tree else LabelTree({}), facts))


def prepare_query(
    path: DataFile,
    *,
    dataset: Row,
    batch: str,
    reference: Path,
    out: Path,
    facts: Facts,
    config: DataConfig = DataConfig(),
) -> None:
    """Check one query batch and align its genes to those of the reference.

    Example: atlasmap prepare-query new.h5ad --dataset '{"id": "new", "path": "new.h5ad", "role":
    "query", "batch_key": "donor"}' --batch donor1 --reference reference.h5ad --out donor1.h5ad
    --facts donor1.json

    Parameters
    ----------
    batch
        Name of the batch.
    reference
        Prepared reference (.h5ad), or the registry.json of a trained reference.
    out
        Prepared batch (.h5ad).
    """
    from atlasmap.data.prepare import checked_dataset, prepare_query, stay_on_disk
    from atlasmap.data.registry import Registry

    if reference.suffix == ".json":
        registry = Registry(**json.loads(reference.read_text(encoding="utf-8")))
    else:
        registry = Registry.of(anndata.read_h5ad(reference, backed="r"))
    lazily = stay_on_disk([path], config)
    cells = checked_dataset(dataset, path, config, lazily=lazily, batch=batch)
    prepared = prepare_query(cells, dataset, batch, registry, config)
    write_cells(prepared.adata, out)
    write_json(facts, {"batch": batch, **prepared.facts})


def write_contract(
    *queries: Path, reference: Path, out: Path, configfiles: list[Path] | None = None,
    label_tree: TreeFile = None, masked: list[str] | None = None,
) -> None:  # fmt: skip
    """Gather what was checked and decided in contract.json. Check the sheet of the label tree, and
    that the batches in `masked` exist.

    Example: atlasmap write-contract donor1.json --reference reference.json --out contract.json

    Parameters
    ----------
    queries
        Facts of the query batches (.json).
    reference
        Facts of the reference (.json).
    out
        File to write: contract.json.
    configfiles
        Config files of the run, recorded in contract.json. Default: none, which stands for
        config/config.yaml.
    masked
        Names of batches whose proteins the config masks (data.mask_proteins).
    """
    from atlasmap.data.contract import check_masked, gathered, in_words
    from atlasmap.data.label_tree import tree_facts

    contract = gathered(queries, reference, configfiles or [])
    found = contract["reference"]
    if label_tree:
        found["label_tree"] = tree_facts(label_tree, list(found["labels"]))
    check_masked(masked or [], contract)
    write_json(out, contract)
    print(in_words(contract))
