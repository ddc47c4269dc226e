"""What a model is, from its config.json or the header of its GGUF file alone: no weight is read or even fetched."""

from collections.abc import Collection
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
    elif kind == "directory":
        hf = read_json(path / "config.json")
    elif kind is not None:
        hf = read_json(path)
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
