"""What a gradient is taken of: one number made of a model's logits at some positions of a text.

    m = metrics.logit_difference(" Paris", " London", position=-1)
    cap = capture(model, text, gradient_of=m)

A metric is a value: it knows its positions, so that no other logits are computed. What it says in words (the text of a
token, a position counted from the end) is looked up in the model and the text when the capture runs.
"""

import ast
import hashlib
import types
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from hooks import checks
from hooks.base.losses import LOGIT_BYTES
from hooks.errors import InputError, MaterializationError, PositionError
from hooks.memory import free_bytes

__all__ = ["Metric", "custom", "logit", "logit_difference", "loss"]

LogitsAt = Callable[[Int[Tensor, " position"]], Float[Tensor, "position d_vocab"]]
_FARTHEST = 2**53
_PLAIN = (type(None), bool, int, float, complex, str, bytes)


@dataclass(frozen=True)
class Metric:
    """What a gradient is taken of; made by `logit`, `logit_difference`, `loss` or `custom`.

    Attributes:
        kind: which of the four.
        name: the call that makes it, or the name that `custom` was given.
        tokens: tokens by text or id.
        positions: positions whose logits it reads, below 0 counted from the end; None is every one that predicts.
        function: of a custom one, logits to number.
    """

    kind: str
    name: str
    tokens: tuple[str | int, ...] = ()
    positions: tuple[int, ...] | None = None
    function: Callable[[Tensor], Tensor] | None = None

    def resolve(self, model: Any, tokens: Int[Tensor, " pos"], places: Int[Tensor, " pos"] | None = None) -> "Resolved":
        """The metric on one text of one model, its tokens as ids and its positions counted from 0.

        Args:
            model: whose vocabulary it is: a HookedTransformer, native or attached.
            tokens: the text.
            places: place of each token in its document, where several are packed into the row.

        Raises:
            TokenizerError: a text that is no token or several, or a model without a tokenizer.
            InputError: an id outside the vocabulary.
            PositionError: a position that the text does not have, or after which a loss has no token to predict.
        """
        ids = tuple(t if isinstance(t, int) else model.to_single_token(t) for t in self.tokens)
        for token in ids:
            if token >= model.cfg.d_vocab:
                raise InputError(f"{self.name}: token id {token} is outside the vocabulary of {model.cfg.d_vocab:,}")
        n = len(tokens)
        predicts = torch.zeros(n, dtype=torch.bool)
        predicts[:-1] = True if places is None else places[1:].cpu() > 0
        if self.positions is None:
            at = predicts.nonzero()[:, 0]
        else:
            for position in self.positions:
                if not -n <= position < n:
                    raise PositionError(f"{self.name}: no position {position} in a text of {n:,} tokens")
            at = torch.tensor([position % n for position in self.positions])
        if self.kind == "loss" and (not len(at) or not bool(predicts[at].all())):
            wrong = "none" if not len(at) else f"position {int(at[~predicts[at]][0])}"
            raise PositionError(
                f"{self.name}: {wrong} predicts a token of the text; the loss at position i is that of token i + 1"
            )
        following = tokens.cpu()[(at + 1).clamp_max(n - 1)]
        return Resolved(self, ids, at, following, int(model.cfg.d_vocab))


@dataclass(frozen=True, eq=False)
class Resolved:
    """A metric on one text of one model.

    Attributes:
        metric: the metric as it was asked for.
        tokens: token ids.
        positions: positions from 0.
        following: the token after each of them, which a loss reads.
        d_vocab: size of the vocabulary.
    """

    metric: Metric
    tokens: tuple[int, ...]
    positions: Int[Tensor, " position"]
    following: Int[Tensor, " position"]
    d_vocab: int

    @property
    def name(self) -> str:
        """What the metric is called."""
        return self.metric.name

    def of(self, logits_at: LogitsAt) -> Float[Tensor, ""]:
        """The metric, in float32 or wider.

        Args:
            logits_at: gives the logits at some positions, in the graph of what the gradient is taken to.

        Raises:
            InputError: a custom function that gives no number, or one that the logits do not decide.
            MaterializationError: the logits that a custom function reads at once would not fit in memory.
        """
        if self.metric.kind == "loss":
            return self._loss(logits_at)
        if self.metric.kind == "custom":
            return self._custom(logits_at)
        logits = _wide(logits_at(self.positions))[0]
        first = logits[self.tokens[0]]
        return first if len(self.tokens) == 1 else first - logits[self.tokens[1]]

    def _loss(self, logits_at: LogitsAt) -> Float[Tensor, ""]:
        """Mean −log p, a few hundred positions of logits at a time, which are computed once more for the gradient."""

        def nll(at: Tensor, following: Tensor) -> Tensor:
            logits = _wide(logits_at(at))
            return functional.cross_entropy(logits, following.to(logits.device), reduction="sum")

        rows = max(LOGIT_BYTES // (4 * self.d_vocab), 1)
        parts = zip(self.positions.split(rows), self.following.split(rows), strict=True)
        recompute = torch.is_grad_enabled() and len(self.positions) > rows
        sums = [checkpoint(nll, *part, use_reentrant=False) if recompute else nll(*part) for part in parts]
        return torch.stack(sums).sum() / len(self.positions)

    def _custom(self, logits_at: LogitsAt) -> Float[Tensor, ""]:
        """What the function makes of the logits at its positions."""
        assert self.metric.function is not None
        needed, free = 12 * len(self.positions) * self.d_vocab, free_bytes()
        if needed > free:
            raise MaterializationError(
                f"{self.name}: logits at {len(self.positions):,} positions and their gradients take {needed:,} bytes "
                f"and {free:,} are free: read fewer positions, or use metrics.loss, which never holds them whole"
            )
        value = self.metric.function(_wide(logits_at(self.positions)))
        if not isinstance(value, Tensor) or value.shape != () or not value.is_floating_point():
            raise InputError(f"{self.name} gave {checks.shown(value)}: its function returns a tensor of one number")
        if torch.is_grad_enabled() and not value.requires_grad:
            raise InputError(f"{self.name} does not depend on the logits: its function must compute with them in torch")
        return value

    def description(self) -> dict[str, Any]:
        """What tells this metric from another: plain values, the same in every process.

        Raises:
            InputError: a custom function that cannot be compared with itself later.
        """
        found: dict[str, Any] = {"kind": self.metric.kind, "name": self.name, "tokens": list(self.tokens)}
        found["positions"] = self.positions.tolist()
        if self.metric.function is not None:
            found["code"] = _code_hash(self.name, self.metric.function)
        return found


def logit(token: str | int, position: int = -1) -> Metric:
    """The logit of a token.

    Args:
        token: its text, which is one token (mind the space in front of words), or its id.
        position: where it is predicted: the logits at position i are those for token i + 1; below 0 from the end.

    Raises:
        InputError: no token, no position.
    """
    return Metric("logit", f"logit({_token(token)!r}, position={position})", (_token(token),), (_position(position),))


def logit_difference(token: str | int, other: str | int, position: int = -1) -> Metric:
    """The logit of one token less that of another, ``logit(token) − logit(other)``: no shift of all logits moves it.

    Args:
        token: the token spoken for, by text or id.
        other: the one spoken against.
        position: where they are predicted, as in `logit`.

    Raises:
        InputError: no token, no position, or the same token twice.
    """
    both = _token(token), _token(other)
    if both[0] == both[1]:
        raise InputError(f"logit_difference of {both[0]!r} and itself is always 0: give two tokens")
    name = f"logit_difference({both[0]!r}, {both[1]!r}, position={position})"
    return Metric("logit_difference", name, both, (_position(position),))


def loss(positions: int | Sequence[int] | None = None) -> Metric:
    """Mean loss in nats, ``Σ_i −ln p(token i + 1) / count``.

    Args:
        positions: from where the tokens are predicted, one or several; None is every position with a next token.

    Raises:
        InputError: no positions.
    """
    at = None if positions is None else _positions(positions)
    return Metric("loss", "loss()" if at is None else f"loss({_listed(at)})", positions=at)


def custom(fn: Callable[[Tensor], Tensor], positions: int | Sequence[int], name: str) -> Metric:
    """A metric of your own.

    A capture on disk that was interrupted goes on only with a function of the same name, code, defaults and closed-over
    values; what it reads from globals is not compared.

    Args:
        fn: takes logits [position d_vocab] in float32 or wider, at the positions in the order given, and returns a
            tensor of one number that it computed from them in torch.
        positions: the positions whose logits it reads.
        name: what the metric is called.

    Raises:
        InputError: no function, no positions, or no name.
    """
    if not callable(fn):
        raise InputError(f"fn={checks.shown(fn)}: give a function of logits [position d_vocab]")
    if not checks.text("name", name).strip():
        raise InputError(f"name={name!r}: give the metric a name")
    return Metric("custom", name, positions=_positions(positions), function=fn)


def from_text(text: str) -> Metric:
    """The metric that a call in words makes, such as ``logit(' Paris', position=-1)``: what `Metric.name` gives back.

    Raises:
        InputError: no such call; a custom metric, which is a function.
    """
    makers: dict[str, Callable[..., Metric]] = {"logit": logit, "logit_difference": logit_difference, "loss": loss}
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name):
            if call.func.id == "custom":
                raise InputError(f"{text!r}: a custom metric is a function; capture in Python, with metrics.custom(…)")
            given = [ast.literal_eval(each) for each in call.args]
            named = {str(each.arg): ast.literal_eval(each.value) for each in call.keywords}
            return makers[call.func.id](*given, **named)
    except (SyntaxError, KeyError, TypeError, ValueError, MemoryError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
    raise InputError(
        f"{checks.shown(text)} is no metric: write logit(' Paris', position=-1), logit_difference(' Paris', ' London') "
        "or loss()"
    )


def from_description(found: dict[str, Any]) -> Metric:
    """The metric that a description is of.

    Raises:
        InputError: a custom one, whose function no file holds, or no description.
    """
    kind, at, ids = found.get("kind"), found.get("positions"), found.get("tokens")
    if kind == "custom":
        raise InputError(
            f"the metric {found.get('name')!r} is a function, which no file holds: go on in Python, with "
            "capture(model, tokens, path, gradient_of=metrics.custom(…)) and the same function and name"
        )
    if kind not in ("logit", "logit_difference", "loss") or not isinstance(at, list) or not isinstance(ids, list):
        raise InputError(f"{checks.shown(found)} describes no metric")
    return Metric(kind, str(found.get("name")), tuple(ids), tuple(at))


def _token(value: Any) -> str | int:
    """A token's text or its id."""
    if isinstance(value, str):
        if not value:
            raise InputError("token='': give the text of a token, or its id")
        return value
    return checks.whole("token", value, at_least=0)


def _position(value: Any) -> int:
    return checks.whole("position", value, at_least=-_FARTHEST, at_most=_FARTHEST)


def _positions(value: Any) -> tuple[int, ...]:
    """One or several positions, at least one."""
    found = checks.wholes("positions", value, at_least=-_FARTHEST, at_most=_FARTHEST)
    if not found:
        raise InputError("positions=(): give at least one")
    return found


def _listed(at: tuple[int, ...]) -> str:
    """Positions as a call shows them, many by their ends."""
    if len(at) == 1:
        return str(at[0])
    return str(list(at)) if len(at) <= 6 else f"[{at[0]}, {at[1]}, …, {at[-1]}: {len(at):,} positions]"


def _wide(logits: Tensor) -> Tensor:
    """Logits in float32 or wider."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _code_hash(name: str, function: Callable) -> str:
    """SHA-256 over the code of a function, its defaults and what it closes over."""
    digest = hashlib.sha256()
    for part in _parts(name, function):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def _parts(name: str, value: Any) -> Iterable[bytes]:
    """A value in bytes that are the same in every process."""
    yield type(value).__name__.encode()
    if isinstance(value, _PLAIN):
        yield repr(value).encode()
    elif isinstance(value, types.CodeType):
        yield value.co_code
        yield repr((value.co_names, value.co_varnames, value.co_freevars)).encode()
        for each in value.co_consts:
            yield from _parts(name, each)
    elif isinstance(value, types.FunctionType):
        cells = tuple(cell.cell_contents for cell in value.__closure__ or ())
        yield from _parts(name, value.__code__)
        for each in (value.__defaults__, value.__kwdefaults__, cells):
            yield from _parts(name, each)
    elif isinstance(value, Tensor | np.ndarray):
        array = torch.as_tensor(value).detach().cpu().contiguous()
        yield f"{array.dtype} {tuple(array.shape)}".encode()
        yield array.view(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(value, types.ModuleType):
        yield value.__name__.encode()
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _parts(name, each)
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _parts(name, (key, each))
    elif isinstance(value, set | frozenset):
        yield from sorted(b"".join(_parts(name, each)) for each in value)
    else:
        raise InputError(
            f"{name}: its function holds {checks.shown(value)}, which cannot be compared when the capture goes on: "
            "give a plain function of logits, numbers and tensors, or capture in memory"
        )
