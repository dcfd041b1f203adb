# Check values against a JSON schema: all problems in words, with suggestions for unknown keys.

import copy
import difflib
import math
import re

# PyYAML reads 1e-3 (without dot) as text, and `--config block={key: 1}` passes all values as text.
NUMERAL = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
TRUTHS = {"true": True, "false": False}
TYPES = {
    "string": "text",
    "array": "a list",
    "object": "a block of keys",
    "boolean": "true or false",
    "null": "null",
}
BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
    "minLength": "of a length of at least",
    "pattern": "matching",
}


def wanted(schema):
    """Returns in words which values a schema (of a single value) allows."""
    if "anyOf" in schema:
        return " or ".join(map(wanted, schema["anyOf"]))
    if "const" in schema or "enum" in schema:
        values = schema.get("enum", [schema.get("const")])
        return f"one of {', '.join(map(str, values))}"
    bounds = [f"{say} {schema[key]}" for key, say in BOUNDS.items() if key in schema]
    kind = schema.get("type", "a value")
    return " ".join([TYPES.get(kind, kind), " and ".join(bounds)]).strip()


def all_keys(schema, inside=()):
    """Yield every key at any depth, as a path (tuple)."""
    for key, block in schema.get("properties", {}).items():
        yield (*inside, key)
        yield from all_keys(block, (*inside, key))


def nearest_key(schema, inside, key):
    """Returns the known key most similar to `key`: in the same block, else deeper in it, else
    anywhere; "" if there is none."""
    everywhere = list(all_keys(schema))
    deeper = [path for path in everywhere if path[: len(inside)] == inside]
    same = [path for path in deeper if len(path) == len(inside) + 1]
    for paths, cutoff in ((same, 0.6), (deeper, 0.8), (everywhere, 0.9), (same, 0.5)):
        named = {path[-1]: path for path in reversed(paths)}
        if near := difflib.get_close_matches(key, named, n=1, cutoff=cutoff):
            return ".".join(named[near[0]])
    return ""


def as_meant(values, schema):
    """Returns a copy of the values, with texts converted to numbers or booleans where the schema
    wants these."""
    if isinstance(values, dict):
        blocks = schema.get("properties", {})
        return {key: as_meant(v, blocks.get(key, {})) for key, v in values.items()}
    if isinstance(values, list):
        return [as_meant(value, schema.get("items", {})) for value in values]
    kinds = {option.get("type") for option in schema.get("anyOf", [schema])}
    if isinstance(values, str) and kinds & {"number", "integer"}:
        if not NUMERAL.fullmatch(values):
            return values
        number = float(values)
        return int(number) if "integer" in kinds and number.is_integer() else number
    if isinstance(values, str) and "boolean" in kinds:
        return TRUTHS.get(values.lower(), values)
    return copy.deepcopy(values)


def unknown_key(schema, inside, key, known):
    """Returns the message for an unknown key, with a similar key or the known ones."""
    near = nearest_key(schema, inside, str(key))
    hint = f"did you mean {near}?" if near else f"known keys: {listed(known, 40)}"
    return f"unknown key {'.'.join([*inside, str(key)])}; {hint}"


def problems_of(error, schema):
    """Returns the messages for one validation error."""
    inside, value = tuple(map(str, error.absolute_path)), error.instance
    if error.validator == "additionalProperties":
        known = error.schema["properties"]
        extra = [key for key in value if key not in known]
        return [unknown_key(schema, inside, key, known) for key in extra]
    if error.validator == "required":
        missing = [key for key in error.validator_value if key not in value]
        return [f"{'.'.join([*inside, key])} is required" for key in missing]
    said = wanted(error.schema)
    return [f"{'.'.join(inside) or 'it'} is {str(value)!r:.200}: expected {said}"]


def not_finite(values, inside=()):
    """Yield messages for numbers at any depth that are infinite or NaN, which passes all bounds."""
    if isinstance(values, dict):
        for key, value in values.items():
            yield from not_finite(value, (*inside, str(key)))
    elif isinstance(values, float) and not math.isfinite(values):
        yield f"{'.'.join(inside)} is {values}: expected a finite number"


def check_values(values, schema, source, code):
    """Raise an error with this `code` that names every problem of the values, if there are any.

    `source`: where the values come from, for the message.
    """
    from jsonschema import Draft202012Validator

    errors = Draft202012Validator(schema).iter_errors(values)
    found = [said for error in errors for said in problems_of(error, schema)]
    named = {said.split(" is ")[0] for said in found}
    found += [x for x in not_finite(values) if x.split(" is ")[0] not in named]
    if found:
        raise AtlasmapError(
            code,
            expected=f"values as described in config/README.md, in {source}",
            found="; ".join(dict.fromkeys(found)),
            mend="correct these keys",
        )
