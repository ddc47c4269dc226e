"""Which settings decide what a model computes: each one that changes logits counts, each one that cannot does not."""

import json

import pytest
import torch
from tiny_hooked import random_tokens, tiny_model

from hooks.config.comparing import ASIDE, differing_settings


@pytest.fixture(scope="module")
def model():
    return tiny_model(window_size=8)


@pytest.mark.parametrize(
    "changes",
    [
        {"qk_norm": None},
        {"rope": None},
        {"attn_scores_soft_cap": 0.7},
        {"window_size": 3},
        {"attn_scale": 3.0},
        {"logit_scale": 0.5},
        {"alibi_slopes": (0.5, 0.25, 0.1, 0.02)},
        {"dtype": torch.float64},
    ],
)
def test_a_setting_that_changes_the_numbers_is_named(model, changes):
    other = model.cfg.replace(**changes)
    if "dtype" not in changes:
        tokens = random_tokens(20)
        assert not torch.equal(model(tokens), model.with_config(**changes)(tokens))
    assert set(changes) <= set(differing_settings(model.cfg.to_dict(), other.to_dict()))
    assert not model.cfg.computes_like(other)


def test_where_it_runs_and_how_it_is_called_do_not_count(model):
    bos = {name: not getattr(model.cfg, name) for name in ("default_prepend_bos", "tokenizer_prepends_bos")}
    shown = dict.fromkeys(("use_attn_in", "use_attn_result", "use_hook_mlp_in", "use_split_qkv_input"), True)
    aside = {"device": "meta", "model_name": "elsewhere", "provenance": {"eps": "a paper"}, "seed": 5}
    other = model.cfg.replace(d_vocab_out=model.cfg.d_vocab, **aside, **shown, **bos)
    assert model.cfg.computes_like(other)
    assert {name for name in other.to_dict() if other.to_dict()[name] != model.cfg.to_dict()[name]} == ASIDE


def test_what_json_makes_of_a_config_is_the_same_config(model):
    cfg = model.cfg.replace(alibi_slopes=(0.1, 0.2, 0.3, 0.4), nope_layers=(1,))
    read = json.loads(json.dumps(cfg.to_dict()))
    assert differing_settings(cfg.to_dict(), read) == differing_settings(read, cfg.to_dict()) == ()
    assert differing_settings(read, {**read, "n_layers": 9}) == ("n_layers",)
    older = {name: value for name, value in read.items() if name != "norm_affine"}
    assert differing_settings(read, older) == differing_settings(older, read) == ("norm_affine",)
