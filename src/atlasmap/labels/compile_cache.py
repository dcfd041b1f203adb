"""On-disk caches for JAX's and numba's compiled functions; small jobs spend most time compiling."""

import contextlib
import inspect
import os
import sys
from pathlib import Path


def keep_jax() -> None:
    """Let JAX cache compiled functions in the user's cache folder."""
    import jax

    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "atlasmap" / "jax"
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def keep_numba(*packages: str) -> None:
    """Turn on numba's on-disk cache for the compiled functions of the imported `packages`.

    Functions with an argument `dist` (a function itself) are left out: numba would not recognise it
    in the next process, and would add a cache entry each time.
    """
    from numba.core.dispatcher import Dispatcher

    modules = [m for name, m in list(sys.modules.items()) if name.split(".")[0] in packages]
    found = {value for module in modules for value in vars(module).values()
             if isinstance(value, Dispatcher)}  # fmt: skip
    for function in found:
        if "dist" not in inspect.signature(function.py_func).parameters:
            with contextlib.suppress(RuntimeError):  # no writable cache folder
                function.enable_caching()
