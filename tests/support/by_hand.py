"""A transformer written a second time, in float64 and from the definitions, to hold the hooked one against.

It takes weights out of a state dict and shares no code with the package: complex-number rotation, dense attention, and
an `edit(name, tensor)` callback at every named step, so that an intervention can be computed by hand.
"""

import math

import torch
from dense import dense_pattern, dense_scores, dense_z


def rms(x, weight, eps):
    """x / sqrt(mean(x²) + eps) · weight over the last axis."""
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def rotate(x, positions, theta):
    """RoPE as multiplication by e^{i·position·f} of feature i with feature i + d/2; x [pos head d]."""
    half = x.shape[-1] // 2
    frequencies = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = positions.double()[:, None, None] * frequencies
    z = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([z.real, z.imag], -1)


def forward(weights, cfg, tokens, *, edit=lambda name, tensor: tensor, positions=None):
    """Logits [pos vocab] of one sequence for a pre-norm gated model with RMS QK-norm per head and default RoPE."""
    w = {name: value.detach().double() for name, value in weights.items()}
    positions = torch.arange(len(tokens)) if positions is None else positions
    resid = w["embed.weight"][tokens]
    for i in range(cfg.n_layers):
        p = f"blocks.{i}."
        x = rms(resid, w[p + "ln1.weight"], cfg.eps)
        heads = {t: (x @ w[f"{p}attn.{t}_proj.weight"].T).unflatten(-1, (-1, cfg.d_head)) for t in "qkv"}
        heads = {t: edit(f"{p}attn.hook_{t}", h) for t, h in heads.items()}
        for t in "qk":
            gain = w[f"{p}attn.{t}_norm.weight"]
            order = ["norm", "rope"] if cfg.qk_norm.position == "before_rope" else ["rope", "norm"]
            for step in order:
                heads[t] = edit(f"{p}attn.hook_{t}_pre_{step}", heads[t])
                if step == "norm":
                    heads[t] = rms(heads[t], gain, cfg.qk_norm.eps)
                else:
                    heads[t] = rotate(heads[t], positions, cfg.rope.rope_theta)
                heads[t] = edit(f"{p}attn.hook_{t}_post_{step}", heads[t])
        scores = edit(p + "attn.hook_attn_scores", dense_scores(heads["q"], heads["k"], 1 / math.sqrt(cfg.d_head)))
        pattern = edit(p + "attn.hook_pattern", dense_pattern(scores))
        z = edit(p + "attn.hook_z", dense_z(pattern, heads["v"]))
        resid = resid + z.flatten(1) @ w[p + "attn.o_proj.weight"].T
        x = rms(resid, w[p + "ln2.weight"], cfg.eps)
        gate, up = (x @ w[f"{p}mlp.{n}_proj.weight"].T for n in ("gate", "up"))
        resid = resid + (torch.nn.functional.silu(gate) * up) @ w[p + "mlp.down_proj.weight"].T
    return rms(resid, w["ln_final.weight"], cfg.eps) @ w["unembed.weight"].T
