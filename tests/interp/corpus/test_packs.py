"""Short texts in one row: which share one, what each is alone, and what one that fails does to the others."""

import numpy as np
import pytest
import torch
from tiny_corpus import N_TOKENS, quiet_model, same, token_rows, values
from tiny_hooked import tiny_config

from hooks.config.rope import RopeConfig
from interp import capture, measure_corpus
from interp.corpus import work
from interp.corpus.packs import apart, counted, rows_of

ROWS = [row[:17] for row in token_rows(9)]
PLAIN = tiny_config()


def run(path, rows=ROWS, model=None, **options):
    return measure_corpus(model or quiet_model(), rows, path, n_tokens=N_TOKENS, **options)


def test_texts_share_a_row_in_order_as_long_as_they_fit():
    assert rows_of([20, 20, 8, 48, 1, 47, 48], 48, PLAIN) == [[0, 1, 2], [3], [4, 5], [6]]
    assert rows_of([90, 3], 48, PLAIN) == [[0], [1]] and rows_of([], 48, PLAIN) == []
    assert counted([3, 2]).tolist() == [0, 1, 2, 0, 1]


def test_texts_that_another_length_would_rotate_otherwise_never_share_a_row():
    rope = RopeConfig("dynamic", rope_theta=1e4, factor=4.0, max_position_embeddings=24)
    assert rows_of([20, 23, 30, 30, 12], 200, tiny_config(rope=rope)) == [[0, 1], [2, 3], [4]]


def test_a_part_of_a_row_is_the_capture_of_that_text_alone():
    model, rows = quiet_model(layer_types=("sliding_attention", "full_attention"), window_size=7), ROWS[:3]
    row = capture(
        model, [token for tokens in rows for token in tokens], positions=counted(map(len, rows)), stages=("pre_rope",)
    )
    for part, tokens in zip(apart(row), rows, strict=True):
        alone = capture(model, tokens, stages=("pre_rope",))
        assert part.tokens.tolist() == tokens and part.str_tokens == alone.str_tokens and part.documents is None
        torch.testing.assert_close(part.loss, alone.loss)
        for layer in alone.layers:
            for stage in ("pre_rope", "final"):
                torch.testing.assert_close(part.q(layer, stage), alone.q(layer, stage))
                torch.testing.assert_close(part.k(layer, stage), alone.k(layer, stage))
            torch.testing.assert_close(part.v(layer), alone.v(layer))


def test_packed_texts_have_the_numbers_of_each_alone_and_a_row_of_their_own(tmp_path, monkeypatch):
    passes, real = [], work.capture
    monkeypatch.setattr(
        work, "capture", lambda model, content, **o: passes.append(len(content)) or real(model, content, **o)
    )
    packed = run(tmp_path / "packed.corpus", pack=4)
    assert max(passes) > 17 and len(passes) < len(ROWS) and sum(passes) == sum(map(len, ROWS))
    alone = run(tmp_path / "alone.corpus")
    assert packed.texts["tokens"].tolist() == alone.texts["tokens"].tolist() == [len(row) for row in ROWS]
    for name, numbers in values(alone).items():
        np.testing.assert_allclose(values(packed)[name], numbers, rtol=1e-4, atol=1e-5, err_msg=str(name))


def test_a_bad_text_takes_none_of_its_row_along(tmp_path, monkeypatch):
    rows = [*ROWS[:2], [7], [1, 2, 4000], *ROWS[2:4]]
    found = run(tmp_path / "a.corpus", rows, pack=6)
    assert found.texts["status"].tolist() == [*["measured"] * 2, *["failed"] * 2, *["measured"] * 2]
    assert "1 token to read" in found.texts["reason"][2] and "token id 4000" in found.texts["reason"][3]
    real = work.capture

    def refuses_rows(model, content, **options):
        if options["positions"] is not None:
            raise RuntimeError("no room for a row")
        return real(model, content, **options)

    monkeypatch.setattr(work, "capture", refuses_rows)
    same(run(tmp_path / "b.corpus", ROWS, pack=6), run(tmp_path / "c.corpus"))


def test_a_row_that_was_cut_off_is_run_as_it_was(tmp_path, monkeypatch):
    """Half of a row is written when its process ends; run again, the last bits are those of an undisturbed run."""
    undisturbed = run(tmp_path / "a.corpus", pack=4)
    seen = []

    def stop(self, number, record):
        seen.append(number)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return real(self, number, record)

    real = work.CorpusStore.write
    with monkeypatch.context() as patch:
        patch.setattr(work.CorpusStore, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "b.corpus", pack=4)
    counts = []
    again = run(tmp_path / "b.corpus", pack=4, watch=lambda p: counts.append((p.done, p.left)))
    assert counts[0] == (4, 5) and counts[-1] == (9, 0)
    same(again, undisturbed)
