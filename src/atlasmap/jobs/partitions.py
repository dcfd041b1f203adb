"""The partition file of the Slurm profile: the most that a job may ask for, per partition.

The workflow includes this file: beside the standard library it imports PyYAML alone, which
Snakemake brings.
"""

from dataclasses import dataclass
from pathlib import Path

import yaml

NO_LIMIT = float("inf")


def minutes_of(text: str | float) -> float:
    """Convert Slurm's [days-]hours:minutes:seconds to minutes; a number is taken as minutes."""
    if isinstance(text, int | float):
        return float(text)
    if text in ("UNLIMITED", "infinite", "NONE", ""):
        return NO_LIMIT
    days, _, clock = text.rpartition("-")
    parts = [float(part) for part in clock.split(":")]
    if len(parts) == 1 and not days:
        return parts[0]
    while len(parts) < 3:
        parts.insert(0, 0.0) if not days else parts.append(0.0)
    return int(days or 0) * 1440 + parts[0] * 60 + parts[1] + parts[2] / 60


@dataclass(frozen=True)
class Limits:
    """The most a job in a partition may ask for: minutes, MB, GPUs."""

    minutes: float = NO_LIMIT
    mem_mb: float = NO_LIMIT
    gpus: float = 0


# What a file that has no partitions makes `partitions_in` raise.
UNREADABLE = (OSError, TypeError, KeyError, ValueError, AttributeError, yaml.YAMLError)


def partitions_in(path: Path) -> dict[str, Limits]:
    """Returns partition → limits, as Snakemake's Slurm plugin reads them; raises UNREADABLE."""
    named = yaml.safe_load(path.read_text(encoding="utf-8"))["partitions"]
    return {
        str(name): Limits(
            minutes_of(limits.get("max_runtime", NO_LIMIT)),
            float(limits.get("max_mem_mb", NO_LIMIT)),
            float(limits.get("max_gpu", 0)),
        )
        for name, limits in ((name, limits or {}) for name, limits in named.items())
    }
