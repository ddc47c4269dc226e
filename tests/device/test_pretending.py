"""The pretend device refuses what a device refuses, counts what a host waits for, and leaves no trace."""

import numpy as np
import pytest
import torch
from pretend_cuda import PretendDevice
from torch import nn


def test_tensors_say_where_they_are_and_compute_what_the_cpu_computes(device):
    x = torch.arange(6.0, device=device.device).view(2, 3)
    x[:, 1:] *= 2
    assert x.device == device.device and not x.is_cpu
    assert x.tolist() == [[0, 2, 4], [3, 8, 10]]
    assert torch.equal((x @ x.T).cpu(), x.cpu() @ x.cpu().T)
    x.cpu()[0, 0] = 7  # a copy
    assert x[0, 0].item() == 0 and x[[1]].shape == (1, 3)


@pytest.mark.parametrize(
    "mix",
    [
        lambda x, cpu: x + cpu,
        lambda x, cpu: cpu + x,
        lambda x, cpu: torch.cat([x, cpu]),
        lambda x, cpu: x.where(cpu > 1, x),
        lambda x, cpu: x.add_(cpu),
        lambda x, cpu: cpu[x.long()],
        lambda x, cpu: x.index_select(0, cpu.long()),
        lambda x, cpu: x.masked_fill_(cpu > 1, 0.0),
        lambda x, cpu: torch.mm(x[None], x[:, None], out=cpu[None, :1]),
        lambda x, cpu: nn.functional.embedding(cpu.long(), x[:, None]),
    ],
)
def test_devices_do_not_mix(device, mix):
    with pytest.raises(RuntimeError, match="same device"):
        mix(torch.arange(4.0, device=device.device), torch.arange(4.0))


def test_what_a_device_allows_is_allowed(device):
    x = torch.arange(4.0, device=device.device)
    assert (x * torch.tensor(2.0)).tolist() == [0, 2, 4, 6]  # one number from the CPU
    x[torch.tensor([1, 2])] = torch.tensor(9.0)  # indices from it too
    x[:2].copy_(torch.tensor([5.0, 6.0]))
    assert x.tolist() == [5, 6, 9, 3]


def test_numpy_wants_a_copy_and_whole_numbers_are_not_multiplied(device):
    x = torch.ones(2, 2, device=device.device)
    for read in (lambda: x.numpy(), lambda: np.asarray(x)):
        with pytest.raises(TypeError, match="to numpy"):
            read()
    with pytest.raises(RuntimeError, match="not implemented"):
        x.long() @ x.long()


def test_metal_has_no_float64():
    with PretendDevice("mps") as metal:
        x = torch.ones(2, device=metal.device)
        for wide in (x.double, lambda: torch.zeros(2, dtype=torch.float64, device=metal.device)):
            with pytest.raises(TypeError, match="MPS"):
                wide()
        assert x.cpu().double().dtype == torch.float64


@pytest.mark.parametrize(
    ("ask", "waits"),
    [
        (lambda x: x + 1, 0),
        (lambda x: x[1:3].sum(), 0),
        (lambda x: x.masked_fill(x > 1, 0.0), 0),
        (lambda x: torch.arange(5, device=x.device), 0),
        (lambda x: bool(x.any()), 1),
        (lambda x: int(x.max()), 1),
        (lambda x: x.tolist(), 1),
        (lambda x: x.cpu(), 1),
        (lambda x: x.nonzero(), 1),
        (lambda x: x[x > 1], 1),
        (lambda x: x[[0, 1]], 1),
        (lambda x: x.unique(), 1),
        (lambda x: torch.tensor([1.0, 2.0], device=x.device), 1),
        (lambda x: x.copy_(torch.zeros(4)), 1),
    ],
)
def test_waits_are_counted(device, ask, waits):
    x = torch.arange(4.0, device=device.device)
    with device.counting():
        ask(x)
    assert device.n_waits == waits, device.waits


def test_nothing_is_left_behind():
    answers = torch.cuda.mem_get_info, torch.cuda._lazy_init, torch._C._only_lift_cpu_tensors()
    with PretendDevice("cuda") as device:
        kept = torch.ones(2, device=device.device)
    assert (torch.cuda.mem_get_info, torch.cuda._lazy_init, torch._C._only_lift_cpu_tensors()) == answers
    assert kept.inside.tolist() == [1, 1] and torch.zeros(2).tolist() == [0, 0]
    if not torch.cuda.is_available():
        with pytest.raises((RuntimeError, AssertionError)):
            torch.ones(2, device="cuda:0")


def test_a_model_is_moved_as_a_copy_whose_shared_weights_stay_shared(device):
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False), nn.BatchNorm1d(3)).eval()
    model[1].weight = model[0].weight
    moved = device.moved(model)
    assert moved[1].weight is moved[0].weight and moved[2].running_mean.device == device.device
    assert model[0].weight.is_cpu
    with torch.no_grad():
        x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
        assert torch.allclose(moved(x.to(device.device)).cpu(), model(x))
