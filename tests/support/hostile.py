"""Values that no function asks for, each made anew: wrong types, sizes and shapes, NaN, paths, foreign things."""

from pathlib import Path

import numpy as np
import torch
import xarray as xr


class Anything:
    """A class that takes any arguments."""

    def __init__(self, *arguments, **options):
        pass


HOSTILE = {
    "None": lambda: None,
    "True": lambda: True,
    "False": lambda: False,
    **{str(n): lambda n=n: n for n in (0, 1, 3, -1, -5, 2**31, 2**53, 2**63, -(2**63), 10**30, 10**400)},
    **{str(x): lambda x=x: x for x in (1.0, 1.5, -0.5, 1e308, float("nan"), float("inf"), float("-inf"), 1j)},
    **{repr(t): lambda t=t: t for t in ("", "x", "0", "rows", "final", "nan", "\0", "\ud800", b"x", "../x/y")},
    "a long text": lambda: "a" * 10_000,
    **{
        repr(each): lambda each=each: list(each)
        for each in ([], [0], [0, 0], [[0]], [1.5], [None], [True], ["rows"], [-1], [10**30])
    },
    "()": lambda: (),
    "{}": lambda: {},
    "{'a': 1}": lambda: {"a": 1},
    "{0}": lambda: {0},
    "a generator": lambda: (n for n in (0, 1)),
    "range(0)": lambda: range(0),
    "range(2)": lambda: range(2),
    "slice(0, 2)": lambda: slice(0, 2),
    "slice(None, None, -1)": lambda: slice(None, None, -1),
    "slice(0, 5, 0)": lambda: slice(0, 5, 0),
    "slice(1.5)": lambda: slice(1.5),
    "slice('a', None)": lambda: slice("a", None),
    "...": lambda: ...,
    "an object": object,
    "a class": lambda: Anything,
    "a function": lambda: lambda *a, **k: None,
    "an error": lambda: ValueError("x"),
    "Path('x')": lambda: Path("x"),
    "Path of nothing": lambda: Path("/nonexistent/x"),
    "np.int64(1)": lambda: np.int64(1),
    "np.bool_(1)": lambda: np.bool_(True),
    "np.float32(nan)": lambda: np.float32("nan"),
    "np.array(1)": lambda: np.array(1),
    "np.array([0])": lambda: np.array([0]),
    "np.array([[1]])": lambda: np.array([[1]]),
    "np.array(['a'])": lambda: np.array(["a"]),
    "np.array([])": lambda: np.array([]),
    "tensor(1)": lambda: torch.tensor(1),
    "tensor(1.5)": lambda: torch.tensor(1.5),
    "tensor(True)": lambda: torch.tensor(True),
    "tensor([])": lambda: torch.tensor([]),
    "tensor([0, 1])": lambda: torch.tensor([0, 1]),
    "tensor([-1])": lambda: torch.tensor([-1]),
    "tensor of 3 × 4 × 5": lambda: torch.ones(3, 4, 5),
    "tensor of no tokens": lambda: torch.zeros(0, 4, 16),
    "tensor of NaN": lambda: torch.full((9, 4, 16), torch.nan),
    "tensor of int32": lambda: torch.ones(9, 4, 16, dtype=torch.int32),
    "tensor of bool": lambda: torch.ones(9, dtype=torch.bool),
    "tensor of complex": lambda: torch.ones(9, 4, 16, dtype=torch.complex64),
    "tensor of float8": lambda: torch.ones(9, 4, 16).to(torch.float8_e4m3fn),
    "tensor on meta": lambda: torch.ones(9, 4, 16, device="meta"),
    "sparse tensor": lambda: torch.ones(3, 3).to_sparse(),
    "torch.float32": lambda: torch.float32,
    "torch.int8": lambda: torch.int8,
    "Dataset()": xr.Dataset,
    "a Dataset": lambda: xr.Dataset({"lse": ("head", [1.0])}),
    "a DataArray": lambda: xr.DataArray([0.5], dims="layer"),
}
