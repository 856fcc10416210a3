"""Checks of an HDF5 file before its arrays are read: no data from other files, none that were never written."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py

from cepdiff.errors import DataError

_GZIP = b"\x1f\x8b"


def refuse_compressed(path: Path) -> None:
    """Raise `DataError` for a file that was compressed as a whole."""
    with path.open("rb") as file:
        if file.read(2) == _GZIP:
            raise DataError(f"{path}: is compressed with gzip; unpack it first: gzip -dc {path.name} > FILE")


def refuse_foreign(file: h5py.File, path: Path) -> None:
    """Raise `DataError` if data are kept in another file: they can change or go missing unnoticed,
    and a foreign file could read any file on this machine."""

    def of_link(name: bytes, info: Any) -> str | None:  # the first non-None value ends the visit
        external = info.type == h5py.h5l.TYPE_EXTERNAL
        return f"'{name.decode(errors='replace')}' is a link to another file" if external else None

    def of_item(name: str, item: Any) -> str | None:
        if isinstance(item, h5py.Dataset) and item.external:
            return f"'{name}' is stored in another file"
        return f"'{name}' is a virtual dataset" if isinstance(item, h5py.Dataset) and item.is_virtual else None

    if found := file.id.links.visit(of_link, info=True) or file.visititems(of_item):
        raise DataError(f"{path}: {found}; expected all data in this file: copy them into it")


def check_stored(arrays: Mapping[str, h5py.Dataset], path: Path) -> None:
    """Raise `DataError` if an array was never written in full, or if the arrays do not fit into this machine."""
    for name, item in arrays.items():
        if not item.size:
            continue
        if item.chunks:
            declared = math.prod(-(-size // chunk) for size, chunk in zip(item.shape, item.chunks, strict=True))
            stored = item.id.get_num_chunks()
        else:
            declared, stored = item.nbytes, item.id.get_storage_size()
        if stored < declared:
            kind = "chunks" if item.chunks else "bytes"
            raise DataError(
                f"{path}: '{name}' declares the shape {item.shape}, but only {stored:,} of its {declared:,} {kind} "
                "were ever written; write the file again, with only the rows that it has"
            )
    needed = 4 * sum(item.size or 0 for item in arrays.values())
    known = hasattr(os, "sysconf")  # not on Windows
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if known else math.inf
    if needed > memory:
        gigabytes = f"{needed / 2**30:,.0f} GiB of memory, but this machine has {memory / 2**30:,.0f} GiB"
        raise DataError(f"{path}: its arrays need {gigabytes}")
