"""An audit as JSON: every number and word of its Datasets, with the mark by which the tool knows the file."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from interp.common.files import write_text

if TYPE_CHECKING:
    from interp.analyses.weights.audit_data import AuditData

_MARK = b'{"generator": "ropescope", "holds": "audit"'


def write_audit_json(data: "AuditData", path: str | Path) -> Path:
    """Write an audit's numbers and words as JSON.

    Args:
        data: what was found.
        path: where to put it, in one step. An audit that stands there is replaced; nothing else ever is.

    Raises:
        OutputError: the file cannot be written, or one stands there that is no audit of ours.
    """
    held = {"generator": "ropescope", "holds": "audit", **data.to_dict()}
    return write_text(path, json.dumps(held, ensure_ascii=False, allow_nan=False), is_audit_json)


def is_audit_json(path: Path) -> bool:
    """Whether a file is JSON that `write_audit_json` wrote."""
    try:
        with path.open("rb") as file:
            return file.read(len(_MARK)) == _MARK
    except OSError:
        return False
