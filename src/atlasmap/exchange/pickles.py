"""Read a pickle as plain data, without calling anything that the file names.

`pickletools` decodes the opcodes (it executes nothing) and `Reader` carries them out on plain
values. A global is only a name on the stack, never a Python object. A call of a name runs one of
`Reader.rules`, or, for tables and classes of other models, leaves an inert `Unbuilt`; any other
name is refused when it is read. A byte budget bounds the memory that a file can make us allocate.
"""

import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from atlasmap.errors import AtlasmapError
from atlasmap.exchange.names import PLAIN_NAMES, canonical, is_foreign, is_inert

CONTAINER = 64  # bytes charged for a list, tuple or dictionary
LONGEST_KEY = 2**31  # bound of integer keys: larger ones could be chosen to collide as hashes
DTYPE = re.compile(r"[<>|=]?[biufUS]\d{1,6}")


class Unreadable(ValueError):
    """The bytes are malformed, or not of a supported form."""


@dataclass(frozen=True)
class Name:
    """A reference to a global, kept as the text `module qualname`."""

    name: str


@dataclass(eq=False)
class Unbuilt:
    """Placeholder of an object whose class is not needed; its items and state are discarded."""

    name: str


@dataclass(eq=False)
class Array:
    """A numpy array under construction; `value` is None until its state has been read."""

    value: np.ndarray | None = None


@dataclass(eq=False)
class DType:
    """A numpy dtype under construction: REDUCE gives the code, BUILD the byte order."""

    code: str
    order: str = "="

    def built(self) -> np.dtype:
        """Returns the dtype; raises Unreadable unless it holds plain values or objects."""
        if self.code == "O8":
            return np.dtype(object)
        need(DTYPE.fullmatch(self.code) is not None, "an array of something else than plain values")
        need(self.order in ("<", ">", "=", "|"), "an unknown byte order")
        dtype = np.dtype(self.code)
        need(dtype.itemsize > 0, "an array of nothing")
        return dtype.newbyteorder("=" if self.order == "|" else self.order)


def need(ok: bool, what: str) -> None:
    """Raise Unreadable unless `ok`. `what` must not quote the file, whose text may be huge."""
    if not ok:
        raise Unreadable(what)


def untrusted(full: str) -> AtlasmapError:
    """Returns the SAVE_UNTRUSTED error for a file that refers to this global."""
    return AtlasmapError(
        "SAVE_UNTRUSTED",
        expected="numbers, texts and tables, as scvi-tools saves them",
        found=f"the file asks for {full.replace(' ', '.')[:200]}",
        mend="do not open this file with anything that unpickles it; ask whoever made it "
        "for a plain save (model.save), or for an atlasmap bundle",
    )


class Reader:
    """The pickle stack machine.

    `persistent` resolves persistent ids. `names` are further names allowed as arguments of calls.
    `budget`: bytes that may be allocated. `rules` (name → function) can be extended. After `read`,
    `foreign` is the first name that occurs in no importable model, or None.
    """

    def __init__(self, persistent: Callable[[Any], Any], names: frozenset[str], budget: int):
        self.persistent, self.names, self.budget = persistent, names, budget
        self.rules: dict[str, Callable] = {
            "collections OrderedDict": self.dictionary,
            "collections defaultdict": self.dictionary,
            "_codecs encode": self.encode,
            "__builtin__ bytes": self.no_bytes,
            "numpy dtype": self.dtype,
            "numpy._core.multiarray _reconstruct": self.array,
            "numpy._core.multiarray scalar": self.scalar,
        }
        self.stack: list = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.foreign: str | None = None

    def read(self, data: bytes) -> Any:
        """Returns the value that the pickle `data` describes; raises SAVE_UNTRUSTED, Unreadable."""
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                return self.finished(self.pop())
            self.step(opcode.name, argument)
        raise Unreadable("no end")

    def spend(self, n_bytes: int) -> None:
        """Charge `n_bytes` to the budget; raises Unreadable once it is exceeded."""
        self.budget -= n_bytes
        need(self.budget >= 0, "more than a file of this size can hold")

    # Rules: what a call of a name builds.

    def dictionary(self, *given) -> dict:
        """OrderedDict() or defaultdict(dict), as a plain dict; the default factory is not used."""
        need(len(given) == 0 or given == (Name("__builtin__ dict"),), "a dictionary of something")
        self.spend(CONTAINER)
        return {}

    def encode(self, text, encoding="latin1") -> bytes:
        """_codecs.encode: protocol 2 writes bytes as latin-1 text."""
        known = isinstance(encoding, str) and encoding in ("latin1", "latin-1")
        need(known and isinstance(text, str), "text in an unknown encoding")
        self.spend(len(text))
        return text.encode("latin1")

    def no_bytes(self, *given) -> bytes:
        """bytes() without arguments; non-empty bytes are written with `_codecs.encode`."""
        need(len(given) == 0, "bytes of something")
        return b""

    def array(self, kind, shape, code) -> Array:
        """numpy's _reconstruct: an empty array, which its state (BUILD) fills."""
        plain = isinstance(kind, Name) and kind.name == "numpy ndarray" and shape == (0,)
        need(plain, "an array built in an unknown way")
        return Array()

    def dtype(self, code, align=False, copy=True) -> DType:
        """A dtype from its code; its byte order follows in its state (BUILD)."""
        need(isinstance(code, str), "a dtype without a code")
        return DType(code)

    def scalar(self, dtype, data=None):
        """numpy's scalar: one number or text."""
        need(isinstance(dtype, DType) and isinstance(data, bytes), "a scalar of unknown make")
        built = dtype.built()
        need(built.kind != "O", "a scalar of unknown make")
        return self.from_bytes(built, (1,), data)[0]

    def from_bytes(self, dtype: np.dtype, shape: tuple, data: bytes) -> np.ndarray:
        """Returns the flat values of an array of `shape`; `data` must have exactly its size."""
        need(count(shape) * dtype.itemsize == len(data), "an array of another size than its bytes")
        self.spend(len(data))
        return np.frombuffer(data, dtype).astype(dtype.newbyteorder("="))

    def filled(self, state) -> np.ndarray:
        """Returns the array that a state (version, shape, dtype, Fortran order, data) describes."""
        need(isinstance(state, tuple) and len(state) == 5, "an array of unknown state")
        _, shape, dtype, fortran, data = state
        need(isinstance(dtype, DType) and isinstance(shape, tuple), "an array of unknown state")
        built = dtype.built()
        if built.kind == "O":
            need(isinstance(data, list), "an array of objects without a list")
            need(count(shape) == len(data), "an array of another size than its list")
            self.spend(8 * len(data))
            flat = np.empty(len(data), object)
            for k, item in enumerate(data):
                flat[k] = item
        else:
            need(isinstance(data, bytes), "an array without bytes")
            flat = self.from_bytes(built, shape, data)
        return flat.reshape(shape, order="F" if fortran else "C")

    # The stack machine: one method per opcode.

    def pop(self) -> Any:
        """Remove and return the top of the stack, not below the last mark."""
        need(len(self.stack) > (self.marks[-1] if self.marks else 0), "an empty stack")
        return self.stack.pop()

    def top(self) -> Any:
        """Returns the top of the stack without removing it."""
        value = self.pop()
        self.stack.append(value)
        return value

    def pop_mark(self) -> list:
        """Remove the last mark and everything above it; returns the latter."""
        need(len(self.marks) > 0, "no mark")
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
            self.spend(CONTAINER)
            self.stack.append(EMPTY[code]())
        elif code in TUPLES:
            self.spend(CONTAINER)
            self.stack.append(tuple([self.pop() for _ in range(TUPLES[code])][::-1]))
        elif code in ("BINPUT", "LONG_BINPUT", "PUT"):
            self.spend(CONTAINER)
            self.memo[argument] = self.top()
        elif code == "MEMOIZE":
            self.spend(CONTAINER)
            self.memo[len(self.memo)] = self.top()
        elif code in ("BINGET", "LONG_BINGET", "GET"):
            need(argument in self.memo, "something that was not said before")
            self.stack.append(self.finished(self.memo[argument]))
        elif code in STEPS:
            STEPS[code](self, argument)
        else:
            need(code in ("PROTO", "FRAME"), f"opcode {code}, which no save has")

    def finished(self, value: Any) -> Any:
        """Returns the value, or an array's `value`; raises Unreadable if it has no state yet."""
        if not isinstance(value, Array):
            return value
        need(value.value is not None, "an array without its values")
        return value.value

    def mark(self, _) -> None:
        """Push a mark: the current height of the stack."""
        self.spend(8)
        self.marks.append(len(self.stack))

    def make_tuple(self, _) -> None:
        """Push a tuple of everything above the last mark."""
        items = self.pop_mark()
        self.spend(CONTAINER + 8 * len(items))
        self.stack.append(tuple(items))

    def append(self, _) -> None:
        """Append one item to a list."""
        item = self.pop()
        self.add_to([item])

    def appends(self, _) -> None:
        """Append everything above the last mark to a list."""
        self.add_to(self.pop_mark())

    def add_to(self, items: list) -> None:
        """Append items to the list on top of the stack; an `Unbuilt` discards them."""
        target = self.top()
        self.spend(8 * len(items))
        if isinstance(target, list):
            target.extend(items)
        else:
            need(isinstance(target, Unbuilt), "items of something that is no list")

    def set_item(self, _) -> None:
        """Set one key of a dictionary."""
        value, key = self.pop(), self.pop()
        self.set_in([key, value])

    def set_items(self, _) -> None:
        """Set keys of a dictionary from everything above the last mark."""
        self.set_in(self.pop_mark())

    def set_in(self, items: list) -> None:
        """Set alternating keys and values in the dictionary on top; an `Unbuilt` discards them."""
        target = self.top()
        need(len(items) % 2 == 0, "a key without a value")
        if isinstance(target, Unbuilt):
            return
        need(isinstance(target, dict), "keys of something that is no dictionary")
        self.spend(CONTAINER * len(items))
        for key, value in zip(items[::2], items[1::2], strict=True):
            small = isinstance(key, int | np.integer) and abs(int(key)) < LONGEST_KEY
            plain = small or key is None or isinstance(key, str)
            need(plain, "a key that is neither text nor a small number")
            target[key] = value

    def named(self, argument: str) -> None:
        """GLOBAL: push a global named by the opcode's argument."""
        module, name = argument.split(" ", 1)
        self.name(module, name)

    def stack_named(self, _) -> None:
        """STACK_GLOBAL: push a global named by the two texts on top of the stack."""
        name, module = self.pop(), self.pop()
        need(isinstance(module, str) and isinstance(name, str), "a name that is no text")
        self.name(module, name)

    def name(self, module: str, name: str) -> None:
        """Push a global as a `Name`; raises SAVE_UNTRUSTED."""
        full = canonical(module, name)
        known = any(full in names for names in (self.rules, PLAIN_NAMES, self.names))
        if not known and not is_inert(full):
            if not is_foreign(full):
                raise untrusted(full)
            self.foreign = self.foreign or full
        self.stack.append(Name(full))

    def reduce(self, _) -> None:
        """REDUCE: call the rule of a name, or push an `Unbuilt`."""
        arguments, made = self.pop(), self.pop()
        self.build_of(made, arguments)

    def new_object(self, _) -> None:
        """NEWOBJ: push an `Unbuilt` for an object of a class."""
        arguments, made = self.pop(), self.pop()
        need(isinstance(made, Name) and made.name not in self.rules, "an object of unknown make")
        self.build_of(made, arguments)

    def build_of(self, made: Any, arguments: Any) -> None:
        """Push the result of a name's rule, or an `Unbuilt` if it has no rule."""
        need(isinstance(made, Name) and isinstance(arguments, tuple), "a call of something else")
        self.spend(CONTAINER)
        if made.name in self.rules:
            self.stack.append(self.rules[made.name](*arguments))
        else:
            unbuilt = is_inert(made.name) or is_foreign(made.name)
            need(unbuilt, "a call of a name that is an argument only")
            self.stack.append(Unbuilt(made.name))

    def set_state(self, _) -> None:
        """BUILD: set the state of an array or a dtype; others discard it."""
        state, target = self.pop(), self.top()
        if isinstance(target, Array):
            target.value = self.stack[-1] = self.filled(state)
        elif isinstance(target, DType):
            need(isinstance(state, tuple) and len(state) > 1, "a dtype of unknown state")
            need(isinstance(state[1], str), "a dtype of unknown state")
            target.order = state[1]
        else:
            # OrderedDicts of torch carry _metadata, objects of pandas their tables: not needed.
            need(isinstance(target, Unbuilt | dict), "a state of something else")

    def persist(self, _) -> None:
        """BINPERSID: replace a persistent id by the object it refers to."""
        self.stack.append(self.persistent(self.pop()))


def count(shape: Any) -> int:
    """Returns the number of values in an array of `shape`; an empty one must be 1-D."""
    plain = isinstance(shape, tuple) and all(type(n) is int and 0 <= n < 2**40 for n in shape)
    need(plain and (0 not in shape or len(shape) == 1), "an array of impossible shape")
    n = 1
    for size in shape:
        n *= size
        need(n < 2**40, "an array of impossible shape")
    return n


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
