"""Every statistic by its definition from dense float64 matrices, and the comparison within the documented error.

Shares no code with the package but the edges of its histogram.
"""

import numpy as np
import torch
from dense import dense_pattern, dense_scores, visible

from interp.measure.score_bins import score_edges


def dense_statistics(
    q, k, spec, *, v=None, w_o=None, map_size=128, query_start=0, key_mask=None, documents=None, **positions
):
    """Every variable by its definition from the n × n matrices, float64 numpy."""
    n_q, n_k, heads = q.shape[0], k.shape[0], q.shape[1]
    i = positions.get("query_positions")
    j = positions.get("key_positions")
    i = np.arange(n_q) + query_start if i is None else i.numpy()
    j = np.arange(n_k) if j is None else j.numpy()
    documents = documents or [0]
    rules = {"causal": spec.causal, "window": spec.window, "query_start": query_start, "documents": documents}
    s = dense_scores(
        q,
        k,
        spec.scale,
        **rules,
        softcap=spec.softcap,
        alibi_slopes=spec.alibi_slopes,
        key_mask=key_mask,
        query_positions=torch.tensor(i),
        key_positions=torch.tensor(j),
    )
    p = dense_pattern(s, spec.sinks).numpy()
    ok = visible(n_q, n_k, **rules, key_mask=key_mask).numpy()
    s = s.numpy()
    seen = ok.any(1)
    delta = i[:, None] - j[None, :]
    out = {}
    valid = np.where(ok, s, np.nan)
    logits = (
        s
        if spec.sinks is None
        else np.concatenate([s, np.broadcast_to(spec.sinks.double().numpy()[:, None, None], (heads, n_q, 1))], -1)
    )
    with np.errstate(all="ignore"):
        top = np.where(seen, logits.max(-1), 0)
        out["lse"] = top + np.log(np.exp(logits - top[..., None]).sum(-1))
        out["max_score"] = np.where(ok, s, -np.inf).max(-1)
        out["min_score"] = np.where(ok, s, np.inf).min(-1)
        out["entropy"] = -np.where(p > 0, p * np.log(p), 0).sum(-1)
        mass = p.sum(-1)
        mean = np.where(ok, p * s, 0).sum(-1) / mass
        spread = np.where(ok, np.where(ok, s, 0) - mean[..., None], 0) ** 2
        out["varentropy"] = (p * spread).sum(-1) / mass
    out["mean_distance"] = (p * delta).sum(-1)
    out["local_mass"] = (p * (np.abs(delta) < 64)).sum(-1)
    out["max_prob"] = p.max(-1)
    real = np.arange(n_k) if key_mask is None else np.nonzero(key_mask.numpy())[0]
    each = [real[(real >= a) & (real < b)] for a, b in zip(documents, [*documents[1:], n_k], strict=True)]
    out["sink_mass"] = np.stack([sum(p[:, :, own[:m]].sum(-1) for own in each) for m in (1, 4)], -1)
    for name in out:
        out[name] = np.where(seen[:, None] if name == "sink_mass" else seen, out[name], np.nan)
    out["received"], out["received_max"] = p.sum(1), p.max(1)
    low, high = delta[ok].min(initial=0), delta[ok].max(initial=0)
    index = (delta - low)[ok]
    size = high - low + 1
    out["count"] = count = np.bincount(index, minlength=size)
    by_distance = lambda x: np.stack([np.bincount(index, x[h][ok], minlength=size) for h in range(heads)])  # noqa: E731
    out["attention"] = by_distance(p)
    with np.errstate(all="ignore"):
        out["score_mean"] = by_distance(valid) / count
        centred = np.where(ok, s, 0) - np.nan_to_num(out["score_mean"])[:, np.clip(delta - low, 0, size - 1)]
        out["score_m2"] = by_distance(centred**2)
        every = valid[:, ok]
        total = ((every - every.sum(1, keepdims=True) / max(ok.sum(), 1)) ** 2).sum(1)
        out["positional_r2"] = 1 - out["score_m2"].sum(1) / total
    out["score_min"], out["score_max"] = np.full((heads, size), np.inf), np.full((heads, size), -np.inf)
    for h in range(heads):
        np.minimum.at(out["score_min"][h], index, s[h][ok])
        np.maximum.at(out["score_max"][h], index, s[h][ok])
    for name in ("score_min", "score_max"):
        out[name] = np.where(count > 0, out[name], np.nan)
    if v is not None:
        group = heads // v.shape[1]
        norm = np.stack(
            [
                (v[:, h // group].double() if w_o is None else v[:, h // group].double() @ w_o[h].double())
                .norm(dim=-1)
                .numpy()
                for h in range(heads)
            ]
        )
        out["received_value"] = out["received"] * norm
        out["attention_value"] = by_distance(p * norm[:, None])
    g_q, g_k = min(map_size, n_q), min(map_size, n_k)
    bins = (np.arange(n_q) * g_q // n_q)[:, None] * g_k + (np.arange(n_k) * g_k // n_k)[None, :]
    cells = np.bincount(bins[ok], minlength=g_q * g_k)
    top = np.zeros((heads, g_q * g_k))
    with np.errstate(all="ignore"):
        mean = np.stack([np.bincount(bins[ok], p[h][ok], minlength=g_q * g_k) / cells for h in range(heads)])
    for h in range(heads):
        np.maximum.at(top[h], bins[ok], p[h][ok])
    out["map_mean"] = mean.reshape(heads, g_q, g_k)
    out["map_max"] = np.where(cells > 0, top, np.nan).reshape(heads, g_q, g_k)
    out["score_count"] = np.stack([np.histogram(s[h][ok], score_edges())[0] for h in range(heads)])
    return out, s, ok, (low, high)


def check(ds, want, s, ok, low_high, exact_counts=True):
    """Every variable within 1e-5 · max(1, max|s|/50) of its reference, relative where it is larger than 1."""
    tolerance = 1e-5 * max(1.0, np.abs(s[:, ok]).max(initial=0) / 50)
    assert ds.distance.values[[0, -1]].tolist() == list(low_high)
    for name, reference in want.items():
        got = ds[name].values
        assert got.shape == reference.shape, name
        if name == "score_count" and not exact_counts:
            # A score within rounding of an edge may fall on its other side.
            below, edges = np.cumsum(got, 1)[:, :-1], score_edges()[1:-1]
            slack = tolerance * np.maximum(1, np.abs(edges))
            for h in range(s.shape[0]):
                ordered = np.sort(s[h][ok])
                assert (np.searchsorted(ordered, edges - slack) <= below[h]).all()
                assert (below[h] <= np.searchsorted(ordered, edges + slack)).all()
            assert (got.sum(1) == ok.sum()).all()
        elif name in ("count", "score_count"):
            np.testing.assert_array_equal(got, reference, err_msg=name)
        elif name == "score_m2":
            sigma = np.sqrt(reference / np.maximum(want["count"], 1))
            spread = np.sqrt(got / np.maximum(want["count"], 1))
            np.testing.assert_allclose(spread, sigma, rtol=tolerance, atol=tolerance, err_msg=name)
        elif name == "positional_r2":
            # A ratio of variances is only determined where the scores vary by more than they are rounded.
            varies = np.array([ok.any() and np.std(each[ok]) > 10 * tolerance for each in s])
            for h in np.nonzero(varies)[0]:
                # Both variances are off by 2 δ/σ where every score is off by δ, half a unit in the last float32 place.
                rounding = 0.0 if exact_counts else 2**-24 * np.abs(s[h][ok]).max()
                error = max(1e-4, 4 * rounding / np.std(s[h][ok]))
                np.testing.assert_allclose(got[h], reference[h], atol=error, err_msg=name)
            flat = got[~varies]
            assert (np.isnan(flat) | ((flat >= 0) & (flat <= 1 + 1e-4))).all(), name
        else:
            # Distances of both signs cancel in their mean.
            size = max(1.0, max(-low_high[0], low_high[1]) / 2) if name == "mean_distance" and low_high[0] < 0 else 1.0
            np.testing.assert_allclose(got, reference, rtol=tolerance, atol=tolerance * size, err_msg=name)
    for h in range(s.shape[0]):
        for i in np.nonzero(ok.any(1))[0]:
            assert s[h, i, ds.argmax_key.values[h, i]] >= s[h, i].max() - tolerance * max(1, np.abs(s[h, i].max()))
