"""Reading and checking the config outside the workflow, values derived from it, and its schema."""

import math
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from atlasmap.errors import AtlasmapError, read_text

MANY_CELLS = 20_000  # references of this size or more have fewer calibration folds
FOLDS, FOLDS_OF_MANY, PARTS_OF_ONE = 4, 2, 3
MOST_HELD_OUT, LEAST_HELD_OUT = 20_000, 500  # cap on held-out cells: in all, and at least per batch
N_DEPTHS, LEAST_DEPTH = 4, 16  # levels of library size, and the smallest (median counts)


def checked(cls: type, values: Any, source: str, code: str) -> Any:
    """Validate `values` as a `cls`; raises one error with this `code` that lists every problem."""
    try:
        return TypeAdapter(cls).validate_python(values)
    except ValidationError as invalid:
        problems = [
            f"{'.'.join(map(str, error['loc']))} is {error['input']!r:.200}: {error['msg']}"
            for error in invalid.errors()
        ]
    raise AtlasmapError(
        code,
        expected=f"values as described in config/README.md, in {source}",
        found="; ".join(problems),
        mend="correct these keys",
    )


def merged(base: dict, over: dict) -> dict:
    """Return `base` updated recursively with `over`."""
    out = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merged(out[key], value) if both else value
    return out


def variant_block(given: dict, variant: str) -> dict:
    """Return the user's settings of a variant: `scanvi` updated with `scanvi_{variant}`."""
    return merged(given.get("scanvi") or {}, given.get(f"scanvi_{variant}") or {})


def n_folds(asked: int | None, n_batches: int, n_cells: int) -> int:
    """Number of calibration folds: trainings with some batches held out.

    A reference of one batch is split into PARTS_OF_ONE random parts instead. `asked`: the config's
    value, or None for the default.
    """
    if n_batches == 1:
        return PARTS_OF_ONE
    default = FOLDS if n_cells < MANY_CELLS else FOLDS_OF_MANY
    return min(n_batches, asked or default)


def depth_levels(contract: dict) -> list[int]:
    """Median library sizes for which calibration is learned, in descending order.

    The power of two nearest to the reference's median (contract.json), and repeated halves of it.
    They are independent of queries, so that later batches can use the nearest level.
    """
    own = 2 ** max(round(math.log2(contract["reference"]["counts"]["median_depth"])), 0)
    return [own // 2**k for k in range(N_DEPTHS) if own // 2**k >= LEAST_DEPTH] or [own]


def read_config(path: Path) -> dict:
    """Read a config file; raises TEXT_UNREADABLE, CONFIG_YAML."""
    import yaml

    text = read_text(path, "the config")
    try:
        given = yaml.safe_load(text)
        if not isinstance(given, dict):
            raise ValueError("no keys at the top level")
    except Exception as error:  # yaml's constructors raise undocumented types for odd values
        raise AtlasmapError(
            "CONFIG_YAML",
            expected="a config in YAML: lines of key: value",
            found=f"{path}: {' '.join(str(error).split())[:200]}",
            mend="correct that line; indent by spaces, quote texts with a colon or a brace",
        ) from error
    return given


def complete(cls: type, node: dict[str, Any], blocks: dict[str, Any]) -> None:
    """Add to schema `node` what pydantic leaves out, in place: docstrings of inherited fields, and
    defaults from factories.

    `blocks`: schemas of nested settings classes, by class name.
    """
    for base in cls.__mro__[1:-1]:
        for key, value in TypeAdapter(base).json_schema()["properties"].items():
            if "description" in value:
                node["properties"][key].setdefault("description", value["description"])
    for key, made in cls.__dataclass_fields__.items():
        inner = get_type_hints(cls)[key]
        if hasattr(inner, "__dataclass_fields__"):
            complete(inner, blocks[inner.__name__], blocks)
            node["properties"][key].setdefault("default", {})
        elif callable(made.default_factory):
            node["properties"][key].setdefault("default", made.default_factory())


def schema(cls: type) -> dict[str, Any]:
    """Return the JSON schema of a settings class, with nested classes inlined."""
    whole = TypeAdapter(cls).json_schema()
    blocks = whole.pop("$defs", {})
    complete(cls, whole, blocks)

    def written_out(node: Any) -> Any:
        if isinstance(node, list):
            return [written_out(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            node = {**blocks[node["$ref"].rsplit("/", 1)[-1]], **node}
        plain = {
            k: v
            for k, v in node.items()
            if k != "$ref" and not (k == "title" and isinstance(v, str))
        }
        return {key: written_out(value) for key, value in plain.items()}

    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **written_out(whole)}
