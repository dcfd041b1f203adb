# Protect existing results: a run must not lose cells or overwrite the results of another config.

import json
from pathlib import Path


def read_before(contract):
    """Returns the contract of the results that a run would overwrite; {} if there are none."""
    try:
        said = json.loads(contract.read_text(encoding="utf-8"))
        return said if isinstance(said.get("queries"), dict) else {}
    except (OSError, ValueError, AttributeError):
        return {}


def names_atlas(config, name):
    """Returns whether a config file sets this name as `atlas`."""
    import yaml

    try:
        return yaml.safe_load(config.read_text(encoding="utf-8")).get("atlas") == name
    except Exception:  # another config's errors do not concern this run
        return False


def check_same_atlas(contract, configfiles, datasets):
    """Raise ATLAS_TAKEN if existing results of this name are of another config, and CELLS_LOST if
    they have query batches of data sets that are no longer in the sheet."""
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
