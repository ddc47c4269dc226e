"""Hundreds of config.json files with rotary settings in odd places: transformers' own frequencies, or a named error."""

import copy
import random
import sys

import pytest
import torch
from tiny import CLASSES, PARTIAL, Shape, tiny_config

from hooks import ConfigError
from hooks.families.table import config_from_hf
from hooks.functional.rope import inv_freq

pytestmark = [
    pytest.mark.filterwarnings("ignore::hooks.errors.NarrowRotaryWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
LENGTH = 200  # beyond every trained length here, where dynamic and longrope change
NOPE = ("smollm3", "exaone4", "cohere2")  # some of their layers do not rotate, which their configs do not say


def schedule(draw, width):
    """The inside of one block, now and then with something that does not belong there."""
    kind = draw.choice(["default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional"])
    block = {draw.choice(["rope_type", "rope_type", "type"]): kind}
    if kind in ("linear", "dynamic", "yarn", "llama3", "longrope"):
        block["factor"] = draw.choice([1.0, 2, 2.5, 4.0])
    if kind in ("yarn", "llama3", "longrope") and draw.random() < 0.8:
        block["original_max_position_embeddings"] = draw.choice([16, 32, 64])
    if kind == "llama3":
        block |= {"low_freq_factor": 1.0, "high_freq_factor": draw.choice([4.0, 2])}
    if kind == "longrope":
        block |= {"short_factor": [1.0 + 0.1 * i for i in range(width // 2)]}
        block |= {"long_factor": [1.5 + 0.2 * i for i in range(width // 2)]}
    extras = {
        "rope_theta": draw.choice([500.0, 10_000.0, 1e6]),
        "attention_factor": draw.choice([1.0, 1.3, None]),
        "beta_fast": draw.choice([24.0, None]),
        "beta_slow": draw.choice([1.5, None]),
        "mscale": draw.choice([0.7, 1.0]),
        "mscale_all_dim": draw.choice([0.5, 0.0]),
        "truncate": draw.choice([True, False]),
        "partial_rotary_factor": draw.choice([0.5, 1.0]),
        "alpha": draw.choice([4.0, 1000.0]),
        "factor": draw.choice([None, 8.0]),
        "original_max_position_embeddings": draw.choice([None, 24]),
        "finetuned": True,
    }
    for name in draw.sample(sorted(extras), draw.choice([0, 0, 1, 1, 2])):
        block[name] = extras[name]
    if draw.random() < 0.5:
        block["rope_theta"] = extras["rope_theta"]
    return block


def block_of(draw, width):
    """A whole block: absent, null, empty, flat, nested, or nested with holes."""
    kind = draw.choice(["flat", "flat", "flat", "nested", "holes", "null", "empty", "absent"])
    if kind == "flat":
        return schedule(draw, width)
    if kind in ("nested", "holes"):
        names = ["full_attention", "sliding_attention"]
        full, sliding = (schedule(draw, width) for _ in names)
        block = dict(zip(names, (full, sliding), strict=True))
        if draw.random() < 0.3:
            block["sliding_attention"] = copy.deepcopy(full)
        if kind == "holes":
            name = draw.choice(names)
            if draw.random() < 0.5:
                del block[name]
            else:
                block[name] = draw.choice([None, {}])
        return block
    return {"null": None, "empty": {}, "absent": ...}[kind]


def mutated(family, seed):
    """A config.json of the family's whose rotary settings are drawn."""
    draw = random.Random(f"{family} {seed}")
    shape = Shape(bias=False, layers=4)
    config = tiny_config(family, shape).to_dict()
    keep = {k: v for k, v in config.items() if not k.startswith("rope") and "rotary" not in k}
    width = shape.head_dim if family not in PARTIAL else 8
    places = ("rope_parameters", "rope_scaling")
    for name in draw.choice([places[:1], places[1:], places[1:], places]):
        block = block_of(draw, width)
        if block is not ...:
            keep[name] = block
    for name, values in {
        "rope_theta": [500.0, 10_000.0, 1e6, None],
        "rotary_emb_base": [500.0],
        "rope_local_base_freq": [300.0, 10_000.0],
        "partial_rotary_factor": [0.25, 0.5, 1.0],
        "rotary_pct": [0.25],
        "original_max_position_embeddings": [16, 32],
    }.items():
        if draw.random() < (0.5 if name == "rope_theta" else 0.12):
            keep[name] = draw.choice(values)
    return keep


def theirs(config):
    """transformers' frequencies and factor of each layer type, after a forward of LENGTH positions."""
    config_class, model_class = CLASSES[config["model_type"]]
    read = config_class.from_dict(copy.deepcopy(config))
    module = sys.modules[model_class.__module__]
    name = next(n for n in vars(module) if n.endswith("RotaryEmbedding"))
    kinds = sorted(set(getattr(read, "layer_types", None) or ["full_attention"]))
    found = {}
    for kind in kinds:
        rotary = getattr(module, name)(read)
        each = hasattr(rotary, "layer_types") or isinstance(getattr(rotary, "rope_type", None), dict)
        arguments = (torch.zeros(1, 1), torch.arange(LENGTH)[None], *((kind,) if each else ()))
        rotary(*arguments)
        prefix = f"{kind}_" if each else ""
        found[kind] = (getattr(rotary, f"{prefix}inv_freq"), getattr(rotary, f"{prefix}attention_scaling"))
    return found


def ours(cfg):
    """The same from our config; layers that do not rotate are left out."""
    ropes = {cfg.layer_type(i): cfg.rope_for(i) for i in range(cfg.n_layers) if cfg.rope_for(i)}
    return {kind: inv_freq(rope, cfg.d_head, LENGTH) for kind, rope in ropes.items()}


def outcome(family, seed):
    """(what came of a mutated config, the config): "equal", "refused", "theirs fails", or in what they differ."""
    config = mutated(family, seed)
    try:
        found = ours(config_from_hf(copy.deepcopy(config)))
    except ConfigError:
        return "refused", config
    try:
        expected = theirs(config)
    except Exception:
        return "theirs fails", config
    still = [kind for kind in expected if kind not in found and family not in NOPE]
    if still and (set(found) & set(expected) or not found):
        return f"{still[0]}: no rotation", config
    for kind, (frequencies, factor) in found.items():
        reference, theirs_factor = expected[kind if kind in expected else next(iter(expected))]
        if frequencies.shape != reference.shape or not torch.allclose(frequencies, reference, rtol=1e-5, atol=0):
            return f"{kind}: frequencies", config
        if abs(factor - theirs_factor) > 1e-6:
            return f"{kind}: factor {factor} for {theirs_factor}", config
    return "equal", config


@pytest.mark.parametrize("family", [family for family in CLASSES if family != "gptj"])  # which has one schedule
def test_the_same_frequencies_or_an_error(family):
    results = [outcome(family, seed) for seed in range(60)]
    wrong = [(said, config) for said, config in results if said not in ("equal", "refused", "theirs fails")]
    assert not wrong, wrong[0]
    assert sum(said == "equal" for said, _ in results) >= 6  # so the loop is not a list of refusals
