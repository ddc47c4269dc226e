"""Texts from every kind of source: named, hashed, and those that cannot be read said."""

import hashlib
import json

import numpy as np
import pytest
import torch

from hooks.errors import TextError
from interp.texts.corpora import read_documents

WORDS = ["one text", "another, with an ä", "a third"]


def contents(source):
    return [document.content for document in read_documents(source)]


def test_strings_and_rows_of_tokens_keep_their_order_and_number():
    found = list(read_documents(WORDS))
    assert [d.content for d in found] == WORDS
    assert [d.name for d in found] == ["0", "1", "2"]
    assert found[1].sha256 == hashlib.sha256("another, with an ä".encode()).hexdigest()
    for rows in ([[1, 2, 3], [4, 5]], (np.array([1, 2, 3]), torch.tensor([4, 5]))):
        assert contents(rows) == [[1, 2, 3], [4, 5]]
    assert contents(torch.tensor([[1, 2], [3, 4]])) == [[1, 2], [3, 4]]


def test_a_directory_is_its_files_by_path_and_bad_ones_have_a_reason(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_text(WORDS[0], encoding="utf-8")
    (tmp_path / "sub" / "a.md").write_text("\ufeff" + WORDS[1], encoding="utf-8")
    (tmp_path / "latin.txt").write_bytes("gr\xfc\xdfe".encode("latin-1"))
    (tmp_path / "nothing.txt").write_text(" \n", encoding="utf-8")
    (tmp_path / ".hidden").write_text("not a text", encoding="utf-8")
    found = {d.name: d for d in read_documents(tmp_path)}
    assert list(found) == ["b.txt", "latin.txt", "nothing.txt", "sub/a.md"]
    assert found["sub/a.md"].content == WORDS[1]  # its byte order mark is none of the text
    assert found["latin.txt"].content is None
    assert "not UTF-8" in found["latin.txt"].reason and "0xfc at offset 2" in found["latin.txt"].reason
    assert found["nothing.txt"].reason == "holds no text"
    assert contents(str(tmp_path / "b.txt")) == [WORDS[0]]


def test_lines_of_json_are_found_again_whatever_stands_between_them(tmp_path):
    path = tmp_path / "texts.jsonl"
    lines = [
        json.dumps({"id": "first", "text": WORDS[0]}).encode(),
        b"",
        json.dumps({"text": WORDS[1]}, ensure_ascii=False).encode(),
        b"{broken",
        json.dumps({"txt": "other name"}).encode(),
        json.dumps(["a", "list"]).encode(),
        b'{"text": "\xff"}',
        json.dumps({"id": 7, "text": WORDS[2]}).encode(),
    ]
    path.write_bytes(b"\r\n".join(lines))
    documents = read_documents(path)
    found = list(documents)
    assert [d.name for d in found] == ["first", "line 3", "line 4", "line 5", "line 6", "line 7", "7"]
    assert [d.content for d in found if d.content] == WORDS
    assert [d.reason.split(" (")[0] for d in found if not d.content] == [
        "not JSON",
        "its `text` is missing",
        "a list, and not an object with a `text`",
        "not UTF-8",
    ]
    assert documents.read(6).content == WORDS[2]  # by its place, without the lines before it


def test_parquet_and_datasets_give_the_same_rows(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    table = pa.table({"text": [*WORDS, None], "id": ["x", "y", "z", "w"], "other": [1, 2, 3, 4]})
    parquet.write_table(table, tmp_path / "texts.parquet", row_group_size=3)
    found = read_documents(tmp_path / "texts.parquet")
    assert [d.content for d in found] == [*WORDS, None]
    assert [found.read(n).name for n in (3, 0, 2)] == ["w", "x", "z"]

    class Dataset:  # as `datasets` has it, which is no dependency
        column_names = ("id", "text")

        def __len__(self):
            return 4

        def __getitem__(self, n):
            return {name: table[name][n].as_py() for name in self.column_names}

    assert [(d.name, d.content, d.reason) for d in read_documents(Dataset())] == [
        (d.name, d.content, d.reason) for d in found
    ]
    parquet.write_table(pa.table({"content": WORDS}), tmp_path / "other.parquet")
    with pytest.raises(TextError, match="no column `text`; it has content"):
        read_documents(tmp_path / "other.parquet")
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(TextError, match="cannot read"):
        read_documents(tmp_path / "damaged.parquet")


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ([], "no text in 0 texts"),
        (3, "texts=3: give strings"),
        ({"a": "text"}, "give strings"),
        ("no such file", "no such file or directory"),
        ("", "give the path"),
        (None, "texts=None"),
    ],
)
def test_what_is_no_source_of_texts_is_refused_by_name(texts, says):
    with pytest.raises(TextError, match=says):
        read_documents(texts)


def test_a_row_that_is_neither_text_nor_tokens_has_a_reason():
    found = list(read_documents([WORDS[0], 1.5, [0.5, 1.0], [[1, 2]], None]))
    assert found[0].content == WORDS[0]
    assert all(d.content is None and "neither a text nor a row" in d.reason for d in found[1:])


def test_the_opening_is_one_short_line():
    [document] = read_documents(["first\n\n  second\t" + "word " * 100])
    assert document.opening.startswith("first second word") and len(document.opening) == 80


@pytest.mark.slow
def test_a_real_dataset_is_read_row_by_row():
    datasets = pytest.importorskip("datasets")
    found = read_documents(datasets.Dataset.from_dict({"text": WORDS, "id": [1, 2, 3]}))
    assert [(d.name, d.content) for d in found] == list(zip("123", WORDS, strict=True))
    with pytest.raises(TextError, match="several splits"):
        read_documents(datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": WORDS})}))
