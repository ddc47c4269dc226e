"""attention_statistics of hostile problems against dense float64, within its documented error, by both backends.

Sinks 100 above every score, scores of several hundred, scores and values that nearly cancel, keys that are all alike,
rows that see nothing: one comparison is one variable of one problem by one backend.
"""

import pytest
import torch
from dense_statistics import check, dense_statistics

from hooks.config.attention_spec import AttentionSpec
from interp.measure.statistics import attention_statistics


def vectors(rng, generator, *shape):
    """Random vectors: plain, all alike, of two signs, with features of very different sizes, sparse, or zero."""
    x = torch.randn(*shape, generator=generator)
    kind = rng.randrange(10)
    if kind == 0:
        x = 3 + rng.choice((0.0, 0.01)) * x
    elif kind == 1:
        x = x * 10.0 ** torch.linspace(-3, 1, shape[-1])
    elif kind == 2:
        x = x * (torch.rand(*shape, generator=generator) < 0.2)
    elif kind == 3:
        x[rng.randrange(len(x)) :] = 0.0
    elif kind == 4:
        x = x - x.mean(0) + 5 * torch.randn(shape[1:], generator=generator)
    elif kind == 5:  # with a constant on the other side, scores whose mean is next to nothing
        x = x[..., :1].sign() * (1 + rng.choice((1e-3, 0.1)) * x.abs())
    return x


def spec_of(rng, generator, q, k):
    """A spec whose scores reach up to 300, or hardly differ."""
    heads, d = q.shape[1:]
    largest = float(q.double().norm(dim=-1).max() * k.double().norm(dim=-1).max()) or 1.0
    scale = min(rng.choice((d**-0.5, 0.07, 1.0)), rng.choice((300.0, 64.0, 50.0, 31.0, 1e-3)) / largest)
    if rng.random() < 0.3:
        scale = rng.choice((300, 64, 50, 31.9)) / largest
    group = heads // k.shape[1]
    scores = torch.stack([q[:, h].double() @ k[:, h // group].double().T * scale for h in range(heads)])
    sinks = {
        "none": None,
        "drawn": torch.randn(heads, generator=generator),
        "above": scores.amax((1, 2)).float() + rng.choice((1.0, 20.0, 60.0, 90.0, 100.0)),
        "below": scores.amax((1, 2)).float() - 100.0,
        "off": torch.full((heads,), -torch.inf),
    }[rng.choice(("none", "none", "drawn", "above", "above", "below", "off"))]
    return AttentionSpec(
        scale=scale,
        causal=rng.random() < 0.75,
        window=rng.choice((None, None, 1, 7, 64)),
        softcap=rng.choice((None, None, None, 5.0, 50.0)),
        sinks=sinks,
        alibi_slopes=rng.choice((None, None, tuple(0.5 ** (1 + h) for h in range(heads)))),
    )


def problem(rng):
    """q, k, a spec, and the keyword arguments that say which tokens they are of."""
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    kv_heads, group = rng.choice((1, 1, 2, 3)), rng.choice((1, 2, 3, 5))
    heads, d = kv_heads * group, rng.choice((1, 4, 16, 33, 64))
    n_q, offset = rng.choice((1, 2, 9, rng.randrange(10, 60), rng.randrange(60, 130))), rng.choice((0, 0, 1, 40))
    n_k = n_q + offset
    q, k, v = (vectors(rng, generator, n, h, d) for n, h in ((n_q, heads), (n_k, kv_heads), (n_k, kv_heads)))
    kwargs = {"query_start": offset, "map_size": rng.choice((1, 5, 32, 128))}
    padding = rng.choice(("none", "none", "none", "left", "left", "holes", "all"))
    if padding in ("left", "holes"):
        holes = torch.rand(n_k, generator=generator) > 0.3
        kwargs["key_mask"] = torch.arange(n_k) >= n_k // 3 if padding == "left" else holes
    elif padding == "all" and rng.random() < 0.2:
        kwargs["key_mask"] = torch.zeros(n_k, dtype=torch.bool)
    base = torch.arange(n_k)
    positions = {
        "shifted": base + rng.choice((40_000, 10**6)),
        "gaps": base + (torch.rand(n_k, generator=generator) < 0.2).cumsum(0) * 3,
        "packed": base % (n_k // 2 + 1),
    }.get(rng.choice(("default", "default", "default", "shifted", "shifted", "gaps", "packed")))
    if positions is not None:
        kwargs |= {"key_positions": positions, "query_positions": positions[offset:]}
    w_o = vectors(rng, generator, heads, d, rng.choice((1, 6, 50))) if rng.random() < 0.6 else None
    if w_o is not None and d > 1 and rng.random() < 0.5:  # values that the projection nearly takes to nothing
        w_o[:, 0] = -w_o[:, 1:].sum(1)
        v = torch.ones_like(v) * rng.choice((1.0, 30.0)) + 1e-3 * v
    return q, k, spec_of(rng, generator, q, k), {**kwargs, "v": v, "w_o": w_o}


@pytest.mark.parametrize("part", range(16))
def test_every_statistic_is_within_the_documented_error(part, rng, draws, tally):
    wrong = []
    for number in range(draws(3, 112)):
        q, k, spec, kwargs = problem(rng)
        dtype = torch.float64 if number % 8 == 7 else torch.float32
        want = dense_statistics(q, k, spec, **kwargs)
        budget = rng.choice((3, 17, 64, 10_000)) * 16 * (q.shape[1] // k.shape[1]) * k.shape[0]
        for backend in ("auto", "portable"):
            found = attention_statistics(
                q.to(dtype), k.to(dtype), spec, memory_budget=budget, backend=backend, **kwargs
            )
            tally["comparisons"] = tally.get("comparisons", 0) + len(want[0])
            tally[found.backend] = tally.get(found.backend, 0) + len(want[0])
            try:
                check(found, *want, exact_counts=dtype == torch.float64)
            except AssertionError as error:
                said = [line for line in str(error).splitlines() if line.strip()]
                wrong.append(f"{part}/{number} {found.backend} {tuple(q.shape)} {spec.scale=}: {' '.join(said)[:300]}")
    assert not wrong, "\n".join(wrong)
