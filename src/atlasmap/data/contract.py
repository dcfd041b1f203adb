"""contract.json: what was checked, found and decided of the data, gathered and said in words."""

import json
from collections.abc import Sequence
from pathlib import Path

from atlasmap.errors import AtlasmapError, listed


def gathered(queries: Sequence[Path], reference: Path, configfiles: Sequence[Path]) -> dict:
    """The contract, from the facts of the reference and of query batches (.json)."""
    facts = [json.loads(path.read_text(encoding="utf-8")) for path in queries]
    return {
        "configfiles": [str(path) for path in configfiles],
        "reference": json.loads(reference.read_text(encoding="utf-8")),
        "queries": {fact.pop("batch"): fact for fact in facts},
    }


def in_words(contract: dict) -> str:
    """What is printed of it."""
    found = contract["reference"]
    lines = [f"reference: {found['n_cells']} cells, {found['n_genes']} genes"]
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


def protein_overlap(fact: dict, n: int) -> str:
    """A query's proteins beside the reference's `n`: clones of one antigen have other names."""
    said = f"{fact['n_proteins']} of {n} proteins"
    if fact["n_proteins"] and fact["proteins_missing"]:
        said += f"; lacks {listed(fact['proteins_missing'])}"
    if fact["proteins_not_in_reference"]:
        said += "; left out, as the reference lacks them: "
        said += listed(fact["proteins_not_in_reference"])
    return said


def check_masked(masked: list[str], contract: dict) -> None:
    """A batch that is not there cannot be masked: MASK_UNKNOWN."""
    batches = {*contract["reference"].get("batches", {}), *contract["queries"]}
    unknown = [name for name in masked if name not in batches]
    if unknown:
        raise AtlasmapError(
            "MASK_UNKNOWN",
            expected=f"names of batches in data.mask_proteins: {listed(sorted(batches), 40)}",
            found=listed(unknown),
            mend="correct these names",
        )
