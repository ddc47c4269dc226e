"""Dense float64 attention, written from the definition: the reference that every fast path must match.

Shares no code with the package: it builds the n × n matrix on purpose.
"""

import torch


def visible(n_queries, n_keys, *, causal=True, window=None, query_start=0, key_mask=None, documents=(0,)):
    """[query key] bool: key j is visible to query i (index query_start + i) under the mask rules."""
    i = torch.arange(n_queries)[:, None] + query_start
    j = torch.arange(n_keys)[None, :]
    ok = torch.ones(n_queries, n_keys, dtype=torch.bool)
    if causal:
        ok &= j <= i
    if window is not None:
        ok &= i - j < window
        if not causal:
            ok &= j - i < window
    if key_mask is not None:
        ok &= key_mask[None, :].bool()
    starts = torch.tensor(documents)  # where documents begin: as many begin up to i as up to j where both are in one
    ok &= (starts <= i[..., None]).sum(-1) == (starts <= j[..., None]).sum(-1)
    return ok


def dense_scores(
    q,
    k,
    scale,
    *,
    causal=True,
    window=None,
    softcap=None,
    alibi_slopes=None,
    query_start=0,
    key_mask=None,
    query_positions=None,
    key_positions=None,
    documents=(0,),
):
    """Scores that enter softmax, [head query key] float64, −inf where masked; q [query head d], k [key kv d]."""
    n_q, heads, _ = q.shape
    n_k, kv_heads, _ = k.shape
    group = heads // kv_heads
    q, k = q.double(), k.double()
    if query_positions is None:
        query_positions = torch.arange(n_q) + query_start
    if key_positions is None:
        key_positions = torch.arange(n_k)
    out = torch.empty(heads, n_q, n_k, dtype=torch.float64)
    rules = {"causal": causal, "window": window, "query_start": query_start, "key_mask": key_mask}
    ok = visible(n_q, n_k, **rules, documents=documents)
    for h in range(heads):
        s = q[:, h] @ k[:, h // group].T * scale
        if softcap is not None:
            s = softcap * torch.tanh(s / softcap)
        if alibi_slopes is not None:
            s = s - float(alibi_slopes[h]) * (query_positions[:, None] - key_positions[None, :]).abs().double()
        out[h] = s.masked_fill(~ok, -torch.inf)
    return out


def dense_pattern(scores, sinks=None):
    """Softmax over keys, [head query key]; a sink is one more logit per head that takes mass and gives none.

    A row with nothing visible is all zeros, not NaN.
    """
    top = scores.amax(-1, keepdim=True)
    if sinks is not None:
        top = torch.maximum(top, sinks.double()[:, None, None])
    top = torch.where(torch.isinf(top), torch.zeros_like(top), top)
    e = torch.exp(scores - top)
    total = e.sum(-1, keepdim=True)
    if sinks is not None:
        total = total + torch.exp(sinks.double()[:, None, None] - top)
    return torch.where(total > 0, e / total, torch.zeros_like(e))


def dense_z(pattern, v):
    """Per-head output, [query head d] float64; v [key kv d]."""
    heads = pattern.shape[0]
    group = heads // v.shape[1]
    return torch.stack([pattern[h] @ v[:, h // group].double() for h in range(heads)], dim=1)
