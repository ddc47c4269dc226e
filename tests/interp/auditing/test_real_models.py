"""The audit of both real models: outside numbers, bounds that were known, what texts and ascent reach."""

import numpy as np
import pytest
import torch

from hooks import HookedTransformer
from interp import audit, standard_text
from interp.auditing.printed import as_text
from interp.captures import capture
from interp.common.words import KIND_NAME

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["smollm2-135m", "gemma3-270m"])
def real(request):
    model = HookedTransformer.from_pretrained(request.param, dtype="float32")
    return request.param, model, audit(model)


# first distance with a negative sum, critical dimension, rotated features
KNOWN = {
    "smollm2-135m": {"full": (3_616, 40, 64)},
    "gemma3-270m": {"sliding": (2_653, None, 256), "full": (71_627, 160, 256)},
}


def test_outside_numbers(real):
    name, _, found = real
    kinds = {KIND_NAME[kind]: found.rotations.sel(rotation=kind) for kind in found.rotations["rotation"].values}
    assert kinds.keys() == KNOWN[name].keys()
    for kind, (negative, critical, width) in KNOWN[name].items():
        assert int(kinds[kind]["first_negative"]) == negative
        assert int(kinds[kind]["rotary_dim"]) == width
        assert critical is None or int(kinds[kind]["critical_dimension"]) == critical


def test_no_score_of_a_text_passes_the_bound_and_float16_is_proven(real):
    name, model, found = real
    cap = capture(model, standard_text(), n_tokens=1024, loss=False)
    stats = cap.statistics(groups=("distances",))
    seen = [d for d in found.layers["distance"].values.tolist() if d < 1024]
    bound = found.layers["bound"].sel(distance=seen).transpose("layer", "head", "distance").values
    for variable, sign in (("score_max", 1), ("score_min", -1)):
        observed = sign * stats[variable].sel(distance=seen).transpose("layer", "head", "distance").values
        assert (np.isnan(observed) | (observed <= bound * (1 + 1e-5))).all()
    assert (found.layers["headroom"].sel(dtype="float16") > 1).all()
    if name == "gemma3-270m":  # as the bound of a capture has them
        largest = found.layers["largest_bound"].isel(head=0)
        assert [round(float(largest[layer])) for layer in (0, 1, 17)] == [299, 1218, 1815]
        assert set(found.layers["bound_source"].values) == {"QK-norm"}
    else:
        assert set(found.layers["bound_source"].values) == {"norm before attention"}


@pytest.mark.parametrize(("layer", "distance"), [(0, 1), (7, 64)])
def test_no_ascent_on_the_real_weights_passes_the_bound(real, layer, distance):
    _, model, found = real
    heads = torch.arange(model.cfg.n_heads)
    generator = torch.Generator().manual_seed(0)
    resid = torch.randn(len(heads), 2, model.cfg.d_model, generator=generator).requires_grad_()
    positions = torch.tensor([[3, 3 + distance]]).expand(len(heads), 2)
    optimizer, best = torch.optim.Adam([resid], lr=0.1), torch.zeros(len(heads))
    for _ in range(150):
        kept = []
        hooks = [(f"blocks.{layer}.attn.hook_{tensor}_final", lambda x, hook, to=kept: to.append(x)) for tensor in "qk"]
        with model.hooks(fwd_hooks=hooks):
            model(resid, None, start_at_layer=layer, stop_at_layer=layer + 1, position_ids=positions)
        q, k = kept[0], kept[1].repeat_interleave(model.cfg.n_heads // model.cfg.n_kv_heads, 2)
        score = model.attention_spec(layer).scale * (q[heads, 1, heads] * k[heads, 0, heads]).sum(-1).abs()
        best = torch.maximum(best, score.detach())
        optimizer.zero_grad()
        (-score.sum()).backward()
        optimizer.step()
    bound = found.layers["bound"].sel(layer=layer, distance=distance).values
    assert (best.numpy() <= bound * (1 + 1e-5)).all() and (best.numpy() > 0.5 * bound).all(), (best, bound)


@pytest.mark.parametrize("width", [80, 200])
def test_it_fits_on_one_screen(real, width):
    lines = as_text(real[2], width).splitlines()
    assert len(lines) <= 42 and max(map(len, lines)) <= width
