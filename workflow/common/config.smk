# Checks of the config across keys; types and bounds of single keys are in the schema.

import json
from types import SimpleNamespace

from snakemake.utils import update_config, validate

OF_RNA = {"scvi", "scanvi", "scanvi_prefix", "scanvi_fixed", "scanvi_linear"}
OF_RNA |= {"surgery", "variants"}
OF_CITESEQ = {"totalvi", "totalvi_surgery", "denoise"}


def spaced(values):
    """Convert nested dictionaries to namespaces."""
    return json.loads(json.dumps(values), object_hook=lambda of: SimpleNamespace(**of))


def variant_block(given, variant):
    """Returns the user's settings of a variant: `scanvi`, updated by `scanvi_{variant}`."""
    block = json.loads(json.dumps(given.get("scanvi") or {}))
    update_config(block, given.get(f"scanvi_{variant}") or {})
    return block


def load_config(given, schema, file):
    """Returns the config as a namespace, with the defaults of the schema (in `file`).

    Raises CONFIG_* and COVARIATE_* errors.
    """
    filled = as_meant(given, schema)
    check_values(filled, schema, "the config", "CONFIG_INVALID")
    validate(filled, file)
    if "data" not in filled:
        raise AtlasmapError(
            "CONFIG_DEFAULTS",
            expected="a module that fills in defaults from the schema of the config",
            found="skip_validation: True",
            mend="leave it out: the config is checked in any case",
        )
    config = spaced(filled)
    check_config(config, given, schema)
    return config


def check_config(config, given, schema):
    """Check what a schema cannot; raises CONFIG_*, COVARIATE_*.

    `config`: with defaults; `given`: as the user wrote it.
    """
    for variant in ("prefix", "fixed", "linear"):
        block = as_meant(variant_block(given, variant), schema["properties"]["scanvi"])
        check_values(
            {"scanvi": block},
            {"properties": schema["properties"]},
            f"scanvi_{variant}",
            "CONFIG_INVALID",
        )
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
    check_covariates(config, schema)
    check_reference(config, given)


def final_of(config):
    """Returns variant, strategy and seed of the final mapping, with defaults filled in; raises
    CONFIG_FINAL if the run does not make it."""
    final, first = config.final, (
        "fixed" if "fixed" in config.variants else config.variants[0]
    )
    chosen = SimpleNamespace(
        variant=final.variant or first,
        strategy=final.strategy or config.strategies[0],
        seed=config.seeds[0] if final.seed is None else final.seed,
    )
    for key in ("variant", "strategy", "seed"):
        choices, choice = getattr(config, f"{key}s".replace("ys", "ies")), getattr(
            chosen, key
        )
        if choice not in choices:
            raise AtlasmapError(
                "CONFIG_FINAL",
                expected=f"final.{key} to be one of {listed(choices)}",
                found=str(choice),
                mend=f"add it to the list, or choose another final.{key}",
            )
    return chosen


def check_modality(config, given):
    """Raise CONFIG_MODALITY for settings that this modality would ignore."""
    citeseq = config.modality == "citeseq"
    idle = sorted(set(given) & (OF_RNA if citeseq else OF_CITESEQ))
    if citeseq and config.final.variant:
        idle.append("final.variant")
    if not citeseq and config.data.mask_proteins:
        idle.append("data.mask_proteins")
    if idle:
        raise AtlasmapError(
            "CONFIG_MODALITY",
            expected=f"keys of modality {config.modality}",
            found=listed(idle, 10),
            mend=(
                "leave them out: totalVI is set by totalvi, totalvi_surgery and denoise"
                if citeseq
                else "leave them out, or set modality: citeseq"
            ),
        )


def check_covariates(config, schema):
    """Raise COVARIATE_RESERVED if covariates have names of result columns, or occur twice."""
    reserved = schema["properties"]["categorical_covariates"]["reserved"]
    asked = [*config.categorical_covariates, *config.continuous_covariates]
    asked += config.label_levels
    clash = [key for key in asked if key in reserved or asked.count(key) > 1]
    if clash:
        raise AtlasmapError(
            "COVARIATE_RESERVED",
            expected=f"covariates and label_levels named once, and not {listed(reserved, 40)}",
            found=listed(clash),
            mend="rename these columns in obs; the batch is always conditioned on",
        )


def check_mappable(config):
    """Raise SURGERY_NOOP if queries are mapped by surgery, but the encoder ignores the batch."""
    name = "totalvi" if config.modality == "citeseq" else "scvi"
    trained = set(config.strategies) & {"per_batch", "joint"}
    if trained and not getattr(config, name).encode_covariates:
        raise AtlasmapError(
            "SURGERY_NOOP",
            expected=f"{name}.encode_covariates: true, since the sheet has query rows",
            found="false: nothing that surgery trains would reach the query's latent",
            mend="set it to true, or set strategies: [frozen], which takes the encoder as it is",
        )
