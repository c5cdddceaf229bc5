"""Observations of `brimline ab` that are to say the same, wherever and however they were read."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest


def same(one: object, other: object, path: str = "", *, nearly: bool = False) -> None:
    """Assert that two observations say the same, to the last bit.

    nearly: numbers may differ by what a store with fewer digits makes of them.
    """
    if isinstance(one, np.ndarray):
        assert isinstance(other, np.ndarray), path
        if nearly:
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-5, err_msg=path)
        else:
            np.testing.assert_array_equal(one, other, err_msg=path)
    elif isinstance(one, dict):
        assert isinstance(other, dict), path
        assert list(one) == list(other), path
        for name, value in one.items():
            same(value, other[name], f"{path}.{name}", nearly=nearly)
    elif isinstance(one, (list, tuple)):
        assert isinstance(other, (list, tuple)), path
        assert len(one) == len(other), path
        for place, value in enumerate(one):
            same(value, other[place], f"{path}[{place}]", nearly=nearly)
    elif dataclasses.is_dataclass(one):
        for each in dataclasses.fields(one):
            same(getattr(one, each.name), getattr(other, each.name), f"{path}.{each.name}", nearly=nearly)
    else:
        assert one == (pytest.approx(other) if nearly and isinstance(other, float) else other), path
