"""What a variable of a result is, said once: dimensions, units, one line, formula, source."""

from typing import NamedTuple


class Variable(NamedTuple):
    """One row of the table; `group` is the group of attention_statistics that computes the variable."""

    group: str
    dims: tuple[str, ...]
    units: str
    description: str
    formula: str
    source: str = ""

    @property
    def attrs(self) -> dict[str, str]:
        """The attributes that the Dataset's variable carries."""
        attrs = {"units": self.units, "description": self.description, "formula": self.formula}
        return attrs | ({"source": self.source} if self.source else {})
