"""Every public function and method with arguments that it takes, by name: {name: (function, arguments)}."""

import inspect

import torch
from tiny_hooked import random_tokens, tiny_config, tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import hooks
import interp
from hooks import AttentionSpec, HookedTransformer, HookedTransformerConfig, QKNormConfig, RopeConfig, recipes
from interp import metrics, plots
from interp.common.binning import bin_distances
from interp.plots.reduced import binned_by_distance

N = 40
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "one", "dog", "run", "far"]


def tokenizer():
    """Words of a tiny vocabulary."""
    vocabulary = {word: i for i, word in enumerate([*WORDS, "[UNK]", "<s>"])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", bos_token="<s>", pad_token="[UNK]")
    made.chat_template = "{{ bos_token }}{% for m in messages %} {{ m.role }} {{ m.content }}{% endfor %}"
    return made


def model():
    """Two layers with QK-norm, a window and a tokenizer."""
    made = tiny_model(n_ctx=N, layer_types=("sliding_attention", "full_attention"), window_size=9)
    made.tokenizer = tokenizer()
    return made


def calls(made, cap, other, directory):
    """{name: (function, arguments)} of both packages' names, of Capture, of the model, and of what they give."""
    return {
        **_configs(made),
        **_of_the_model(made),
        **_captures(made, cap, directory),
        **_analyses(made, cap, other, directory),
        **_figures(made, cap, other, directory),
        **_recipes(made),
        **_corpora(made, directory),
        **_metrics(),
    }


def _configs(made):
    spec = {"scale": 0.25, "causal": True, "window": 4, "softcap": 5.0, "sinks": torch.zeros(4), "alibi_slopes": None}
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 16}
    more = {"max_position_embeddings": 64, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": True, "rotary_dim": 16}
    norm = {"kind": "rms", "eps": 1e-6, "scope": "head", "position": "before_rope", "unit_offset": False}
    sizes = {name: getattr(made.cfg, name) for name in ("d_model", "d_head", "n_layers", "n_ctx", "n_heads", "d_vocab")}
    plain = {
        **{"rope": RopeConfig(rope_theta=100.0), "qk_norm": QKNormConfig(eps=1e-6), "layer_types": None},
        **{"act_fn": "silu", "d_mlp": 8, "eps": 1e-5, "window_size": None, "normalization_type": "RMS", "seed": 1},
        **{"dtype": torch.float32, "device": "cpu", "attn_bias": False, "nope_layers": (), "clip_qkv": None},
        **{"alibi_slopes": None, "embed_scale": None, "initializer_range": 0.1, "n_key_value_heads": 2},
    }
    cfg = made.cfg
    return {
        "AttentionSpec": (AttentionSpec, spec),
        "RopeConfig": (RopeConfig, rope | more),
        "RopeConfig.from_dict": (RopeConfig.from_dict, _only(RopeConfig.from_dict, rope)),
        "RopeConfig.from_hf": (
            RopeConfig.from_hf,
            _only(RopeConfig.from_hf, {"rope_theta": 10.0, "rope_scaling": None}),
        ),
        "QKNormConfig": (QKNormConfig, norm),
        "HookedTransformerConfig": (HookedTransformerConfig, sizes | plain),
        "cfg.replace": (cfg.replace, plain),
        "cfg.from_dict": (HookedTransformerConfig.from_dict, {"config_dict": cfg.to_dict()}),
        "cfg.layer_type": (cfg.layer_type, {"layer": 1}),
        "cfg.rope_for": (cfg.rope_for, {"layer": 1}),
        "cfg.window": (cfg.window, {"layer": 0}),
        "cfg.attention_spec": (cfg.attention_spec, {"layer": 0}),
    }


def _only(function, value):
    """A function's one argument, whatever it is called."""
    return {next(iter(inspect.signature(function).parameters)): value}


def _of_the_model(made):
    ids, resid = random_tokens(9, vocab=14), torch.ones(1, 9, made.cfg.d_model)
    options = {"position_ids": torch.arange(9)[None], "attention_mask": torch.ones(1, 9, dtype=torch.long)}
    forward = {
        "tokens": ids,
        "return_type": "logits",
        "rope_length": 20,
        "loss_per_token": False,
        "past": None,
        **options,
    }
    forward |= {"start_at_layer": None, "stop_at_layer": None}
    name = "blocks.0.attn.hook_q"
    texts = {"prepend_bos": True, "padding_side": "left", "truncate": False}
    writing = {
        **{"tokens": ids, "max_new_tokens": 2, "temperature": 0.5, "top_k": 5, "top_p": 0.9, "stop": None},
        **{"attention_mask": options["attention_mask"], "past": None, "use_past_kv_cache": True, "stop_at_eos": True},
        **{"eos_token_id": 3, "generator": torch.Generator().manual_seed(0)},
    }
    return {
        "HookedTransformer": (HookedTransformer, {"cfg": tiny_config(n_layers=1), "tokenizer": None}),
        "from_pretrained": (
            HookedTransformer.from_pretrained,
            {
                "source": "nowhere",
                "rope": None,
                "qk_norm": None,
                "dtype": None,
                "device": None,
                "ignore_config_keys": (),
            },
        ),
        "attach": (HookedTransformer.attach, {"model": "x", "tokenizer": None}),
        "model": (made.forward, forward),
        "loss_per_token": (made.loss_per_token, {"tokens": ids, **options}),
        "context": (made.context, {"tokens": ids, "rope_length": 9, **options}),
        "embed_tokens": (made.embed_tokens, {"tokens": ids}),
        "unembed_residual": (made.unembed_residual, {"resid": resid}),
        "residual_loss": (made.residual_loss, {"resid": resid, "tokens": ids}),
        "with_config": (made.with_config, {"rope": RopeConfig(rope_type="linear", factor=2.0), "qk_norm": None}),
        "model.attention_spec": (made.attention_spec, {"layer": 1}),
        "attention_steps": (made.attention_steps, {"layer": 1, "tensor": "q"}),
        "hook_names": (made.hook_names, {"selector": name}),
        "run_with_hooks": (_run_with_hooks(made), {"tokens": ids, "fwd_hooks": [(name, _hook)], "bwd_hooks": []}),
        "run_with_cache": (_run_with_cache(made), {"tokens": ids, "names_filter": name, "pos_slice": None}),
        "add_hook": (
            _add_hook(made),
            {"name": name, "hook": _hook, "dir": "fwd", "is_permanent": False, "level": None},
        ),
        "accumulated_bias": (made.accumulated_bias, {"layer": 1, "mlp_input": False, "include_mlp_biases": True}),
        "logit_bias": (made.logit_bias, {"tokens": 3}),
        "tokens_to_residual_directions": (made.tokens_to_residual_directions, {"tokens": 3}),
        "to_tokens": (made.to_tokens, {"text": "the cat", **texts}),
        "to_batch": (made.to_batch, {"texts": ["the cat", "on a mat"], **texts}),
        "chat": (
            made.chat,
            {"messages": [{"role": "user", "content": "the cat"}], "add_generation_prompt": True},
        ),
        "get_token_position": (
            made.get_token_position,
            {"single_token": "cat", "input": "the cat", "mode": "last", "prepend_bos": True, "padding_side": None},
        ),
        "generate": (made.generate, writing | {"return_type": "tokens", "verbose": False}),
        "generate_stream": (lambda **given: list(made.generate_stream(**given)), writing),
        "to_string": (made.to_string, {"tokens": ids}),
        "to_str_tokens": (made.to_str_tokens, {"tokens": "the cat", "prepend_bos": True}),
    }


def _hook(tensor, hook):
    return tensor


def _run_with_hooks(made):
    return lambda tokens, **options: made.run_with_hooks(tokens, **options)


def _run_with_cache(made):
    return lambda tokens, **options: made.run_with_cache(tokens, **options)[1]


def _add_hook(made):
    def add(**options):
        try:
            made.add_hook(**options)
            made(random_tokens(5, vocab=14))
        finally:
            made.reset_hooks()

    return add


def _captures(made, cap, directory):
    ids = random_tokens(12, vocab=14)[0]
    cache = made.run_with_cache(ids[None])[1]
    capture = {
        "model": made,
        "text_or_tokens": ids,
        "path": None,
        "n_tokens": 12,
        "stages": ("pre_norm",),
        "layers": None,
    }
    return {
        "capture": (interp.capture, capture | {"loss": True, "force": False, "positions": torch.arange(12)}),
        "capture of several": (
            interp.capture,
            {"model": made, "text_or_tokens": ids.view(2, 6), "attention_mask": torch.ones(2, 6), "positions": None},
        ),
        "capture to disk": (interp.capture, capture | {"path": directory / "again.capture"}),
        "capture of a text": (interp.capture, capture | {"text_or_tokens": "the cat sat", "prepend_bos": True}),
        "open_capture": (interp.open_capture, {"path": directory / "kept.capture"}),
        "resume": (interp.resume, {"path": directory / "kept.capture", "model": made, "force": False}),
        "Capture.from_cache": (
            interp.Capture.from_cache,
            {"cache": cache, "spec": None, "tokens": ids, "positions": torch.arange(12)},
        ),
        "cap.q": (cap.q, {"layer": 0, "stage": "final", "positions": 3, "heads": 1}),
        "cap.k": (cap.k, {"layer": 0, "stage": "pre_rope", "positions": slice(2, 5), "heads": [0]}),
        "cap.v": (cap.v, {"layer": 1, "positions": [1, 2], "heads": None}),
        "cap.gradient": (
            interp.capture(made, ids, gradient_of=metrics.logit(3)).gradient,
            {"layer": 1, "tensor": "q", "stage": "pre_rope", "positions": 2, "heads": 1},
        ),
        "capture with a gradient": (interp.capture, capture | {"gradient_of": metrics.loss()}),
        "cap.spec": (cap.spec, {"layer": 0}),
        "cap.constants": (cap.constants, {"layer": 0}),
        "cap.steps": (cap.steps, {"layer": 0}),
        "cap.stages": (cap.stages, {"layer": 0}),
        "cap.select": (cap.select, {"layers": [0]}),
        "cap.statistics": (cap.statistics, {"layers": 0, "groups": "rows", "map_size": 8, "device": "cpu"}),
        "cap.top_keys": (cap.top_keys, {"layer": 0, "head": 1, "query": 5, "k": 3}),
        "cap.pattern[]": (lambda index: cap.pattern[index], {"index": (0, 1, slice(0, 5), slice(0, 3))}),
        "cap.report": (cap.report, {"path": directory / "r.html", "heads": 1, "csv": None, "compare_with": None}),
    }


def _analyses(made, cap, other, directory):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(9, h, 16, generator=generator) for h in (4, 2, 2))
    statistics = {
        **{"q": q, "k": k, "spec": AttentionSpec(scale=0.25), "v": v, "w_o": torch.ones(4, 16, 8), "groups": "rows"},
        **{"queries": None, "map_size": 4, "query_start": 0, "key_mask": torch.ones(9, dtype=torch.bool)},
        **{"query_positions": torch.arange(9), "key_positions": torch.arange(9), "memory_budget": 2**20},
        **{"progress": None, "backend": "auto", "documents": torch.tensor([0, 4])},
    }
    bound = {
        **{"qk_norm": QKNormConfig(eps=1e-6), "rope": RopeConfig(rope_theta=1e4), "gain_q": torch.ones(16)},
        **{"gain_k": torch.ones(16), "spec": AttentionSpec(scale=0.25), "distance": 3},
    }
    bias, summary = interp.positional_bias(cap), interp.head_summary(cap)
    ids = random_tokens(12, vocab=14)
    moved = interp.capture(made, ids, gradient_of=metrics.logit(3))
    return {
        "attention_statistics": (interp.attention_statistics, statistics),
        "score_bound": (interp.score_bound, bound),
        "score_quantile": (interp.score_quantile, {"ds": cap.statistics(), "q": 0.5}),
        "activation_patching": (
            interp.activation_patching,
            {
                **{"model": made, "clean": ids[0], "corrupted": ids.flip(1), "m": metrics.logit(3), "at": "z"},
                **{"by": "position", "layers": 1, "positions": [0, 3]},
            },
        ),
        "knock_out_sweep": (
            interp.knock_out_sweep,
            {"model": made, "tokens": ids, "m": metrics.loss(), "segments": {"x": slice(2, 4)}, "layers": 0},
        ),
        "attribution_patching": (
            interp.attribution_patching,
            {"cap": moved, "clean": interp.capture(made, ids.flip(1)), "at": "k", "by": "head"},
        ),
        "direct_logit_attribution": (
            interp.direct_logit_attribution,
            {"cap": moved, "token": " cat", "position": -1, "model": made},
        ),
        "attribution": (interp.attribution, {"cap": moved, "layers": 0, "map_size": 4}),
        "top_edges": (interp.top_edges, {"cap": moved, "n": 3, "layers": 1, "heads": [0, 2]}),
        "top_tokens": (
            interp.top_tokens,
            {"effects": interp.attribution(moved), "n": 3, "by": "query", "layers": 1, "heads": 2},
        ),
        "attention_map": (
            interp.attention_map,
            {"cap": cap, "layer": 0, "head": 1, "size": 8, "reduce": "mean", "queries": slice(0, 9), "keys": [1, 2]},
        ),
        "attention_pattern": (
            interp.attention_pattern,
            {"cap": cap, "layer": 0, "head": 1, "queries": 3, "keys": slice(0, 4)},
        ),
        "bound_by_distance": (interp.bound_by_distance, {"cap": cap, "layers": 0, "distances": [0, 3]}),
        "compare": (interp.compare, {"cap_a": cap, "cap_b": other, "labels": ("a", "b")}),
        "coverage": (interp.coverage, {"cap": cap, "levels": (0.5, 0.9), "gaps": 1.0, "layers": 0}),
        "ranked": (interp.ranked, {"comparison": interp.compare(cap, other), "by": "profile_divergence", "n": 3}),
        "first_token_mass": (interp.first_token_mass, {"cap": cap, "layers": 0}),
        "frequency_bias": (interp.frequency_bias, {"cap": cap, "layers": 0, "heads": 1, "distances": "all"}),
        "head_summary": (interp.head_summary, {"cap": cap, "layers": None, "needle": None}),
        "head_table": (interp.head_table, {"summary": summary, "sort_by": None, "ascending": False}),
        "typical_heads": (interp.typical_heads, {"summary": summary, "n": 2}),
        "loss_by_position": (interp.loss_by_position, {"cap": cap, "bins": 4}),
        "audit": (interp.audit, {"model": made, "layers": 0, "factor": 2.0}),
        "audit of a config": (interp.audit, {"model": made.cfg, "layers": [0, 1], "factor": 2.0}),
        "audit.show": (interp.audit(made).show, {"name": "heads", "layer": 0, "head": 1, "title": "x"}),
        "audit.report": (interp.audit(made).report, {"path": directory / "audit.html"}),
        "watch_scores": (interp.watch_scores, {"model": made, "on_step": None}),
        "ScoreWatch": (interp.ScoreWatch, {"model": made, "on_step": None}),
        "KeyValueCache": (hooks.KeyValueCache, {"model": made}),
        "needle_sweep": (
            interp.needle_sweep,
            {
                **{"model": made, "lengths": [24, 30], "depths": (0.0, 1.0), "answer": " dog", "sentence": " the cat"},
                **{"question": " one", "haystack": "the cat sat on a mat " * 20},
            },
        ),
        "plant_needle": (
            interp.plant_needle,
            {
                "model": made,
                "n_tokens": 30,
                "depth": 0.5,
                "sentence": " the cat",
                "question": " one dog",
                "answer": None,
                "haystack": " a mat" * 40,
            },
        ),
        "positional_bias": (interp.positional_bias, {"cap": cap, "layers": 0}),
        "typical_distance": (interp.typical_distance, {"bias": bias, "share": 0.5}),
        "precision_cost": (interp.precision_cost, {"cap": cap, "layers": 1, "queries": 4}),
        "received_by_position": (interp.received_by_position, {"cap": cap, "layers": 0, "bins": 4, "edge": 0.1}),
        "relativity_error": (
            interp.relativity_error,
            {"cap": cap, "shifts": (1, 10), "layers": 0, "n_queries": 4, "dtype": torch.float64},
        ),
        "repeated_tokens": (interp.repeated_tokens, {"model_or_cfg": made, "length": 6, "repeats": 2, "seed": 0}),
        "score_ranges": (interp.score_ranges, {"cap": cap, "layers": 0, "quantiles": (0.5, 0.9)}),
        "sink_rate": (interp.sink_rate, {"cap": cap, "k": 1, "epsilon": 0.3, "layers": 0}),
        "standard_text": (interp.standard_text, {}),
        "what_if_rope": (
            interp.what_if_rope,
            {"cap": cap, "rope": RopeConfig(rope_theta=100.0), "zero_pairs": 0, "groups": "rows", "alibi_slopes": None},
        ),
    }


def _watched():
    """The scores of two steps of training."""
    trained = model()
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.01)
    with interp.watch_scores(trained) as watch:
        for _ in range(2):
            trained(random_tokens(9, vocab=14), "loss").backward()
            optimizer.step()
    return watch.dataset()


def _figures(made, cap, other, directory):
    """Each figure with the Dataset that it draws; a Dataset is one argument, the rest are options."""
    bias, audited = interp.positional_bias(cap), interp.audit(made)
    binned = bin_distances(bias)
    moved = interp.capture(made, random_tokens(12, vocab=14), gradient_of=metrics.logit(3))
    effects = interp.attribution(moved)
    without = interp.knock_out_sweep(made, moved.tokens, metrics.logit(3))
    drawn = {
        "pair_strengths": (audited.heads, {"layer": 0, "head": 1, "title": None, "highlight": None}),
        "proven_scores": (audited.layers, {"title": "x", "highlight": [(0, 1)]}),
        "schedule_changes": (audited.schedules, {"title": "x"}),
        "wavelengths": (audited.rotations, {"title": "x"}),
        "effect_by_head": (effects, {"ablated": without, "title": "x", "highlight": [(0, 1)]}),
        "effect_by_token": (effects, {"by": "key", "title": "x"}),
        "effect_map": (effects["effect_map"].sel(layer=0, head=1), {"title": "x"}),
        "patched": (without, {"title": "x", "highlight": None}),
        "attention_by_variant": (
            binned_by_distance(interp.what_if_rope(cap, RopeConfig(rope_theta=99.0))),
            {"title": "x", "loss": None, "y_range": None},
        ),
        "attention_by_distance": (binned, {"title": "x", "y_range": (0.1, 1.0), "highlight": [(0, 1)]}),
        "attention_share_by_head": (binned, {"title": "x", "ceiling": 1.0, "highlight": None}),
        "attention_window": (interp.attention_pattern(cap, 0, 1), {"title": None, "scale": "log"}),
        "bound_by_distance": (interp.bound_by_distance(cap), {"title": "x", "highlight": {(0, 1): "y"}}),
        "comparison": (interp.compare(cap, other), {"title": "x", "highlight": None}),
        "coverage": (interp.coverage(cap), {"title": "x", "highlight": None}),
        "comparison_by_distance": (_by_distance(interp.compare(cap, other)), {"title": "x", "highlight": None}),
        "frequency_pairs": (interp.frequency_bias(cap), {"layer": 0, "head": 1, "title": None, "highlight": None}),
        "head_scores": (interp.head_summary(cap), {"title": "x", "highlight": [(1, 1)]}),
        "head_table": (interp.head_summary(cap), {"title": "x"}),
        "layer_head_map": (interp.first_token_mass(cap), {"title": "x", "ceiling": 1.0, "scale": "log"}),
        "loss_by_position": (interp.loss_by_position(cap), {"title": "x"}),
        "watched_scores": (_watched(), {"title": "x"}),
        "needle_grid": (
            interp.needle_sweep(
                made, 24, answer=" dog", sentence=" the cat", question=" one", haystack="the cat sat on a mat " * 20
            ),
            {"title": "x"},
        ),
        "pooled_map": (interp.attention_map(cap, 0, 1, size=8), {"title": "x", "scale": "log"}),
        "precision_cost": (interp.precision_cost(cap), {"variable": "kl", "title": "x", "highlight": None}),
        "ranking": (interp.ranked(interp.compare(cap, other)), {"title": "x"}),
        "received_by_position": (interp.received_by_position(cap), {"weighted": False, "title": "x"}),
        "relativity_error": (interp.relativity_error(cap, (1, 10), n_queries=4), {"title": "x", "highlight": None}),
        "rows_by_position": (
            interp.received_by_position(cap),
            {"names": ["received_mean"], "title": "x", "highlight": None},
        ),
        "score_ranges": (interp.score_ranges(cap), {"title": "x", "highlight": [(0, 0)]}),
        "sink_rate": (interp.sink_rate(cap), {"title": "x", "scale": "log", "highlight": None}),
        "show": (bias, {"title": "x"}),
        "can_show": (bias, {}),
    }
    found = {
        f"plots.{name}": (getattr(plots, name), _only(getattr(plots, name), result) | options)
        for name, (result, options) in drawn.items()
    }
    figure = plots.attention_by_distance(bias)
    saved = {"figure": figure, "path": directory / "f.html", "width": 300, "height": 200, "scale": 1}
    return found | {"plots.save": (plots.save, saved), "plots.dark": (plots.dark, {"figure": figure})}


def _corpora(made, directory):
    """Many texts: measured, opened, asked; the two figures of them."""
    texts = list(random_tokens(12, batch=3, vocab=14))
    options = {
        "n_tokens": 12,
        "analyses": "head_summary",
        "layers": None,
        "scheduler": None,
        "workers": None,
        "pack": 2,
        "watch": None,
    }
    corpus = interp.measure_corpus(made, texts, directory / "kept.corpus", n_tokens=12)
    again = {"source": made, "texts": texts, "path": directory / "again.corpus"}
    mean = corpus.mean("head_summary")
    top = {"analysis": "head_summary", "variable": "entropy", "layer": 0, "head": 1, "n": 2}
    return {
        "measure_corpus": (interp.measure_corpus, again | options),
        "open_corpus": (interp.open_corpus, {"path": directory / "kept.corpus"}),
        "corpus[]": (lambda analysis: corpus[analysis], {"analysis": "head_summary"}),
        "corpus.mean": (corpus.mean, {"analysis": "positional_bias"}),
        "corpus.spread": (corpus.spread, {"analysis": "head_summary"}),
        "corpus.compare": (corpus.compare, {"other": corpus, "analysis": "head_summary"}),
        "corpus.top_texts": (corpus.top_texts, top),
        "corpus.number_of": (corpus.number_of, {"text": 1}),
        "corpus.capture": (corpus.capture, {"text": 1, "model": made}),
        "corpus.report": (corpus.report, {"path": directory / "c.html"}),
        "plots.head_intervals": (
            plots.head_intervals,
            {"data": mean, "name": "entropy", "title": "x", "highlight": None},
        ),
        "plots.spread_over_texts": (
            plots.spread_over_texts,
            {"spread": corpus.spread(), "name": "entropy", "most": 3, "title": "x", "highlight": None},
        ),
    }


def _by_distance(comparison):
    """The difference of a comparison that has distances."""
    return next(x for x in comparison.data_vars.values() if set(x.dims) == {"layer", "head", "distance"})


def _recipes(made):
    """Each recipe made, and run in a forward pass."""
    given = {
        "boost_keys": {"keys": [1, 2], "bias": 1.0, "heads": [0]},
        "cap_scores": {"cap": 3.0, "heads": None},
        "distance_temperature": {"temperature": torch.ones_like, "heads": None},
        "keep_top_k": {"k": 2, "heads": [1, 2]},
        "knock_out": {"queries": [3], "keys": [1], "heads": None},
        "limit_distance": {"max_distance": 3, "heads": None},
        "remove_sink": {"sink_size": 1, "first_position": 0, "heads": None},
    }

    def run(name):
        def call(**options):
            hook = getattr(recipes, name)(**options)
            return made.run_with_hooks(
                random_tokens(9, vocab=14), fwd_hooks=[("blocks.1.attn.hook_attn_scores_rows", hook)]
            )

        return call

    return {f"recipes.{name}": (run(name), options) for name, options in given.items()}


def _metrics():
    """Each metric, made."""
    return {
        "metrics.logit": (metrics.logit, {"token": " cat", "position": -1}),
        "metrics.logit_difference": (metrics.logit_difference, {"token": " cat", "other": 3, "position": 2}),
        "metrics.loss": (metrics.loss, {"positions": [1, 4]}),
        "metrics.custom": (metrics.custom, {"fn": torch.sum, "positions": 1, "name": "sum"}),
    }


def missing(table):
    """Public names that the table does not call; types of errors and modules are none."""
    named = {name.split(" ")[0] for name in table}
    functions = {name for package in (hooks, interp) for name in package.__all__}
    left_out = {
        name
        for name in functions
        if name.endswith(("Error", "Warning")) or name in ("plots", "metrics", "recipes", "Capture", "Corpus")
    }
    inside = {f"plots.{name}" for name in plots.__all__} | {f"metrics.{name}" for name in metrics.__all__}
    return (functions - left_out - named - {"report"}) | (inside - named - {"metrics.Metric"})
