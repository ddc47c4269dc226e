"""What the variables and coordinates of every result are, said once: dimensions, unit, one line, formula, source.

A table is a mapping from a variable's name to its `Variable`, one for each analysis, in the file ``schema.py`` of the
analysis' room. Datasets take their attributes from it, the command line prints it, statistics on disk are kept under
its `digest`, and the report explains its words with it. Nothing heavy is imported here, nor in any file of tables.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import NamedTuple


class Variable(NamedTuple):
    """What one variable of a result is.

    A text may leave a setting of the call open, as ``<name>``; `at` fills it in.

    Attributes:
        dims: its dimensions, in order.
        units: its unit; "1" for a ratio, empty for what is no number.
        description: what it is, in one line.
        formula: how it is computed; empty for what is no number.
        source: where the literature has it.
        group: which group of attention_statistics computes it; empty elsewhere.
        label: what the report calls it, where its name will not do.
    """

    dims: tuple[str, ...]
    units: str
    description: str
    formula: str
    source: str = ""
    group: str = ""
    label: str = ""

    @property
    def attrs(self) -> dict[str, str]:
        """The attributes that the Dataset's variable carries."""
        attrs = {"units": self.units, "description": self.description, "formula": self.formula}
        return attrs | ({"source": self.source} if self.source else {})

    def at(self, **settings: object) -> "Variable":
        """The same with the settings of a call in the place of each ``<name>``."""
        description, formula = (
            re.sub(r"<(\w+)>", lambda name: str(settings[name[1]]), text) for text in (self.description, self.formula)
        )
        return self._replace(description=description, formula=formula)


Table = Mapping[str, Variable]


def led_by(table: Table, *dims: str) -> dict[str, Variable]:
    """The same variables with further dimensions in front, where no group computes them by itself."""
    return {name: variable._replace(dims=(*dims, *variable.dims), group="") for name, variable in table.items()}


def digest(table: Table) -> str:
    """SHA-256 of what a table says that its variables mean; another definition, unit or order gives another one."""
    # What version 1 hashed was the repr of its tables, whose rows had these six fields. Spelling it out keeps
    # statistics that lie on disk valid until a definition changes, and lets labels change without loss.
    rows = (
        f"{name!r}: Variable(group={v.group!r}, dims={v.dims!r}, units={v.units!r}, description={v.description!r}, "
        f"formula={v.formula!r}, source={v.source!r})"
        for name, v in table.items()
    )
    return hashlib.sha256(f"{{{', '.join(rows)}}}".encode()).hexdigest()


# Coordinates that mean the same in every result.
COORDINATES: dict[str, dict[str, str]] = {
    "layer": {"units": "", "description": "layer index"},
    "step": {"units": "", "description": "training step, from 0"},
    "head": {"units": "", "description": "query head"},
    "kv_head": {"units": "", "description": "kv head, which a group of query heads shares"},
    "query": {"units": "token", "description": "position of the query"},
    "key": {"units": "token", "description": "position of the key"},
    "sink_size": {"units": "key", "description": "how many of the first valid keys count as the sink"},
    "distance": {"units": "token", "description": "query position - key position"},
    "first_distance": {"units": "token", "description": "smallest distance of the bin"},
    "last_distance": {"units": "token", "description": "largest distance of the bin"},
    "position": {"units": "token", "description": "position of the token"},
    "first_position": {"units": "token", "description": "first position of the stretch"},
    "last_position": {"units": "token", "description": "last position of the stretch"},
    "map_query": {"units": "token", "description": "middle position of the bin of queries"},
    "map_key": {"units": "token", "description": "middle position of the bin of keys"},
    "score_bin": {"units": "", "description": "bin of the score histogram, the same for every model"},
    "score_bin_left": {"units": "score", "description": "left edge of the bin, included"},
    "score_bin_right": {"units": "score", "description": "right edge of the bin, excluded"},
    "stage": {"units": "", "description": "q and k before or after a step"},
    "length": {"units": "token", "description": "tokens in all"},
    "depth": {"units": "1", "description": "where the needle is, from 0 (begin) to 1 (end of the haystack)"},
    "text": {"units": "", "description": "text of the token"},
    "segment": {"units": "", "description": "part of the text"},
    "edge": {"units": "", "description": "rank of a reading, the largest effect first"},
    "pair": {"units": "", "description": "frequency pair, from the fastest to the slowest"},
    "shift": {"units": "token", "description": "added to every position"},
    "q": {"units": "1", "description": "share of the scores below"},
    "level": {"units": "1", "description": "share of a query's attention"},
    "gap": {"units": "score", "description": "distance below the query's largest score"},
}
