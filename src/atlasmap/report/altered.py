"""Find results that are missing or altered, and the command that makes each again."""

import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from atlasmap.errors import AtlasmapError
from atlasmap.files import MANIFEST, recorded, sha256


def noted(folder: Path) -> dict[Path, str]:
    """Returns each expected result of results/{atlas} → its recorded checksum ("" if none).

    Raises RESULTS_NONE.
    """
    manifest = folder / MANIFEST
    names = manifest.read_text(encoding="utf-8").splitlines() if manifest.is_file() else []
    entries = dict.fromkeys((folder / name for name in names), "") | recorded(folder)
    if not entries:
        raise AtlasmapError(
            "RESULTS_NONE",
            expected=f"results below {folder}",
            found="no file that a command of atlasmap wrote",
            mend="give results/{atlas}, after a run",
        )
    return entries


def wrong(entries: dict[Path, str], folder: Path) -> Iterator[str]:
    """Yield a text of two lines per missing or altered result: the problem, and the command."""
    for path, digest in sorted(entries.items()):
        missing = not path.exists()
        if missing or (digest and sha256(path) != digest):
            what, again = (
                "missing" if missing else "altered",
                remake(path, folder, force=not missing),
            )
            yield f"{what}  {os.path.relpath(path)}\n         {again}"


def remake(path: Path, folder: Path, *, force: bool) -> str:
    """Returns the command that makes a result again, run from the working directory."""
    contract, run = folder / "data" / "contract.json", folder.parent.parent
    files = json.loads(contract.read_text())["configfiles"] if contract.is_file() else []
    words = ["snakemake", "--cores", "all"]
    words += ["--configfile", *(os.path.relpath(run / file) for file in files)] if files else []
    words += [] if run == Path.cwd() else ["--directory", str(run)]
    words += ["--force"] if force else []
    return shlex.join([*words, "--", str(path.relative_to(run))])
