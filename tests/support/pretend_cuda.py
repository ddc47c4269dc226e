"""A GPU to test on where there is none: tensors that say cuda:0 or mps:0, hold CPU data, and refuse what a GPU refuses.

Operations on such tensors run on the CPU data inside them, so results are right and device mistakes are errors all the
same: mixed devices, ``numpy()``, products of whole numbers, float64 on Metal. What would make the host wait for a real
device is counted with the line of ours that asked for it, and so is every kernel that would be launched.

Not pretended: speed, memory, the backward pass (autograd wants a real device's streams), rounding of other kernels.
"""

import copy
import ctypes
import sys
from collections import Counter
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

_FREE = 70 * 2**30
# What torch would ask of the driver.
_ANSWERS = {
    "cuda._lazy_init": None,
    "cuda.current_device": 0,
    "cuda.get_device_capability": (8, 0),
    "cuda.mem_get_info": (_FREE, _FREE),
    "cuda.memory_allocated": 0,
    "cuda.memory_reserved": 0,
    "mps.current_allocated_memory": 0,
    "mps.recommended_max_memory": _FREE,
}
# Operations whose result's size, or result, the host must know.
_WAITS = {
    "_local_scalar_dense",
    "_unique2",
    "bincount",
    "equal",
    "is_nonzero",
    "masked_select",
    "nonzero",
    "repeat_interleave",
    "unique_consecutive",
    "unique_dim",
}
_COPIES = {"_to_copy", "copy_"}
_INDEXES = {"_index_put_impl_", "_unsafe_index", "index", "index_put", "index_put_"}
_WHOLE_NUMBER_PRODUCTS = {"addmm", "baddbmm", "bmm", "dot", "mm", "mv"}
_NO_LAUNCH = {
    *("_conj", "_local_scalar_dense", "_reshape_alias", "_unsafe_view", "alias", "as_strided"),
    *("detach", "diagonal", "empty", "empty_like", "empty_strided", "expand", "lift_fresh", "new_empty", "permute"),
    *("new_empty_strided", "select", "slice", "split", "split_with_sizes", "squeeze", "t", "transpose", "unbind"),
    *("unfold", "unsqueeze", "view"),
}
_LAZY = {"_conj": torch.conj_physical, "_neg_view": torch.neg}
# What Metal lacks beside float64.
_NOT_ON_METAL = {"linalg_qr", "linalg_svd", "_linalg_svd"}


class PretendTensor(torch.Tensor):
    """A tensor on the pretend device; `data_inside` is a CPU tensor."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inside: Tensor, home: "PretendDevice"):
        if not home.has_float64 and inside.dtype in (torch.float64, torch.complex128):
            raise TypeError(
                f"Cannot convert a MPS Tensor to {inside.dtype} as the MPS framework doesn't support it ({_line()})"
            )
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inside.shape,
            strides=inside.stride(),
            storage_offset=inside.storage_offset(),
            dtype=inside.dtype,
            device=home.device,
            requires_grad=inside.requires_grad,
        )
        made.inside, made.home = inside.detach(), home
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        home = next(x.home for x in tree_leaves((args, kwargs)) if isinstance(x, PretendTensor))
        return home.run(func, args, kwargs or {})

    def numpy(self, *_, **__):
        raise TypeError(
            f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host "
            f"memory first. ({_line()})"
        )

    def __array__(self, *_, **__):
        return self.numpy()

    def as_subclass(self, cls):
        """A tensor of another class cannot be one of ours too: it gets the data inside, and says that it is there."""
        return self.inside.as_subclass(cls)

    def tolist(self):
        return self.cpu().tolist()

    def __repr__(self):
        return f"PretendTensor({self.inside!r}, device={self.device})"

    def __deepcopy__(self, memo):
        copied = PretendTensor(self.inside.clone(), self.home)
        return nn.Parameter(copied, self.requires_grad) if isinstance(self, nn.Parameter) else copied


class PretendDevice(TorchDispatchMode):
    """The device; as a context, tensors can be made on it and moved to it, and everything is undone on the way out.

    Attributes:
        device: what its tensors call their device.
        has_float64: False for "mps".
        waits: how often the host waited, by (what for, line of ours).
        launches: kernels by operation.
    """

    def __init__(self, kind: str = "cuda"):
        super().__init__()
        self.device = torch.device(kind, 0)
        self.has_float64 = kind != "mps"
        self.waits: Counter[tuple[str, str]] = Counter()
        self.launches: Counter[str] = Counter()

    def __enter__(self):
        self._around = ExitStack()
        self._around.enter_context(_lent_guard(self.device.type))
        self._around.enter_context(_PlainAttention())
        for name, answer in _ANSWERS.items():
            self._around.enter_context(mock.patch(f"torch.{name}", lambda *_, answer=answer: answer))
        # model.to(…) puts new parameters in, instead of new data into the old ones, which would be no tensors of ours.
        future = torch.__future__
        self._around.callback(
            future.set_overwrite_module_params_on_conversion, future.get_overwrite_module_params_on_conversion()
        )
        future.set_overwrite_module_params_on_conversion(True)
        # As in torch's own FakeTensorMode: torch.tensor(…, device=…) hands its CPU tensor over before it is moved.
        self._lifted = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        torch._C._set_only_lift_cpu_tensors(self._lifted)
        self._around.close()

    @contextmanager
    def counting(self):
        """Count from zero."""
        self.waits.clear()
        self.launches.clear()
        yield self

    @property
    def n_waits(self) -> int:
        """How often the host waited for the device."""
        return self.waits.total()

    def moved(self, model: nn.Module) -> nn.Module:
        """A copy of a model with its parameters and buffers here; those that modules share stay shared."""
        model, here = copy.deepcopy(model), {}
        for module in model.modules():
            for held in (module._parameters, module._buffers):
                for name, x in held.items():
                    if x is not None and id(x) not in here:
                        put = PretendTensor(x.detach(), self)
                        here[id(x)] = x, nn.Parameter(put, x.requires_grad) if isinstance(x, nn.Parameter) else put
                    held[name] = None if x is None else here[id(x)][1]
        return model

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self.run(func, args, kwargs or {})

    def run(self, func, args, kwargs):
        """One operation: refuse it, count it, or run it on the data inside."""
        name = func._schema.name.split("::")[1]
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        ours = any(isinstance(x, PretendTensor) for x in tensors)
        to = kwargs.get("device")
        if not ours and (to is None or torch.device(to).type != self.device.type):
            return func(*args, **kwargs)
        self._refuse(name, args, tensors)
        self._count(name, func, args, tensors, to)
        inside = {**kwargs, "device": torch.device("cpu")} if to is not None else kwargs
        if name in _LAZY:  # a flag on the tensor, which these tensors do not have
            return PretendTensor(_LAZY[name](args[0].inside), self)
        if name == "histc" and not args[0].is_floating_point():  # of whole numbers on a GPU, not on the CPU
            return PretendTensor(func(args[0].inside.float(), *args[1:], **inside).to(args[0].dtype), self)
        out = func(*_inside(args), **_inside(inside))
        if name == "_to_copy" and to is not None and torch.device(to).type == "cpu":
            return out
        written = [(i, a) for i, a in enumerate(func._schema.arguments) if a.alias_info and a.alias_info.is_write]
        if written and func._schema.returns:
            given = [kwargs[a.name] if a.name in kwargs else args[i] for i, a in written]
            return given[0] if len(given) == 1 else tuple(given)
        return tree_map(lambda x: PretendTensor(x, self) if isinstance(x, Tensor) else x, out)

    def _refuse(self, name, args, tensors):
        """Raise as a device does that was handed what it cannot compute with."""
        elsewhere = [x for x in tensors if not isinstance(x, PretendTensor)]
        mixed = any(x.dim() > 0 for x in elsewhere) and len(elsewhere) < len(tensors)
        if name in _INDEXES:  # indices may lie on the CPU, nothing else
            values = args[2:3] if "put" in name else ()
            whole = [args[0], *(x for x in values if x.dim() > 0)]
            mixed = len({isinstance(x, PretendTensor) for x in whole}) > 1 or not isinstance(args[0], PretendTensor)
        if mixed and name not in _COPIES and name != "lift_fresh":
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found at least two devices, {self.device} and "
                f"cpu! (aten::{name}, {_line()})"
            )
        if name in _WHOLE_NUMBER_PRODUCTS and not tensors[0].is_floating_point() and not tensors[0].is_complex():
            raise RuntimeError(f'"{name}_cuda" not implemented for {tensors[0].dtype} ({_line()})')
        if not self.has_float64 and name in _NOT_ON_METAL:
            raise NotImplementedError(f"The operator 'aten::{name}' is not implemented for the MPS device ({_line()})")

    def _count(self, name, func, args, tensors, to):
        """Count what makes the host wait, and launches."""
        what = name if name in _WAITS else None
        if name in _COPIES:
            ends = {isinstance(x, PretendTensor) for x in tensors}
            if name == "_to_copy" and to is not None:
                ends.add(torch.device(to).type == self.device.type)
            what = "copy between devices" if len(ends) > 1 else None
        if name in _INDEXES:
            index = [x for x in args[1] if isinstance(x, Tensor)]
            if any(not isinstance(x, PretendTensor) for x in index):
                what = "index from the CPU"
            elif any(x.dtype in (torch.bool, torch.uint8) for x in index):
                filled = "put" in name and args[2].numel() == 1
                what = None if filled else "index by mask"
        if what is not None:
            self.waits[what, _line()] += 1
        if name not in _NO_LAUNCH:
            self.launches[name] += 1


class _PlainAttention(TorchFunctionMode):
    """torch picks an attention kernel by the type of device before it asks a tensor: here that is plain products."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is nn.functional.scaled_dot_product_attention and isinstance(args[0], PretendTensor):
            return torch.ops.aten._scaled_dot_product_attention_math(*args, **kwargs)[0]
        return func(*args, **kwargs)


@contextmanager
def _lent_guard(kind):
    """Make torch's bindings accept tensors of a device that this build of torch has not.

    They change to a tensor's device before many calls, through a guard that each device registers. A build with CUDA on
    a machine without a GPU can put one that does nothing in its place (torch's FakeTensorMode does); a build without
    gets that of the meta device, which does nothing either, for as long as this lasts.
    """
    torch._C._ensureCUDADeviceGuardSet()
    numbers = {"cuda": 1, "mps": 13, "meta": 14}  # c10/core/DeviceType.h
    library = next((Path(torch.__file__).parent / "lib").glob("*c10.[sd]*"))
    guards = (ctypes.c_void_p * (numbers["meta"] + 1)).in_dll(
        ctypes.CDLL(str(library)), "_ZN3c104impl26device_guard_impl_registryE"
    )
    before, at = guards[numbers[kind]], numbers[kind]
    guards[at] = before or guards[numbers["meta"]]
    try:
        yield
    finally:
        guards[at] = before


def _inside(tree):
    """Arguments with the CPU data in place of pretend tensors."""
    return tree_map(lambda x: x.inside if isinstance(x, PretendTensor) else x, tree)


def _line() -> str:
    """The innermost line of ours in the call stack."""
    frame = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        for room in ("/hooks/", "/interp/"):
            if room in path and "/tests/" not in path and "site-packages" not in path:
                return f"{room[1:]}{path.split(room)[-1]}:{frame.f_lineno}"
        frame = frame.f_back
    return "a test"
