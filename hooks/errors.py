"""Named exceptions: each says what was wrong, with which value, and what to do. Imports nothing heavy."""

_LONGEST = 2000  # characters of a message: a value that somebody gave may have any number


class RopescopeError(Exception):
    """Base of every error that ropescope raises on purpose; the command line prints it as one line."""

    def __str__(self) -> str:
        said = super().__str__()
        return said if len(said) <= _LONGEST else f"{said[: _LONGEST // 2]} … {said[-_LONGEST // 2 :]}"


class ConfigError(RopescopeError, ValueError):
    """A setting is unknown, missing, contradictory or out of range."""


class HookNameError(RopescopeError, LookupError):
    """A hook name matches nothing on this model, or names a step that the model does not have."""


class HookConflictError(RopescopeError, RuntimeError):
    """Hooks that cannot run together, or a hook where none can work (backward on a rows point)."""


class MaterializationError(RopescopeError, MemoryError):
    """Tensors were asked for that do not fit in memory; the message names the bytes and the way round."""


class WeightError(RopescopeError, ValueError):
    """A weight is missing, left over, of the wrong shape, or not finite; or its file is damaged."""


class UnknownModelError(RopescopeError, LookupError):
    """A model source that cannot be found or a family that has no row in the table."""


class TokenizerError(RopescopeError, RuntimeError):
    """Text was given to a model without a tokenizer, or the tokenizer's files cannot be read."""


class TokenizerWarning(UserWarning):
    """A model was loaded without its tokenizer, which cannot be read; or a text came with its own BOS."""


class StreamingWarning(UserWarning):
    """A model does not fit in memory, and its weights are read block by block at each forward pass."""


class TextError(RopescopeError, ValueError):
    """The text is empty, unreadable, not UTF-8, or too short for what was asked."""


class StageError(RopescopeError, LookupError):
    """A capture was asked for a stage, layer or head that it does not hold."""


class InputError(RopescopeError, ValueError):
    """Tensors whose shapes, types or values cannot be analysed (NaN scores, mismatched heads, …)."""


class CaptureError(RopescopeError, ValueError):
    """A path that holds no capture, or one that this version cannot read or go on with."""


class CaptureDamagedError(CaptureError):
    """A file of a capture is missing, cut short or changed since it was written."""


class CaptureMismatchError(CaptureError):
    """A capture of another model, text or settings stands at this path, or was begun in another environment."""


class CaptureBusyError(CaptureError):
    """Another process is writing this capture."""


class CaptureWarning(UserWarning):
    """A capture that can be used although something about it is not as it should be: unfinished, or not kept."""


class DerivationWarning(UserWarning):
    """Stages of a capture that are derived when read have other last bits here than where it was recorded."""


class CorpusError(RopescopeError, ValueError):
    """A path that holds no corpus, or one that this version cannot read, or that cannot do what it is asked."""


class CorpusDamagedError(CorpusError):
    """A record of a corpus is cut short or was changed since it was written."""


class CorpusMismatchError(CorpusError):
    """A corpus of another model, other texts or settings stands at this path; or a worker has other versions."""


class CorpusWarning(UserWarning):
    """Something about a corpus that a reader of its numbers should know: texts left out, or not yet measured."""


class ClusterError(RopescopeError, RuntimeError):
    """Workers cannot be started or reached, or what starts them is not installed."""


class OutputError(RopescopeError, OSError):
    """A file cannot be written where it was asked for."""


class NarrowRotaryWarning(UserWarning):
    """Fewer than 32 rotated features per head: it works, and tends to model worse (x-transformers)."""


class RotationWarning(UserWarning):
    """A live model rotates by other frequencies than its config gives, and will by the config's when loaded."""


class AttachError(RopescopeError, RuntimeError):
    """A transformers model that cannot be attached, or something of it that attaching does not reach."""


class PositionError(RopescopeError, IndexError):
    """An index of a query, key, head or layer that lies outside of what a capture holds."""


class ImageExportError(RopescopeError, RuntimeError):
    """A figure cannot be written as an image: an unknown format, or what draws images is not installed."""
