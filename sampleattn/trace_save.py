"""Copying a trace to a folder or into a zip, all of it or nothing. Standard library only."""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from pathlib import Path

from sampleattn.trace_files import CHUNK
from sampleattn.trace_format import META, TraceError


def save_files(source, names, path: Path) -> None:
    """Copy the named files of a trace to a folder, or a zip if `path` ends in .zip; what lay there stays until it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".zip":
        _save_zip(source, names, path)
    else:
        _save_folder(source, names, path)


def _save_zip(source, names, path):
    if path.is_dir():
        raise TraceError(f"{path} is a folder; choose another name for the .zip.")
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in names:
                info = zipfile.ZipInfo(name)
                info.compress_type = zipfile.ZIP_DEFLATED
                with source.open(name) as original, archive.open(info, "w", force_zip64=True) as copy:
                    shutil.copyfileobj(original, copy, CHUNK)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _save_folder(source, names, path):
    if path.exists() and not path.is_dir():
        raise TraceError(f"{path} is a file; choose another name, or one that ends in .zip.")
    if path.is_dir() and any(path.iterdir()) and not (path / META).is_file():
        raise TraceError(f"{path} is a folder with other things in it; choose another name.")
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    previous = temporary / "previous"
    try:
        fresh = temporary / "fresh"
        for name in names:
            (fresh / name).parent.mkdir(parents=True, exist_ok=True)
            with source.open(name) as original, open(fresh / name, "wb") as copy:
                shutil.copyfileobj(original, copy, CHUNK)
        if path.exists():
            os.replace(path, previous)
        os.replace(fresh, path)
    except BaseException:
        if previous.exists() and not path.exists():
            os.replace(previous, path)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
