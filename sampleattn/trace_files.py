"""Where a trace's files lie: a folder or a zip, read as hostile input, and written atomically. Numpy only."""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import os
import stat
import zipfile
import zlib
from pathlib import Path

import numpy as np

from sampleattn.trace_format import DTYPES, FILE_NAME, FOLDERS, META, TraceError
from sampleattn.trace_meta import strict_json

MAX_ZIP_BYTES = 64 << 30
MAX_ZIP_RATIO = 32  # recorded traces reach 10
SMALL_ZIP_BYTES = 64 << 20
MAX_HEADER_BYTES = 1 << 20
MAX_META_BYTES = 16 << 20
CHUNK = 1 << 20


@contextlib.contextmanager
def trace_errors(what: str):
    """Turn whatever goes wrong while `what` is read into a TraceError."""
    try:
        yield
    except TraceError:
        raise
    except FileNotFoundError:
        raise TraceError(f"{what} does not exist; check the path, or record the trace again.") from None
    except PermissionError:
        raise TraceError(f"{what} may not be read by this user; change its permissions.") from None
    except (OSError, ValueError, RuntimeError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise TraceError(f"{what} is damaged or no trace ({reason}); copy or record the trace again.") from None


class Folder:
    """The files of a trace in a folder."""

    def __init__(self, path: Path):
        self.path = path

    def size(self, name: str) -> int | None:
        """Bytes of the file, None if it is not there."""
        try:
            status = os.stat(self.path / name)
        except (FileNotFoundError, NotADirectoryError):
            return None
        if not stat.S_ISREG(status.st_mode):
            raise TraceError(f"{name} is no regular file; copy or record the trace again.")
        return status.st_size

    def open(self, name: str):
        return open(self.path / name, "rb")


class Zip:
    """The files of a trace in a zip. Its names and sizes are checked before anything is unpacked; nothing is written to disk."""

    def __init__(self, file, size: int):
        self._zip = zipfile.ZipFile(file)
        self._infos = {}
        for info in self._zip.infolist():
            name = info.filename
            if name in FOLDERS:
                continue
            if name != META and not FILE_NAME.fullmatch(name):
                raise TraceError(f"The zip holds {ascii(name[:60])}, no file of a trace; choose a .zip that record wrote.")
            if name in self._infos:
                raise TraceError(f"The zip holds {name} twice; choose a .zip that record wrote.")
            if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise TraceError(f"The zip holds {name} encrypted or compressed in an unusual way; save the trace as .zip again.")
            self._infos[name] = info
        unpacked = sum(info.file_size for info in self._infos.values())
        packed = min(sum(info.compress_size for info in self._infos.values()), size)  # files may overlap
        if unpacked > MAX_ZIP_BYTES or (unpacked > SMALL_ZIP_BYTES and unpacked > MAX_ZIP_RATIO * packed):
            raise TraceError(f"The zip unpacks to {unpacked / 1e9:,.1f} GB, too much for one; open the trace's folder instead.")

    def size(self, name: str) -> int | None:
        return self._infos[name].file_size if name in self._infos else None

    def open(self, name: str):
        return self._zip.open(self._infos[name])


def open_source(place) -> Folder | Zip:
    """The files at a path, in bytes or in a seekable binary file. Raises TraceError."""
    if isinstance(place, (bytes, bytearray, memoryview)):
        place = io.BytesIO(place)
    if hasattr(place, "read"):
        with trace_errors("The file"):
            return Zip(place, place.seek(0, io.SEEK_END))
    path = Path(place)
    with trace_errors(str(place)[:200]):
        if path.is_dir():
            return Folder(path)
        if not path.exists():
            raise FileNotFoundError
        if not path.is_file() or not zipfile.is_zipfile(path):
            raise TraceError(f"{path.name} is neither a trace folder nor a whole .zip of one; choose what record wrote.")
        return Zip(path, path.stat().st_size)


def read_meta_bytes(source) -> bytes:
    """meta.json as bytes. Raises TraceError if there is none or it is too large."""
    with trace_errors(META):
        size = source.size(META)
        if size is None:
            raise TraceError("There is no meta.json here, so this is no trace; choose a folder or .zip that record wrote.")
        if size > MAX_META_BYTES:
            raise TraceError(f"meta.json has {size / 1e6:,.0f} MB, too much for a trace; choose another file.")
        with source.open(META) as file:
            return file.read()


class ArrayFile:
    """One safetensors file of a trace: checksum and header are checked when it is made, arrays are read when asked for."""

    def __init__(self, source, name: str, size: int, sha256: str):
        self._source, self._name = source, name
        with trace_errors(name):
            if source.size(name) != size:
                raise TraceError(f"{name} is missing or cut short (not {size:,} bytes); copy or record the trace again.")
            with source.open(name) as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                    raise TraceError(f"{name} was altered or damaged (its checksum differs); copy or record the trace again.")
            with source.open(name) as file:
                self._start, self._entries = _read_header(file, size, name)
        self.described = {key: (code, shape) for key, (code, shape, _) in self._entries.items()}

    def read(self, key: str, index: int | None = None, rows: tuple[int, int] | None = None) -> np.ndarray:
        """An array, or its part `index` along the first axis; of that, the rows from..to-1 of the axis that is then first."""
        code, shape, offset = self._entries[key]
        dtype = np.dtype(DTYPES[code])
        if index is not None:
            if not 0 <= index < shape[0]:
                raise IndexError(f"{key} has {shape[0]} parts, not {index}")
            shape = shape[1:]
            offset += index * math.prod(shape) * dtype.itemsize
        if rows is not None:
            begin, end = rows
            if not 0 <= begin <= end <= shape[0]:
                raise IndexError(f"{key} has {shape[0]} rows, not {begin}:{end}")
            offset += begin * math.prod(shape[1:]) * dtype.itemsize
            shape = (end - begin, *shape[1:])
        count = math.prod(shape)
        with trace_errors(self._name), self._source.open(self._name) as file:
            file.seek(self._start + offset)
            data = file.read(count * dtype.itemsize)
            return np.frombuffer(data, dtype, count).reshape(shape)


def _read_header(file, size, name):
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
        raise TraceError(f"{name} is no safetensors file; copy or record the trace again.")
    header = strict_json(file.read(length), f"The header of {name}")
    header.pop("__metadata__", None)
    entries, end = {}, 0
    for key, entry in sorted(header.items(), key=_offset):
        code, shape, (begin, stop) = entry.get("dtype"), entry.get("shape"), entry["data_offsets"]
        if not isinstance(code, str) or code not in DTYPES or not isinstance(shape, list) or len(entry) != 3:
            raise ValueError(f"wrong entry {key[:40]!r}")
        if not all(type(n) is int and n >= 0 for n in (*shape, begin, stop)):
            raise ValueError(f"wrong sizes of {key[:40]!r}")
        if begin != end or stop - begin != math.prod(shape) * np.dtype(DTYPES[code]).itemsize:
            raise ValueError(f"wrong offsets of {key[:40]!r}")
        entries[key], end = (code, tuple(shape), begin), stop
    if 8 + length + end != size:
        raise ValueError("its arrays do not fill the file")
    return 8 + length, entries


def _offset(item):
    try:
        begin, stop = item[1]["data_offsets"]
        return int(begin), int(stop)
    except (TypeError, KeyError, OverflowError):
        raise ValueError("wrong header") from None


def write_atomically(path: Path, data: bytes) -> None:
    """Write beside `path` and move into place: a reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
