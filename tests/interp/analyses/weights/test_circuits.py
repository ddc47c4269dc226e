"""What projections and rotation can do, against SVDs of the whole d_model × d_model product, and ascent."""

import math

import pytest
import torch

from interp.analyses.weights.circuits import (
    Projection,
    circuit_norm,
    longest,
    pair_bounds,
    pair_lengths,
    pair_products,
    pair_singular_values,
    rest_singular_value,
    triangular,
)
from interp.analyses.weights.rotation_blocks import RotationBlocks

D_HEAD, D_MODEL, HEADS = 10, 14, 3
DISTANCES = torch.tensor([0.0, 1.0, 2.0, 7.0, 1000.0], dtype=torch.float64)
SHAPES = {
    "half": (torch.tensor([1.0, 0.3, 0.05, 0.01, 0.002]), 1.0, False),
    "interleaved": (torch.tensor([1.0, 0.3, 0.05, 0.01, 0.002]), 1.2, True),
    "partial": (torch.tensor([0.9, 0.2]), 0.9, False),
    "a pair that does not turn": (torch.tensor([0.9, 0.2, 0.0, 0.0, 0.0]), 1.0, False),
}


@pytest.fixture(params=SHAPES)
def case(request):
    """Blocks, projections of q and k, and R(Δ) from its definition, one position turned against another."""
    frequency, factor, interleaved = SHAPES[request.param]
    frequency = frequency.double()
    generator = torch.Generator().manual_seed(5)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    q, k = (Projection(drawn(HEADS, D_HEAD, D_MODEL), drawn(HEADS, D_HEAD), math.sqrt(D_MODEL)) for _ in range(2))
    return RotationBlocks(D_HEAD, frequency, factor, interleaved), q, k, turning(frequency, factor, interleaved)


def pair_places(i, n, interleaved):
    return (2 * i, 2 * i + 1) if interleaved else (i, i + n)


def turning(frequency, factor, interleaved):
    """R(Δ) = R(p + Δ)ᵀ R(p), attention factors included."""

    def at(position):
        out = torch.eye(D_HEAD, dtype=torch.float64)
        for i, f in enumerate(frequency.tolist()):
            x, y = pair_places(i, len(frequency), interleaved)
            c, s = factor * math.cos(f * position), factor * math.sin(f * position)
            out[x, x], out[x, y], out[y, x], out[y, y] = c, -s, s, c
        return out

    return lambda distance: at(3.0 + distance).T @ at(3.0)


def only(blocks, i):
    """A projection onto one pair."""
    out = torch.zeros(D_HEAD, D_HEAD, dtype=torch.float64)
    for place in (int(blocks.first[i]), int(blocks.second[i])):
        out[place, place] = 1
    return out


def test_a_pairs_singular_value_is_that_of_the_whole_product(case):
    blocks, q, k, turned = case
    found = pair_singular_values(blocks, q.weight, k.weight, DISTANCES)
    for at, distance in enumerate(DISTANCES.tolist()):
        for i in range(blocks.frequency.numel()):
            for head in range(HEADS):
                product = q.weight[head].T @ only(blocks, i) @ turned(distance) @ k.weight[head]
                assert float(found[head, i, at]) == pytest.approx(float(torch.linalg.svdvals(product)[0]), rel=1e-9)


def test_the_whole_circuit_and_the_features_that_rest(case):
    blocks, q, k, turned = case
    factors = triangular(q.weight), triangular(k.weight)
    bare_q, bare_k = (Projection(x.weight, torch.zeros_like(x.offset), x.radius) for x in (q, k))
    for distance in DISTANCES.tolist():
        found = circuit_norm(bare_q, bare_k, blocks.matrix(torch.tensor(distance)), factors)
        for head in range(HEADS):
            product = q.weight[head].T @ turned(distance) @ k.weight[head]
            assert float(found[head]) == pytest.approx(D_MODEL * float(torch.linalg.svdvals(product)[0]), rel=1e-9)
    rest = rest_singular_value(blocks, q.weight, k.weight)
    for head in range(HEADS):
        product = q.weight[head][blocks.rest].T @ k.weight[head][blocks.rest]
        largest = float(torch.linalg.svdvals(product)[0]) if blocks.rest.numel() else 0.0
        assert float(rest[head]) == pytest.approx(largest, rel=1e-9)


def test_products_of_a_pair(case):
    blocks, q, k, turned = case
    a, b = q.offset, k.offset
    found = pair_products(blocks, a, b, DISTANCES)
    for at, distance in enumerate(DISTANCES.tolist()):
        for i in range(blocks.frequency.numel()):
            dense = torch.einsum("hd,de,he->h", a, only(blocks, i) @ turned(distance), b)
            torch.testing.assert_close(found[:, i, at], dense)


def climbed(f, *shape, seed=0, steps=150):
    """The largest |f| that ascent reaches, over vectors on the sphere of radius √D_MODEL."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([x], lr=0.1)
    best = 0.0
    for _ in range(steps):
        value = f(math.sqrt(shape[-1]) * x / x.norm(dim=-1, keepdim=True)).abs()
        best = max(best, float(value.detach().max()))
        optimizer.zero_grad()
        (-value.sum()).backward()
        optimizer.step()
    return best


def test_bounds_with_biases_hold_while_inputs_climb(case):
    blocks, q, k, turned = case
    head, distance = 1, 2.0
    rotation = turned(distance)

    def score(x, part):
        left, right = (p.weight[head] @ each + p.offset[head] for p, each in ((q, x[0]), (k, x[1])))
        return left @ part @ rotation @ right

    at = torch.tensor([distance], dtype=torch.float64)
    bounds = pair_bounds(blocks, q, k, at)[head, :, 0]
    lengths = [pair_lengths(blocks, each)[head] for each in (q, k)]
    for i in range(2):
        reached = climbed(lambda x, i=i: score(x, only(blocks, i)), 2, D_MODEL)
        assert 0.5 * float(bounds[i]) < reached <= float(bounds[i]) * (1 + 1e-9)
        assert reached <= float(blocks.stretch * lengths[0][i] * lengths[1][i]) * (1 + 1e-9)
    whole = circuit_norm(q, k, rotation, (triangular(q.weight), triangular(k.weight)))[head]
    reached = climbed(lambda x: score(x, torch.eye(D_HEAD, dtype=torch.float64)), 2, D_MODEL)
    assert 0.5 * float(whole) < reached <= float(whole) * (1 + 1e-9)

    longest_q = float(longest(q, triangular(q.weight))[head])
    assert climbed(lambda x: (q.weight[head] @ x + q.offset[head]).norm(), D_MODEL) <= longest_q * (1 + 1e-9)
