"""Globals that a pickle of scvi-tools may name. None of them is ever looked up or called."""

import re

# Names that are arguments only.
PLAIN_NAMES = {"__builtin__ dict", "numpy ndarray"}
# What nothing is built of in a save that is read: tables of the history and their parts.
INERT_NAMES = {
    "__builtin__ set",
    "__builtin__ slice",
    "pandas Categorical",
    "pandas CategoricalDtype",
    "pandas DataFrame",
    "pandas Index",
    "pandas RangeIndex",
    "pandas Series",
    "pandas StringDtype",
    "pandas._libs.arrays __pyx_unpickle_NDArrayBacked",
    "pandas._libs.internals _unpickle_block",
    "pandas._libs.tslibs.timestamps _unpickle_timestamp",
    "pandas.arrays StringArray",
    "pandas.core.arrays.categorical Categorical",
    "pandas.core.arrays.string_ StringArray",
    "pandas.core.arrays.string_ StringDtype",
    "pandas.core.dtypes.dtypes CategoricalDtype",
    "pandas.core.frame DataFrame",
    "pandas.core.indexes.base Index",
    "pandas.core.indexes.base _new_Index",
    "pandas.core.indexes.numeric Float64Index",
    "pandas.core.indexes.numeric Int64Index",
    "pandas.core.indexes.range RangeIndex",
    "pandas.core.internals.blocks new_block",
    "pandas.core.internals.managers BlockManager",
    "pandas.core.internals.managers SingleBlockManager",
    "pandas.core.series Series",
}
# Nor of classes of torch: constraints of pyro's parameters, activations among the settings.
TORCH = re.compile(r"torch\.(distributions\.constraints|nn\.modules(\.[a-z]\w*)*) _?[A-Z]\w*")
# Classes that saves of other models name. They make no file dangerous, and none of them is in a
# model that can be imported.
FOREIGN_NAMES = {
    "__builtin__ bytearray",
    "__builtin__ complex",
    "__builtin__ frozenset",
    "datetime date",
    "datetime datetime",
    "datetime timedelta",
    "jax._src.array _reconstruct_array",
    "numpy.random._pickle __bit_generator_ctor",
    "numpy.random._pickle __generator_ctor",
    "numpy.random._pickle __randomstate_ctor",
    "pathlib PosixPath",
    "torch Size",
    "torch device",
    "uuid UUID",
}
FOREIGN = re.compile(
    r"(scvi|anndata|flax|jax|jaxlib|mudata|numpyro|pyro|sklearn|scipy\.sparse|xarray\.core"
    r"|pandas\.core\.(arrays|dtypes|indexes)|torch\.(distributions|nn))(\.\w+)*"
    r" (_*[A-Z]\w*|[a-z]{3}_(array|matrix))"
)


def canonical(module: str, name: str) -> str:
    """One spelling of a global."""
    module = {"builtins": "__builtin__"}.get(module, module)
    if module.startswith("numpy.core."):  # the folder was renamed in numpy 2
        module = "numpy._core." + module.removeprefix("numpy.core.")
    return f"{module} {name}"


def is_inert(full: str) -> bool:
    """Whether a save that is read may name this, and nothing is built of it."""
    return full in INERT_NAMES or TORCH.fullmatch(full) is not None


def is_foreign(full: str) -> bool:
    """Whether a harmless save of another model may name this."""
    return full in FOREIGN_NAMES or FOREIGN.fullmatch(full) is not None
