"""Settings: a config.json whose reads are remembered, so that what nobody read can be refused."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol


class HasDefaults(Protocol):
    """What a family says of a config.json that leaves things out."""

    @property
    def model_type(self) -> str:
        """``model_type`` in config.json."""
        ...

    @property
    def source(self) -> str:
        """The file of transformers that the defaults are from."""
        ...

    @property
    def defaults(self) -> Mapping[str, Any]:
        """config.json key to value when absent."""
        ...


class Settings(Mapping[str, Any]):
    """A config.json whose reads are remembered; null counts as absent, and absent as the family's default."""

    def __init__(self, raw: Mapping[str, Any], family: HasDefaults):
        self.raw = {key: value for key, value in raw.items() if value is not None}
        self.null = raw.keys() - self.raw.keys()
        self.family = family
        self.read: set[str] = set()
        self.provenance: dict[str, str] = {}

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        if key in self.raw:
            return self.raw[key]
        if key in self.family.defaults:
            value = self.family.defaults[key]
            self.provenance[key] = f"{value}: not in the file; the default in transformers' {self.family.source}"
            return value
        raise KeyError(key)

    def optional(self, key: str) -> Any:
        """A setting for which null has a meaning of its own, "none"; None as well where neither file nor row has it."""
        self.read.add(key)
        return None if key in self.null or not (key in self.raw or key in self.family.defaults) else self[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.raw)

    def __len__(self) -> int:
        return len(self.raw)
