"""Named tensors in one safetensors file that is written and read row by row, and is never in memory as a whole.

The file carries its final name only once it is complete and flushed to the disk, so a torn one is never read.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from expunge.errors import RunError

NAMES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
ALIGNMENT = 64
"""The data begins at a multiple of this many bytes."""


class FileTensor:
    """A tensor in a file: `tensor[start:stop]` reads and writes rows of the first dimension.

    What is read is mapped, not copied, and let go with the tensor: a process holds the rows that it works on.
    """

    def __init__(self, path: Path, offset: int, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
        self.path, self.offset, self.dtype, self.shape = path, offset, dtype, shape
        self.row_bytes = dtype.itemsize * int(np.prod(shape[1:]))

    def __getitem__(self, rows: slice) -> Tensor:
        begin = self.offset + rows.start * self.row_bytes
        size = (rows.stop - rows.start) * self.row_bytes
        mapped = np.memmap(self.path, np.uint8, mode="c", offset=begin, shape=(size,))
        return torch.from_numpy(mapped).view(self.dtype).view(-1, *self.shape[1:])

    def __setitem__(self, rows: slice, values: Tensor) -> None:
        data = values.detach().to("cpu", self.dtype).contiguous().view(torch.uint8).numpy().data
        try:
            with open(self.path, "r+b") as file:
                file.seek(self.offset + rows.start * self.row_bytes)
                file.write(data)
        except OSError as error:
            raise RunError(f"cannot write {self.path} ({error.strerror or error}): free some space") from None


class TensorFile:
    """A safetensors file of known layout.

    Args:
        path: The finished file.
        layout: Name -> dtype and shape, in the order of the data.
        key: What the content depends on; a file with another key is not used.
    """

    def __init__(self, path: Path, layout: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], key: str) -> None:
        self.path, self.partial = path, path.with_name(f".{path.name}.partial")
        header: dict[str, Any] = {"__metadata__": {"key": key}}
        self._places: dict[str, tuple[int, torch.dtype, tuple[int, ...]]] = {}
        end = 0
        for name, (dtype, shape) in layout.items():
            begin, end = end, end + dtype.itemsize * int(np.prod(shape))
            header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
            self._places[name] = begin, dtype, shape
        text = json.dumps(header).encode("ascii")
        text += b" " * (-(8 + len(text)) % ALIGNMENT)
        self._header = len(text).to_bytes(8, "little") + text
        self.size = len(self._header) + end

    def complete(self) -> bool:
        """Whether the finished file is there, whole and with this layout and key."""
        try:
            with open(self.path, "rb") as file:
                return file.read(len(self._header)) == self._header and os.fstat(file.fileno()).st_size == self.size
        except OSError:
            return False

    def create(self) -> None:
        """Begin anew, with mode 0600, under a temporary name; the data is all zeros.

        Raises:
            RunError: The system refuses.
        """
        try:
            self.path.parent.mkdir(mode=0o700, exist_ok=True)
            self.partial.unlink(missing_ok=True)
            with open(os.open(self.partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "r+b") as file:
                file.write(self._header)
                file.truncate(self.size)
        except OSError as error:
            raise RunError(f"cannot write {self.partial} ({error.strerror or error}): look at its folder") from None

    def finish(self) -> None:
        """Flush what was written to the disk and give the file its name."""
        with open(self.partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(self.partial, self.path)

    def tensors(self, *, partial: bool = False) -> dict[str, FileTensor]:
        """The tensors of the finished file, or of the one that is being written."""
        path = self.partial if partial else self.path
        begin = len(self._header)
        return {name: FileTensor(path, begin + at, dtype, shape) for name, (at, dtype, shape) in self._places.items()}
