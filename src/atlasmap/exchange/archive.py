"""model.pt: a zip of one pickle and the bytes of its tensors, read without torch.load."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from atlasmap.errors import AtlasmapError
from atlasmap.exchange.pickles import Name, Reader, Unreadable, need

# torch's storages → numpy's reading of their bytes (bfloat16 has none there: as its 16 bits).
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


class Archive:
    """The zip. torch writes its parts uncompressed; anything else is not from torch, and a part
    that unpacks to more than the file holds is how small files fill disks."""

    def __init__(self, path: Path):
        self.zip = zipfile.ZipFile(path)
        parts = self.zip.infolist()
        packed = [part.filename for part in parts if part.compress_type != zipfile.ZIP_STORED]
        need(not packed, f"compressed parts: {packed[:3]}")
        total = sum(part.file_size for part in parts)
        need(total <= path.stat().st_size, f"parts of {total} bytes in a smaller file")
        pickles = [part.filename for part in parts if part.filename.endswith("/data.pkl")]
        need(len(pickles) == 1, "not one data.pkl: no file of torch.save")
        self.top = pickles[0].removesuffix("data.pkl")
        self.storages: dict[str, np.ndarray] = {}
        if f"{self.top}byteorder" in self.zip.namelist():
            order = self.zip.read(f"{self.top}byteorder")
            need(order == b"little", f"byte order {order!r}")

    def contents(self) -> Any:
        """What was saved, tensors as torch tensors on the CPU."""
        rules = {
            "torch._utils _rebuild_tensor_v2": tensor,
            "torch._utils _rebuild_parameter": lambda data, *_: data,
        }
        reader = Reader(rules, self.storage, STORAGE_NAMES)
        return reader.read(self.zip.read(f"{self.top}data.pkl"))

    def storage(self, identity: tuple) -> np.ndarray:
        """The numbers that a persistent id stands for; each part is read once."""
        _, kind, key, _, n = identity
        need(isinstance(kind, Name) and isinstance(key, str), "a storage of unknown make")
        if key not in self.storages:
            dtype = np.dtype(STORAGES[kind.name.rsplit(" ", 1)[-1]])
            data = self.zip.read(f"{self.top}data/{key}")
            need(len(data) == n * dtype.itemsize, f"storage {key} of {len(data)} bytes for {n}")
            values = np.frombuffer(data, dtype)
            if kind.name.endswith("BFloat16Storage"):
                values = (values.astype(np.uint32) << 16).view(np.float32)
            self.storages[key] = values
        return self.storages[key]


def tensor(values, offset, size, stride, *_) -> torch.Tensor:
    """A tensor over a storage, its shape checked against what is there."""
    need(isinstance(values, np.ndarray) and len(size) == len(stride), "a tensor of unknown make")
    need(all(n >= 0 for n in (offset, *size, *stride)), "a tensor of negative shape")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    need(0 in size or last < len(values), "a tensor beyond its storage")
    need(all(step > 0 or n <= 1 for n, step in zip(size, stride, strict=True)), "a repeated tensor")
    steps = [step * values.itemsize for step in stride]
    seen = np.lib.stride_tricks.as_strided(values[offset:], size, steps)
    return torch.from_numpy(np.array(seen, copy=True))


def read_archive(path: Path) -> Any:
    """What model.pt holds, as plain data; raises SAVE_MISSING, SAVE_BROKEN, SAVE_UNTRUSTED."""
    if not path.is_file():
        raise AtlasmapError(
            "SAVE_MISSING",
            expected=f"{path}, as scvi-tools' model.save() writes it",
            found="no such file",
            mend="name the folder that holds model.pt, and --prefix where it was saved with one",
        )
    try:
        return Archive(path).contents()
    except (zipfile.BadZipFile, EOFError, ValueError, KeyError, NotImplementedError) as error:
        kind = "" if isinstance(error, Unreadable) else f"{type(error).__name__}: "
        raise AtlasmapError(
            "SAVE_BROKEN",
            expected="a whole file of torch.save: a zip of one pickle and its tensors",
            found=f"{path}: {kind}{error}",
            mend="copy it again from where it came",
        ) from error
