"""``ropescope corpus``: measures, goes on, prints what is there, and counts what could not be measured."""

import json
import sys

import pytest
from tiny_corpus import quiet_model

from hooks import HookedTransformer
from interp.cli import command as cli
from interp.cli import corpora


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run main() in this process, in an empty directory; gives exit status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run_main(*arguments):
        monkeypatch.setattr(sys, "argv", ["ropescope", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        out, err = capsys.readouterr()
        return left.value.code, out, err

    return run_main


@pytest.fixture
def tiny(monkeypatch):
    """Every model name gives a tiny model that reads a token a character."""

    class OneTokenPerCharacter:
        bos_token_id = None

        def __call__(self, text, add_special_tokens=True):
            return {"input_ids": [ord(c) % 61 for c in text]}

        def batch_decode(self, rows, **_):
            return [chr(48 + row[0]) for row in rows]

    def load(source):
        model = quiet_model()
        model.tokenizer = OneTokenPerCharacter()
        model.loaded_from = source
        return model

    monkeypatch.setattr(HookedTransformer, "from_pretrained", load)


@pytest.fixture
def texts(tmp_path):
    (tmp_path / "texts").mkdir()
    for n in range(5):
        (tmp_path / "texts" / f"{n}.txt").write_text("some words to read, " * (n + 1) + str(n))
    return tmp_path / "texts"


def test_it_measures_prints_and_goes_on(run, tiny, texts):
    status, out, err = run("corpus", "texts", "--tokens", 30, "--out", "c", "--analyses", "sink_rate, loss_by_position")
    assert (status, err) == (0, "")
    assert "texts     5 (5 measured), directory texts" in out
    assert "analyses  sink_rate, loss_by_position" in out
    assert out.splitlines()[-1] == "5 measured"
    assert run("corpus", "texts", "--tokens", 30, "--out", "c", "--analyses", "loss_by_position,sink_rate")[1] == out
    assert run("corpus", "c") == (0, out, "")
    status, _, err = run(
        "corpus", "texts", "--tokens", 30, "--out", "c", "--analyses", "sink_rate,loss_by_position", "--pack", 2
    )
    assert status == 1 and "has pack 1, and this run has 2" in err


@pytest.mark.filterwarnings("always::hooks.errors.CorpusWarning")
def test_texts_that_cannot_be_measured_are_counted_and_the_status_says_so(run, tiny, texts):
    (texts / "1b.txt").write_bytes(b"\xff\xfe\x00")
    (texts / "3b.txt").write_text("")
    (texts / "3c.txt").write_text("x")
    (texts / "9.txt").write_bytes((texts / "0.txt").read_bytes())
    status, out, err = run("corpus", "texts", "--tokens", 30, "--out", "c")
    assert status == 1
    assert err.startswith("note: 1 of 9 texts are there more than once") and "'9.txt', the same as 0.txt" in err
    assert out.splitlines()[-1] == "5 measured, 3 failed, 1 duplicate"
    status, out, err = run("corpus", "c")
    assert (status, err) == (0, "")
    assert "failed    1b.txt: not UTF-8 (byte 0xff at offset 0)" in out
    assert "failed    3b.txt: holds no text" in out and "failed    3c.txt: " in out


@pytest.mark.filterwarnings("always::hooks.errors.CorpusWarning")
def test_an_interrupted_run_says_how_to_go_on_and_does(run, tiny, texts, monkeypatch):
    def interrupt(progress):
        if progress.done == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(corpora, "_spoken", lambda started: interrupt)
        status, _, err = run("corpus", "texts", "--tokens", 30, "--out", "c")
    assert (status, err) == (130, "error: interrupted; run it again to go on with the texts that are left\n")
    status, out, err = run("corpus", "c")
    assert status == 0 and "3 of 5 texts are left" in err and out.splitlines()[-1] == "2 measured, 3 left"
    assert run("corpus", "texts", "--tokens", 30, "--out", "c")[1].splitlines()[-1] == "5 measured"


def test_it_says_how_far_it_is(run, tiny, texts, monkeypatch):
    monkeypatch.setattr(corpora, "_SECONDS_BETWEEN_LINES", 0)
    out = run("corpus", "texts", "--tokens", 30, "--out", "c")[1]
    assert "1 done, 0 failed, 4 left, about " in out and "5 done, 0 failed, 0 left, about 0 s more; 1 processes" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "no such file or directory"),
        (["texts", "--tokens", "1"], "--tokens 1: attention needs at least 2"),
        (["texts", "--analyses", "heads"], "no analysis 'heads'"),
        (["texts", "--layers", "7"], "no layer 7"),
        (["texts", "--workers", "0"], "--workers 0: at least 1"),
        (["texts", "--pack", "0"], "--pack 0: at least 1"),
        (["texts", "--workers", "2", "--scheduler", "tcp://x:1"], "give one of them"),
        (["texts", "--out", "texts"], "is there already and is no corpus"),
        (["texts", "--model", " "], "has no name"),
        (["rows.jsonl", "--model", "x"], "there is no text in file rows.jsonl"),
    ],
)
def test_bad_input_is_one_line(run, tiny, texts, tmp_path, arguments, said):
    (tmp_path / "rows.jsonl").write_text("")
    status, out, err = run("corpus", *arguments)
    assert status == 1 and out == "" and said in err and len(err.splitlines()) == 1
    assert not (tmp_path / "ropescope.corpus").exists()


def test_a_corpus_takes_no_options_of_a_run(run, tiny, texts):
    run("corpus", "texts", "--tokens", 30, "--out", "c")
    status, _, err = run("corpus", "c", "--tokens", 30)
    assert status == 1 and "'c' is a corpus, which is printed; --tokens go with texts" in err


def test_lines_of_json_take_their_ids(run, tiny, tmp_path):
    rows = [{"id": f"doc-{n}", "text": "words and words " * (n + 1)} for n in range(3)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert run("corpus", "rows.jsonl", "--tokens", 20)[0] == 0
    from interp import open_corpus

    assert open_corpus("ropescope.corpus").texts["id"].tolist() == ["doc-0", "doc-1", "doc-2"]
