"""A live transformers decoder under our hook names: the same captures, on the model's own code and weights.

q, k, v and everything up to z pass through transformers' ``AttentionInterface``; projections, norms and the residual
stream through module hooks. Nothing is converted, and `AttachedTransformer.detach` takes every trace away.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers.cache_utils import Cache

from hooks.attached.config import attached_config, unseen
from hooks.attached.interface import HANDLER, IMPLEMENTATION
from hooks.attached.keeping import empty_cache, past_inputs
from hooks.attached.partial import run_layers
from hooks.attached.points import AttachedAttention, AttachedBlock, LayerContext, Pass
from hooks.attached.probe import LayerFacts
from hooks.attached.proof import Limits
from hooks.attached.registry import AttachedRegistry
from hooks.attached.schedule import Schedule
from hooks.attached.standing_in import standing_in
from hooks.base.inputs import check_predicts, packed_documents, padding_mask, predicted_tokens, token_positions
from hooks.base.layers import layer_run
from hooks.base.losses import check_return_type, mean_loss, next_token_nll, where_predicted
from hooks.base.module import NamedHooksModule
from hooks.config.attention_spec import AttentionSpec
from hooks.config.transformer import HookedTransformerConfig
from hooks.errors import AttachError, InputError
from hooks.generation.generating import GeneratingMixin
from hooks.generation.key_values import KeyValueCache, reading
from hooks.modules.hook_point import HookPoint

ATTACHMENT = "_ropescope_attachment"


class AttachedTransformer(GeneratingMixin, NamedHooksModule):
    """A foreign decoder under our hook names; make one with ``HookedTransformer.attach(model)``.

    Works as a context manager that detaches on the way out.

    Args:
        original_model: the transformers model; its weights are used where they are.
        layers: what the probe found.
        configs: the config objects that its attention modules read.
        tokenizer: a transformers tokenizer, needed only where text goes in or out.
        schedule: what was proven of its rotation.
        limits: what was not proven of it, a sentence each.

    Attributes:
        limits: what was not proven of the model, the rotation included; ``print(attached.limits)`` shows it.
    """

    def __init__(
        self,
        original_model: Any,
        layers: list[LayerFacts],
        configs: list[Any],
        tokenizer: Any = None,
        *,
        schedule: Schedule,
        limits: Iterable[str] = (),
    ):
        super().__init__()
        self.training = original_model.training
        self.tokenizer = tokenizer
        self._run = Pass()
        self._cfg = attached_config(original_model, layers, schedule)
        self.limits = Limits((*limits, *schedule.limits, *unseen(layers)))
        self.hook_embed = HookPoint()
        blocks = [AttachedBlock(f, self._run, self.hook_embed if i == 0 else None) for i, f in enumerate(layers)]
        self.blocks = nn.ModuleList(blocks)
        self._blocks = tuple(blocks)
        self._tuples = {facts.layer: not facts.calls[0].bare for facts in layers if facts.calls}
        self._names = AttachedRegistry(self._cfg, layers)
        self.registry = self._names
        self.setup()
        # Only now: TransformerLens' setup writes a name into every module that it finds.
        self.original_model = original_model
        self._configs = [(config, config._attn_implementation_internal) for config in configs]
        self._handles = [handle for block in self._blocks for handle in block.install()]
        for config in configs:
            config._attn_implementation_internal = IMPLEMENTATION
        original_model.__dict__[ATTACHMENT] = self.detach

    @property
    def cfg(self) -> HookedTransformerConfig:
        """What the probe measured of the model; ``rope`` only where it proved right."""
        return self._cfg

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        return self.original_model.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the residual stream."""
        return self.original_model.dtype

    @property
    def is_attached(self) -> bool:
        """Whether the points still see the model."""
        return bool(self._configs)

    def detach(self) -> None:
        """Give the model its own attention back and take every hook of ours off it; safe to call twice."""
        for handle in self._handles:
            handle.remove()
        for block in self._blocks:
            if block.attn is not None:
                vars(block.attn.original_module).pop(HANDLER, None)
        for config, implementation in self._configs:
            config._attn_implementation_internal = implementation
        self._handles, self._configs = [], []
        self.original_model.__dict__.pop(ATTACHMENT, None)

    def __enter__(self) -> "AttachedTransformer":
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    @property
    def attending_layers(self) -> tuple[int, ...]:
        """The layers that call softmax attention; a hybrid's others are recurrent or convolutional."""
        return tuple(i for i, block in enumerate(self._blocks) if block.attn is not None)

    def attention_steps(self, layer: int, tensor: str) -> tuple[str, ...]:
        """The steps of q and k that can be seen from both sides in this layer, in order; see `hooks.base.registry`."""
        return self._names.steps(layer, tensor)

    def attention_spec(self, layer: int) -> AttentionSpec:
        """How a layer turns q and k into a pattern, as it told the interface."""
        self._names.steps(layer, "q")
        return cast(AttachedAttention, self._blocks[layer].attn).spec

    def forward(
        self,
        tokens: Int[Tensor, "batch pos"] | Float[Tensor, "batch pos d_model"] | str | list[str],
        return_type: str | None = "logits",
        *,
        position_ids: Int[Tensor, "batch pos"] | None = None,
        attention_mask: Bool[Tensor, "batch pos"] | Int[Tensor, "batch pos"] | None = None,
        loss_per_token: bool = False,
        past: KeyValueCache | None = None,
        start_at_layer: int | None = None,
        stop_at_layer: int | None = None,
        **inputs: Any,
    ) -> Any:
        """Run the model.

        Args:
            tokens: token ids, or texts, padded by `to_batch`; with `start_at_layer` the stream before that layer.
            return_type: "logits", "loss" (logits never held whole), "both", or None to run the body only.
            position_ids: position of each token; by default the model's own rule, or counted from the first real token
                where there is padding. Without an attention_mask, positions that start again start a new document.
            attention_mask: 0 where a token is padding.
            loss_per_token: give the loss as [batch pos−1] instead of its mean; NaN where nothing predicts a token: at
                padding, behind it, and at the first token of each packed document.
            past: what the model has read before these tokens, which it takes in too: a text may be read in parts.
            start_at_layer: the first layer that runs; below 0 counted from the end.
            stop_at_layer: the first that does not run; the residual stream before it is returned.
            **inputs: anything else that the model's forward takes by name, such as ``pixel_values``.

        Raises:
            InputError: inputs that do not fit the model.
            AttachError: the model was detached, has no output head, or got a mask without a rule.
        """
        check_return_type(return_type)
        layers = layer_run(self.cfg.n_layers, start_at_layer, stop_at_layer, return_type=return_type, past=past)
        if start_at_layer is not None or stop_at_layer is not None:
            if inputs:
                raise InputError(f"a part of the layers takes no other inputs than tokens: leave {sorted(inputs)} out")
            given: Any = tokens
            if start_at_layer is None:
                given, attention_mask = self._read(tokens, attention_mask)
            at = {"position_ids": position_ids, "attention_mask": attention_mask}
            resid = run_layers(self, given, layers, from_tokens=start_at_layer is None, **at)
            if stop_at_layer is not None:
                return resid
            return None if return_type is None else self.unembed_residual(resid)
        ids, attention_mask = self._read(tokens, attention_mask, past)
        call, positions, documents = self._call(ids, position_ids, attention_mask, inputs, past)
        predicted = predicted_tokens(ids, padding_mask(attention_mask, ids), documents)
        if return_type in ("loss", "both") and not loss_per_token:
            check_predicts(ids, predicted)
        with (
            reading(past, self, positions, padding_mask(attention_mask, ids)),
            self._at(positions if past is None else past.positions, documents),
        ):
            if return_type == "logits":
                return self._with_head(call).logits
            body = self._base(**call)
        if return_type is None:
            return None
        nll = where_predicted(self._nll(body, ids), predicted)
        loss = nll if loss_per_token else mean_loss(nll, predicted)
        return (self._logits(body, ids), loss) if return_type == "both" else loss

    @torch.no_grad()
    def loss_per_token(self, tokens: Tensor | str | list[str], **options: Any) -> Float[Tensor, "batch pos-1"]:
        """Loss of each predicted token in nats, logits never held whole; options as in `forward`."""
        return self.forward(tokens, return_type="loss", loss_per_token=True, **options)

    # One block at a time: what `HookedTransformer` offers for long captures.

    def embed_tokens(
        self, tokens: Int[Tensor, "batch pos"], *, position_ids: Int[Tensor, "batch pos"] | None = None
    ) -> Float[Tensor, "batch pos d_model"]:
        """The residual stream before the first block; some models add an embedding of each position."""
        return self.hook_embed(self._enter(tokens, position_ids)[0])

    def context(
        self,
        tokens: Int[Tensor, "batch pos"],
        *,
        position_ids: Int[Tensor, "batch pos"] | None = None,
        attention_mask: Int[Tensor, "batch pos"] | None = None,
    ) -> LayerContext:
        """What the model hands each layer beside the residual stream, for ``model.blocks[i](resid, context)``."""
        return self._enter(tokens, position_ids, attention_mask)[1]

    def next_logits(
        self,
        tokens: Int[Tensor, "batch pos"],
        *,
        attention_mask: Bool[Tensor, "batch pos"] | None = None,
        past: KeyValueCache | None = None,
    ) -> Float[Tensor, "batch d_vocab"]:
        """Logits after the last token, those of the others left out where the model can; see `forward`."""
        inputs: dict[str, Any] = {"attention_mask": attention_mask, "past": past}
        if "logits_to_keep" in inspect.signature(self.original_model.forward).parameters:
            inputs["logits_to_keep"] = 1
        return self.forward(tokens, **inputs)[:, -1]

    def empty_key_values(self) -> Cache:
        """Layers of a cache that hold nothing yet; see `hooks.generation.key_values.KeyValueCache`.

        Raises:
            AttachError: the model keeps its past in another form, or what it keeps would go stale unseen.
        """
        return empty_cache(self)

    def residual_loss(
        self, resid: Float[Tensor, "batch pos d_model"], tokens: Int[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch pos-1"]:
        """Loss per predicted token in nats, from the residual stream after the last block."""
        tokens = tokens.to(self.device)
        return self._nll(self._leave(resid, tokens), tokens)

    def unembed_residual(self, resid: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits of a residual stream after the last block."""
        tokens = torch.zeros(resid.shape[:2], dtype=torch.long, device=self.device)
        return self._logits(self._leave(resid, tokens), tokens)

    @property
    def has_head(self) -> bool:
        """Whether the model has its output head, without which there are neither logits nor a loss."""
        return self.original_model.get_output_embeddings() is not None

    @property
    def _base(self) -> Any:
        """The model without its output head: the part of it that holds the layers."""
        parts = (part for part in self.original_model.children() if not isinstance(part, nn.ModuleList))
        body = next((part for part in parts if self._blocks[0].layer in part.modules()), None)
        return self.original_model if body is None else body

    def _call(
        self,
        ids: Tensor,
        position_ids: Any,
        attention_mask: Tensor | None,
        inputs: dict[str, Any],
        past: KeyValueCache | None = None,
    ) -> tuple[dict[str, Any], Tensor, Tensor | None]:
        """Keyword arguments of the model's forward, the position of each token, and where packed documents begin."""
        if not self.is_attached:
            raise AttachError("this model was detached; HookedTransformer.attach(model) attaches it again")
        known = set(inspect.signature(self.original_model.forward).parameters) - {"kwargs"}
        for name in inputs:
            if name not in known:
                raise InputError(
                    f"{type(self.original_model).__name__} takes no input {name!r}; it takes {sorted(known)}"
                )
        real = padding_mask(attention_mask, ids)
        mask = torch.ones_like(ids) if real is None else real.to(ids)
        call = {"input_ids": ids, "attention_mask": mask, "use_cache": False, **inputs}
        if past is not None:
            positions = past.following(ids, position_ids, real)
            return call | past_inputs(self.original_model, past, positions, mask), positions, None
        positions, documents = token_positions(position_ids, ids, real), None
        if position_ids is not None:
            documents = packed_documents(positions, real, masked=attention_mask is not None)
        if documents is not None:
            if len(self.attending_layers) < len(self._blocks):
                raise AttachError(
                    f"position_ids start again, and layers of {type(self.original_model).__name__} that call no "
                    "softmax attention carry what they read from one document into the next; give each a row of its own"
                )
            call["attention_mask"] = None  # only then does transformers look for documents in the positions
        if position_ids is not None or real is not None:
            call["position_ids"] = positions
        return call, positions, documents

    @contextmanager
    def _at(self, positions: Tensor, documents: Tensor | None) -> Iterator[None]:
        """Run with these positions known to the rows points, and documents expected in every mask."""
        before = self._run.positions, self._run.documents
        self._run.positions, self._run.documents = positions, documents
        try:
            yield
        finally:
            self._run.positions, self._run.documents = before

    def _with_head(self, call: dict[str, Any]) -> Any:
        """The whole model's output."""
        if not self.has_head:
            name = type(self.original_model).__name__
            raise AttachError(f"{name} has no output head, so no logits and no loss; attach the model with its LM head")
        return self.original_model(**call)

    def _logits(self, body: Any, ids: Tensor, keep: Tensor | None = None) -> Tensor:
        """The head's logits of a body's output, at some positions or all."""
        call: dict[str, Any] = {"input_ids": ids, "use_cache": False}
        if keep is not None:
            call["logits_to_keep"] = keep
        with standing_in([self._base], lambda *_, **__: body):
            return self._with_head(call).logits

    def _nll(self, body: Any, ids: Tensor) -> Float[Tensor, "batch pos-1"]:
        """−log p of each next token, from a body's output."""
        whole = "logits_to_keep" not in inspect.signature(self.original_model.forward).parameters

        def logits(start: int, stop: int) -> Tensor:
            if whole:
                return self._logits(body, ids)[:, start:stop]
            return self._logits(body, ids, torch.arange(start, stop, device=self.device))

        return next_token_nll(logits, ids, d_vocab=self.cfg.d_vocab, dtype=self.dtype, at_once=whole)

    def _enter(
        self, tokens: Tensor, position_ids: Any = None, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, LayerContext]:
        """The first layer's input and every layer's other arguments, from a pass in which layers do nothing."""
        beside: dict[nn.Module, tuple[tuple, dict]] = {}
        streams: list[Tensor] = []

        def stand_in(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
            kwargs = dict(kwargs)
            stream = args[0] if args else kwargs.pop("hidden_states")
            streams.append(stream)
            beside[layer] = (args[1:], kwargs)
            return self._as_returned(layer, stream)

        call, positions, documents = self._call(self._check_tokens(tokens), position_ids, attention_mask, {})
        with self._silent(stand_in):
            self._base(**call)
        if len(beside) < len(self._blocks) or any(stream is not streams[0] for stream in streams):
            raise AttachError(
                f"{type(self.original_model).__name__} does more between its layers than hand the residual stream on, "
                "so they cannot be run one at a time; run the whole model with hooks instead"
            )
        return streams[0], LayerContext(positions, beside, documents)

    def _leave(self, resid: Tensor, tokens: Tensor) -> Any:
        """The body's output if `resid` were what leaves the last layer."""
        call, _, _ = self._call(tokens, None, None, {})
        with self._silent(lambda layer, *_, **__: self._as_returned(layer, resid)):
            return self._base(**call)

    def _as_returned(self, layer: nn.Module, stream: Tensor) -> Any:
        """A stream in the form in which a layer returns it."""
        return (stream,) if self._tuples[layer] else stream

    @contextmanager
    def _silent(self, stand_in: Callable[..., Any]) -> Iterator[None]:
        """Put stand-ins in place of the layers, with no point firing."""
        self._run.silent = True
        try:
            with standing_in([block.layer for block in self._blocks], stand_in):
                yield
        finally:
            self._run.silent = False
