"""Head scores of real models: transformer_lens.head_detector's where it can run, and what is known of each model."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformer_lens.head_detector import detect_head

from hooks import HookedTransformer
from interp.analyses.heads.summary import head_summary, typical_heads
from interp.analyses.patterns.windows import attention_pattern
from interp.captures import capture
from interp.texts.repeated import repeated_tokens

pytestmark = pytest.mark.slow
N = 512
DETECTED = {
    "previous_token": "previous_token_head",
    "duplicate_token": "duplicate_token_head",
    "induction": "induction_head",
}


@pytest.fixture(scope="module")
def model():
    return HookedTransformer.from_pretrained("smollm2-135m", dtype=torch.float32)


@pytest.fixture(scope="module")
def scored(model):
    """Random tokens twice over, 512 in all, and our scores on them."""
    tokens = repeated_tokens(model, N // 2)
    cap = capture(model, tokens)
    return tokens, cap, head_summary(cap)


def detected(model, tokens, cache, name):
    """Σ(p ⊙ D) / Σ p of every head as head_detector has it; it wants text, so it gets a model that reads our tokens."""
    reader = SimpleNamespace(cfg=model.cfg, to_tokens=lambda _: tokens[None])
    return detect_head(reader, "", name, cache=cache).numpy()


def ranks(x):
    return np.argsort(np.argsort(x.ravel()))


def test_scores_rank_heads_as_head_detector_does(model, scored):
    tokens, _, summary = scored
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens[None], names_filter="blocks.*.attn.hook_pattern")
    cache.remove_batch_dim()
    for ours, theirs in DETECTED.items():
        want, got = detected(model, tokens, cache, theirs), summary[ours].values
        # They divide by every row, we by those where the pattern can show.
        rows = {"previous_token": N - 1, "duplicate_token": N // 2, "induction": N // 2}[ours]
        np.testing.assert_allclose(got * rows / N, want, rtol=1e-3, atol=2e-6)
        assert np.corrcoef(ranks(got), ranks(want))[0, 1] > 0.999
        assert np.argsort(-got, axis=None)[:20].tolist() == np.argsort(-want, axis=None)[:20].tolist()
    best = typical_heads(summary, 3)
    assert (best["score"].sel(kind="induction", rank=[0, 1]) > 0.7).all()
    assert (best["score"].sel(kind="previous token", rank=0) > 0.6).all()


def test_the_best_induction_heads_are_found_again_where_patterns_would_take_72_gigabytes(model, scored):
    """8,192 tokens; the pass ends after the last layer that is looked at."""
    best = typical_heads(scored[2], 5).sel(kind="induction")
    at_512 = {(int(head["layer"]), int(head["head"])) for head in (best.isel(rank=i) for i in range(5))}
    layers = sorted({layer for layer, _ in at_512})
    cap = capture(model, repeated_tokens(model, 4_096), layers=layers, stages=(), loss=False)
    assert len(cap.tokens) == 8_192
    found = head_summary(cap)["induction"]
    # Copying over 4,096 tokens is harder: their scores fall to between 0.07 and 0.4, and still nobody else comes near.
    assert all(float(found.sel(layer=layer, head=head)) > 0.05 for layer, head in at_512)
    best = np.argsort(-found.values, axis=None)[:6]
    assert at_512 <= {(layers[i // found.sizes["head"]], i % found.sizes["head"]) for i in best.tolist()}
    assert float(found.median()) < 0.01


def test_the_model_predicts_the_second_stretch_from_the_first(scored):
    """What induction heads are for: the loss falls as soon as the tokens repeat."""
    _, cap, _ = scored
    assert cap.loss[N // 2 + 8 :].mean() < 0.3 * cap.loss[: N // 2 - 1].mean()


def test_gemmas_sliding_layers_see_512_tokens_and_its_full_layers_all():
    model = HookedTransformer.from_pretrained("gemma3-270m", dtype=torch.float32)
    full = next(layer for layer in range(model.cfg.n_layers) if model.cfg.layer_type(layer) == "full_attention")
    sliding = full - 1
    cap = capture(model, repeated_tokens(model, 400), layers=[sliding, full])
    far = slice(0, len(cap.tokens) - 512)
    for head in range(model.cfg.n_heads):
        at = {layer: attention_pattern(cap, layer, head, -1, far).values for layer in (sliding, full)}
        assert not at[sliding].any() and (at[full] > 0).all()
        near = attention_pattern(cap, sliding, head, -1, slice(len(cap.tokens) - 512, None))
        assert (near > 0).all() and near.sum() == pytest.approx(1, abs=1e-5)
    summary = head_summary(cap)
    assert summary["layer_type"].values.tolist() == ["sliding_attention", "full_attention"]
    assert summary["kv_head"].values.tolist() == [0, 0, 0, 0]
    assert (summary["utilisation"] < 1).all() and summary["first_token_mass"].sel(layer=full).max() > 0.3
