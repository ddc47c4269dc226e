"""What is known of real models shows in the analyses: sinks, massive values in slow pairs, windows."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from hooks import HookedTransformer
from hooks.loading.prepared import prepared_model
from interp import capture, frequency_bias, sink_rate, standard_text

pytestmark = pytest.mark.slow
N = 512


@pytest.fixture(scope="module")
def smollm2():
    return capture(HookedTransformer.from_pretrained("smollm2-135m", dtype=torch.float32), standard_text(), n_tokens=N)


def test_smollm2s_sinks_are_those_of_its_patterns_in_transformers(smollm2):
    theirs = AutoModelForCausalLM.from_pretrained(
        prepared_model("smollm2-135m"), dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        patterns = theirs.model(smollm2.tokens[None], output_attentions=True, use_cache=False).attentions
    expected = np.array([pattern[0, :, :, 0].double().mean(-1).numpy() for pattern in patterns])
    found = sink_rate(smollm2, epsilon=0.3)
    np.testing.assert_allclose(found["sink_score"], expected, atol=1e-5)
    clear = np.abs(expected - 0.3) > 1e-4
    np.testing.assert_array_equal(found["is_sink"].values[clear], (expected > 0.3)[clear])
    assert float(found["sink_rate"]) == pytest.approx((expected > 0.3).mean(), abs=0.01)
    assert 0.4 < float(found["sink_rate"]) < 0.65


def test_smollm2s_largest_queries_and_keys_turn_slowly_and_its_values_do_not_stand_out(smollm2):
    """Source: arXiv 2502.01563: massive values in the low-frequency pairs of q and k, none in v."""
    norms = frequency_bias(smollm2, distances="binned")
    assert (np.diff(norms["wavelength"].values, axis=-1) > 0).all()  # the later the pair, the slower it turns
    for name in ("q_norm", "k_norm"):
        by_pair = norms[name].values
        slow_half = by_pair.shape[-1] // 2
        assert (by_pair.argmax(-1) >= slow_half).mean() > 0.95, name
        assert np.median(by_pair.max(-1) / np.median(by_pair, axis=-1)) > 4, name
    v = np.stack([smollm2.v(layer).norm(dim=0).numpy() for layer in smollm2.layers])
    halves = np.hypot(*np.split(v, 2, axis=-1))
    assert 0.3 < (halves.argmax(-1) >= halves.shape[-1] // 2).mean() < 0.7
    assert np.median(halves.max(-1) / np.median(halves, axis=-1)) < 2.5


def test_every_sliding_layer_of_gemma_ends_at_512_and_every_full_layer_goes_on():
    model = HookedTransformer.from_pretrained("gemma3-270m", dtype=torch.float32)
    stats = capture(model, standard_text(), n_tokens=700, stages="final", loss=False).statistics(groups="distances")
    far = stats.sel(distance=slice(512, None))
    for layer in range(model.cfg.n_layers):
        sliding = model.cfg.layer_type(layer) == "sliding_attention"
        attention, count = far["attention"].sel(layer=layer), far["count"].sel(layer=layer)
        if sliding:
            assert not count.any() and not attention.fillna(0).any()
            assert float(stats["attention"].sel(layer=layer, distance=511).min()) > 0
        else:
            assert (count > 0).all() and (attention.sum("distance") > 0.1).all()
