"""contract.json: facts about the input data, their summary as text, and checks against them."""

import json
from collections.abc import Sequence
from pathlib import Path

from atlasmap.errors import AtlasmapError, listed


def gathered(queries: Sequence[Path], reference: Path, configfiles: Sequence[Path]) -> dict:
    """Merge the facts (.json) of the reference and of the query batches into one contract."""
    facts = [json.loads(path.read_text(encoding="utf-8")) for path in queries]
    return {
        "configfiles": [str(path) for path in configfiles],
        "reference": json.loads(reference.read_text(encoding="utf-8")),
        "queries": {fact.pop("batch"): fact for fact in facts},
    }


def left_out(contract: dict) -> list[str]:
    """Return warnings, one per line: data that is left out, or used otherwise than it looks.

    Covers unlabelled cells, rare labels, labels of different depth, single-batch references, genes
    that are not shared, unreadable elements, and missing genes of queries.
    """
    found, lines = contract["reference"], []
    rare = found.get("rare_labels_unlabelled", {})
    unlabelled = found.get("n_unlabelled", 0) - sum(rare.values())
    if unlabelled > 0 and isinstance(found.get("labels"), dict):
        share = unlabelled / found["n_cells"]
        lines.append(f"{unlabelled:,} reference cells ({share:.1%}) have no label")
    if rare:
        named = listed(
            f"{label} ({n} {'cell' if n == 1 else 'cells'})" for label, n in rare.items()
        )
        lines.append(
            f"labels of too few cells to be learned, which no query cell can be called: {named}; "
            "data.min_cells_per_label"
        )
    lines += of_depth(found)
    if len(found.get("batches", {})) == 1 and isinstance(found.get("labels"), dict):
        lines.append(
            "the reference is one batch: random parts of it stand in for held-out batches, and "
            "whether it fits a query batch will not be known"
        )
    sizes = found.get("n_genes_of_datasets", {})
    if len(sizes) > 1:
        of_each = listed(f"{name} {n:,}" for name, n in sizes.items())
        lines.append(f"genes: {of_each}; shared by all {found['n_genes_shared']:,}")
    for facts in (found, *contract["queries"].values()):
        odd = facts.get("unreadable", {}).items()
        lines += [f"left out of {name}, as it cannot be read: {why}" for name, why in odd]
    for batch, fact in contract["queries"].items():
        lines += [f"query batch {batch}: {warning}" for warning in gene_warnings(fact)]
    return lines


def of_depth(found: dict) -> list[str]:
    """Return lines about the label hierarchy: Cell Ontology names, labels above others, and labels
    that may be above others by their names."""
    above, within = found.get("labels_above", {}), found.get("labels_within_others", [])
    words = found.get("ontology", {"renamed": {}, "not_found": {}})
    lines = []
    if words["renamed"]:
        said = listed(f"{word} is {name}" for word, name in words["renamed"].items())
        lines.append(f"labels in the words of the Cell Ontology: {said}")
    if words["not_found"]:
        said = listed(f"{label} (nearest: {near})" for label, near in words["not_found"].items())
        lines.append(
            f"labels that the Cell Ontology does not have, above and below no other: {said}"
        )
    for name, fact in above.items():
        said, own = f"they are one of {listed(fact['below'])}", fact.get("own", {})
        if own.get("kept"):
            unlike = f"{own['unlike_those_below']} of {own['asked']}"
            said += f", or {name} itself: {unlike} are unlike these"
        lines.append(
            f"label {name} ({fact['n']} cells) stands above others: of these cells a model learns "
            f"that {said}"
        )
    if within:
        pairs = listed(f"{short} above {long}" for short, long in within)
        lines.append(
            f"labels that may be of different depth, by their names: {pairs}; they are learned as "
            "if they excluded each other, unless the config's label_tree says which is above which"
        )
    return lines


def in_words(contract: dict) -> str:
    """Return the summary of a contract that is printed."""
    found = contract["reference"]
    lines = [f"reference: {found['n_cells']} cells, {found['n_genes']} genes"]
    lines += left_out(contract)
    panel = found.get("panel", {"proteins": [], "proteins_missing": {}})
    if panel["proteins"]:
        lines.append(f"panel: {len(panel['proteins'])} proteins")
    for batch, missing in panel["proteins_missing"].items():
        lines.append(f"  reference batch {batch} lacks {listed(missing)}")
    for batch, fact in contract["queries"].items():
        said = f"{fact['n_cells']} cells, {fact['gene_overlap']:.1%} of the genes"
        lines.append(f"query {batch}: {said}")
        if panel["proteins"]:
            lines.append(f"  {protein_overlap(fact, len(panel['proteins']))}")
    return "\n".join(lines)


def gene_warnings(fact: dict) -> list[str]:
    """Return warnings about missing genes of a query: other spellings, missing gene families."""
    spelled, lines = fact.get("genes_spelled_otherwise", {}), []
    if spelled:
        pairs = listed(f"{ours} is {theirs} there" for ours, theirs in spelled.items())
        lines.append(f"{len(spelled)} genes are missing by their spelling alone: {pairs}")
    for name, family in fact.get("gene_families_missing", {}).items():
        said = f"{len(family['missing'])} of {family['of']} {name} genes"
        costs = ""
        if "costs" in family:
            costs = f"; on cells drawn from the model that costs {family['costs']:.3f} of accuracy"
        lines.append(f"lacks {said}: {listed(family['missing'])}{costs}")
    return lines


def protein_overlap(fact: dict, n: int) -> str:
    """Describe how a query's proteins overlap with the reference's `n` proteins, by name.

    The missing and the surplus names are listed because clones of one antigen may be named
    differently.
    """
    said = f"{fact['n_proteins']} of {n} proteins"
    if fact["n_proteins"] and fact["proteins_missing"]:
        said += f"; lacks {listed(fact['proteins_missing'])}"
    if fact["proteins_not_in_reference"]:
        said += "; left out, as the reference lacks them: "
        said += listed(fact["proteins_not_in_reference"])
    return said


def read_before(contract: Path) -> dict:
    """Read the contract of existing results that a run would overwrite; {} if there is none."""
    try:
        said = json.loads(contract.read_text(encoding="utf-8"))
        return said if isinstance(said.get("queries"), dict) else {}
    except (OSError, ValueError, AttributeError):
        return {}


def sizes_in(contract: Path, datasets: Sequence[str]) -> dict[str, int]:
    """Number of cells per batch of `datasets` in existing results.

    A contract does not record which data set a reference batch is from, so reference batches are
    included only if all reference data sets are among `datasets`.
    """
    before = read_before(contract)
    if not before:
        return {}
    queries, reference = before["queries"].items(), before["reference"]
    sizes = {name: fact["n_cells"] for name, fact in queries if fact["dataset"] in datasets}
    if set(reference.get("datasets", [])) <= set(datasets):
        sizes |= reference.get("batches", {})
    return sizes


def check_kept(before: dict[str, int], now: dict[str, int], contract: Path) -> None:
    """Raise CELLS_LOST if a batch of the existing results has fewer cells `now` than `before`.

    Both map batch to number of cells.
    """
    lost = [
        f"{name} ({n} cells, {f'now {now[name]}' if name in now else 'gone'})"
        for name, n in before.items()
        if now.get(name, 0) < n
    ]
    if lost:
        raise AtlasmapError(
            "CELLS_LOST",
            expected=f"every cell that the results have (by {contract})",
            found=f"fewer in the data: {listed(lost)}",
            mend="put them back (file, sheet, `obs_filter` in the sheet); or give `atlas` another "
            f"name, which keeps these results; or, if they are to go, remove {contract}",
        )


def check_masked(masked: list[str], contract: dict) -> None:
    """Raise MASK_UNKNOWN if data.mask_proteins names a batch that does not exist."""
    batches = {*contract["reference"].get("batches", {}), *contract["queries"]}
    unknown = [name for name in masked if name not in batches]
    if unknown:
        raise AtlasmapError(
            "MASK_UNKNOWN",
            expected=f"names of batches in data.mask_proteins: {listed(sorted(batches), 40)}",
            found=listed(unknown),
            mend="correct these names",
        )
