"""kv_precision against rounding written anew, dense float64 patterns, and a channel that only channels keep small."""

import numpy as np
import pytest
import torch
from dense import dense_pattern, dense_scores
from tiny_hooked import random_tokens, tiny_model

import interp
from hooks.errors import InputError

AXES = {"channel": 0, "token": 1}


def grid(x, axis, bits):
    """Equal steps from the smallest to the largest of each column (axis 0) or row (axis 1)."""
    out = x.copy()
    for i in range(x.shape[1 - axis]):
        place = (slice(None), i) if axis == 0 else (i, slice(None))
        levels = np.linspace(x[place].min(), x[place].max(), 2**bits)
        out[place] = levels[np.abs(x[place][:, None] - levels).argmin(-1)]
    return out


def e4m3(x, axis):
    """The nearest of float8's numbers, ± 2^e (1 + m/8) up to 448, once the largest of the group is 448."""
    numbers = [m * 2.0**-9 for m in range(8)] + [2.0**e * (1 + m / 8) for e in range(-6, 9) for m in range(8)]
    numbers = np.array([number for number in numbers if number <= 448])
    scale = np.abs(x).max(axis, keepdims=True) / 448
    nearest = np.abs(np.abs(x / scale)[..., None] - numbers).argmin(-1)
    return np.sign(x) * numbers[nearest] * scale


def rotated(x, inv_freq):
    """Keys [pos d_head] turned by position times frequency, in the layout of halves."""
    angle = np.arange(len(x))[:, None] * inv_freq
    a, b = np.split(x, 2, axis=1)
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], axis=1)


def changed(cap, layer, stage, axis, dtype):
    """Keys of a layer, rounded at a stage and brought to the score."""
    k = cap.k(layer, stage).double().numpy()
    out = np.empty_like(k)
    for head in range(k.shape[1]):
        rounded = e4m3(k[:, head], axis) if dtype == "float8" else grid(k[:, head], axis, int(dtype[3:]))
        out[:, head] = rotated(rounded, cap.constants(layer).inv_freq.double().numpy()) if stage != "final" else rounded
    return torch.from_numpy(out)


@pytest.mark.parametrize("changes", [{}, {"n_key_value_heads": 1}])
@pytest.mark.parametrize("n", [3, 33])
def test_costs_are_those_of_dense_patterns(changes, n):
    kinds = {"layer_types": ("sliding_attention", "full_attention"), "window_size": 7}
    cap = interp.capture(tiny_model(**kinds, **changes), random_tokens(n)[0])
    found = interp.kv_precision(cap, queries=None)
    for layer in cap.layers:
        spec, q, k, v = cap.spec(layer), cap.q(layer), cap.k(layer).double(), cap.v(layer).double()
        scores = dense_scores(q, k, spec.scale, window=spec.window)
        p, seen = dense_pattern(scores), torch.isfinite(scores[0])
        for stage in ("pre_rope", "final"):
            for grouping, axis in AXES.items():
                for dtype in ("int8", "int4", "float8"):
                    here = found.sel(layer=layer, stage=stage, grouping=grouping, dtype=dtype)
                    other = changed(cap, layer, stage, axis, dtype)
                    after = dense_scores(q, other, spec.scale, window=spec.window)
                    off = (after - scores)[:, seen]
                    kl = torch.where(seen, p * (p.clamp_min(1e-300) / dense_pattern(after)).log(), 0).sum(-1)
                    np.testing.assert_allclose(here["score_error_max"], off.abs().amax(-1), rtol=1e-3, atol=1e-6)
                    np.testing.assert_allclose(
                        here["score_error_rms"], off.square().mean(-1).sqrt(), rtol=1e-3, atol=1e-6
                    )
                    np.testing.assert_allclose(here["kl"], kl.mean(-1), rtol=1e-2, atol=1e-9)
                    group = p.shape[0] // k.shape[1]
                    error = ((other - k).norm(dim=(0, 2)) / k.norm(dim=(0, 2))).repeat_interleave(group)
                    np.testing.assert_allclose(here["key_error"], error, rtol=1e-3, atol=1e-6)
        for grouping, axis in AXES.items():
            for head in range(p.shape[0]):
                own = v[:, head * v.shape[1] // p.shape[0]].numpy()
                off = p[head].numpy() @ (grid(own, axis, 4) - own)
                here = found.sel(layer=layer, head=head, grouping=grouping, dtype="int4")
                whole = np.linalg.norm(p[head].numpy() @ own)
                assert here["output_error"].item() == pytest.approx(np.linalg.norm(off) / whole, rel=1e-6)
                error = np.linalg.norm(grid(own, axis, 4) - own) / np.linalg.norm(own)
                assert here["value_error"].item() == pytest.approx(error, rel=1e-6)


def test_a_large_channel_costs_less_where_channels_have_their_own_scale():
    """KIVI's reason for keys by channel: one large feature takes all the steps of every token's scale."""
    cap = interp.capture(tiny_model(), random_tokens(40)[0])
    for layer in cap.layers:
        cap.k(layer)[:, :, 3] += 100
    found = interp.kv_precision(cap).sel(stage="final", dtype="int4")["kl"]
    assert (found.sel(grouping="channel") * 10 < found.sel(grouping="token")).all()


def test_keys_that_are_all_alike_are_rounded_to_themselves():
    cap = interp.capture(tiny_model(), random_tokens(9)[0])
    for layer in cap.layers:
        cap.k(layer)[:] = 0.3
        cap.v(layer).zero_()
    found = interp.kv_precision(cap).sel(stage="final", dtype=["int4", "int8"])
    assert (found["key_error"] == 0).all() and (found["kl"] == 0).all() and (found["output_error"] == 0).all()


def test_before_the_rotation_is_known_only_where_it_is_the_last_step_and_was_kept():
    cap = interp.capture(tiny_model(), random_tokens(9)[0], stages=())
    found = interp.kv_precision(cap)["kl"]
    assert found.sel(stage="pre_rope").isnull().all() and found.sel(stage="final").notnull().all()


def test_queries_that_are_not_there_are_refused():
    cap = interp.capture(tiny_model(), random_tokens(9)[0])
    with pytest.raises(InputError, match="queries"):
        interp.kv_precision(cap, queries=[99])
