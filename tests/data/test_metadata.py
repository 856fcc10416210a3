"""Metadata are checked once, where they enter: one line for each wrong value."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from cepdiff.data.rl.arrays import RawArrays
from cepdiff.data.rl.hdf5 import read_arrays, read_header
from cepdiff.data.rl.metadata import checked_metadata
from cepdiff.errors import DataError

NAN = float("nan")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"horizon": "abc"}, "'horizon' is 'abc'; expected a whole number of steps"),
        ({"horizon": 0}, "'horizon' is 0; expected a whole"),
        ({"horizon": 2.5}, "'horizon' is 2.5; expected a whole"),
        ({"horizon": True}, "'horizon' is True; expected a whole"),
        ({"timeouts_from_horizon": float("inf")}, "'timeouts_from_horizon' is inf; expected a whole"),
        ({"env_id": 3}, "'env_id' is 3; expected text"),
        ({"env_id": " "}, "'env_id' is ' '; expected text"),
        ({"env_id": object()}, "'env_id' is not a plain value; expected text"),
        ({"env_kwargs": "[1]"}, r"'env_kwargs' is '\[1\]'; expected a JSON object"),
        ({"action_low": ("a", "b")}, r"'action_low' is \('a', 'b'\); expected a finite number, or one for each"),
        ({"action_high": (1.0, NAN)}, r"'action_high' is \(1.0, nan\); expected a finite"),
        ({"reference_max": NAN}, "'reference_max' is nan; expected a finite number"),
        ({"reference_min": "1" * 200}, r"'reference_min' is '1{56}\.\.\.; expected"),
        ({"reference_min": 1.0, "reference_max": 1.0}, "'reference_min' is 1 and 'reference_max' 1; expected"),
        ({"reference_min": 10.0, "reference_max": -10}, "'reference_min' is 10 and 'reference_max' -10; expected"),
    ],
)
def test_a_wrong_value_gets_one_line(
    make_raw: Callable[..., RawArrays], metadata: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=f"^mine: metadata {message}"):
        make_raw(metadata=metadata, source="mine").validate()


def test_values_take_their_types() -> None:
    given = {"horizon": np.float64(50), "env_id": (b"X-v0",), "env_kwargs": '{"a": 1}', "action_low": [np.float32(-2)]}
    found = checked_metadata({**given, "seed": np.int64(3), "weights": np.zeros((4, 4)), "recipe": None}, "mine")
    assert found == {"horizon": 50, "env_id": "X-v0", "env_kwargs": {"a": 1}, "action_low": (-2.0,), "seed": 3}
    assert checked_metadata(found, "mine") == found


def test_odd_objects_in_a_file(make_file: Callable[..., Path]) -> None:
    """Of values that this package does not read, none is in the way; of the others, each is named."""
    path = make_file()
    with h5py.File(path, "a") as file:
        file.attrs["where"] = file["rewards"].ref
        file.attrs["nothing"] = h5py.Empty("f4")
        file["metadata/table"] = np.zeros(2, [("a", "f4"), ("b", "f4", (1000,))])
        file["metadata/group/deep"] = 1.0
        file["metadata/dangling"] = h5py.SoftLink("/nowhere")
        file["metadata/horizon"] = h5py.Empty("i8")
        file["metadata/env_id"] = np.bytes_(b"caf\xe9-v0")
    assert read_header(path)[1] == {"env_id": "caf�-v0"}
    for odd in ("group", "reference", "dangling", "matrix"):
        with h5py.File(path, "a") as file:
            del file["metadata/horizon"]
            if odd == "group":
                file["metadata/horizon/deep"] = 1
            elif odd == "dangling":
                file["metadata/horizon"] = h5py.SoftLink("/nowhere")
            else:
                file["metadata/horizon"] = file["rewards"].ref if odd == "reference" else np.ones((2, 2))
        with pytest.raises(DataError, match="metadata 'horizon' is not a plain value; expected a whole number"):
            read_arrays(path)
