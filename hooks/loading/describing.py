"""What a model is, from its config.json or the header of its GGUF file alone: no weight is read or even fetched."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch

from hooks import checks
from hooks.config.transformer import HookedTransformerConfig
from hooks.errors import ConfigError, UnknownModelError
from hooks.families.table import family_of
from hooks.loading.files import check_regular, kind_of, read_json
from hooks.loading.gguf import describe_gguf
from hooks.loading.precision import stored_dtype
from hooks.loading.prepared import KNOWN_MODELS, prepared_model
from hooks.loading.sources import asked_dtype, hub_file, place_of
from hooks.modules.block import Block
from hooks.modules.norms import Norm


def read_config(
    source: str | Path, *, dtype: torch.dtype | str | None = None, ignore_config_keys: Collection[str] = ()
) -> HookedTransformerConfig:
    """The configuration of a model that need not be there.

    Args:
        source: a name that `HookedTransformer.from_pretrained` takes, a directory, a config.json, a ``.gguf`` file, or
            a Hub id, of which only the config.json is fetched.
        dtype: type of the weights; when None what the config says, or float32.
        ignore_config_keys: see `hooks.loading.sources.read_source`.

    Raises:
        UnknownModelError: the source cannot be found or reached, or its family has no row.
        ConfigError: its config has a key that the family's row does not know, or dtype is none to compute in.
        WeightError: a GGUF file is damaged.
    """
    ignored = checks.words("ignore_config_keys", ignore_config_keys, error=ConfigError)
    wanted = asked_dtype(dtype)
    name, hf = str(source), None
    path = place_of(checks.path("source", source, error=UnknownModelError))
    if isinstance(source, str) and source in KNOWN_MODELS:
        directory = prepared_model(source)
        path = Path(hub_file(KNOWN_MODELS[source].hub_id, "config.json")).parent if directory is None else directory
    kind = kind_of(path)
    if kind is not None and path.suffix == ".gguf":
        check_regular(path, error=UnknownModelError)
        hf, name = describe_gguf(path).config, path.stem
    elif kind is not None:
        file = path / "config.json" if kind == "directory" else path
        hf = read_json(file)
        name = name if name in KNOWN_MODELS else file.resolve().parent.name
    elif name.count("/") == 1 and not name.startswith((".", "/", "~")):
        hf = read_json(Path(hub_file(name, "config.json")))
    if hf is None:
        raise UnknownModelError(
            f"no model {checks.shown(name)}: it is no file or directory here, and not one of {', '.join(KNOWN_MODELS)};"
            " a Hub id looks like owner/name"
        )
    family = family_of(hf)
    cfg = family.config(hf, ignored)
    return cfg.replace(dtype=wanted or stored_dtype(hf, family.nested, {}, name), model_name=name)


@dataclass(frozen=True)
class WeightSizes:
    """How many numbers the weights of a model are, by what is read together.

    Attributes:
        embed: the embedding.
        block: one block; they are all alike.
        head: the final norm, and the unembedding where it is not the embedding.
        n_blocks: how many blocks there are.
        tied: whether the embedding is the unembedding too.
    """

    embed: int
    block: int
    head: int
    n_blocks: int
    tied: bool

    @property
    def whole(self) -> int:
        """All of them."""
        return self.embed + self.n_blocks * self.block + self.head

    @property
    def streamed(self) -> int:
        """The most that are there at once when they are streamed: what runs, and what comes next."""
        stays = self.embed if self.tied else 0
        blocks = self.block * min(self.n_blocks, 2)
        return max(self.embed + self.block, stays + blocks, stays + self.block + self.head)


def weight_sizes(cfg: HookedTransformerConfig) -> WeightSizes:
    """The sizes of the weights of a model, from a block of it without values."""
    with torch.device("meta"):
        block = sum(p.numel() for p in Block(cfg, 0, "meta").parameters())
        norm = sum(p.numel() for p in Norm(cfg, cfg.d_model).parameters())
    unembed = 0 if cfg.tie_word_embeddings else cfg.d_model * cfg.d_vocab_out
    bias = cfg.d_vocab_out if cfg.unembed_bias else 0
    return WeightSizes(
        cfg.d_vocab * cfg.d_model, block, norm + unembed + bias, cfg.n_layers, bool(cfg.tie_word_embeddings)
    )
