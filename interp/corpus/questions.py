"""What is asked of a corpus: every text's results, their means with intervals, a text to look at again."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from hooks import checks
from hooks.errors import CorpusError, InputError, StageError
from interp.captures import Capture, capture
from interp.common.labels import result_of
from interp.common.words import head_name, number_ranges
from interp.corpus.analyses import check_analysis
from interp.corpus.estimates import Estimates
from interp.corpus.plan import DUPLICATE, UNREADABLE, Plan
from interp.corpus.reading import Reader
from interp.corpus.records import Records
from interp.corpus.store import CorpusStore
from interp.corpus.work import facts_of, load
from interp.tensors.selection import head_numbers

MEASURED, LEFT = "measured", "left"


@dataclass(frozen=True, repr=False, eq=False)
class CorpusData:
    """What a model does on many texts, one result a text, and what is asked of all of them.

    ``corpus["head_summary"]`` is the analysis of every text, along a leading dimension ``text``, read when it is looked
    at and averaged by nobody; ``corpus.mean("head_summary")`` is that of all texts together, with its interval.

    Attributes:
        plan: the model, the settings and every text.
        store: where the results are.
        finished: numbers of the texts that were measured.
        failures: why others were not, by number.
    """

    plan: Plan
    store: CorpusStore
    finished: tuple[int, ...]
    failures: dict[int, str]

    def __getitem__(self, analysis: str) -> xr.Dataset:
        """An analysis of every text that was measured, over (text, …)."""
        return self._reader.dataset(self._held(analysis))

    def __len__(self) -> int:
        return len(self.finished)

    @property
    def analyses(self) -> tuple[str, ...]:
        """The analyses that it holds."""
        return self.plan.analyses

    @cached_property
    def texts(self) -> pd.DataFrame:
        """One row a text, in order: id, tokens, loss [nats a token], status, reason, seconds, opening.

        status is ``measured``, ``failed`` (with its reason), ``duplicate`` (of the text that the reason names), or
        ``left`` in a corpus that is not finished.
        """
        rows = pd.DataFrame(
            {
                "id": [text.name for text in self.plan.texts],
                "tokens": np.zeros(len(self.plan.texts), dtype=np.int64),
                "loss": np.nan,
                "status": [text.status or LEFT for text in self.plan.texts],
                "reason": [text.reason for text in self.plan.texts],
                "seconds": np.nan,
                "opening": [text.opening for text in self.plan.texts],
            }
        )
        for number, reason in self.failures.items():
            rows.loc[number, ["status", "reason"]] = [UNREADABLE, reason]
        if self.finished:
            header, there = self._reader.header(), list(self.finished)
            counted = header["loss_count"]
            rows.loc[there, "status"], rows.loc[there, "reason"] = MEASURED, ""
            rows.loc[there, "tokens"] = header["tokens"].astype(np.int64)
            rows.loc[there, "seconds"] = header["seconds"]
            rows.loc[there, "loss"] = np.divide(
                header["loss_total"], counted, out=np.full(len(there), np.nan), where=counted > 0
            )
        return rows

    @property
    def loss(self) -> float | None:
        """The mean loss of all predicted tokens of all texts in nats; None where there is none."""
        header = self._reader.header()
        count = float(header["loss_count"].sum())
        return float(header["loss_total"].sum()) / count if count else None

    def mean(self, analysis: str) -> xr.Dataset:
        """An analysis of all texts together, with what another choice of texts would have given.

        A statistic that is a ratio of sums (attention a pair, entropy a query, loss a token) is the ratio of the sums
        over all texts, so that a text weighs by what it has of it; smallest and largest are those of all texts.
        Intervals are percentiles of a bootstrap over texts: 2,000 draws with a fixed seed, in each of which the texts
        are drawn with replacement and the statistic is computed as it is of all. Memory is bounded for any number of
        texts: layers are read a run at a time.

        Args:
            analysis: one of `analyses`.

        Returns:
            Each variable ``x`` of the analysis without the dimension text, and ``x_sem``, its standard error over
            texts, with ``x_low`` and ``x_high``, the ends of its 95 % interval; NaN of a single text. Counts and
            extremes have none of them: no resample of the texts says what lies beyond the largest.

        Raises:
            InputError: the corpus does not hold the analysis.
            CorpusError: no text was measured.

        Source:
            Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
        """
        return self._estimates(range(len(self._some()))).mean(self._held(analysis))

    def compare(
        self, other: "CorpusData", analysis: str = "head_summary", labels: tuple[str, str] = ("a", "b")
    ) -> xr.Dataset:
        """Another corpus held against this one, on the texts that both measured, head by head: other − this.

        Two models, or one under two schedules, on the same texts; each draw of the bootstrap takes the same texts of
        both. The intervals of a score hold for all heads at once with 95 %, so that whichever head's interval leaves
        out 0 is a finding, however many heads there are.

        Args:
            other: what changed.
            analysis: one that both hold, with numbers for each head.
            labels: names of the two: this one's first.

        Returns:
            Over (layer, head): ``x_difference``, ``x_low`` and ``x_high`` for each score x.

        Raises:
            InputError: not two corpora of models of one shape, an analysis that one does not hold or that has no
                number for each head, or fewer than two texts in both.

        Source:
            Romano and Wolf, Econometrica 73, 2005 (max-t).
        """
        if not isinstance(other, CorpusData):
            raise InputError(f"other={checks.shown(other)}: give a corpus, such as interp.open_corpus returns")
        if len(set(labels)) != 2:
            raise InputError(f"labels={labels!r}: give two different names")
        self._held(analysis)
        other._held(analysis)
        shapes = [(c.plan.model.layers, c.plan.model.heads) for c in (self, other)]
        if shapes[0] != shapes[1]:
            said = [f"layers {number_ranges(layers)} of {heads} heads" for layers, heads in shapes]
            raise InputError(f"heads correspond only in models of one shape, not {said[0]} and {said[1]}")
        theirs = {other.plan.texts[n].sha256: at for at, n in enumerate(other.finished)}
        ours = [(at, self.plan.texts[n].sha256) for at, n in enumerate(self.finished)]
        both = [(at, theirs[sha]) for at, sha in ours if sha in theirs]
        if len(both) < 2:
            raise InputError(f"{len(both)} texts are in both corpora: measure the same texts, at least 2, in each")
        mine, others = zip(*both, strict=True)
        return self._estimates(mine).differences(other._estimates(others), analysis, labels)

    def spread(self, analysis: str = "head_summary") -> xr.Dataset:
        """How far texts lie apart in each head: which heads do the same whatever they read, and which do not.

        Args:
            analysis: one that it holds, with numbers for each head.

        Returns:
            For each score x over (layer, head): ``x_sd``, the standard deviation over texts, each counted once, and
            ``x_quantile`` over (q, layer, head), the quantiles 5, 25, 50, 75 and 95 % of the texts.

        Raises:
            InputError: the corpus does not hold the analysis, or it has no number for each head.
            CorpusError: no text was measured.
        """
        return self._estimates(range(len(self._some()))).spread(self._held(analysis))

    def top_texts(self, analysis: str, variable: str, layer: int, head: int, n: int = 10) -> xr.Dataset:
        """The texts in which a head scores highest, and the token ids that they begin with.

        Args:
            analysis: one that it holds.
            variable: which of its numbers for each head.
            layer: the head's layer.
            head: the head.
            n: how many texts.

        Returns:
            Over rank: text (its id), value, tokens (how many), loss, opening.

        Raises:
            InputError: there is no such analysis or number, or n is below 1.
            StageError: no such layer or head.
        """
        data = self[analysis]
        names = [str(name) for name, v in data.data_vars.items() if v.dims == ("text", "layer", "head")]
        checks.choice("variable", variable, names)
        if checks.whole("layer", layer, error=StageError) not in self.plan.model.layers:
            raise StageError(f"no layer {layer}: the corpus holds {number_ranges(self.plan.model.layers)}")
        head = head_numbers(head, self.plan.model.heads)[0]
        values = data[variable].sel(layer=layer, head=head).values
        there = np.flatnonzero(np.isfinite(values))
        best = there[np.argsort(-values[there], kind="stable")][: checks.whole("n", n, at_least=1)]
        rows = self.texts.loc[[self.finished[at] for at in best]]
        said = data[variable].attrs
        columns = {
            "text": (rows["id"].to_numpy(str), {"units": "", "description": "the text's id"}),
            "value": (values[best], said),
            "tokens": (rows["tokens"].to_numpy(), {"units": "token", "description": "tokens that were read"}),
            "loss": (rows["loss"].to_numpy(), {"units": "nat", "description": "mean loss of its tokens"}),
            "opening": (rows["opening"].to_numpy(str), {"units": "", "description": "how it begins"}),
        }
        out = xr.Dataset(
            {name: ("rank", numbers, attrs) for name, (numbers, attrs) in columns.items()},
            {"rank": np.arange(len(best))},
        )
        what = f"texts in which {head_name(layer, head)} scores highest: {said['description']}"
        return result_of("top_texts", out, what)

    def capture(self, text: int | str, model: Any = None, **options: Any) -> Capture:
        """A text captured again, to be looked at: the same tokens, through the same model.

        Args:
            text: its id or its number in `texts`.
            model: the model; None loads it from where the corpus loaded it.
            **options: of `interp.capture`, such as ``path``.

        Raises:
            InputError: there is no such text, or it was not measured.
            CorpusError: nothing says where the model came from, or the model given has other weights.
        """
        number = self.number_of(text)
        if number not in self.finished:
            row = self.texts.loc[number]
            raise InputError(f"text {row['id']!r} was not measured ({row['status']}: {row['reason']})")
        if model is None and not self.plan.source:
            raise CorpusError("this corpus was measured with a model in memory: give it as model=")
        found = load(self.plan.source if model is None else model)
        weights = facts_of(found, None).weights
        if weights != self.plan.model.weights:
            raise CorpusError(
                f"the model has weights {weights[:12]}, and this corpus was measured with "
                f"{self.plan.model.weights[:12]}: give the model that it was measured with"
            )
        settings: dict[str, Any] = {"layers": list(self.plan.model.layers), **options}
        return capture(found, self._reader.tokens(number), **settings)

    def number_of(self, text: int | str) -> int:
        """The number of a text, by its id or its number.

        Raises:
            InputError: there is no such text.
        """
        if isinstance(text, str):
            names = [entry.name for entry in self.plan.texts]
            if text not in names:
                raise InputError(f"no text {text!r}: `corpus.texts` lists their ids")
            return names.index(text)
        return checks.whole("text", text, at_least=0, at_most=len(self.plan.texts) - 1)

    def __repr__(self) -> str:
        return self.summary()

    def summary(self) -> str:
        """What it holds, in lines."""
        counts = self.texts["status"].value_counts()
        states = ", ".join(f"{counts[s]:,} {s}" for s in (MEASURED, UNREADABLE, DUPLICATE, LEFT) if s in counts)
        rows = self.texts[self.texts["status"] == MEASURED]
        model = self.plan.model
        lines = [
            ("model", f"{model.name}, {model.dtype}, layers {number_ranges(model.layers)} of {model.n_layers}"),
            ("texts", f"{len(self.plan.texts):,} ({states}), {self.plan.where}"),
            ("tokens", f"{sum(rows['tokens'].tolist()):,}, at most {self.plan.n_tokens:,} of a text"),
            ("loss", self._loss_in_words()),
            ("analyses", ", ".join(self.plan.analyses)),
            ("where", self.store.place),
        ]
        return "\n".join(f"{name:<9} {value}" for name, value in lines)

    def _loss_in_words(self) -> str:
        """The mean loss, or that there is none."""
        return "none" if self.loss is None else f"{self.loss:.4f} nats a token"

    @cached_property
    def _reader(self) -> Reader:
        return Reader(self.store, self.plan, Records(self.plan), self.finished)

    def _estimates(self, texts: Sequence[int]) -> Estimates:
        return Estimates(self._reader, tuple(texts))

    def _some(self) -> tuple[int, ...]:
        """The texts that were measured, of which there must be one."""
        if not self.finished:
            raise CorpusError(f"no text of the corpus in {self.store.place!r} was measured: `corpus.texts` says why")
        return self.finished

    def _held(self, analysis: Any) -> str:
        """The name of an analysis that this corpus holds."""
        if not isinstance(analysis, str):
            raise InputError(f"{checks.shown(analysis)}: give the name of an analysis: {', '.join(self.analyses)}")
        check_analysis(analysis)
        if analysis not in self.analyses:
            raise InputError(
                f"this corpus holds {', '.join(self.analyses)}, and not {analysis}: measure it with analyses="
            )
        return analysis
