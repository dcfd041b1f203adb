"""The code blocks of the documentation (```bash, ```python) do what they say, page by page."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import zygote

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = [path for path in sorted((ROOT / "docs").glob("*.md")) if BLOCK.search(path.read_text())]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_code_blocks_run(page, tmp_path):
    for name in ("Snakefile", "workflow", "config", "envs"):
        (tmp_path / name).symlink_to(ROOT / name)
    env = {key: value for key, value in os.environ.items() if key != "VIRTUAL_ENV"}
    env["BASH_ENV"] = zygote.command()  # a job starts as on the page, without its imports
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env["PATH"]])
    for kind, code in BLOCK.findall(page.read_text(encoding="utf-8")):
        command = ["bash", "-euo", "pipefail", "-c", code] if kind == "bash" else [
            sys.executable, "-c", code]  # fmt: skip
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, f"{code}\n{(done.stdout + done.stderr)[-4000:]}"


def test_some_pages_have_code_that_runs():
    assert {"your_data", "quickstart"} <= {page.stem for page in PAGES}
