"""Files are written whole or not at all, and never over what the tool did not write."""

import ast
import os
import stat
from pathlib import Path

import pytest

from hooks.errors import OutputError
from interp.common.files import check_writable, remove_file, replace_file, write_text
from interp.common.marks import is_marked, marked

ROOT = Path(__file__).parents[3]
GENERATOR = '<meta name="generator" content="ropescope">'
# Whatever puts something on a disk or takes it away, by the name of the call.
WRITES = {
    *("write_text", "write_bytes", "unlink", "rmtree", "rmdir", "touch", "savez"),
    *("save_file", "to_netcdf", "to_zarr", "write_html", "write_image", "mkstemp", "removedirs", "symlink_to"),
}


def test_files_are_whole_or_absent(tmp_path, monkeypatch):
    target, old, new = tmp_path / "r.html", f"<head>{GENERATOR}</head>old", f"<head>{GENERATOR}</head>new"
    write_text(target, old)
    target.chmod(0o640)

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(KeyboardInterrupt):
        write_text(target, new)
    monkeypatch.undo()
    assert target.read_text() == old
    assert os.listdir(tmp_path) == ["r.html"]
    write_text(target, new)
    assert target.read_text() == new
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


def test_places_that_cannot_be_written(tmp_path):
    for place in (tmp_path, tmp_path / "missing" / "r.html", "/dev/null", "/proc/r.html", tmp_path / ("x" * 300)):
        with pytest.raises(OutputError, match="cannot write"):
            check_writable(place)
    assert os.listdir(tmp_path) == []


def test_what_is_not_ours_stays(tmp_path):
    mine = tmp_path / "mine"
    mine.write_text("mine")
    for write in (check_writable, lambda path: write_text(path, "x"), lambda path: replace_file(path, [b"x"])):
        with pytest.raises(OutputError, match="ropescope did not write it"):
            write(mine)
    assert not remove_file(mine, is_marked)
    link = tmp_path / "link"
    link.symlink_to(mine)
    with pytest.raises(OutputError, match="mine' is there already"):
        write_text(link, "x")
    with pytest.raises(OutputError, match="link' is there already"):  # as a file of a capture, a link is none of ours
        replace_file(link, [b"x"], lambda path: True)
    assert (mine.read_text(), sorted(os.listdir(tmp_path))) == ("mine", ["link", "mine"])


def test_what_comes_while_the_file_is_written_stays(tmp_path):
    target = tmp_path / "new"

    def chunks():
        target.write_text("mine")
        yield b"x"

    with pytest.raises(OutputError, match="ropescope did not write it"):
        replace_file(target, chunks())
    assert target.read_text() == "mine"
    assert os.listdir(tmp_path) == ["new"]


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("html", b"<html>\n<head><title>x</title></head><body>y</body></html>"),
        ("svg", b"<svg xmlns='http://www.w3.org/2000/svg'></svg>\n"),
        ("pdf", b"%PDF-1.4\n...\n%%EOF\n"),
        ("png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(17) + b"\0\0\0\0IEND\xaeB`\x82"),
        ("jpg", b"\xff\xd8\xff\xe0\0\x10JFIF\0" + bytes(9) + b"\xff\xd9"),
        ("jpeg", b"\xff\xd8\xff\xdb\0\x02\xff\xd9"),
        ("webp", b"RIFF\x0c\0\0\0WEBPVP8L\0\0\0\0"),
    ],
)
def test_a_mark_is_found_again(tmp_path, kind, content):
    path = tmp_path / f"f.{kind}"
    path.write_bytes(content)
    assert not is_marked(path)
    path.write_bytes(marked(content, kind))
    assert is_marked(path)
    assert not is_marked(tmp_path / "nothing")


def test_one_module_writes():
    """Everybody else asks it, so that the rule is in one place."""
    found = []
    for path in (ROOT / "interp").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        own = {n.asname or n.name for x in ast.walk(tree) if isinstance(x, ast.ImportFrom) for n in x.names}
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            name = getattr(call.func, "attr", getattr(call.func, "id", ""))
            modes = [a.value for a in (*call.args, *(k.value for k in call.keywords)) if isinstance(a, ast.Constant)]
            opened = name == "open" and any(
                isinstance(mode, str) and set(mode) <= set("rwaxbt+") and set(mode) & set("wax+") for mode in modes
            )
            if (name in WRITES and name not in own) or opened:
                found.append(f"{path.relative_to(ROOT)}:{call.lineno} {name}")
    assert [place for place in found if not place.startswith("interp/common/files.py")] == []
