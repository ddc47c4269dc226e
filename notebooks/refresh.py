"""Run the notebooks and write each .ipynb with its outputs. The .py files are the source; edit those.

    python notebooks/refresh.py                              # all of them
    python notebooks/refresh.py --only 01_first_look
    python notebooks/refresh.py --only 04_long_sequences --tokens 2048 --to /tmp   # a quick look, elsewhere
    python notebooks/refresh.py --text                       # only words changed: keep the outputs, run nothing

Needs the extras ``demo``, ``notebooks`` and ``images``, the SmolLM2 wheel (see README.md) and Chromium or Chrome, which
draws the figures as PNG. Nothing that changes from run to run is written: no times, no paths, no random cell ids.
"""

import argparse
import base64
import hashlib
import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode

HERE = Path(__file__).parent
NAMES = tuple(sorted(path.stem for path in HERE.glob("[0-9][0-9]_*.py")))
PLOTLY = "application/vnd.plotly.v1+json"
# Wide enough for two panels; drawn finer than shown, so that text stays sharp on a dense screen.
WIDTH, SCALE = 960, 1.25
LENGTH = re.compile(r"^N_TOKENS = [\d_]+", re.MULTILINE)
_TIMEOUT_SECONDS = 3600


def read(name: str) -> NotebookNode:
    """A notebook without outputs, from its script, with cell ids that depend on nothing but its text."""
    notebook = jupytext.read(HERE / f"{name}.py")
    notebook.metadata = NotebookNode(
        jupytext=NotebookNode(formats="ipynb,py:percent"),
        kernelspec=NotebookNode(display_name="Python 3", language="python", name="python3"),
        language_info=NotebookNode(name="python"),
    )
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for place, cell in enumerate(notebook.cells):
        before = sum(other.source == cell.source for other in notebook.cells[:place])
        cell.id = hashlib.sha256(f"{before} {cell.source}".encode()).hexdigest()[:12]
    return notebook


def shortened(notebook: NotebookNode, n_tokens: int) -> NotebookNode:
    """The same notebook on a text of another length: its one line ``N_TOKENS = …`` replaced."""
    lines = [cell for cell in notebook.cells if cell.cell_type == "code" and LENGTH.search(cell.source)]
    if len(lines) != 1:
        raise ValueError(f"{len(lines)} cells set N_TOKENS: a notebook has exactly one, which sets its length")
    lines[0].source = LENGTH.sub(f"N_TOKENS = {n_tokens}", lines[0].source)
    return notebook


def kept_outputs(notebook: NotebookNode, executed: NotebookNode) -> NotebookNode:
    """The notebook with the outputs of an earlier run of the same code."""
    new, old = ([cell for cell in side.cells if cell.cell_type == "code"] for side in (notebook, executed))
    if [cell.source for cell in new] != [cell.source for cell in old]:
        raise ValueError("its code has changed since it was run: run it again, without --text")
    for cell, before in zip(new, old, strict=True):
        cell.outputs, cell.execution_count = before.outputs, before.execution_count
    return notebook


def execute(notebook: NotebookNode) -> NotebookNode:
    """Run every cell in a kernel of the Python that runs this, offline; figures stay plotly's JSON.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    # No folders to search: only the kernel of this very interpreter is left.
    own_kernel = KernelSpecManager(kernel_dirs=[])
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "PLOTLY_RENDERER": "plotly_mimetype",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(HERE.parent), os.environ.get("PYTHONPATH")))),
        # tqdm misses a widget that no notebook here uses.
        "PYTHONWARNINGS": "ignore:IProgress not found",
    }
    with tempfile.TemporaryDirectory() as sockets:  # a kernel that is killed leaves them
        kernel = AsyncKernelManager(
            kernel_name="python3", kernel_spec_manager=own_kernel, transport="ipc", ip=str(Path(sockets) / "kernel")
        )
        client = NotebookClient(notebook, km=kernel, timeout=_TIMEOUT_SECONDS, record_timing=False)
        client.execute(cwd=str(HERE.parent), env=environment, cleanup_kc=True)
    return notebook


def settle(notebook: NotebookNode) -> NotebookNode:
    """Figures as PNG, and nothing of the run but what the reader sees."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            if "data" in output:
                output["data"] = _shown(output["data"])
                output["metadata"] = {"image/png": {"width": WIDTH}} if "image/png" in output["data"] else {}
    return notebook


def _shown(data: dict[str, Any]) -> dict[str, Any]:
    """What a page without scripts can show of an output."""
    if PLOTLY not in data:
        return data
    import plotly.graph_objects as go

    figure = go.Figure({key: data[PLOTLY][key] for key in ("data", "layout")})
    png = figure.to_image("png", width=WIDTH, scale=SCALE)
    return {"image/png": base64.b64encode(png).decode("ascii")}


def main() -> None:
    """Run and write the notebooks asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=NAMES, choices=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--tokens", type=int, help="length of the text, in place of each notebook's own")
    parser.add_argument("--to", type=Path, default=HERE, help="folder to write to; notebooks/ by default")
    parser.add_argument("--text", action="store_true", help="take over changed words, keep the outputs, run nothing")
    arguments = parser.parse_args()
    for name in arguments.only:
        started = time.perf_counter()
        notebook = read(name)
        if arguments.tokens is not None:
            notebook = shortened(notebook, arguments.tokens)
        target = arguments.to / f"{name}.ipynb"
        if arguments.text:
            nbformat.write(kept_outputs(notebook, nbformat.read(target, as_version=4)), target)
        else:
            nbformat.write(settle(execute(notebook)), target)
        print(f"{target}: {target.stat().st_size / 1e6:.2f} MB, {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
