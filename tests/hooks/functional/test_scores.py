"""finish_scores: scale, soft-cap and ALiBi against the formula in float64, at any positions, with its gradient."""

import math

import pytest
import torch

from hooks import AttentionSpec
from hooks.functional.scores import finish_scores

SLOPES = (0.5, 0.03)


def by_formula(products, scale, softcap, slopes, query_positions, key_positions):
    """One score at a time, in Python's floats."""
    out = torch.empty(products.shape, dtype=torch.float64)
    for b, h, i, j in torch.cartesian_prod(*(torch.arange(n) for n in products.shape)).tolist():
        s = products[b, h, i, j].item() * scale
        s = s if softcap is None else softcap * math.tanh(s / softcap)
        far = abs(query_positions[b][i].item() - key_positions[b][j].item())
        out[b, h, i, j] = s - (0 if slopes is None else slopes[h] * far)
    return out


@pytest.mark.parametrize("scale", [1.0, 0.3, -2.0])
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("slopes", [None, SLOPES])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_it_is_the_formula(scale, softcap, slopes, dtype):
    generator = torch.Generator().manual_seed(0)
    products = torch.randn(2, 2, 3, 4, generator=generator).to(dtype)
    queries, keys = torch.tensor([[100, 103, 900], [7, 8, 9]]), torch.tensor([[0, 5, 99, 901], [4, 5, 6, 7]])
    want = by_formula(products, scale, softcap, slopes, queries, keys)
    got = finish_scores(products.clone(), AttentionSpec(scale, softcap=softcap, alibi_slopes=slopes), queries, keys)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), want, rtol=8 * torch.finfo(dtype).eps, atol=8 * torch.finfo(dtype).eps)


def test_without_gradients_it_works_in_place():
    products = torch.ones(2, 1, 1)
    spec = AttentionSpec(0.5, softcap=2.0, alibi_slopes=SLOPES)
    assert finish_scores(products, spec, torch.tensor([3]), torch.tensor([1])) is products


def test_its_gradient_is_that_of_the_formula():
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    spec, at = AttentionSpec(0.7, softcap=1.3, alibi_slopes=SLOPES), (torch.arange(3), torch.arange(4))
    assert torch.autograd.gradcheck(lambda x: finish_scores(x.clone(), spec, *at), x)
