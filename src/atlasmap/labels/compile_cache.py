"""What JAX and numba compile, kept between processes: of a small job it is most of the time."""

import contextlib
import inspect
import os
import sys
from pathlib import Path


def keep_jax() -> None:
    """JAX keeps what it compiles in the user's cache folder."""
    import jax

    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "atlasmap" / "jax"
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def keep_numba(*packages: str) -> None:
    """Functions of imported `packages` are kept where numba keeps what asks for it itself.

    Not those that take a function `dist`: numba would not know it again, and add one each time.
    """
    from numba.core.dispatcher import Dispatcher

    modules = [m for name, m in list(sys.modules.items()) if name.split(".")[0] in packages]
    found = {value for module in modules for value in vars(module).values()
             if isinstance(value, Dispatcher)}  # fmt: skip
    for function in found:
        if "dist" not in inspect.signature(function.py_func).parameters:
            with contextlib.suppress(RuntimeError):  # no folder that can be written
                function.enable_caching()
