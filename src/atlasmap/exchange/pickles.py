"""Read a pickle as data: a reader of its own that calls nothing the file names.

Opcodes are decoded by `pickletools` (which runs nothing) and carried out on plain values. A global
is a name on the stack and never becomes a Python object: what it would build, a rule of ours builds
(`Reader.rules`), or, for tables and other models' classes, an inert `Unbuilt`. Any other name is
refused when it is read. What is built is paid for from a budget of bytes, so that a small file
cannot fill the memory.
"""

import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from atlasmap.errors import AtlasmapError
from atlasmap.exchange.names import PLAIN_NAMES, canonical, is_foreign, is_inert

CONTAINER = 64  # bytes that a list, tuple or dictionary costs at least
LONGEST_KEY = 2**31  # of numbers as keys: larger ones could be chosen to collide
DTYPE = re.compile(r"[<>|=]?[biufUS]\d{1,6}")


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
        need(DTYPE.fullmatch(self.code) is not None, "an array of something else than plain values")
        need(self.order in ("<", ">", "=", "|"), "an unknown byte order")
        dtype = np.dtype(self.code)
        need(dtype.itemsize > 0, "an array of nothing")
        return dtype.newbyteorder("=" if self.order == "|" else self.order)


def need(ok: bool, what: str) -> None:
    """Raise Unreadable unless `ok`. `what` holds nothing from the file: it may be of any size."""
    if not ok:
        raise Unreadable(what)


def untrusted(full: str) -> AtlasmapError:
    """A refusal of a file that names this global."""
    return AtlasmapError(
        "SAVE_UNTRUSTED",
        expected="numbers, texts and tables, as scvi-tools saves them",
        found=f"the file asks for {full.replace(' ', '.')[:200]}",
        mend="do not open this file with anything that unpickles it; ask whoever made it "
        "for a plain save (model.save), or for an atlasmap bundle",
    )


class Reader:
    """The stack machine.

    `persistent` resolves persistent ids, `names` are further names that are arguments only, and
    `budget` is how many bytes may be built. Further rules are added to `rules`. `foreign` is the
    first name, if any, that no model has that can be imported.
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
        """The value that `data` describes; raises SAVE_UNTRUSTED, Unreadable."""
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                return self.finished(self.pop())
            self.step(opcode.name, argument)
        raise Unreadable("no end")

    def spend(self, n_bytes: int) -> None:
        """Take from the budget."""
        self.budget -= n_bytes
        need(self.budget >= 0, "more than a file of this size can hold")

    # What names build.

    def dictionary(self, *given) -> dict:
        """OrderedDict() or defaultdict(dict): a plain one (a default is never asked for)."""
        need(len(given) == 0 or given == (Name("__builtin__ dict"),), "a dictionary of something")
        self.spend(CONTAINER)
        return {}

    def encode(self, text, encoding="latin1") -> bytes:
        """_codecs.encode, of bytes that protocol 2 writes as text."""
        known = isinstance(encoding, str) and encoding in ("latin1", "latin-1")
        need(known and isinstance(text, str), "text in an unknown encoding")
        self.spend(len(text))
        return text.encode("latin1")

    def no_bytes(self, *given) -> bytes:
        """bytes(): none. Others are written by `_codecs.encode`."""
        need(len(given) == 0, "bytes of something")
        return b""

    def array(self, kind, shape, code) -> Array:
        """numpy's _reconstruct: an empty array, filled by its state."""
        plain = isinstance(kind, Name) and kind.name == "numpy ndarray" and shape == (0,)
        need(plain, "an array built in an unknown way")
        return Array()

    def dtype(self, code, align=False, copy=True) -> DType:
        """A dtype's code; its byte order comes with its state."""
        need(isinstance(code, str), "a dtype without a code")
        return DType(code)

    def scalar(self, dtype, data=None):
        """One numpy number or text."""
        need(isinstance(dtype, DType) and isinstance(data, bytes), "a scalar of unknown make")
        built = dtype.built()
        need(built.kind != "O", "a scalar of unknown make")
        return self.from_bytes(built, (1,), data)[0]

    def from_bytes(self, dtype: np.dtype, shape: tuple, data: bytes) -> np.ndarray:
        """The values (flat) of an array of `shape`, if `data` is just as long."""
        need(count(shape) * dtype.itemsize == len(data), "an array of another size than its bytes")
        self.spend(len(data))
        return np.frombuffer(data, dtype).astype(dtype.newbyteorder("="))

    def filled(self, state) -> np.ndarray:
        """An array of its state's parts."""
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

    # The machine.

    def pop(self) -> Any:
        """The top of the stack, above the last mark."""
        need(len(self.stack) > (self.marks[-1] if self.marks else 0), "an empty stack")
        return self.stack.pop()

    def top(self) -> Any:
        """The same, left there."""
        value = self.pop()
        self.stack.append(value)
        return value

    def pop_mark(self) -> list:
        """Everything above the last mark."""
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
        """A value, an array only once it is whole."""
        if not isinstance(value, Array):
            return value
        need(value.value is not None, "an array without its values")
        return value.value

    def mark(self, _) -> None:
        """Remember how high the stack is."""
        self.spend(8)
        self.marks.append(len(self.stack))

    def make_tuple(self, _) -> None:
        """A tuple of everything above the mark."""
        items = self.pop_mark()
        self.spend(CONTAINER + 8 * len(items))
        self.stack.append(tuple(items))

    def append(self, _) -> None:
        """One item of a list."""
        item = self.pop()
        self.add_to([item])

    def appends(self, _) -> None:
        """Items of a list."""
        self.add_to(self.pop_mark())

    def add_to(self, items: list) -> None:
        """Items of a list; what is unbuilt takes them and forgets them."""
        target = self.top()
        self.spend(8 * len(items))
        if isinstance(target, list):
            target.extend(items)
        else:
            need(isinstance(target, Unbuilt), "items of something that is no list")

    def set_item(self, _) -> None:
        """One key of a dictionary."""
        value, key = self.pop(), self.pop()
        self.set_in([key, value])

    def set_items(self, _) -> None:
        """Keys of a dictionary."""
        self.set_in(self.pop_mark())

    def set_in(self, items: list) -> None:
        """Keys and values of a dictionary."""
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
        """A global by its two names."""
        module, name = argument.split(" ", 1)
        self.name(module, name)

    def stack_named(self, _) -> None:
        """A global by names on the stack."""
        name, module = self.pop(), self.pop()
        need(isinstance(module, str) and isinstance(name, str), "a name that is no text")
        self.name(module, name)

    def name(self, module: str, name: str) -> None:
        """Put a global on the stack, as a name; raises SAVE_UNTRUSTED."""
        full = canonical(module, name)
        known = any(full in names for names in (self.rules, PLAIN_NAMES, self.names))
        if not known and not is_inert(full):
            if not is_foreign(full):
                raise untrusted(full)
            self.foreign = self.foreign or full
        self.stack.append(Name(full))

    def reduce(self, _) -> None:
        """A call: of a rule, or nothing at all."""
        arguments, made = self.pop(), self.pop()
        self.build_of(made, arguments)

    def new_object(self, _) -> None:
        """An object of a class, which stays unbuilt."""
        arguments, made = self.pop(), self.pop()
        need(isinstance(made, Name) and made.name not in self.rules, "an object of unknown make")
        self.build_of(made, arguments)

    def build_of(self, made: Any, arguments: Any) -> None:
        """What a name makes of arguments."""
        need(isinstance(made, Name) and isinstance(arguments, tuple), "a call of something else")
        self.spend(CONTAINER)
        if made.name in self.rules:
            self.stack.append(self.rules[made.name](*arguments))
        else:
            unbuilt = is_inert(made.name) or is_foreign(made.name)
            need(unbuilt, "a call of a name that is an argument only")
            self.stack.append(Unbuilt(made.name))

    def set_state(self, _) -> None:
        """The state of an array or a dtype; what is unbuilt forgets it."""
        state, target = self.pop(), self.top()
        if isinstance(target, Array):
            target.value = self.stack[-1] = self.filled(state)
        elif isinstance(target, DType):
            need(isinstance(state, tuple) and len(state) > 1, "a dtype of unknown state")
            need(isinstance(state[1], str), "a dtype of unknown state")
            target.order = state[1]
        else:
            # OrderedDicts of torch carry _metadata; objects of pandas their tables.
            need(isinstance(target, Unbuilt | dict), "a state of something else")

    def persist(self, _) -> None:
        """What a persistent id stands for."""
        self.stack.append(self.persistent(self.pop()))


def count(shape: Any) -> int:
    """How many values an array of `shape` has; an empty one has one dimension."""
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
