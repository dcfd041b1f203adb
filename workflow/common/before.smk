# What is there already: it loses no cell, and is overwritten by no other config, unasked.

import json
from pathlib import Path


def read_before(contract):
    """The contract of the results that a run would overwrite; empty where there are none."""
    try:
        said = json.loads(contract.read_text(encoding="utf-8"))
        return said if isinstance(said.get("queries"), dict) else {}
    except (OSError, ValueError, AttributeError):
        return {}


def names_atlas(config, name):
    """Whether a config file is of the atlas of that name."""
    import yaml

    try:
        return yaml.safe_load(config.read_text(encoding="utf-8")).get("atlas") == name
    except Exception:  # whatever is wrong with it is no matter of this run
        return False


def check_same_atlas(contract, configfiles, datasets):
    """What is there under this name is of this config, and of no more data sets than the sheet's:
    raises ATLAS_TAKEN, CELLS_LOST."""
    before = read_before(contract)
    recorded = [Path(path) for path in before.get("configfiles", [])]
    own = {path.resolve() for path in configfiles}
    others = [path for path in recorded if path.resolve() not in own]
    name = contract.parent.parent.name
    taken = [path for path in others if path.is_file() and names_atlas(path, name)]
    if own and taken and len(others) == len(recorded):
        raise AtlasmapError(
            "ATLAS_TAKEN",
            expected=f"one config for the results in {contract.parent.parent}",
            found=f"made by {listed(taken)}, which names the same atlas; this run is of "
            f"{listed(configfiles)}",
            mend="give `atlas` another name in one of them; or, if this one is to overwrite what "
            f"the other made, remove {contract}",
        )
    queries = before.get("queries", {}).items()
    gone = [
        f"{batch} ({fact['n_cells']} cells, gone)"
        for batch, fact in queries
        if fact["dataset"] not in datasets
    ]
    if gone:
        raise AtlasmapError(
            "CELLS_LOST",
            expected=f"every cell that the results have (by {contract})",
            found=f"fewer in the sheet: {listed(gone)}",
            mend="put the rows back; or give `atlas` another name, which keeps these results; or, "
            f"if they are to go, remove {contract}",
        )
