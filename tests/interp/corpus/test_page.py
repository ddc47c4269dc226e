"""The report over texts: everything that the corpus holds, hostile texts as text, one file of ours and nothing else."""

import json
import re

import pytest
from tiny_corpus import N_TOKENS, quiet_model, token_rows
from zarr.storage import MemoryStore

from hooks.errors import CorpusError, CorpusWarning, OutputError
from interp import measure_corpus
from interp.corpus.analyses import ANALYSES

HOSTILE = "</script><img src=x onerror=alert(1)>{{ 7 * 7 }}"


def measured(rows, **options):
    return measure_corpus(quiet_model(), rows, MemoryStore(), n_tokens=N_TOKENS, **options)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    rows = [*token_rows(6), HOSTILE]  # a text without a tokenizer fails, and its words stand in the table
    path = measured(rows, analyses=list(ANALYSES)).report(tmp_path_factory.mktemp("page") / "r.html")
    return path.read_text(encoding="utf-8")


def test_it_has_every_part_and_figures_that_can_be_read(page):
    for part in ("heads", "distance", "spread", "top-texts", "received", "loss", "ranges", "texts", "provenance"):
        assert f'<section id="{part}"' in page
        assert f'href="#{part}"' in page
    figures = re.findall(r'data-figure="([\w-]+)">(.*?)</script>', page, flags=re.DOTALL)
    assert len(figures) > 12 and len({key for key, _ in figures}) == len(figures)
    ids = re.findall(r' id="([\w-]+)"', page)
    assert len(ids) == len(set(ids))
    for key, text in figures:
        assert json.loads(text)["data"], key
        assert f'id="{key}"' in page
    assert '6</span> <span class="unit">texts measured' in page and "of 7 given" in page
    assert "1 of 7 texts could not be measured" in page and "this model has no tokenizer" in page
    assert not re.search(r"(src|href)=[\"']?https?://", page.split("<script>")[0])


def test_texts_are_shown_as_text(page):
    assert HOSTILE not in page and "49" not in re.findall(r"<bdi>([^<]*alert[^<]*)</bdi>", page)[0]
    assert "&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;{{ 7 * 7 }}" in page


def test_it_shows_what_a_small_corpus_has_and_replaces_only_its_own_file(tmp_path):
    one = measured(token_rows(1), analyses="head_summary")
    path = one.report(tmp_path / "r.html")
    assert one.report(path) == path
    assert '<section id="spread"' not in path.read_text(encoding="utf-8")
    (tmp_path / "mine.html").write_text("<p>mine</p>")
    with pytest.raises(OutputError, match="did not write it"):
        one.report(tmp_path / "mine.html")
    assert measured(token_rows(2), analyses="loss_by_position").report(tmp_path / "loss.html").is_file()


def test_a_corpus_without_a_measured_text_has_no_report(tmp_path):
    with pytest.warns(CorpusWarning, match="1 of 2 texts"):
        nothing = measured(["text", "text"])
    with pytest.raises(CorpusError, match=r"no text of the corpus in .* was measured"):
        nothing.report(tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()
