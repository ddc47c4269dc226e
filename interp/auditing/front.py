"""An audit as its users hold it: Datasets that print themselves on one screen, draw themselves, and become a page."""

import html
import shutil
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from hooks import checks
from interp import plots
from interp.analyses.weights.audit_data import DATASETS, AuditData
from interp.auditing.printed import as_text
from interp.reporting.audit_page import write_audit

_WIDTH = 100


class Audit(AuditData):
    """What `audit` found; attributes as of `AuditData`."""

    def __repr__(self) -> str:
        return as_text(self, min(shutil.get_terminal_size((_WIDTH, 0)).columns, 2 * _WIDTH))

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(as_text(self, _WIDTH))}</pre>"

    def show(self, name: str = "rotations", **options: Any) -> go.Figure:
        """The figure of one of its Datasets.

        Args:
            name: "rotations", "schedules", "layers" or "heads".
            **options: of the figure, such as ``title``; of the heads ``layer`` and ``head`` choose one.

        Raises:
            InputError: no such Dataset, or one that holds nothing to draw.
        """
        return plots.show(self.datasets[checks.choice("name", name, DATASETS)], **options)

    def report(self, path: str | Path) -> Path:
        """Write the audit as one HTML file that needs no network and no other file.

        Args:
            path: where to put it. A report that stands there is replaced; nothing else ever is.

        Returns:
            The path of the file.

        Raises:
            OutputError: the file cannot be written, or one stands there that is no report of ours.
        """
        return write_audit(self, path)
