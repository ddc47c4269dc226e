"""The plan of a corpus: model, settings, every text by name and hash, and how a record is laid out; ``plan.json``."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from hooks.errors import CorpusDamagedError, CorpusError, CorpusMismatchError
from interp.common.words import number_ranges
from interp.texts.corpora import Documents

PLAN = "plan.json"
_FORMAT, _VERSION = "ropescope corpus", 1
DUPLICATE, UNREADABLE = "duplicate", "failed"


@dataclass(frozen=True)
class ModelFacts:
    """What results need to know of a model, so that they never need the model.

    Attributes:
        name: what it is called.
        weights: SHA-256 of its weights.
        n_layers: layers of the whole model.
        layers: those that are measured.
        layer_types: the type of each of these.
        windows: the window of each of these, 0 for none.
        heads: query heads of a layer.
        kv_heads: key and value heads of a layer.
        dtype: type of the weights.
    """

    name: str
    weights: str
    n_layers: int
    layers: tuple[int, ...]
    layer_types: tuple[str, ...]
    windows: tuple[int, ...]
    heads: int
    kv_heads: int
    dtype: str


@dataclass(frozen=True)
class Entry:
    """A text of the plan.

    Attributes:
        name: what it is called, each name once.
        sha256: hash of its content.
        opening: how it begins.
        status: ``duplicate`` or ``failed`` where it is not measured, and empty where it is.
        reason: why not.
    """

    name: str
    sha256: str
    opening: str = ""
    status: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Plan:
    """What is measured, of which model, on which texts.

    Attributes:
        source: where the model is loaded from; empty for a model that lived in memory.
        model: what results need to know of it.
        n_tokens: how many tokens of each text are read at most.
        analyses: their names, in order.
        versions: of the packages that a number depends on.
        texts: every text, in order.
        where: where they came from, in words.
        pack: how many texts are measured at a time, in rows of at most n_tokens.
    """

    source: str
    model: ModelFacts
    n_tokens: int
    analyses: tuple[str, ...]
    versions: dict[str, str]
    texts: tuple[Entry, ...]
    where: str
    pack: int = 1

    def to_json(self) -> str:
        """The plan as it stands in its file; the texts as columns, which keeps many of them short."""
        about = asdict(self)
        columns = {name: [getattr(text, name) for text in self.texts] for name in ("name", "sha256", "opening")}
        aside = {str(n): [text.status, text.reason] for n, text in enumerate(self.texts) if text.status}
        about["texts"] = {**columns, "left_out": aside}
        return json.dumps({"format": _FORMAT, "version": _VERSION, **about}, ensure_ascii=False, indent=1)

    @classmethod
    def from_json(cls, text: str, place: str) -> "Plan":
        """The plan that a file holds.

        Raises:
            CorpusError: it is the plan of no corpus, or of a newer one.
            CorpusDamagedError: it is not whole.
        """
        try:
            about = json.loads(text)
            kind, version = about.pop("format"), about.pop("version")
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
            raise CorpusError(f"there is no corpus in {place!r}: its {PLAN} is not a plan") from None
        if kind != _FORMAT:
            raise CorpusError(f"there is no corpus in {place!r}: its {PLAN} is a {kind!r}")
        if version != _VERSION:
            raise CorpusError(f"the corpus in {place!r} has format {version}; this version reads {_VERSION}: upgrade")
        try:
            columns, model = about.pop("texts"), about.pop("model")
            aside = columns.pop("left_out")
            rows = zip(columns["name"], columns["sha256"], columns["opening"], strict=True)
            texts = tuple(Entry(*row, *aside.get(str(n), ("", ""))) for n, row in enumerate(rows))
            lists = {name: tuple(model[name]) for name in ("layers", "layer_types", "windows")}
            about["analyses"] = tuple(about["analyses"])
            return cls(**about, model=ModelFacts(**(model | lists)), texts=texts)
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise CorpusDamagedError(f"{PLAN} of the corpus in {place!r} is damaged ({error!r})") from None

    @property
    def wanted(self) -> list[int]:
        """Numbers of the texts that are to be measured."""
        return [number for number, text in enumerate(self.texts) if not text.status]

    def check_same(self, other: "Plan", place: str) -> None:
        """Raise a CorpusMismatchError that says in what another plan differs from this one, which stands at a path."""
        ours, theirs = self._settings(), other._settings()
        for name, value in ours.items():
            if theirs[name] != value:
                raise CorpusMismatchError(
                    f"the corpus in {place!r} has {name} {value}, and this run has {theirs[name]}: "
                    "give another path, or run it as before"
                )
        for number, (a, b) in enumerate(zip(self.texts, other.texts, strict=False)):
            if (a.name, a.sha256) != (b.name, b.sha256):
                raise CorpusMismatchError(
                    f"the corpus in {place!r} was begun with other texts: text {number} was {a.name!r} and is "
                    f"{b.name!r}{'' if a.name != b.name else ' with another content'}; give another path, or the texts "
                    "as before"
                )
        if len(self.texts) != len(other.texts):
            raise CorpusMismatchError(
                f"the corpus in {place!r} was begun with {len(self.texts):,} texts, and there are now "
                f"{len(other.texts):,}: give another path, or the texts as before"
            )

    def _settings(self) -> dict[str, str]:
        """What has to agree for a corpus to be gone on with, each under the name that an error gives it."""
        return {
            "the weights": f"{self.model.weights[:12]} ({self.model.name})",
            "the layers": number_ranges(self.model.layers),
            "the type": self.model.dtype,
            "n_tokens": str(self.n_tokens),
            "pack": str(self.pack),
            "the analyses": ", ".join(self.analyses),
            **{f"the version of {name}": version for name, version in self.versions.items()},
        }


def is_plan(content: bytes) -> bool:
    """Whether a file is the plan of a corpus, of whatever version; it need not be whole."""
    return json.dumps(_FORMAT).encode() in content[:64]


def entries(documents: Documents) -> tuple[Entry, ...]:
    """Every text by name and hash; what is there twice, or cannot be read, with its reason."""
    read = [(d.name, d.sha256, d.opening, d.reason if d.content is None else "") for d in documents]
    seen: dict[str, str] = {}
    found = []
    for name, (_, digest, opening, unreadable) in zip(_unique(row[0] for row in read), read, strict=True):
        status, reason = (UNREADABLE, unreadable) if unreadable else ("", "")
        if digest and digest in seen:
            status, reason = DUPLICATE, f"the same as {seen[digest]}"
        found.append(Entry(name, digest, opening, status, reason))
        seen.setdefault(digest, name)
    return tuple(found)


def _unique(names: Iterable[str]) -> list[str]:
    """Names of which each occurs once: a repeated one is followed by how often it was there before."""
    seen: Counter[str] = Counter()
    out: dict[str, None] = {}
    for name in names:
        seen[name] += 1
        called = name
        while called in out:
            called = f"{name} ({seen[name]})"
            seen[name] += called in out
        out[called] = None
    return list(out)
