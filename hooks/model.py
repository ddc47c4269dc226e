"""HookedTransformer: a decoder whose every tensor passes a hook point, at any length."""

import warnings
from collections.abc import Collection, Mapping
from typing import Any, Literal, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers.cache_utils import Cache

from hooks.attached.attaching import attach
from hooks.attached.transformer import AttachedTransformer
from hooks.base.inputs import (
    check_predicts,
    check_resid,
    looked_up,
    packed_documents,
    padding_mask,
    predicted_tokens,
    token_positions,
)
from hooks.base.layers import layer_run, residual_stream
from hooks.base.lens_surface import LensMixin
from hooks.base.losses import ReturnType, check_return_type, mean_loss, next_token_nll, where_predicted
from hooks.base.module import NamedHooksModule
from hooks.base.registry import HookRegistry
from hooks.checks import flag, instance, shown, whole
from hooks.config.attention_spec import AttentionSpec
from hooks.config.qk_norm import QKNormConfig
from hooks.config.rope_inherited import inherited_rope
from hooks.config.steps import attention_steps
from hooks.config.transformer import HookedTransformerConfig
from hooks.errors import ConfigError, InputError
from hooks.generation.generating import GeneratingMixin
from hooks.generation.key_values import KeyValueCache, layers_of, reading
from hooks.loading.sources import read_source
from hooks.loading.stream import StreamedWeights, WeightStream, streams
from hooks.loading.weights import adopt_weights
from hooks.modules.attention import AttentionContext
from hooks.modules.block import Block
from hooks.modules.drawn import drawn_parameters
from hooks.modules.hook_point import HookPoint
from hooks.modules.norms import Norm
from hooks.modules.rotary import Rotary, rescheduled, rotation_dtype
from hooks.modules.weight_views import Embedding, Unembedding


class ContextLengthWarning(UserWarning):
    """Positions beyond the length that the model was trained on."""


class HookedTransformer(LensMixin, GeneratingMixin, StreamedWeights, NamedHooksModule):
    """A decoder-only transformer whose QK-norm and RoPE can be read and edited before and after every step.

    Args:
        cfg: the architecture; weights are drawn from ``cfg.seed`` without touching the global generator.
        tokenizer: a transformers tokenizer, needed only where text goes in or out.

    Example:
        >>> model = HookedTransformer.from_pretrained("gemma3-270m")
        >>> logits, cache = model.run_with_cache("Hello", names_filter="blocks.*.attn.hook_q_p*_rope")
        >>> cache["hook_q_pre_rope", 3].shape
        torch.Size([1, 2, 4, 256])
    """

    def __init__(self, cfg: HookedTransformerConfig, tokenizer: Any = None, *, _empty: bool = False):
        super().__init__()
        instance("cfg", cfg, HookedTransformerConfig, "a HookedTransformerConfig", error=ConfigError)
        if cfg.d_vocab < 1:
            raise ConfigError(f"d_vocab={cfg.d_vocab}: a model needs the size of its vocabulary")
        self._cfg = cfg
        self.tokenizer = tokenizer
        self.loaded_from: str | None = None  # the name, Hub id or absolute path that `from_pretrained` was given
        # Matrices start without values: torch would draw them from the global generator.
        device = "meta"
        self.embed = Embedding(cfg.d_vocab, cfg.d_model, device=device, dtype=cfg.dtype)
        self.hook_embed = HookPoint()
        rotating = {cfg.layer_type(i): cfg.rope_for(i) for i in range(cfg.n_layers) if cfg.rope_for(i) is not None}
        self.rotary = nn.ModuleDict({t: Rotary(rope, cfg.d_head) for t, rope in sorted(rotating.items()) if rope})
        self.blocks = nn.ModuleList(Block(cfg, layer, device) for layer in range(cfg.n_layers))
        self.ln_final = Norm(cfg, cfg.d_model)
        self.unembed = Unembedding(cfg.d_model, cfg.d_vocab_out, cfg.unembed_bias, device=device, dtype=cfg.dtype)
        if cfg.tie_word_embeddings:
            self.unembed.weight = self.embed.weight
        if not _empty:
            self.adopt_parameters(drawn_parameters(self.named_parameters(), cfg))
            self.to(cfg.device)
        self.registry = HookRegistry(cfg)
        self.setup()

    @property
    def cfg(self) -> HookedTransformerConfig:
        """The architecture this model was built with; `with_config` gives the same weights under another."""
        return self._cfg

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embed.weight.device if self.stream is None else self.stream.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights and of the residual stream."""
        return self.embed.weight.dtype

    @classmethod
    def from_pretrained(
        cls,
        source: Any,
        *,
        rope: Any = None,
        qk_norm: QKNormConfig | None = None,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        stream: bool | None = None,
        ignore_config_keys: Collection[str] = (),
    ) -> "HookedTransformer":
        """Load a model, in eval mode.

        Args:
            source: "gemma3-270m", "smollm2-135m", a Hub id, a directory, a ``.gguf`` file, or a live transformers model
                (its weights are shared, not copied).
            rope: run it under this schedule instead of its own; unset fields inherit (see `with_config`). None keeps
                its own; for no rotation, ``model.with_config(rope=None)``.
            qk_norm: run it with this QK-norm instead of its own.
            dtype: type of the weights; when None the source's: what its config says, or the widest in its files.
            device: where to put them.
            stream: True reads each block's weights from their file when it runs, the next block's meanwhile, and lets
                them go: memory is about two blocks, whatever the size of the model, and each forward pass reads the
                file. They cannot be trained or moved, and are there to be looked at inside `resident`. False holds
                them all; None streams where the whole would not fit in free memory, and says so.
            ignore_config_keys: see `hooks.loading.sources.read_source`.

        Raises:
            UnknownModelError: the source cannot be found, or its family has no row in the table.
            ConfigError: the source's config has a key that its family's row does not know.
            WeightError: a weight is missing, left over, misshapen or not finite, or a file is damaged. With `stream`
                what is wrong with values is said when their block is first read.
        """
        checkpoint = read_source(source, dtype=dtype, device=device, ignore_config_keys=ignore_config_keys)
        model = cls(checkpoint.cfg, checkpoint.tokenizer, _empty=True)
        if streams(checkpoint, stream, sum(p.numel() * p.element_size() for p in model.parameters())):
            WeightStream.of(model, checkpoint).bind(model)
        else:
            adopt_weights(
                model,
                checkpoint.family,
                checkpoint.weights,
                checkpoint.where,
                read=checkpoint.read if checkpoint.unread else None,
                check_finite=checkpoint.check_finite,
            )
        model.eval().loaded_from = checkpoint.origin
        changes = {name: value for name, value in (("rope", rope), ("qk_norm", qk_norm)) if value is not None}
        return model.with_config(**changes) if changes else model

    @classmethod
    def attach(cls, model: Any, tokenizer: Any = None) -> AttachedTransformer:
        """The same hook names on any transformers decoder, on its own code and weights; see `hooks.attached.attaching`.

        Args:
            model: a live transformers decoder, or a TransformerBridge (its original model is attached).
            tokenizer: needed only where text goes in or out.

        Raises:
            AttachError: its attention cannot be reached through transformers' AttentionInterface.
        """
        return attach(model, tokenizer)

    def attention_steps(self, layer: int, tensor: Literal["q", "k", "v"]) -> tuple[str, ...]:
        """The steps between projection and score of q, k or v in one layer; see `hooks.config.steps`."""
        return attention_steps(self.cfg, layer, tensor)

    def with_config(self, **changes: Any) -> "HookedTransformer":
        """The same weights, shared and not copied, under other settings.

        Args:
            **changes: fields of `HookedTransformerConfig`, usually ``rope``, ``qk_norm`` or ``clip_qkv``. Fields that a
                new RopeConfig leaves unset inherit from the model's own; a model whose layer types rotate differently
                takes a mapping by layer type, of which the types left out keep their schedule. ``rope=None`` turns
                rotation off. Learned frequencies are shared unless the new schedule has frequencies of its own.

        Raises:
            ConfigError: a field is unknown or contradicts the rest, or asks for other weights (dtype, device).
            InputError: the weights do not have the shapes that the new settings need.
        """
        for name in ("dtype", "device"):
            if name in changes:
                raise ConfigError(f"with_config shares the weights, so it cannot change their {name}: use model.to(…)")
        if "rope" in changes:
            changes["rope"] = inherited_rope(self.cfg, changes["rope"])
        other = HookedTransformer(self.cfg.replace(**changes), self.tokenizer, _empty=True)
        own = dict(self.named_parameters(remove_duplicate=False))
        own = {name: value for name, value in own.items() if not rescheduled(name, self.rotary, other.rotary)}
        wanted = dict(other.named_parameters(remove_duplicate=False))
        if self.stream is None:
            other.adopt_parameters({name: own[name] for name in wanted if name in own})
        else:
            self.stream.shared_with(other).bind(other)
        other.loaded_from = self.loaded_from
        other.train(self.training)
        return other.to(self.device)

    def adopt_parameters(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Use these Parameter objects as this model's own, without copying.

        Raises:
            InputError: a name that the model does not have, another shape, or weights left without values.
        """
        for name, parameter in parameters.items():
            module_name, _, leaf = name.rpartition(".")
            module = self.get_submodule(module_name)
            current = module._parameters.get(leaf)
            if current is None or current.shape != parameter.shape:
                has = "no such parameter" if current is None else f"shape {tuple(current.shape)}"
                raise InputError(f"cannot adopt {name} of shape {tuple(parameter.shape)}: the model has {has}")
            module._parameters[leaf] = parameter
        empty = [name for name, p in self.named_parameters() if p.is_meta]
        if empty:
            raise InputError(f"no values for {', '.join(empty[:4])}{' …' if len(empty) > 4 else ''}")

    def embed_tokens(
        self, tokens: Int[Tensor, "batch pos"], *, position_ids: Int[Tensor, "batch pos"] | None = None
    ) -> Float[Tensor, "batch pos d_model"]:
        """The residual stream before the first block; only attached models may have one that positions are part of."""
        embedded = looked_up(self.embed, tokens)
        if self.cfg.embed_scale is not None:
            # transformers scales by a tensor of the embedding's dtype: in bfloat16 the factor itself is rounded.
            embedded = embedded * torch.tensor(self.cfg.embed_scale, dtype=embedded.dtype, device=embedded.device)
        return self.hook_embed(embedded)

    def context(
        self,
        tokens: Int[Tensor, "batch pos"],
        *,
        position_ids: Int[Tensor, "batch pos"] | Int[Tensor, " pos"] | None = None,
        attention_mask: Bool[Tensor, "batch pos"] | Int[Tensor, "batch pos"] | None = None,
        rope_length: int | None = None,
        past: KeyValueCache | None = None,
    ) -> AttentionContext:
        """Positions, rotations and padding of one forward pass, computed once for all blocks.

        Args:
            tokens: gives the shape.
            position_ids: default counts from 0; with `attention_mask`, from the first token that is not padding.
                Without one, positions that start again start a new document, which sees no other.
            attention_mask: 1 where a token is real, 0 where it is padding.
            rope_length: length that dynamic and longrope schedules adapt to; default last position + 1.
            past: what stands in front of the tokens; positions count on from there.
        """
        if not isinstance(tokens, Tensor) or tokens.ndim != 2:
            raise InputError(f"tokens={shown(tokens)}: give token ids [batch, pos], whose shape counts")
        if rope_length is not None:
            rope_length = whole("rope_length", rope_length, at_least=1)
        key_mask, documents = padding_mask(attention_mask, tokens), None
        if past is not None:
            positions = past.following(tokens, position_ids, key_mask)
        else:
            positions = token_positions(position_ids, tokens, key_mask)
            if position_ids is not None:
                documents = packed_documents(positions, key_mask, masked=attention_mask is not None)
        last = int(positions.max()) + 1
        # Once a text: what goes on behind the trained length was warned of when it went past it.
        if last > self.cfg.n_ctx and (past is None or past.next_position <= self.cfg.n_ctx):
            warnings.warn(
                f"position {last - 1} is beyond the {self.cfg.n_ctx} tokens that this model was trained on; nothing is "
                "truncated, but expect its loss to rise (a RopeConfig with factor > 1 can stretch it)",
                ContextLengthWarning,
                stacklevel=3,
            )
        dtype = rotation_dtype(self.cfg, self.dtype)
        rotations = {t: rotary(positions, length=rope_length, dtype=dtype) for t, rotary in self.rotary.items()}
        return AttentionContext(positions, rotations, key_mask, documents, past)

    def forward(
        self,
        tokens: Int[Tensor, "batch pos"] | Float[Tensor, "batch pos d_model"] | str | list[str],
        return_type: ReturnType | None = "logits",
        *,
        position_ids: Int[Tensor, "batch pos"] | None = None,
        attention_mask: Int[Tensor, "batch pos"] | None = None,
        rope_length: int | None = None,
        loss_per_token: bool = False,
        past: KeyValueCache | None = None,
        start_at_layer: int | None = None,
        stop_at_layer: int | None = None,
    ) -> Any:
        """Run the model.

        Args:
            tokens: token ids, or texts, padded by `to_batch`; with `start_at_layer` the stream before that layer.
            return_type: "logits" [batch pos d_vocab]; "loss" mean nats per predicted token, logits never held whole;
                "both"; None runs the body only.
            position_ids: position of each token; see `context`.
            attention_mask: 0 where a token is padding; padding is neither attended to nor counted in the loss.
            rope_length: length that dynamic and longrope schedules adapt to; default last position + 1.
            loss_per_token: give the loss as [batch pos−1] instead of its mean; NaN where nothing predicts a token: at
                padding, behind it, and at the first token of each packed document.
            past: what the model has read before these tokens, which it takes in too: a text may be read in parts.
            start_at_layer: the first layer that runs; below 0 counted from the end.
            stop_at_layer: the first that does not run; the residual stream before it is returned.

        Raises:
            InputError: token ids, positions, mask, past or layers do not fit the model.
        """
        check_return_type(return_type)
        loss_per_token = flag("loss_per_token", loss_per_token)
        layers = layer_run(self.cfg.n_layers, start_at_layer, stop_at_layer, return_type=return_type, past=past)
        if start_at_layer is None:
            (ids, attention_mask), resid = self._read(tokens, attention_mask, past), None
        else:
            resid = residual_stream(tokens, self.cfg.d_model, self.dtype, self.device)
            ids = resid[:, :, 0]  # gives the shape
        context = self.context(
            ids, position_ids=position_ids, attention_mask=attention_mask, rope_length=rope_length, past=past
        )
        predicted = predicted_tokens(ids, context.key_mask, context.documents)
        if return_type in ("loss", "both") and not loss_per_token:
            check_predicts(ids, predicted)
        with reading(past, self, context.positions, context.key_mask, rope_length):
            resid = self.embed_tokens(ids) if resid is None else resid
            for layer in layers:
                resid = self.blocks[layer](resid, context)
        if stop_at_layer is not None:
            return resid
        resid = self.ln_final(resid)
        if return_type is None:
            return None
        if return_type == "logits":
            return self._logits(resid)
        nll = where_predicted(self._nll(resid, ids), predicted)
        loss = nll if loss_per_token else mean_loss(nll, predicted)
        return (self._logits(resid), loss) if return_type == "both" else loss

    def _logits(self, normalized: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_vocab"]:
        """Logits of the final norm's output."""
        return self.apply_output_logits_transform(self.unembed(normalized))

    def next_logits(
        self,
        tokens: Int[Tensor, "batch pos"],
        *,
        attention_mask: Bool[Tensor, "batch pos"] | None = None,
        past: KeyValueCache | None = None,
    ) -> Float[Tensor, "batch d_vocab"]:
        """Logits after the last token, those of the others not computed; see `forward`."""
        last = self.cfg.n_layers
        resid = self.forward(tokens, attention_mask=attention_mask, past=past, stop_at_layer=last)
        return self._logits(self.ln_final(resid)[:, -1])

    def empty_key_values(self) -> Cache:
        """Layers of a cache that hold nothing yet; see `hooks.generation.key_values.KeyValueCache`.

        Raises:
            InputError: the model attends in both directions, so that later tokens change the keys of earlier ones.
        """
        if self.cfg.attention_dir != "causal":
            raise InputError("this model attends in both directions, so it cannot go on from what it has read")
        return layers_of([self.cfg.window(layer) for layer in range(self.cfg.n_layers)])

    def unembed_residual(self, resid: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits of a residual stream: final norm, unembedding, scale and soft-cap."""
        return self._logits(self.ln_final(check_resid("resid", resid, self.cfg.d_model, self.dtype)))

    def residual_loss(
        self, resid: Float[Tensor, "batch pos d_model"], tokens: Int[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch pos-1"]:
        """Loss per predicted token in nats, from the residual stream after the last block."""
        ids = self._check_tokens(tokens)
        if check_resid("resid", resid, self.cfg.d_model, self.dtype).shape[:-1] != ids.shape:
            raise InputError(f"resid {tuple(resid.shape)} is not of tokens {tuple(ids.shape)}: one vector each")
        return self._nll(self.ln_final(resid), ids)

    def _nll(self, normalized: Tensor, tokens: Tensor) -> Float[Tensor, "batch pos-1"]:
        """−log p of each next token, from the final norm's output."""
        return next_token_nll(
            lambda start, stop: self._logits(normalized[:, start:stop]),
            tokens,
            d_vocab=self.unembed.out_features,
            dtype=self.dtype,
            recompute=torch.is_grad_enabled() and normalized.requires_grad,
        )

    @torch.no_grad()
    def loss_per_token(self, tokens: Tensor | str | list[str], **options: Any) -> Float[Tensor, "batch pos-1"]:
        """Loss of each predicted token in nats, any length, logits never held whole; options as in `forward`."""
        return self.forward(tokens, return_type="loss", loss_per_token=True, **options)

    def attention_spec(self, layer: int) -> AttentionSpec:
        """How a layer turns q and k into a pattern, its learned sinks included."""
        self.cfg.layer_type(layer)  # which says of a layer that is not there which there are
        with self.resident(layer, ("attn.sinks",)):
            return cast(Block, self.blocks[layer]).attn.spec
