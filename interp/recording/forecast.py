"""What a capture and its statistics would take, from a configuration alone: memory, disk, time, and what fits here."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch.nn.functional import scaled_dot_product_attention

from hooks import AttentionSpec, HookedTransformerConfig
from hooks.base.losses import LOGIT_BYTES
from hooks.config.steps import attention_steps
from hooks.loading.describing import WeightSizes, weight_sizes
from hooks.modules.chunks import PIECE_BYTES
from interp.measure.score_bins import N_BINS
from interp.measure.statistics import attention_statistics
from interp.recording.cost import attention_operations, head_operations, matrix_operations
from interp.recording.plan import DEFAULT_STAGES, CapturePlan, asked_of, layer_bytes, stages_of, stored_bytes

LIBRARIES = 500e6  # bytes of Python with torch and transformers imported, measured
_MAP_SIZE = 128
_LONGEST = 2**40
_FILE_BYTES = 4096  # manifest and headers, for each layer
_TOKEN_BYTES = 8 + 8 + 8  # id, position, and the token as text


@dataclass(frozen=True)
class Speed:
    """Floating-point operations a second on this machine, from short trials.

    Attributes:
        matrices: of a matrix product in the model's type.
        attention: of fused attention in the model's type.
        statistics: of fused attention in float32, which is about as fast as the pass that measures it.
    """

    matrices: float
    attention: float
    statistics: float


@dataclass(frozen=True)
class Forecast:
    """What is to be captured, and what that would take.

    Attributes:
        cfg: the model.
        n_tokens: length of the text.
        stages: the stages asked for.
        steps: clip, norm and rope in the order of each layer to keep.
        loss: whether to compute the loss, for which every block must run.
        dtype: type that the model computes in.
    """

    cfg: HookedTransformerConfig
    n_tokens: int
    stages: tuple[str, ...]
    steps: dict[int, tuple[str, ...]]
    loss: bool
    dtype: torch.dtype

    @classmethod
    def of_config(
        cls,
        cfg: HookedTransformerConfig,
        n_tokens: int,
        stages: str | Sequence[str] = DEFAULT_STAGES,
        layers: int | Iterable[int] | None = None,
        *,
        loss: bool = True,
    ) -> "Forecast":
        """Of a model that need not be there.

        Raises:
            StageError: an unknown stage, one that no layer has, or a layer that the model does not have.
        """
        wanted = range(cfg.n_layers) if layers is None else layers
        named, steps = asked_of(cfg, stages, wanted, partial(attention_steps, cfg))
        return cls(cfg, n_tokens, named, steps, loss, cfg.dtype)

    @classmethod
    def of_plan(cls, plan: CapturePlan) -> "Forecast":
        """Of a capture that is about to run."""
        return cls(plan.model.cfg, plan.n_tokens, plan.stages, plan.steps, plan.loss, plan.model.dtype)

    def with_tokens(self, n_tokens: int) -> "Forecast":
        """The same for a text of another length."""
        return Forecast(self.cfg, n_tokens, self.stages, self.steps, self.loss, self.dtype)

    @property
    def kept_stages(self) -> tuple[str, ...]:
        """Every stage that some layer keeps, final last."""
        kept = dict.fromkeys(stage for steps in self.steps.values() for stage in stages_of(steps, self.stages))
        return (*(stage for stage in kept if stage != "final"), "final")

    @property
    def weights(self) -> WeightSizes:
        """How many numbers the weights are."""
        return weight_sizes(self.cfg)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights."""
        return self.weights.whole * self.dtype.itemsize

    @property
    def n_blocks(self) -> int:
        """How many blocks run."""
        return self.cfg.n_layers if self.loss else max(self.steps) + 1

    @property
    def qkv_bytes(self) -> int:
        """Bytes of the q, k and v that are stored."""
        return len(self.steps) * stored_bytes(self.cfg, self.n_tokens, self.dtype)

    @property
    def disk(self) -> int:
        """Bytes on disk of a finished capture."""
        cfg = self.cfg
        wide = torch.promote_types(self.dtype, torch.float32).itemsize
        w_o = cfg.n_heads * cfg.d_head * min(cfg.d_head, cfg.d_model) * wide
        losses = self.n_tokens * wide if self.loss else 0
        return self.qkv_bytes + len(self.steps) * (w_o + _FILE_BYTES) + self.n_tokens * _TOKEN_BYTES + losses

    @property
    def disk_while_running(self) -> int:
        """Bytes on disk while it is made: two residual streams more, from which it would go on."""
        return self.disk + 2 * self._stream

    @property
    def statistics_disk(self) -> int:
        """Bytes of the statistics kept beside it."""
        return sum(self._statistics_bytes(layer) for layer in self.steps)

    @property
    def memory(self) -> float:
        """Bytes of memory at the most, with all weights held."""
        return LIBRARIES + self.weight_bytes + self._activations

    @property
    def memory_streamed(self) -> float:
        """Bytes of memory at the most, with weights streamed."""
        return LIBRARIES + self.weights.streamed * self.dtype.itemsize + self._activations

    @property
    def statistics_memory(self) -> float:
        """Bytes of memory at the most while statistics are computed: one layer's q, k and v, everybody's results."""
        largest = max(self._statistics_bytes(layer) for layer in self.steps)
        rows = (self.cfg.n_heads + 2 * self.cfg.n_kv_heads) * self.cfg.d_head * self.n_tokens
        return LIBRARIES + rows * (4 + self.dtype.itemsize) + 2 * self.statistics_disk + largest

    def seconds(self, speed: Speed) -> float:
        """Time that the model takes; reading weights and writing are not in it."""
        matrices = self.n_blocks * matrix_operations(self.cfg, self.n_tokens)
        matrices += head_operations(self.cfg, self.n_tokens) if self.loss else 0
        attention = sum(attention_operations(self.cfg, layer, self.n_tokens) for layer in range(self.n_blocks))
        return matrices / speed.matrices + attention / speed.attention

    def statistics_seconds(self, speed: Speed) -> float:
        """Time that all statistics of the layers kept take."""
        return sum(attention_operations(self.cfg, layer, self.n_tokens) for layer in self.steps) / speed.statistics

    def longest_within(self, memory: float, disk: float) -> int:
        """How many tokens fit into so many free bytes of memory, with weights streamed if need be, and of disk."""
        return _largest(
            lambda n: self.with_tokens(n)._needed_memory <= memory and self.with_tokens(n).disk_with_statistics <= disk
        )

    @property
    def disk_with_statistics(self) -> int:
        """Bytes on disk at the most, with the statistics."""
        return max(self.disk_while_running, self.disk + self.statistics_disk)

    @property
    def _needed_memory(self) -> float:
        """Bytes of memory without which neither the capture nor its statistics can be made."""
        return max(min(self.memory, self.memory_streamed), self.statistics_memory)

    @property
    def _stream(self) -> int:
        """Bytes of the residual stream."""
        return self.n_tokens * self.cfg.d_model * self.dtype.itemsize

    @property
    def _activations(self) -> float:
        """Bytes that are there at once beside the weights.

        Of a block: its q, k and v at every stage, what is written of the block before, z, what attention and the MLP
        add to the stream and the stream itself, and the MLP's pieces. Of the loss: the stream and some rows of logits.
        """
        cfg, n, size = self.cfg, self.n_tokens, self.dtype.itemsize
        wide = torch.promote_types(self.dtype, torch.float32).itemsize
        kept = max(self._layer_bytes(layer) for layer in self.steps)
        written = stored_bytes(cfg, n, self.dtype) if len(self.steps) > 1 else 0
        d_mlp = cfg.d_mlp or 0
        pieces = min(n * d_mlp * size, max(PIECE_BYTES, 256 * d_mlp * size)) * (3 if cfg.gated_mlp else 2)
        block = kept + written + 3 * self._stream + n * cfg.n_heads * cfg.d_head * size + pieces
        logits = min(LOGIT_BYTES, n * cfg.d_vocab * wide) * (1 + (size < wide) / 2) if self.loss else 0
        return max(block, 2 * self._stream + logits)

    def _layer_bytes(self, layer: int) -> int:
        return layer_bytes(self.cfg, self.steps[layer], self.stages, self.n_tokens, self.dtype)

    def _statistics_bytes(self, layer: int) -> int:
        """Bytes of the statistics of one layer."""
        sizes = {
            "head": self.cfg.n_heads,
            "query": self.n_tokens,
            "key": self.n_tokens,
            "distance": min(self.cfg.window(layer) or self.n_tokens, self.n_tokens),
            "map_query": min(_MAP_SIZE, self.n_tokens),
            "map_key": min(_MAP_SIZE, self.n_tokens),
            "score_bin": N_BINS,
        }
        total = _FILE_BYTES * 4
        for dims, itemsize in _statistics_layout():
            total += itemsize * torch.Size([sizes.get(name, 2) for name in dims]).numel()
        return total


@cache
def _statistics_layout() -> tuple[tuple[tuple[str, ...], int], ...]:
    """Dimensions and bytes a number of every variable of the statistics, from a pass over three tokens."""
    x = torch.zeros(3, 1, 2)
    found = attention_statistics(x, x, AttentionSpec(scale=1.0), v=x, backend="portable", progress=lambda *_: None)
    return tuple((tuple(map(str, x.dims)), x.dtype.itemsize) for x in found.variables.values())


def measure_speed(cfg: HookedTransformerConfig, dtype: torch.dtype, device: str = "cpu") -> Speed:
    """How fast this machine is, from products of a few hundred rows: an estimate, and a rough one."""
    width, rows, n = min(cfg.d_model, 2048), 256, 512
    left, right = (torch.ones(shape, dtype=dtype, device=device) for shape in ((rows, width), (width, width)))
    matrices = _rate(lambda: left @ right, 2 * rows * width * width)

    def attention(kind: torch.dtype) -> float:
        q = torch.ones(1, 4, n, cfg.d_head, dtype=kind, device=device)
        run = partial(scaled_dot_product_attention, q, q, q, is_causal=True)
        return _rate(run, 4 * 4 * cfg.d_head * n * (n + 1) / 2)

    return Speed(matrices, attention(dtype), attention(torch.float32))


@torch.no_grad()
def _rate(run: Callable[[], torch.Tensor], operations: float) -> float:
    """Operations a second in the better of two runs, after one that allocates."""
    run()
    best = float("inf")
    for _ in range(2):
        before = time.perf_counter()
        run().sum().item()  # a GPU has finished only then
        best = min(best, time.perf_counter() - before)
    return operations / max(best, 1e-7)


def _largest(fits: Callable[[int], bool]) -> int:
    """The largest number of tokens that fits, of two or more; 0 where not even two do."""
    low, high = 0, 2
    while high < _LONGEST and fits(high):
        low, high = high, 2 * high
    while high - low > max(1, low // 1000):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
