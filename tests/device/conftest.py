"""Every test here runs on a pretend GPU, of NVIDIA's kind and of Apple's."""

import pytest
from pretend_cuda import PretendDevice


@pytest.fixture(params=["cuda", "mps"])
def device(request):
    with PretendDevice(request.param) as device:
        yield device


@pytest.fixture
def cuda():
    with PretendDevice("cuda") as device:
        yield device
