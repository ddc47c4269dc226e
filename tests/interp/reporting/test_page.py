"""The report is one safe, self-contained file whose numbers are the analyses' own."""

import base64
import json
import os
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import torch

from hooks import HookedTransformer, HookedTransformerConfig, QKNormConfig, RopeConfig
from hooks.errors import InputError, OutputError, StageError
from interp import metrics
from interp.analyses.causes.attributing import attribution
from interp.analyses.patterns.windows import attention_pattern
from interp.analyses.position.distance import positional_bias
from interp.analyses.position.sinks import first_token_mass
from interp.analyses.scores.by_stage import stage_ranges
from interp.captures import capture
from interp.common.binning import bin_distances
from interp.common.words import head_name
from interp.reporting.page import report
from interp.reporting.sentences import number

HOSTILE = "</script><img src=x onerror=alert(1)>\u202e\x00" + "w" * 3000


def tiny(**changes):
    settings = {
        "d_model": 40,
        "d_head": 32,
        "n_layers": 3,
        "n_ctx": 4096,
        "n_heads": 4,
        "n_key_value_heads": 2,
        "d_mlp": 24,
        "d_vocab": 61,
        "act_fn": "silu",
        "gated_mlp": True,
        "normalization_type": "RMS",
        "rope": RopeConfig(rope_type="default", rope_theta=10_000.0),
        "qk_norm": QKNormConfig(),
        "layer_types": ("sliding_attention", "full_attention", "sliding_attention"),
        "window_size": 16,
        "seed": 3,
        "initializer_range": 0.4,
        **changes,
    }
    return HookedTransformer(HookedTransformerConfig(**settings)).eval()


def captured(n=83, **changes):
    tokens = torch.randint(0, 61, (n,), generator=torch.Generator().manual_seed(n))
    return capture(tiny(**changes), tokens)


class Page(HTMLParser):
    """What a browser would see: elements with their attributes, and the text outside scripts."""

    def __init__(self, source):
        super().__init__(convert_charrefs=True)
        self.elements, self.text, self.inside = [], [], []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.inside.append(tag)

    def handle_endtag(self, tag):
        if tag in self.inside:
            while self.inside.pop() != tag:
                pass

    def handle_data(self, data):
        if not {"script", "style"} & set(self.inside):
            self.text.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]


@pytest.fixture(scope="module")
def cap():
    return captured()


@pytest.fixture(scope="module")
def source(cap, tmp_path_factory):
    return report(cap, tmp_path_factory.mktemp("report") / "r.html").read_text(encoding="utf-8")


def data_of(source):
    """What the page's own script draws from."""
    return json.loads(re.search(r'<script type="application/json" id="page-data">(.*?)</script>', source, re.S)[1])


def unpacked(packed):
    return np.frombuffer(base64.b64decode(packed["f4"]), "<f4").reshape(packed["shape"])


def figures(source):
    found = re.findall(r'<script type="application/json" data-figure="([\w-]+)">(.*?)</script>', source, re.S)
    return {key: json.loads(data) for key, data in found}


def test_it_needs_no_other_file(source):
    page = Page(source)
    assert not page.all("link")
    assert not page.all("iframe")
    assert all("src" not in attrs for attrs in page.all("script"))
    assert all(attrs["src"].startswith("data:image/png;base64,") for attrs in page.all("img"))
    assert all(attrs["href"].startswith("#") for attrs in page.all("a"))
    targets = {attrs.get("id") for _, attrs in page.elements}
    heads = {f"L{layer}H{head}" for layer in range(3) for head in range(4)}  # followed by the page's script
    assert {attrs["href"][1:] for attrs in page.all("a")} <= targets | heads


def test_every_figure_is_there_and_described(source):
    page = Page(source)
    drawn = figures(source)
    kinds = ("sliding_attention", "full_attention")
    expected = {f"{what}-{kind}" for what in ("curves", "shares") for kind in kinds}
    assert set(drawn) == expected | {"ranges", "variants", "sinks", "positional", "received", "loss"}
    described = {attrs["id"]: attrs["aria-label"] for attrs in page.all("div") if attrs.get("class") == "plot"}
    assert set(described) == set(drawn)
    assert all(len(text) > 40 for text in described.values())
    assert len(page.all("img")) == 12
    assert all(attrs["alt"] for attrs in page.all("img"))


def test_the_summary_says_what_was_measured(cap, source):
    text = " ".join(" ".join(Page(source).text).split())
    sinks = first_token_mass(cap)
    assert f"{int((sinks > 0.3).sum())} of 12 heads" in text
    ranges = stage_ranges(cap)
    final = ranges.sel(stage="final")
    assert f"{number(final['score_min'].min())} to {number(final['score_max'].max())} as they enter softmax" in text
    assert f"{float(final['utilisation'].max()):.1%} of its bound" in text
    assert f"{cap.loss.double().mean():.3f}" in text
    assert f"{float(positional_bias(cap)['positional_r2'].max()):.0%} of their variance" in text


def test_the_panel_draws_the_analyses_numbers(cap, source):
    data = data_of(source)
    bias = positional_bias(cap)
    binned = bin_distances(bias)
    for name in ("attention_mean", "attention_share", "score_mean", "score_min", "score_max"):
        drawn = unpacked(data["first"]["distance"][name])
        np.testing.assert_array_equal(drawn, binned[name].values.astype(np.float32))
    bands = unpacked(data["first"]["bands"]["score"])
    full = binned["score_mean"].values[1, :, : bands.shape[-1]]
    np.testing.assert_allclose(np.nansum(bands, axis=2)[1], full, rtol=1e-4, atol=1e-4)
    histogram = data["first"]["histogram"]
    np.testing.assert_allclose(unpacked(histogram["share"]).sum(-1), 1, rtol=1e-5)
    ranges = stage_ranges(cap).sel(stage="final")
    np.testing.assert_allclose(histogram["low"], ranges["score_min"], rtol=1e-5)
    np.testing.assert_allclose(histogram["bound"], ranges["bound"], rtol=1e-5)
    received = cap.statistics()["received"].values
    top = data["first"]["top"]
    assert top["key"][2][3][0] == received[2, 3].argmax()
    np.testing.assert_allclose(unpacked(top["share"])[2, 3, 0], received[2, 3].max() / received[2, 3].sum(), rtol=1e-5)


def test_the_exact_window_is_exact_to_a_level(cap, source):
    window = data_of(source)["first"]["window"]
    levels = np.frombuffer(base64.b64decode(window["u1"]), np.uint8).reshape(window["shape"])
    n = levels.shape[-1]
    pattern = attention_pattern(cap, 1, 2, slice(83 - n, 83), slice(83 - n, 83)).values
    drawn = 10.0 ** (((levels[1, 2].astype(float) - 1) / 254 - 1) * 5)
    seen = pattern > 1e-5
    np.testing.assert_allclose(drawn[seen], pattern[seen], rtol=0.03)
    assert (levels[1, 2][pattern == 0] == 0).all()
    assert window["position"] == list(range(83 - n, 83))


def test_metrics_are_the_tables_numbers(cap, source):
    metrics = {metric["key"]: metric for metric in data_of(source)["metrics"]}
    np.testing.assert_allclose(metrics["first_token_mass"]["values"], first_token_mass(cap), rtol=1e-5)
    cells = re.findall(r'<td data-value="([^"]*)">', source)
    assert f"{metrics['positional_r2']['values'][2][1]:.6g}" in cells


def test_size_does_not_grow_with_the_text(tmp_path):
    sizes = [report(captured(n), tmp_path / f"{n}.html").stat().st_size for n in (200, 800)]
    assert sizes[1] - sizes[0] < 150_000


def test_two_captures_are_held_against_each_other(cap, tmp_path):
    other = captured(83, qk_norm=None)
    data = data_of(report(cap, tmp_path / "r.html", compare_with=other).read_text(encoding="utf-8"))
    metric = next(metric for metric in data["metrics"] if metric["key"] == "first_token_mass")
    np.testing.assert_allclose(metric["other"], first_token_mass(other), rtol=1e-5)
    assert "bound" not in {metric["key"] for metric in data["metrics"]}
    with pytest.raises(InputError, match="heads 4 against 2"):
        report(cap, tmp_path / "no.html", compare_with=captured(83, n_heads=2))


def test_tables_are_written(cap, tmp_path):
    report(cap, tmp_path / "r.html", csv=tmp_path / "tables")
    heads = pd.read_csv(tmp_path / "tables" / "heads.csv")
    assert len(heads) == 12
    np.testing.assert_allclose(heads["first_token_mass"], first_token_mass(cap).values.ravel(), rtol=1e-5)
    ranges = pd.read_csv(tmp_path / "tables" / "ranges.csv")
    assert set(ranges["stage"]) == {"pre_norm", "pre_rope", "final"}
    assert {path.name for path in (tmp_path / "tables").iterdir()} == {
        f"{name}.csv" for name in ("heads", "distances", "ranges", "variants", "loss")
    }
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write tables"):
        report(cap, tmp_path / "r.html", csv=tmp_path / "file")


TABLES = ("heads", "distances", "ranges", "variants", "loss")


def test_a_report_and_its_tables_replace_earlier_ones(cap, tmp_path):
    """Also of other heads, and of a capture that gives fewer numbers a head."""
    page, tables = tmp_path / "r.html", tmp_path / "tables"
    report(cap, page, csv=tables)
    report(captured(31, qk_norm=None), page, csv=tables)
    assert len(pd.read_csv(tables / "loss.csv")) < len(cap.loss)
    report(cap, page, csv=tables, heads=[1])
    assert set(pd.read_csv(tables / "heads.csv")["head"]) == {1}
    before = page.read_text(encoding="utf-8")
    # As it was written before there was a mark.
    page.write_text(before.replace('<meta name="generator" content="ropescope">\n', ""), encoding="utf-8")
    report(cap, page, heads=[1])
    assert page.read_text(encoding="utf-8") == before


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("mine", ["my training log", "layer,head,entropy\n0,0,1\n", "", "step,loss\n1,2\n"])
def test_nobodys_table_is_replaced(cap, tmp_path, monkeypatch, name, mine):
    monkeypatch.setattr("interp.reporting.page.analyse", None)  # refused before anything is computed
    (tmp_path / f"{name}.csv").write_text(mine)
    with pytest.raises(OutputError, match=f"{name}.csv' is there already and ropescope did not write it"):
        report(cap, tmp_path / "r.html", csv=tmp_path)
    assert (tmp_path / f"{name}.csv").read_text() == mine
    assert os.listdir(tmp_path) == [f"{name}.csv"]


@pytest.mark.parametrize("mine", ["", "<html><head><title>My notes · ropescope</title></head>", "<!DOCTYPE html>\n"])
def test_nobodys_page_is_replaced(cap, tmp_path, monkeypatch, mine):
    monkeypatch.setattr("interp.reporting.page.analyse", None)
    (tmp_path / "r.html").write_text(mine, encoding="utf-8")
    with pytest.raises(OutputError, match=r"ropescope did not write it.*give another name, or move it away"):
        report(cap, tmp_path / "r.html")
    assert (tmp_path / "r.html").read_text(encoding="utf-8") == mine


def test_provenance_is_printed(cap, source):
    text = " ".join(" ".join(Page(source).text).split())
    for section in cap.provenance.values():
        for value in section.values():
            assert " ".join(value.split()) in text


def test_heads_can_be_chosen(cap, tmp_path):
    source = report(cap, tmp_path / "r.html", heads=[3, 1]).read_text(encoding="utf-8")
    assert len(Page(source).all("img")) == 6
    assert figures(source)["sinks"]["data"][0]["x"] == ["1", "3"]
    with pytest.raises(StageError, match="heads are 0 to 3"):
        report(cap, tmp_path / "no.html", heads=[4])
    assert not (tmp_path / "no.html").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"qk_norm": None},
        {"qk_norm": None, "rope": None},
        {"qk_norm": QKNormConfig(position="after_rope")},
        {"qk_norm": QKNormConfig(kind="layer", bias=True, scope="per_head"), "clip_qkv": 2.0},
        {"layer_types": ("full_attention",) * 3, "window_size": None},
        {"layer_types": ("sliding_attention",) * 3, "window_size": 1},
        {"nope_layers": (1,), "attn_scores_soft_cap": 5.0},
    ],
    ids=["no norm", "bare", "norm after rope", "layer norm", "all full", "window 1", "nope and cap"],
)
@pytest.mark.parametrize("n", [2, 40])
def test_other_models_draw_too(changes, n, tmp_path):
    cap = captured(n, **changes)
    drawn = figures(report(cap, tmp_path / "r.html").read_text(encoding="utf-8"))
    assert all(figure["data"] for figure in drawn.values())
    ranges = stage_ranges(cap)
    excess = (ranges["utilisation"] - 1).max()
    assert np.isnan(excess) or excess <= 1e-5


def test_a_part_that_is_left_out_says_why(tmp_path):
    tokens = torch.randint(0, 61, (20,), generator=torch.Generator().manual_seed(1))
    page = report(capture(tiny(), tokens, stages=()), tmp_path / "r.html").read_text(encoding="utf-8")
    assert "Left out here, what norm and rotation do to the range" in page
    assert "stages=(" in page[page.index("Left out here") :][:600]


def test_what_made_it_say_that_is_there_with_a_gradient_and_only_then(source, tmp_path):
    tokens = torch.randint(0, 61, (83,), generator=torch.Generator().manual_seed(83))
    metric = metrics.logit_difference(3, 5)
    cap = capture(tiny(), tokens, gradient_of=metric)
    found = report(cap, tmp_path / "causes.html").read_text(encoding="utf-8")
    effects = attribution(cap)
    said = " ".join(Page(found).text)
    assert "What made it say that" in said and metric.name in said and number(cap.gradients.value) in said
    by_head, by_key = effects.effect.values, effects.effect_by_key.sum(("layer", "head")).values
    layer, head = np.unravel_index(np.abs(by_head).argmax(), by_head.shape)
    rows = re.findall(r"<tr><th scope=\"row\"><bdi>(.*?)</bdi></th>(.*?)</tr>", found)
    cells = {name: re.findall(r"<td>(.*?)</td>", rest) for name, rest in rows}
    assert cells[head_name(int(layer), int(head))][0] == number(float(by_head[layer, head]))
    best = int(np.abs(by_key).argmax())
    assert next(row for row in cells.values() if len(row) == 4)[:2] == [str(best), number(float(by_key[best]))]
    new = figures(found).keys() - figures(source).keys()
    assert new == {"causes-heads", "causes-tokens", "causes-map"} and "What made it" not in source
    drawn = figures(found)
    assert all(drawn[key] == data for key, data in figures(source).items())  # the other sections are as they were


def test_hostile_text_stays_text(tmp_path):
    cap = captured(30)
    cap.model_id = cap.provenance["model"]["name"] = HOSTILE
    cap.str_tokens[0] = HOSTILE
    cap.provenance["text"]["read"] = f"file {HOSTILE}\ud800"
    source = report(cap, tmp_path / "r.html").read_text(encoding="utf-8")
    page = Page(source)
    assert all(attrs["src"].startswith("data:") for attrs in page.all("img"))
    assert not [attrs for _, attrs in page.elements if "onerror" in attrs]
    assert HOSTILE[:30] in "".join(page.text)
    assert all(figure["data"] for figure in figures(source).values())


def test_scores_before_the_norm_are_plain_products(cap):
    ranges = stage_ranges(cap).sel(stage="pre_norm", layer=1)
    q, k = cap.q(1, "pre_norm").double(), cap.k(1, "pre_norm").double()
    visible = torch.ones(83, 83).tril().bool()
    for head in range(4):
        s = (q[:, head] @ k[:, head // 2].T * cap.spec(1).scale)[visible]
        one = ranges.sel(head=head)
        expected = [s.min(), s.max(), s.mean(), s.std(correction=0)]
        measured = [one[name] for name in ("score_min", "score_max", "score_mean", "score_std")]
        np.testing.assert_allclose(measured, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(one["q_norm"], q[:, head].square().sum(-1).mean().sqrt(), rtol=1e-5)
    assert np.isnan(ranges["bound"]).all()


def test_first_token_mass_by_hand(cap):
    from dense import dense_pattern, dense_scores

    mass = first_token_mass(cap)
    for layer in cap.layers:
        spec = cap.spec(layer)
        pattern = dense_pattern(dense_scores(cap.q(layer), cap.k(layer), spec.scale, window=spec.window))
        expected = pattern[:, 1 : spec.window, 0].mean(-1)
        np.testing.assert_allclose(mass.sel(layer=layer), expected, atol=1e-5)


@pytest.mark.parametrize(("n", "seed"), [(83, 4), (40, 83)])
def test_captures_of_other_tokens_are_not_held_against_each_other(cap, tmp_path, monkeypatch, n, seed):
    monkeypatch.setattr("interp.reporting.page.analyse", None)
    tokens = torch.randint(0, 61, (n,), generator=torch.Generator().manual_seed(seed))
    with pytest.raises(InputError, match=r"the capture.*compare_with|first 40 of them the same"):
        report(cap, tmp_path / "r.html", compare_with=capture(tiny(), tokens))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("heads", [[0.9], "01", [True], 1.0, []])
def test_heads_are_named_by_whole_numbers(cap, tmp_path, heads):
    with pytest.raises(StageError, match=r"heads=.*: give a whole number|no head was asked for"):
        report(cap, tmp_path / "r.html", heads=heads)
