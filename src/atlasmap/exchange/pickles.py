"""Read a pickle as data: a reader of its own that calls nothing the file names.

Opcodes are decoded by `pickletools` (which runs nothing) and carried out on plain values. A global
is a name on the stack and never becomes a Python object: what it would build, a rule of ours builds
(`RULES`), or, for pandas' classes, an inert `Unbuilt`. Any other name is refused when it is read.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from atlasmap.errors import AtlasmapError

MOST_NODES = 20_000_000  # opcodes; a save of a million cells has some thousands
SIMPLE = "biufUS"  # kinds of numpy values that are data and nothing else
PANDAS = {
    "pandas._libs.internals _unpickle_block",
    "pandas._libs.tslibs.timestamps _unpickle_timestamp",
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


class Unreadable(ValueError):
    """The bytes are not what they should be."""


@dataclass(frozen=True)
class Name:
    """A global: `module qualname`, nothing more."""

    name: str


@dataclass(eq=False)
class Unbuilt:
    """What the file would have built from a class that is not needed here."""

    name: str


@dataclass(eq=False)
class Array:
    """A numpy array before its state; `value` once that is there."""

    value: np.ndarray | None = None


@dataclass(eq=False)
class DType:
    """A numpy dtype between its two opcodes."""

    code: str
    order: str = "="

    def built(self) -> np.dtype:
        """The dtype, if it is one of plain values."""
        if self.code == "O8":
            return np.dtype(object)
        dtype = np.dtype(self.code)
        if dtype.kind not in SIMPLE or dtype.itemsize == 0:
            raise Unreadable(f"an array of {self.code!r}")
        return dtype.newbyteorder("=" if self.order == "|" else self.order)


def need(ok: bool, what: str) -> None:
    """Raise Unreadable unless `ok`."""
    if not ok:
        raise Unreadable(what)


def encode(text: str, encoding: str = "latin1") -> bytes:
    """_codecs.encode, of bytes that protocol 2 writes as text."""
    need(isinstance(text, str) and encoding in ("latin1", "latin-1"), f"encoding {encoding!r}")
    return text.encode("latin1")


def no_bytes(*given) -> bytes:
    """bytes(): none. Others are written by `_codecs.encode`."""
    need(not given, "bytes of something")
    return b""


def dictionary(*given):
    """OrderedDict() or defaultdict(dict): a plain one (a default is never asked for)."""
    need(not given or given == (Name("__builtin__ dict"),), "a dictionary of something")
    return {}


def array(kind, shape, code) -> Array:
    """numpy's _reconstruct: an empty array, filled by its state."""
    need(kind == Name("numpy ndarray") and shape == (0,), "an array built in an unknown way")
    return Array()


def dtype_of(code, align=False, copy=True) -> DType:
    """A dtype's code; its byte order comes with its state."""
    need(isinstance(code, str), "a dtype without a code")
    return DType(code)


def scalar(dtype, data=None):
    """One numpy number or text."""
    need(isinstance(dtype, DType) and isinstance(data, bytes), "a scalar of unknown make")
    return from_bytes(dtype.built(), (), data)[()]


def from_bytes(dtype: np.dtype, shape: tuple, data: bytes) -> np.ndarray:
    """The values (flat) of an array of `shape`, if `data` is just as long."""
    need(all(isinstance(n, int) and n >= 0 for n in shape), f"shape {shape}")
    n = 1
    for size in shape:
        n *= size
    need(n * dtype.itemsize == len(data), f"{len(data)} bytes for {shape} of {dtype}")
    return np.frombuffer(data, dtype, n).astype(dtype.newbyteorder("="))


# name → what is built of a REDUCE's arguments. numpy's folder was renamed in 2.0.
RULES: dict[str, Callable] = {
    "collections OrderedDict": dictionary,
    "collections defaultdict": dictionary,
    "_codecs encode": encode,
    "__builtin__ bytes": no_bytes,
    "numpy dtype": dtype_of,
    "numpy._core.multiarray _reconstruct": array,
    "numpy._core.multiarray scalar": scalar,
}
# Names that are arguments only.
PLAIN_NAMES = {"__builtin__ dict", "__builtin__ slice", "numpy ndarray"}


def canonical(module: str, name: str) -> str:
    """One spelling of a global."""
    module = {"builtins": "__builtin__"}.get(module, module)
    if module.startswith("numpy.core."):
        module = "numpy._core." + module.removeprefix("numpy.core.")
    return f"{module} {name}"


@dataclass
class Reader:
    """The stack machine. `rules` are further names and what is built of their arguments,
    `persistent` resolves persistent ids, `names` are further names that are arguments only."""

    rules: dict[str, Callable]
    persistent: Callable[[Any], Any]
    names: frozenset[str] = frozenset()
    stack: list = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def read(self, data: bytes) -> Any:
        """The value that `data` describes; raises SAVE_UNTRUSTED, Unreadable."""
        self.rules = RULES | self.rules
        try:
            for n, (opcode, argument, _) in enumerate(pickletools.genops(data)):
                need(n < MOST_NODES, "more values than any save has")
                if opcode.name == "STOP":
                    return self.pop()
                self.step(opcode.name, argument)
        except (LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise Unreadable(f"{type(error).__name__}: {error}") from error
        raise Unreadable("no end")

    def pop(self) -> Any:
        """The top of the stack, above the last mark."""
        need(len(self.stack) > (self.marks[-1] if self.marks else 0), "an empty stack")
        return self.stack.pop()

    def pop_mark(self) -> list:
        """Everything above the last mark."""
        at = self.marks.pop()
        taken = self.stack[at:]
        del self.stack[at:]
        return taken

    def step(self, code: str, argument: Any) -> None:
        """Carry out one opcode."""
        if code in CONSTANTS:
            self.stack.append(CONSTANTS[code])
        elif code in LITERALS:
            self.stack.append(argument)
        elif code in EMPTY:
            self.stack.append(EMPTY[code]())
        elif code in TUPLES:
            self.stack.append(tuple([self.pop() for _ in range(TUPLES[code])][::-1]))
        elif code in ("BINPUT", "LONG_BINPUT", "PUT"):
            self.memo[argument] = self.stack[-1]
        elif code == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif code in ("BINGET", "LONG_BINGET", "GET"):
            self.stack.append(self.finished(self.memo[argument]))
        elif code in STEPS:
            STEPS[code](self, argument)
        elif code not in ("PROTO", "FRAME"):
            raise Unreadable(f"opcode {code}, which no save has")

    def finished(self, value: Any) -> Any:
        """A remembered value; an array only once it is whole."""
        if not isinstance(value, Array):
            return value
        need(value.value is not None, "an array inside itself")
        return value.value

    def mark(self, _) -> None:
        self.marks.append(len(self.stack))

    def make_tuple(self, _) -> None:
        self.stack.append(tuple(self.pop_mark()))

    def append(self, _) -> None:
        item = self.pop()
        self.add_to([item])

    def appends(self, _) -> None:
        self.add_to(self.pop_mark())

    def add_to(self, items: list) -> None:
        """Items of a list; what is unbuilt takes them and forgets them."""
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        else:
            need(isinstance(target, Unbuilt), "items of something that is no list")

    def set_item(self, _) -> None:
        value, key = self.pop(), self.pop()
        self.set_in([key, value])

    def set_items(self, _) -> None:
        self.set_in(self.pop_mark())

    def set_in(self, items: list) -> None:
        """Keys and values of a dictionary."""
        target = self.stack[-1]
        need(len(items) % 2 == 0, "a key without a value")
        if isinstance(target, Unbuilt):
            return
        need(isinstance(target, dict), "keys of something that is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            need(isinstance(key, str | int | float | bytes | bool | None), f"a key {key!r}")
            target[key] = value

    def named(self, argument: str) -> None:
        module, name = argument.split(" ", 1)
        self.name(module, name)

    def stack_named(self, _) -> None:
        name, module = self.pop(), self.pop()
        need(isinstance(module, str) and isinstance(name, str), "a name that is no text")
        self.name(module, name)

    def name(self, module: str, name: str) -> None:
        """Put a global on the stack, as a name; raises SAVE_UNTRUSTED."""
        full = canonical(module, name)
        known = self.rules.keys() | PLAIN_NAMES | PANDAS | self.names
        if full not in known:
            raise AtlasmapError(
                "SAVE_UNTRUSTED",
                expected="numbers, texts and tables, as scvi-tools saves them",
                found=f"the file asks for {module}.{name}",
                mend="do not open this file with anything that unpickles it; ask whoever made it "
                "for a plain save (model.save), or for an atlasmap bundle",
            )
        self.stack.append(Name(full))

    def reduce(self, _) -> None:
        arguments, made = self.pop(), self.pop()
        self.build_of(made, arguments)

    def new_object(self, _) -> None:
        arguments, made = self.pop(), self.pop()
        need(isinstance(made, Name) and made.name in PANDAS, "an object of unknown make")
        self.build_of(made, arguments)

    def build_of(self, made: Any, arguments: Any) -> None:
        need(isinstance(made, Name) and isinstance(arguments, tuple), "a call of something else")
        if made.name in PANDAS or made.name == "__builtin__ slice":
            self.stack.append(Unbuilt(made.name))
        else:
            need(made.name in self.rules, f"a call of {made.name}")
            self.stack.append(self.rules[made.name](*arguments))

    def set_state(self, _) -> None:
        state, target = self.pop(), self.stack[-1]
        if isinstance(target, Array):
            _, shape, dtype, fortran, data = state
            target.value = self.stack[-1] = filled(shape, dtype, fortran, data)
        elif isinstance(target, DType):
            target.order = state[1]
        else:
            # OrderedDicts of torch carry _metadata; objects of pandas their tables.
            need(isinstance(target, Unbuilt | dict), "a state of something else")

    def persist(self, _) -> None:
        self.stack.append(self.persistent(self.pop()))


def filled(shape: tuple, dtype: DType, fortran: bool, data: bytes | list) -> np.ndarray:
    """An array of a state's parts."""
    need(isinstance(dtype, DType) and isinstance(shape, tuple), "an array of unknown state")
    built = dtype.built()
    if built.kind == "O":
        need(isinstance(data, list), "an array of objects without a list")
        flat = np.empty(len(data), object)
        for k, item in enumerate(data):
            flat[k] = item
    else:
        need(isinstance(data, bytes), "an array without bytes")
        flat = from_bytes(built, shape, data)
    return flat.reshape(shape, order="F" if fortran else "C")


CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
LITERALS = {
    "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "INT", "LONG", "FLOAT", "BINFLOAT",
    "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
}  # fmt: skip
EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
STEPS = {
    "MARK": Reader.mark,
    "TUPLE": Reader.make_tuple,
    "APPEND": Reader.append,
    "APPENDS": Reader.appends,
    "SETITEM": Reader.set_item,
    "SETITEMS": Reader.set_items,
    "GLOBAL": Reader.named,
    "STACK_GLOBAL": Reader.stack_named,
    "REDUCE": Reader.reduce,
    "NEWOBJ": Reader.new_object,
    "BUILD": Reader.set_state,
    "BINPERSID": Reader.persist,
}
