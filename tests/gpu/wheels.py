"""Collect the wheels that a bare GPU machine lacks (`make wheels`).

python tests/gpu/wheels.py FOLDER [PYTHON]

PYTHON: the version that the wheels are for (3.12), of Linux on x86-64. Names are wheels.txt's,
versions the lock files'. Ends with 1 if together they are larger than 60 MB.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
LOCKS = ("lock.txt", "lock-dev.txt")
GLIBC = (5, 12, 17, 24, 27, 28)  # manylinux versions that a machine of today takes
MOST_MB = 60


def pins() -> list[str]:
    """name==version of each package."""
    text = "\n".join((HERE.parents[1] / "envs" / name).read_text() for name in LOCKS)
    known = dict(re.findall(r"^([^#=\s]+)==(\S+)", text, re.MULTILINE))
    names = re.findall(r"^[a-z].*", (HERE / "wheels.txt").read_text(), re.MULTILINE)
    return [f"{name}=={known[name]}" for name in names]


def collect(folder: Path, python: str) -> float:
    """Download all into an emptied folder; their megabytes."""
    shutil.rmtree(folder, ignore_errors=True)
    platforms = [f"--platform=manylinux_2_{n}_x86_64" for n in GLIBC]
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
         f"--python-version={python}", "--implementation=cp", *platforms,
         "--platform=manylinux2014_x86_64", f"--dest={folder}", *pins()],
        check=True,
    )  # fmt: skip
    return sum(path.stat().st_size for path in folder.glob("*.whl")) / 1e6


def main(folder: str, python: str = "3.12") -> int:
    """The command line."""
    megabytes = collect(Path(folder), python)
    n = len(list(Path(folder).glob("*.whl")))
    print(f"{n} wheels for Python {python}, {megabytes:.1f} MB: {folder}")
    if megabytes > MOST_MB:
        print(f"larger than {MOST_MB} MB: leave out what is not imported", file=sys.stderr)
    return int(megabytes > MOST_MB)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
