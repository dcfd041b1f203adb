"""Globals that a pickle of scvi-tools may refer to. None of them is ever looked up or called."""

import re

# Names that occur only as arguments of calls.
PLAIN_NAMES = {"__builtin__ dict", "numpy ndarray"}
# Allowed in an importable save, but not built: tables of the training history and their parts.
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
# Likewise classes of torch: constraints of pyro parameters, activations among the settings.
TORCH = re.compile(r"torch\.(distributions\.constraints|nn\.modules(\.[a-z]\w*)*) _?[A-Z]\w*")
# Classes in saves of other scvi-tools models: harmless, but no importable model has any of them.
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
    """Returns `module name` in one spelling for all versions of Python and numpy."""
    module = {"builtins": "__builtin__"}.get(module, module)
    if module.startswith("numpy.core."):  # renamed in numpy 2
        module = "numpy._core." + module.removeprefix("numpy.core.")
    return f"{module} {name}"


def is_inert(full: str) -> bool:
    """Returns whether an importable save may contain this global, which is not built."""
    return full in INERT_NAMES or TORCH.fullmatch(full) is not None


def is_foreign(full: str) -> bool:
    """Returns whether this global is harmless, but occurs only in saves of other models."""
    return full in FOREIGN_NAMES or FOREIGN.fullmatch(full) is not None
