"""Make the golden models of this folder from ../shared/golden:

PYTHONPATH=src:tests/unit:tests/gpu .venv/bin/python tests/gpu/make_golden.py
"""

from golden import load_citeseq, load_golden
from golden_numbers import Golden
from golden_subset import FOLDER, NAMES, write


def whole(name: str) -> Golden:
    """A golden model with all of its cells."""
    return load_citeseq(name)[0] if name.startswith("totalvi") else load_golden(name)


if __name__ == "__main__":
    for name in NAMES:
        write(whole(name), FOLDER / name)
