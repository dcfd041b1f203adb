"""Read model.pt (a zip of one pickle and raw tensor storages) without torch.load."""

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from atlasmap.errors import AtlasmapError
from atlasmap.exchange.pickles import Name, Reader, Unreadable, count, need, untrusted

# torch storage class → numpy dtype of its bytes. numpy has no bfloat16, so it is read as uint16.
STORAGES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": np.uint16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
STORAGE_NAMES = frozenset(f"{m} {name}" for m in ("torch", "torch.cuda") for name in STORAGES)
SPARE = 64_000_000  # bytes; memory budget = 3 × file size + SPARE


@dataclass(frozen=True)
class Storage:
    """A 1-D array read from one part of the zip; created only by `Archive.storage`."""

    values: np.ndarray


class Archive:
    """Reader of a zip written by torch.save; raises Unreadable.

    torch stores its parts uncompressed. Compressed parts, and parts larger than the file, are
    refused: with them a small file could exhaust the memory (zip bomb).
    """

    def __init__(self, path: Path):
        self.zip = zipfile.ZipFile(path)
        parts = self.zip.infolist()
        stored = all(part.compress_type == zipfile.ZIP_STORED for part in parts)
        need(stored, "compressed parts: no file of torch.save")
        size = path.stat().st_size
        need(sum(part.file_size for part in parts) <= size, "parts that are larger than the file")
        pickles = [part.filename for part in parts if part.filename.endswith("/data.pkl")]
        need(len(pickles) == 1, "not one data.pkl: no file of torch.save")
        self.top = pickles[0].removesuffix("data.pkl")
        self.storages: dict[str, Storage] = {}
        if f"{self.top}byteorder" in self.zip.namelist():
            order = self.zip.read(f"{self.top}byteorder")
            need(order == b"little", "numbers in another byte order")
        self.reader = Reader(self.storage, STORAGE_NAMES, 3 * size + SPARE)
        self.reader.rules |= {
            "torch._utils _rebuild_tensor_v2": self.tensor,
            "torch._utils _rebuild_parameter": lambda data, *_: data,
        }

    def contents(self) -> Any:
        """Returns the saved object, with tensors as torch tensors on the CPU."""
        return self.reader.read(self.zip.read(f"{self.top}data.pkl"))

    def storage(self, identity: Any) -> Storage:
        """Returns the storage that a persistent id refers to; each part is read only once."""
        need(isinstance(identity, tuple) and len(identity) == 5, "a storage of unknown make")
        _, kind, key, _, n = identity
        need(isinstance(kind, Name) and isinstance(key, str), "a storage of unknown make")
        need(kind.name in STORAGE_NAMES and type(n) is int, "a storage of unknown make")
        if key not in self.storages:
            dtype = np.dtype(STORAGES[kind.name.rsplit(" ", 1)[-1]])
            data = self.zip.read(f"{self.top}data/{key}")
            need(len(data) == n * dtype.itemsize, "a storage of another size than it says")
            values = np.frombuffer(data, dtype)
            if kind.name.endswith("BFloat16Storage"):  # the upper half of a float32
                values = (values.astype(np.uint32) << 16).view(np.float32)
            self.storages[key] = Storage(values)
        return self.storages[key]

    def tensor(self, storage, offset, size, stride, *_) -> torch.Tensor:
        """Returns a copied tensor over a storage, checked not to reach beyond the storage."""
        need(isinstance(storage, Storage), "a tensor over something else than a storage")
        shapes = isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride)
        numbers = shapes and all(type(n) is int and n >= 0 for n in (offset, *size, *stride))
        need(numbers, "a tensor of unknown make")
        n = count(size) if size and 0 not in size else (0 if size else 1)
        last = offset + sum((k - 1) * step for k, step in zip(size, stride, strict=True))
        there = len(storage.values)
        need(n == 0 or (last < there and n <= there), "a tensor beyond its storage")
        self.reader.spend(n * storage.values.itemsize)
        if n == 0:
            return torch.from_numpy(np.empty([min(k, 1) for k in size], storage.values.dtype))
        steps = [step * storage.values.itemsize for step in stride]
        seen = np.lib.stride_tricks.as_strided(storage.values[offset:], size, steps)
        return torch.from_numpy(np.array(seen, copy=True))


def read_archive(path: Path, check: Callable[[Any, Path], None] | None = None) -> Any:
    """Returns the content of model.pt as plain data.

    Raises SAVE_MISSING, SAVE_BROKEN, SAVE_UNTRUSTED. `check(content, path)` runs before the file is
    refused for names that only saves of other models contain, so it can raise a more exact error.
    """
    if not path.is_file():
        near = sorted(p.name for p in path.parent.glob("*model.pt"))[:5]
        raise AtlasmapError(
            "SAVE_MISSING",
            expected=f"{path}, as scvi-tools' model.save() writes it",
            found=f"no such file{f'; there are {near}' if near else ''}",
            mend="name the folder that holds model.pt, and --prefix where it was saved with one",
        )
    try:
        archive = Archive(path)
        content = archive.contents()
    except AtlasmapError:
        raise
    except Exception as error:  # any error here is caused by the file's bytes
        kind = "" if isinstance(error, Unreadable) else f"{type(error).__name__}: "
        raise AtlasmapError(
            "SAVE_BROKEN",
            expected="a whole file of torch.save: a zip of one pickle and its tensors",
            found=f"{path}: {kind}{str(error)[:200]}",
            mend="copy it again from where it came",
        ) from error
    if check:
        check(content, path)
    if archive.reader.foreign:
        raise untrusted(archive.reader.foreign)
    return content
