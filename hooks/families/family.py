"""Family: what a row of the family table says, and how a config.json is read by it.

What a config.json says and the row does not read is refused, so a setting that changes the computation can never be
dropped in silence; what the row reads and the file leaves out is a default of transformers' config class, kept in
``cfg.provenance``.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from hooks.checks import shown, whole
from hooks.config.rules import MOST_LAYERS
from hooks.config.transformer import HookedTransformerConfig
from hooks.errors import ConfigError, RopescopeError, UnknownModelError
from hooks.families.rotation import Rope, RopeReader
from hooks.families.settings import Settings

# What a config.json carries for training, generation, serialisation or other frameworks; no forward pass reads it.
_BOOKKEEPING = """
    _name_or_path architectures attn_implementation _attn_implementation model_type transformers_version torch_dtype
    dtype use_cache initializer_range attention_dropout hidden_dropout embd_pdrop resid_pdrop pad_token_id bos_token_id
    eos_token_id unk_token_id sep_token_id decoder_start_token_id id2label label2id problem_type num_labels
    return_dict output_attentions output_hidden_states chunk_size_feed_forward is_encoder_decoder is_decoder
    add_cross_attention cross_attention_hidden_size _attn_implementation_autoset custom_pipelines unsloth_fixed
    unsloth_version tie_encoder_decoder pruned_heads torchscript use_bfloat16
    tf_legacy_loss finetuning_task task_specific_params tokenizer_class prefix pretraining_tp transformers.js_config
    max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k
    top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size
    bad_words_ids num_return_sequences output_scores return_dict_in_generate forced_bos_token_id
    forced_eos_token_id remove_invalid_values exponential_decay_length_penalty suppress_tokens
    begin_suppress_tokens auto_map cache_implementation hidden_dropout classifier_dropout
"""
BOOKKEEPING = frozenset(_BOOKKEEPING.split())

Read = str | Callable[[Settings], Any]  # a config.json key, or a function of the whole file


@dataclass(frozen=True)
class Part:
    """A weight that the checkpoint keeps inside a larger tensor, such as q inside a fused qkv.

    Attributes:
        name: template of the larger tensor's name.
        take: cuts the weight out of it; a view where the layout allows, so that memory stays shared.
    """

    name: str
    take: Callable[[Tensor, HookedTransformerConfig], Tensor]


@dataclass(frozen=True)
class PerHead:
    """A weight that the checkpoint keeps as one tensor for each head; they are stacked, so memory is not shared.

    Attributes:
        name: template of the tensors' names, ``{h}`` the head.
    """

    name: str


Source = str | Part | PerHead  # where a weight lies in the checkpoint


@dataclass(frozen=True)
class Constant:
    """A config.json value that a GGUF file has no key for, and where it is written down."""

    value: Any  # or a function of the keys that the file does have
    source: str


@dataclass(frozen=True)
class GGUFLayout:
    """What llama.cpp's converter does to a family; tensor names are the same for all (`hooks.gguf_files`).

    Attributes:
        arch: ``general.architecture`` of the file, which prefixes its keys.
        constants: config.json keys that the format cannot carry.
        interleaved: rows of q and k are stored for rotation of adjacent pairs, and must be put back.
        norm_plus_one: 1 + w is stored for the gain w of every norm.
    """

    arch: str
    constants: Mapping[str, Constant] = field(default_factory=dict)
    interleaved: bool = False
    norm_plus_one: bool = False


@dataclass(frozen=True)
class Family:
    """One model family.

    Attributes:
        model_type: ``model_type`` in config.json.
        source: the file of transformers that `defaults` are from.
        settings: field of `HookedTransformerConfig` → config.json key, or a function of the config.
        defaults: config.json key → value when absent, as transformers' config class has it.
        weights: our parameter name → theirs; ``{i}`` is the layer, ``{p}`` one of `prefixes`.
        fixed: fields of `HookedTransformerConfig` that are the same for every model of the family.
        only: config.json key → the one value that transformers' code for the family has a meaning for.
        ignored: keys that transformers' code for the family stores and never uses.
        prefixes: what may stand before the decoder's names.
        ignored_weights: globs of tensors that are not part of the language model.
        fixed_weights: globs of tensors that hold constants of the code here, and the value that they must have.
        renamed: names in older files → names in transformers now.
        rope: reads the rotation.
        nested: the key under which the language model's own config lies, if it does.
        inner_type: the one ``model_type`` that the language model's own config may have.
        gguf: how GGUF files keep this family.
    """

    model_type: str
    source: str
    settings: Mapping[str, Read]
    defaults: Mapping[str, Any]
    weights: Mapping[str, Source]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    only: Mapping[str, Any] = field(default_factory=dict)
    ignored: frozenset[str] = frozenset()
    prefixes: tuple[str, ...] = ("model.", "")
    ignored_weights: tuple[str, ...] = ()
    fixed_weights: Mapping[str, float] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    rope: Callable[[Settings], Rope] = field(default_factory=RopeReader)
    nested: str | None = None
    inner_type: str | None = None
    gguf: GGUFLayout | None = None

    def config(self, hf: Mapping[str, Any], ignored_keys: Collection[str] = ()) -> HookedTransformerConfig:
        """Read a config.json by this row.

        Args:
            hf: the parsed file.
            ignored_keys: keys that the row does not know and that its reader knows to change nothing.

        Raises:
            ConfigError: a key that the row does not know, a missing one, or a value that it cannot honour.
        """
        if self.nested:
            inner = hf.get(self.nested) or {}
            if not isinstance(inner, Mapping):
                raise ConfigError(f"{self.nested}={shown(inner)} in the config; it must be an object")
            if inner.get("model_type", self.inner_type) != self.inner_type:
                raise UnknownModelError(
                    f"the language model in this {self.model_type} model is {shown(inner['model_type'])}, and its row "
                    f"reads {self.inner_type} only; HookedTransformer.attach(model) hooks it as it is"
                )
            outer = {key: value for key, value in hf.items() if key != self.nested}
            tied = {key: outer[key] for key in ("tie_word_embeddings",) if key in outer}  # the outer model has the head
            hf = {**outer, **inner, **tied}
        settings = Settings(hf, self)
        try:
            _check_layers(settings, self.settings["n_layers"])
            fields = {name: settings[r] if isinstance(r, str) else r(settings) for name, r in self.settings.items()}
            rope = self.rope(settings)
            _refuse_unknown(settings, self, ignored_keys)
            return HookedTransformerConfig(**self.fixed, **fields, rope=rope, provenance=settings.provenance)
        except RopescopeError:
            raise
        except KeyError as error:
            raise ConfigError(f"the config of this {self.model_type} model lacks {error.args[0]!r}") from error
        except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise ConfigError(
                f"the config of this {self.model_type} model has a value of the wrong kind: {error}"
            ) from error


def _check_layers(settings: Settings, key: Read) -> None:
    """Raise for a number of layers that no model has, before anything is made for each layer."""
    if isinstance(key, str) and key in settings.raw:
        whole(key, settings.raw[key], at_least=1, at_most=MOST_LAYERS, error=ConfigError)


def _refuse_unknown(settings: Settings, family: Family, ignored_keys: Collection[str]) -> None:
    """Raise for a key that neither the row nor the shared lists know, or a value that no code here honours."""
    if "quantization_config" in settings.raw and "quantization_config" not in ignored_keys:
        method = settings.raw["quantization_config"]
        method = method.get("quant_method", method) if isinstance(method, Mapping) else method
        raise ConfigError(
            f"the config of this {family.model_type} model has quantization_config ({shown(method)}): its weights are "
            "quantised, and rows need plain matrices; load an unquantised version of it, or load it with transformers "
            "and HookedTransformer.attach(model) hooks it quantised as it is"
        )
    for key, allowed in family.only.items():
        if settings.raw.get(key, allowed) != allowed:
            raise ConfigError(
                f"{key}={shown(settings.raw[key])}: transformers' {family.model_type} is defined for {allowed!r} only"
            )
    known = settings.read | BOOKKEEPING | family.ignored | set(family.only)
    unknown = {key: value for key, value in sorted(settings.raw.items()) if key not in known}
    for key in unknown.keys() & set(ignored_keys):
        settings.provenance[key] = f"{shown(unknown.pop(key))}: in the file, and ignored as ignore_config_keys says"
    if unknown:
        said = ", ".join(f"{key}={shown(value)}" for key, value in unknown.items())
        raise ConfigError(
            f"unknown key in the config of this {family.model_type} model: {said}; it may change what the "
            f"model computes, so nothing was loaded (if it does not: from_pretrained(…, "
            f"ignore_config_keys={tuple(unknown)!r}))"
        )
