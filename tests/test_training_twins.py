"""The small version of the training twins: it runs, goes on where it was killed, and gives its numbers again."""

import json
from dataclasses import replace
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def twins():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent / "benchmarks"))
        import training_twins

        yield training_twins


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_a_small_run_of_each_kind_resumes_and_repeats_to_the_bit(twins, tmp_path):
    path = tmp_path / "twins.jsonl"
    some = [
        twins.Twin("rate", 0, "before_rope"),
        twins.Twin("rate", 0, "before_rope", again=True),
        twins.Twin("width", 0, rotary_dim=8),
        twins.Twin("schedule", 0, rope_type="llama3"),
    ]
    twins.run_all(path, twins.SMALL, 1, some, niceness=0)
    whole = path.read_bytes()
    first, *found = lines(path)
    assert first["pair_loss"] > 0 and [line["name"] for line in found] == [twin.name for twin in some]
    assert all(line["loss"] < line["records"][0]["loss"] for line in found)  # 16 steps teach it something
    once, again = found[:2]
    assert all(again[key] == once[key] for key in once if key not in ("name", "again", "cpu_seconds"))

    path.write_bytes(whole[:-20])  # killed while it wrote the last line
    twins.run_all(path, twins.SMALL, 1, some, niceness=0)
    rerun = lines(path)[-1]
    assert all(rerun[key] == found[-1][key] for key in rerun if key != "cpu_seconds")
    with pytest.raises(SystemExit, match="other settings"):
        twins.done(path, twins.header(replace(twins.SMALL, steps=17)))


def test_every_run_has_a_name_of_its_own_and_a_whole_comparison_comes_first(twins):
    every = list(twins.all_twins())
    assert len({twin.name for twin in every}) == len(every) == 81
    assert [twin.seed for twin in every if not twin.again] == sorted(twin.seed for twin in every if not twin.again)
