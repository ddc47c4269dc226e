"""What a foreign decoder is made of, found by running it once on a few tokens and watching which module does what.

Nothing goes by a model's name: decoder layers are where modules call transformers' attention interface, and the steps
between projection and score follow from comparing the tensors that pass by.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from hooks.attached.interface import IMPLEMENTATION, recording
from hooks.config.attention_spec import AttentionSpec
from hooks.config.steps import STEP_OUTPUT
from hooks.errors import AttachError
from hooks.families.table import FAMILIES

PROBE_LENGTH = 7
_STEPS = 13.7  # ids of a long probe run through the vocabulary so many at a time, so that few repeat at a period
_PROJECTIONS = {
    "q": ("q_proj", "query_proj", "query"),
    "k": ("k_proj", "key_proj", "key"),
    "v": ("v_proj", "value_proj", "value"),
}
_NORMS = {
    "q": ("q_norm", "q_layernorm", "query_layernorm", "q_layer_norm", "qk_norm", "qk_layernorm"),
    "k": ("k_norm", "k_layernorm", "key_layernorm", "k_layer_norm", "qk_norm", "qk_layernorm"),
    "v": (),
}

Layout = Literal["flat", "pos head", "head pos"]


class Call(NamedTuple):
    """One call of a module: its first tensor in, its first tensor out, and whether that is all it returned."""

    given: Tensor
    out: Tensor
    bare: bool


@dataclass(frozen=True)
class Tap:
    """Where a tensor can be read and replaced: a module's output (or input), how it is laid out, and which call."""

    module: nn.Module
    layout: Layout
    is_input: bool = False
    turn: int = 0
    turns: int = 1


@dataclass
class LayerFacts:
    """One decoder layer as the probe saw it; `attention` is None where it has no softmax attention."""

    layer: nn.Module
    calls: list[Call]
    attention: nn.Module | None = None
    q: Tensor = field(default_factory=lambda: torch.empty(0))
    k: Tensor = field(default_factory=lambda: torch.empty(0))
    v: Tensor = field(default_factory=lambda: torch.empty(0))
    spec: AttentionSpec = field(default_factory=lambda: AttentionSpec(1.0))
    steps: dict[str, tuple[str, ...]] = field(default_factory=dict)
    taps: dict[str, Tap] = field(default_factory=dict)
    seen: dict[str, Tensor] = field(default_factory=dict)
    streams: dict[str, nn.Module] = field(default_factory=dict)
    norms: dict[str, Tap] = field(default_factory=dict)
    output: nn.Module | None = None

    @property
    def output_points(self) -> tuple[str, ...]:
        """What can be hooked behind the output projection: per head only where it is a plain matrix over heads."""
        weight = getattr(self.output, "weight", None)
        width = self.q.shape[2] * self.v.shape[3] if self.attention is not None else 0
        plain = isinstance(weight, Tensor) and weight.is_floating_point() and weight.shape[1:] == (width,)
        return () if self.output is None else ("hook_result", "hook_out") if plain else ("hook_out",)

    def final(self, tensor: str) -> str:
        """The point at which q, k or v enters the attention function."""
        steps = self.steps[tensor]
        return STEP_OUTPUT[steps[-1]].format(tensor) if steps else f"hook_{tensor}"

    def reachable(self, tensor: str) -> list[str]:
        """The points of q, k or v that can be hooked, in order; the last is the final one."""
        return [point for point in self._points(tensor) if point in self.taps or point == self.final(tensor)]

    def visible_steps(self) -> int:
        """How many of the last steps of q and of k have a point on both sides."""
        counts = []
        for tensor in ("q", "k"):
            backwards = [point in self.reachable(tensor) for point in reversed(self._points(tensor))]
            counts.append([*backwards, False].index(False) - 1)
        return min(counts)

    def _points(self, tensor: str) -> list[str]:
        """The points that q, k or v would have if all of them could be hooked."""
        return [f"hook_{tensor}", *(STEP_OUTPUT[step].format(tensor) for step in self.steps[tensor])]


def find_layers(model: nn.Module, first: int = 0) -> list[LayerFacts]:
    """Run `model` (its interface already ours) on a few tokens and read its decoder layers off what happened.

    Args:
        model: the model.
        first: position of the first token.

    Raises:
        AttachError: the run fails, no module calls the interface, or two layers share one attention module.
    """
    attending: dict[nn.Module, tuple[Tensor, Tensor, Tensor, AttentionSpec]] = {}

    def record(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec) -> None:
        attending.setdefault(module, (q.clone(), k.clone(), v.clone(), spec))

    name, failure = type(model).__name__, None
    with _watching(model) as calls, recording(record), torch.no_grad():
        try:
            run_probe(model, first=first)
        except Exception as error:
            failure = error
    if not attending and not _calls_the_interface(model):
        raise AttachError(
            f"the attention of {name} does not go through transformers' AttentionInterface, so its q and k cannot be "
            f"seen from outside; {_other_way(model)}"
        ) from failure
    if isinstance(failure, AttachError):
        raise AttachError(f"{name} cannot be attached: {failure}; {_other_way(model)}") from failure
    if failure is not None:
        raise AttachError(
            f"{name} cannot be attached: a run on {PROBE_LENGTH} token ids through transformers' AttentionInterface "
            f"failed with {type(failure).__name__}: {failure}"
        ) from failure
    if not attending:
        raise AttachError(f"{name} attended nowhere on {PROBE_LENGTH} token ids; {_other_way(model)}")
    layers = _decoder_layers(model, list(attending))
    settings = model.config.get_text_config().to_dict()  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    return [_facts(layer, calls, attending, settings) for layer in layers]


def _calls_the_interface(model: nn.Module) -> bool:
    """Whether any of its modules is of code that knows transformers' attention functions."""
    sources = {type(module).__module__ for module in model.modules()}
    return any(hasattr(sys.modules.get(source), "ALL_ATTENTION_FUNCTIONS") for source in sources)


def _other_way(model: nn.Module) -> str:
    """What there is instead of attaching."""
    kind = model.config.get_text_config().model_type  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    if kind in FAMILIES:
        return "HookedTransformer.from_pretrained(model) loads it, on the same weights"
    return f"HookedTransformer.from_pretrained has no row for {kind!r} either, so this project cannot hook it"


def run_probe(model: Any, n: int = PROBE_LENGTH, first: int = 0, **options: Any) -> Any:
    """One pass over n ordinary token ids, at positions from `first` on."""
    text_config = model.config.get_text_config()
    named = [v for c in (model.config, text_config) for k, v in vars(c).items() if k.endswith(("_id", "_index"))]
    special = {each for v in named for each in (v if isinstance(v, list | tuple) else [v])}
    ordinary = [i for i in range(text_config.vocab_size) if i not in special] or [0]
    spread = n if n == PROBE_LENGTH else _STEPS
    ids = [ordinary[int((2 * i + 1) * len(ordinary) / (2 * spread)) % len(ordinary)] for i in range(n)]
    device = model.get_input_embeddings().weight.device
    if first:
        options["position_ids"] = torch.arange(first, first + n, device=device)[None]
        options["attention_mask"] = torch.ones(1, n, dtype=torch.long, device=device)
    return model(input_ids=torch.tensor([ids], device=device), use_cache=False, **options)


def first_tensor(value: Any) -> Tensor | None:
    """A module's own output where it returns several things."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, (tuple, list)) and value and isinstance(value[0], Tensor):
        return value[0]
    return None


@contextmanager
def _watching(model: nn.Module) -> Iterator[dict[nn.Module, list[Call]]]:
    """Record the calls of everything up to three levels inside any list of modules."""
    calls: dict[nn.Module, list[Call]] = {}

    def record(module: nn.Module, args: tuple, kwargs: dict, out: Any) -> None:
        given = first_tensor(args) if args else first_tensor(kwargs.get("hidden_states"))
        result = first_tensor(out)
        if given is not None and result is not None:
            calls.setdefault(module, []).append(Call(given.clone(), result.clone(), isinstance(out, Tensor)))

    watched: dict[nn.Module, None] = {}
    for group in model.modules():
        if isinstance(group, nn.ModuleList):
            for element in group:
                level = [element]
                for _ in range(3):
                    watched.update(dict.fromkeys(level))
                    level = [child for module in level for child in module.children()]
    handles = [module.register_forward_hook(record, with_kwargs=True) for module in watched]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _decoder_layers(model: nn.Module, attending: list[nn.Module]) -> list[nn.Module]:
    """The elements of the list of modules that holds the most of the attention modules."""
    held = {
        group: sum(any(module in attending for module in element.modules()) for element in group)
        for group in model.modules()
        if isinstance(group, nn.ModuleList)
    }
    best = max(held, key=lambda group: held[group], default=None)
    if best is None or not held[best]:
        raise AttachError(f"{type(model).__name__} keeps its layers in no nn.ModuleList, so they cannot be counted")
    return list(best)


def _facts(
    layer: nn.Module,
    calls: dict[nn.Module, list[Call]],
    attending: dict[nn.Module, tuple[Tensor, Tensor, Tensor, AttentionSpec]],
    settings: dict[str, Any],
) -> LayerFacts:
    """What one layer is made of."""
    facts = LayerFacts(layer, calls.get(layer, []))
    if len(facts.calls) > 1:
        raise AttachError(f"{type(layer).__name__} runs {len(facts.calls)} times in one pass; attach names layers once")
    facts.attention = next((module for module in layer.modules() if module in attending), None)
    if facts.attention is not None:
        facts.q, facts.k, facts.v, facts.spec = attending.pop(facts.attention)
        for tensor in ("q", "k", "v"):
            _trace(facts, tensor, calls, settings)
        attention_out = calls[facts.attention][0].out
        facts.output = next(
            (m for m in facts.attention.children() if m in calls and torch.equal(calls[m][-1].out, attention_out)), None
        )
    facts.streams = _streams(facts, calls)
    return facts


def _trace(facts: LayerFacts, tensor: str, calls: dict[nn.Module, list[Call]], settings: dict[str, Any]) -> None:
    """The steps from the projection of q, k or v to what enters the attention function, and where to tap each."""
    final = getattr(facts, tensor)
    projection, norm = (_child(facts.attention, names[tensor], calls) for names in (_PROJECTIONS, _NORMS))
    start = _tapped(projection, final, calls) if projection is not None else None
    # A norm that q and k share runs on q first.
    turn = int(norm is not None and len(calls[norm]) == 2 and tensor == "k")
    into = _tapped(norm, final, calls, is_input=True, turn=turn) if norm is not None else None
    out = _tapped(norm, final, calls, turn=turn) if norm is not None else None
    if start is None and into is not None and out is not None and not _close(out[1], final):
        start = into  # q shares its projection (with a gate, or with k and v): what enters a norm that runs first is q
    points: list[tuple[str | None, tuple[Tap, Tensor] | None]] = [(None, start)]
    if into is not None and out is not None:
        facts.norms[tensor] = out[0]
        if start is not None and not _close(start[1], into[1]):
            points.append(("rope", into))
        points.append(("norm", out))
    steps = [step for step, _ in points if step is not None]
    # No module clips or rotates: a setting tells the one, and a change that nothing else explains the other.
    if settings.get("clip_qkv") is not None:
        steps.append("clip")
    last = points[-1][1]
    rotates = "rope" in str(settings) or "rotary" in str(settings) if last is None else not _close(last[1], final)
    if tensor != "v" and "rope" not in steps and rotates:
        steps.append("rope")
    facts.steps[tensor] = tuple(steps)
    for step, found in points:
        name = f"hook_{tensor}" if step is None else STEP_OUTPUT[step].format(tensor)
        if found is not None:
            facts.seen[name] = found[1]
            if name != facts.final(tensor):
                facts.taps[name] = found[0]
    facts.seen[facts.final(tensor)] = final


def _child(module: nn.Module | None, names: tuple[str, ...], calls: dict) -> nn.Module | None:
    """The first child of that name which ran."""
    found = (getattr(module, name, None) for name in names)
    return next((child for child in found if isinstance(child, nn.Module) and child in calls), None)


def _tapped(
    module: nn.Module, final: Tensor, calls: dict, is_input: bool = False, turn: int = 0
) -> tuple[Tap, Tensor] | None:
    """How to read a module's tensor as [batch pos head d_head], or None when it is not of the final tensor's size."""
    turns = len(calls[module])
    if turn >= turns or turns > 2:
        return None
    call = calls[module][turn]
    x = call.given if is_input else call.out
    batch, pos, heads, width = final.shape
    shapes: dict[tuple[int, ...], Layout] = {
        (batch, pos, heads * width): "flat",
        (batch, heads, pos, width): "head pos",
        (batch, pos, heads, width): "pos head",
    }
    layout = shapes.get(tuple(x.shape))
    return None if layout is None else (Tap(module, layout, is_input, turn, turns), to_heads(x, heads, layout))


def to_heads(x: Tensor, n_heads: int, layout: Layout) -> Tensor:
    """A module's tensor as [batch pos head d_head]."""
    if layout == "flat":
        return x.unflatten(-1, (n_heads, -1))
    return x.transpose(1, 2) if layout == "head pos" else x


def from_heads(x: Tensor, layout: Layout) -> Tensor:
    """[batch pos head d_head] as the module had it."""
    if layout == "flat":
        return x.flatten(-2)
    return x.transpose(1, 2) if layout == "head pos" else x


def _close(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same but for rounding; a step between them changes them by their own size."""
    return a.shape == b.shape and bool((a - b).abs().max() <= 0.01 * b.abs().max())


def _streams(facts: LayerFacts, calls: dict[nn.Module, list[Call]]) -> dict[str, nn.Module]:
    """The modules whose outputs attention and MLP add to the residual stream, where the sum proves it."""
    if not facts.calls or facts.calls[0].given.ndim != 3 or facts.calls[0].given.shape != facts.calls[0].out.shape:
        return {}
    before, after, _ = facts.calls[0]
    children = [child for child in facts.layer.children() if child in calls]
    attention = next((c for c in children if facts.attention in list(c.modules())), None)
    if attention is None:
        return {}
    chain = _follow(attention, children, calls)
    gain = calls[chain[-1]][-1].out
    if gain.shape != before.shape:
        return {}
    for mlp in [c for c in children if c not in chain]:
        tail = _follow(mlp, children, calls)[-1]
        out = calls[tail][-1].out
        if tail is mlp and out.numel() == before.numel():
            rest = out.reshape(before.shape)
            scale = 0.01 * torch.maximum(gain.abs().max(), rest.abs().max())
            rounding = 8 * torch.finfo(before.dtype).eps * after.abs().max()
            if bool((before + gain + rest - after).abs().max() <= scale + rounding):
                return {"hook_attn_out": chain[-1], "hook_mlp_out": mlp}
    return {}


def _follow(start: nn.Module, children: list[nn.Module], calls: dict[nn.Module, list[Call]]) -> list[nn.Module]:
    """A module and those its output goes straight into, such as a norm behind it."""
    chain = [start]
    while True:
        out = calls[chain[-1]][-1].out
        following = (c for c in children if c not in chain and torch.equal(calls[c][0].given, out))
        step = next(following, None)
        if step is None:
            return chain
        chain.append(step)


@contextmanager
def interface_set(configs: list[Any]) -> Iterator[None]:
    """Route attention and masks of these configs through our functions, and back on the way out."""
    before = [config._attn_implementation_internal for config in configs]
    try:
        for config in configs:
            config._attn_implementation_internal = IMPLEMENTATION
        yield
    finally:
        for config, implementation in zip(configs, before, strict=True):
            config._attn_implementation_internal = implementation
