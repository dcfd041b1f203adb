"""The config: checked against a closed schema before anything else happens."""

import difflib
import json
import math
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from atlasmap.errors import AtlasmapError, listed
from atlasmap.files import check_url, from_home, read_text
from atlasmap.settings import Config, FinalSettings, ScanviSettings

# Columns of obs that prepared files and atlases have of their own.
RESERVED = {
    "batch", "label", "truth", "dataset", "role", "split", "barcode", "predicted_label",
    "confidence", "entropy", "runner_up", "runner_up_probability", "knn_label", "knn_uncertainty",
    "calibrated_confidence", "prediction_set", "prediction_set_size", "common_ancestor", "distance",
    "safe_label", "safe_level", "safe_probability", "label_given", "truth_given",
    "misfit", "novelty", "strangeness", "verdict", "seed_agreement", "shifted", "pooled_label",
    "pooled_confidence", "genes_label", "genes_confidence",
}  # fmt: skip
MANY_CELLS = 20_000  # from which a reference is trained fewer times to calibrate
FOLDS, FOLDS_OF_MANY, PARTS_OF_ONE = 4, 2, 3
MOST_HELD_OUT, LEAST_HELD_OUT = 20_000, 500  # cells of all held-out batches, and of each
N_DEPTHS, LEAST_DEPTH = 4, 16  # median counts a cell


def block_of(cls: type, key: str) -> type | None:
    """The dataclass under a key of `cls`, if it is a block."""
    hint = get_type_hints(cls).get(key)
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return next((option for option in options if hasattr(option, "__dataclass_fields__")), None)


def known_keys(cls: type | None, where: tuple) -> list[str]:
    """Keys that the dataclass at `where` inside `cls` knows."""
    for key in where:
        cls = cls and block_of(cls, key)
    return list(cls.__dataclass_fields__) if cls else []


def all_keys(cls: type, inside: tuple = ()) -> Iterator[tuple]:
    """Every key at any depth, as a path."""
    for key in cls.__dataclass_fields__:
        yield (*inside, key)
        if block := block_of(cls, key):
            yield from all_keys(block, (*inside, key))


def nearest_key(cls: type, inside: tuple, key: str) -> str:
    """The key that was meant: of the same block, else one deeper in it, else anywhere; or empty."""
    everywhere = list(all_keys(cls))
    deeper = [path for path in everywhere if path[: len(inside)] == inside]
    same = [path for path in deeper if len(path) == len(inside) + 1]
    for paths, cutoff in ((same, 0.6), (deeper, 0.8), (everywhere, 0.9), (same, 0.5)):
        named = {path[-1]: path for path in reversed(paths)}
        if near := difflib.get_close_matches(key, named, n=1, cutoff=cutoff):
            return ".".join(named[near[0]])
    return ""


def problem(error: dict[str, Any], cls: type) -> str:
    """One validation error in a sentence."""
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        *inside, key = error["loc"]
        known = known_keys(cls, tuple(inside))
        near = nearest_key(cls, tuple(inside), str(key))
        hint = f"did you mean {near}?" if near else ""
        return f"unknown key {where}; {hint or 'known keys: ' + listed(known, 40)}"
    if error["type"] == "missing" or "missing" in error["type"]:
        return f"{where} is required"
    return f"{where} is {error['input']!r}: {error['msg']}"


def checked(cls: type, values: Any, source: str, code: str) -> Any:
    """`values` as a frozen `cls`, or one error, of this `code`, that names every problem."""
    try:
        return TypeAdapter(cls).validate_python(values)
    except ValidationError as invalid:
        problems = [problem(error, cls) for error in invalid.errors()]
    raise AtlasmapError(
        code,
        expected=f"values as described in config/README.md, in {source}",
        found="; ".join(problems),
        mend="correct these keys",
    )


def merged(base: dict, over: dict) -> dict:
    """`base` with `over` laid over it, block by block."""
    out = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merged(out[key], value) if both else value
    return out


def variant_block(given: dict, variant: str) -> dict:
    """What the user set for a variant: `scanvi` with `scanvi_{variant}` laid over it."""
    return merged(given.get("scanvi") or {}, given.get(f"scanvi_{variant}") or {})


def load_config(given: dict) -> Config:
    """The config as a frozen `Config`; raises CONFIG_* errors."""
    config = checked(Config, given, "the config", "CONFIG_INVALID")
    for variant in ("prefix", "fixed", "linear"):
        block = variant_block(given, variant)
        checked(ScanviSettings, block, f"scanvi_{variant}", "CONFIG_INVALID")
    for key in ("variants", "strategies", "seeds"):
        values = getattr(config, key)
        if not values or len(set(values)) < len(values):
            raise AtlasmapError(
                "CONFIG_LIST",
                expected=f"{key}: at least one entry, each once",
                found=f"{values}",
                mend=f"correct {key}",
            )
    final_of(config)
    check_modality(config, given)
    check_covariates(config)
    check_reference(config, given)
    return config


def check_modality(config: Config, given: dict) -> None:
    """Blocks of a model that this modality does not train would be ignored: CONFIG_MODALITY."""
    of_rna = {"scvi", "scanvi", "scanvi_prefix", "scanvi_fixed", "scanvi_linear", "surgery"}
    of_rna |= {"variants"}
    of_citeseq = {"totalvi", "totalvi_surgery", "denoise"}
    idle = sorted(set(given) & (of_rna if config.modality == "citeseq" else of_citeseq))
    if config.modality == "citeseq" and config.final.variant:
        idle.append("final.variant")
    if config.modality == "rna" and config.data.mask_proteins:
        idle.append("data.mask_proteins")
    if idle:
        citeseq = config.modality == "citeseq"
        raise AtlasmapError(
            "CONFIG_MODALITY",
            expected=f"keys of modality {config.modality}",
            found=listed(idle, 10),
            mend="leave them out: totalVI is set by totalvi, totalvi_surgery and denoise"
            if citeseq
            else "leave them out, or set modality: citeseq",
        )


def check_reference(config: Config, given: dict) -> None:
    """A given reference leaves nothing to train: CONFIG_REFERENCE."""
    reference, mend = config.reference, ""
    for key in ("scvi_tools", "adata"):
        if "://" in (path := getattr(reference, key) or ""):
            check_url(path, f"reference.{key}")
    if not reference.given and not reference.adata:
        return
    idle = [key for key in given if key in ("scvi", "totalvi") or key.startswith("scanvi")]
    if not reference.given:
        found, mend = "reference.adata alone", "give reference.scvi_tools as well"
    elif reference.bundle and reference.scvi_tools:
        found, mend = "reference.bundle and reference.scvi_tools", "leave one of them out"
    elif reference.bundle and reference.adata:
        found, mend = "reference.adata beside a bundle", "leave it out: a bundle has its latent"
    elif "://" in (reference.scvi_tools or "") and not reference.adata:
        found, mend = "a model at a URL without its cells", "give reference.adata as well"
    elif idle:
        found = f"settings of a training: {listed(idle)}"
        mend = "leave them out: the reference is trained already"
    elif reference.scvi_tools and config.modality == "citeseq":
        if config.labels == "given":
            found = "labels: given, of a model that scvi-tools saved"
            mend = "set labels: none: TOTALVI has no classifier"
    elif reference.scvi_tools and config.labels == "given" and len(given.get("variants", [])) != 1:
        found = f"variants: {config.variants}"
        mend = "name its classifier, which atlasmap import-scvi says: variants: [prefix] if it was "
        mend += "saved before scvi-tools 1.1, else mostly [fixed]; for SCVI labels: none"
    if mend:
        raise AtlasmapError(
            "CONFIG_REFERENCE",
            expected="one trained reference, and what it leaves open",
            found=found,
            mend=mend,
        )


def with_reference(config: Config, given: dict, folder: Path) -> Config:
    """The config with the classifier that the bundle in `folder` has.

    Raises CONFIG_REFERENCE if the config asks for another, BUNDLE_MISSING.
    """
    about = folder / "settings.json"
    if not about.is_file():
        raise AtlasmapError(
            "BUNDLE_MISSING",
            expected="reference.bundle: the folder of a bundle, with settings.json",
            found=f"no {about}",
            mend="correct the path; what scvi-tools saved goes under reference.scvi_tools",
        )
    if folder.resolve().is_relative_to(Path(f"results/{config.atlas}").resolve()):
        raise AtlasmapError(
            "CONFIG_REFERENCE",
            expected="a reference outside the results of this very atlas",
            found=f"{folder}, where this run would write",
            mend="give `atlas` another name, or move the bundle elsewhere",
        )
    try:
        said = json.loads(about.read_text(encoding="utf-8"))
        variant, kind, head = (said.get(key) for key in ("variant", "kind", "classifier"))
    except (ValueError, AttributeError) as error:
        raise AtlasmapError(
            "BUNDLE_ALTERED",
            expected=f"{about} as it was written",
            found=f"{error}",
            mend="copy the bundle again from where it came",
        ) from error
    citeseq, nameless = kind == "totalvi", variant is None and not head
    name = "totalVI" if citeseq else "scVI" if nameless else f"scANVI ({variant})"
    if citeseq != (config.modality == "citeseq"):
        found = f"{name}, for modality: {config.modality}"
        mend = f"set modality: {'citeseq' if citeseq else 'rna'}"
    elif nameless != (config.labels == "none"):
        found = f"{name}, which has no labels" if nameless else name
        mend = "set labels: none" if nameless else "leave out labels: none"
    elif variant and "variants" in given and given["variants"] != [variant]:
        found, mend = f"a {variant} classifier", f"set variants: [{variant}], or leave it out"
    else:
        return replace(config, variants=[variant]) if variant else config
    raise AtlasmapError(
        "CONFIG_REFERENCE",
        expected=f"a reference for labels: {config.labels}, variants: {config.variants}",
        found=f"{found} in {folder}",
        mend=mend,
    )


def check_mappable(config: Config) -> None:
    """A reference whose encoder does not see the batch cannot be mapped onto: SURGERY_NOOP."""
    name = "totalvi" if config.modality == "citeseq" else "scvi"
    trained = set(config.strategies) & {"per_batch", "joint"}
    if trained and not getattr(config, name).encode_covariates:
        raise AtlasmapError(
            "SURGERY_NOOP",
            expected=f"{name}.encode_covariates: true, since the sheet has query rows",
            found="false: nothing that surgery trains would reach the query's latent",
            mend="set it to true, or set strategies: [frozen], which takes the encoder as it is",
        )


def check_covariates(config: Config) -> None:
    """Covariates must not be columns that results have of their own: COVARIATE_RESERVED."""
    asked = [*config.categorical_covariates, *config.continuous_covariates, *config.label_levels]
    clash = [key for key in asked if key in RESERVED or asked.count(key) > 1]
    if clash:
        raise AtlasmapError(
            "COVARIATE_RESERVED",
            expected="covariates and label_levels named once, and not "
            f"{listed(sorted(RESERVED), 40)}",
            found=listed(clash),
            mend="rename these columns in obs; the batch is always conditioned on",
        )


def n_folds(asked: int | None, n_batches: int, n_cells: int) -> int:
    """Times that a reference is trained with some of its batches held out (of one batch: parts)."""
    if n_batches == 1:
        return PARTS_OF_ONE
    default = FOLDS if n_cells < MANY_CELLS else FOLDS_OF_MANY
    return min(n_batches, asked or default)


def depth_levels(contract: dict) -> list[int]:
    """Median depths that trust is learned for, the deepest first: the power of two next to the
    reference's (contract.json), and halves of it. They do not depend on queries: next month's batch
    is given what was learned for the nearest, and so is a colleague's."""
    own = 2 ** max(round(math.log2(contract["reference"]["counts"]["median_depth"])), 0)
    return [own // 2**k for k in range(N_DEPTHS) if own // 2**k >= LEAST_DEPTH] or [own]


def check_slurm_resources(given: dict[str, Any]) -> None:
    """Resources from a profile or the command line that would break Slurm jobs: SLURM_RESOURCE."""
    extra = str(given.get("slurm_extra") or "")
    if "gpus" in given:
        found, mend = f"gpus={given['gpus']}", "say gpu (it becomes --gpus), or gres"
    elif re.search(r"--job-name\b|(^|[\s'\"])-J", extra):
        found = f"slurm_extra={extra}"
        mend = "leave the job's name to Snakemake, which finds its jobs by it"
    else:
        return
    raise AtlasmapError(
        "SLURM_RESOURCE",
        expected="resources that the Slurm plugin can work with",
        found=found,
        mend=mend,
    )


def final_of(config: Config) -> FinalSettings:
    """Which mapping is *the* atlas, nothing left open; raises CONFIG_FINAL if it is not made."""
    final = config.final
    chosen = FinalSettings(
        variant=final.variant or ("fixed" if "fixed" in config.variants else config.variants[0]),
        strategy=final.strategy or config.strategies[0],
        seed=config.seeds[0] if final.seed is None else final.seed,
    )
    for key, choices in [
        ("variant", config.variants),
        ("strategy", config.strategies),
        ("seed", config.seeds),
    ]:
        if getattr(chosen, key) not in choices:
            raise AtlasmapError(
                "CONFIG_FINAL",
                expected=f"final.{key} to be one of {listed(choices)}",
                found=str(getattr(chosen, key)),
                mend=f"add it to the list, or choose another final.{key}",
            )
    return chosen


def found_beside(path: str, root: Path) -> Path:
    """A path of the config: absolute, else from the working directory, else from the repository."""
    given = from_home(path)
    return given if given.is_absolute() or given.exists() else root / given


def read_config(path: Path) -> dict:
    """A config file; raises TEXT_UNREADABLE, CONFIG_YAML."""
    import yaml

    text = read_text(path, "the config")
    try:
        given = yaml.safe_load(text)
        if not isinstance(given, dict):
            raise ValueError("no keys at the top level")
    except Exception as error:  # what YAML's own types make of odd values is not listed anywhere
        raise AtlasmapError(
            "CONFIG_YAML",
            expected="a config in YAML: lines of key: value",
            found=f"{path}: {' '.join(str(error).split())[:200]}",
            mend="correct that line; indent by spaces, quote texts with a colon or a brace",
        ) from error
    return given


def as_flag(name: str, block: dict) -> str:
    """A config block as one command-line flag that a shell passes on whole: --scvi='{…}'."""
    return f"--{name}={shlex.quote(json.dumps(block, sort_keys=True))}"


def cost(said: dict) -> str:
    """forecast.json in a line."""
    return f"forecast: {said['hours']:.2f} h of training and mapping (probed on {said['device']})"


def complete(cls: type, node: dict[str, Any], blocks: dict[str, Any]) -> None:
    """Add what pydantic leaves out: docstrings of inherited fields, defaults that a factory makes.

    `blocks` are the schemas of the settings classes inside, by name.
    """
    for base in cls.__mro__[1:-1]:
        for key, value in TypeAdapter(base).json_schema()["properties"].items():
            if "description" in value:
                node["properties"][key].setdefault("description", value["description"])
    for key, made in cls.__dataclass_fields__.items():
        inner = get_type_hints(cls)[key]
        if hasattr(inner, "__dataclass_fields__"):
            complete(inner, blocks[inner.__name__], blocks)
        elif callable(made.default_factory):
            node["properties"][key].setdefault("default", made.default_factory())


def schema(cls: type) -> dict[str, Any]:
    """JSON schema of a settings class, its blocks written out where they stand."""
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
