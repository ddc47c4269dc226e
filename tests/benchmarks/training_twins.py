"""Small models that differ in one thing only, trained beside each other: what the claims about QK-norm and RoPE are.

    python tests/benchmarks/training_twins.py --out notebooks/claims_results.jsonl [--workers 2] [--small]

Three variants (no QK-norm, QK-norm before RoPE, after RoPE) at seven learning rates; rotary widths 4 to 64; RoPE as it
is against Llama 3's smoothing: three seeds each, all on the same bytes in the same order. A line a run goes to the
file as soon as it is done; called again with the same file, what is there is not run again. Seeds go outermost, so
that a part of the runs is a whole comparison of fewer seeds. About 75 CPU seconds a run on one thread,
81 runs: 50 minutes on two cores of their own.

The text is Python's own documentation and the docstrings of its standard library; the file remembers its hash,
because another Python ships another text.

The rules that decide are these. They were written before the runs, and changed twice since; what hangs on the changes
is computed in notebooks/06_claims, from the runs that they replaced (claims_first_runs.jsonl).

- After eight runs of seed 0 had been seen: the learning rate 0.02 gave way to 0.3, so that something diverges; and
  "diverged" went from "not 0.1 nats under a table of bytes", by which no run has diverged, to a table of byte pairs.
- After 33 runs had been seen, 23 of seed 0 and ten of seed 1: a seventh learning rate, 0.0003, came below the best of
  the others; and widths and schedules went from 0.004 to 0.001, where a model without QK-norm is at its best. Five runs
  of seed 0 were replaced by that; the other 28 stayed.

The rules:

- A run **diverged** when its held-out loss is not finite, or above that of a table of byte pairs (counted in the
  training text, each pair once more, on the same held-out bytes): what attention brings is then worth nothing.
- A variant's **sensitivity to the learning rate**, for one seed, is the mean over the learning rates of
  min(loss, loss before training) − the best loss of all (Wortsman et al. 2023, arXiv:2309.14322, eq. 1, with a
  sum in place of the integral over log lr). A loss that is not finite counts as the one before training.
- Two settings are compared by the differences of runs that share their seed. An effect is **decided** when the 95 %
  t-interval of those differences leaves out zero, and not decided otherwise.
- Differences in loss are taken at each setting's best learning rate (smallest mean held-out loss over
  seeds), unless a claim is about one learning rate.
- A rotary width **hurts clearly** when its loss is above that of the full width, decided, and by at least 1 %.
"""

import argparse
import ast
import dataclasses
import hashlib
import json
import math
import os
import sys
import sysconfig
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hooks import ContextLengthWarning, HookedTransformer, HookedTransformerConfig, QKNormConfig, RopeConfig
from hooks.errors import NarrowRotaryWarning, RopescopeError
from interp import capture, positional_bias, precision_cost, score_bound

VARIANTS: dict[str, QKNormConfig | None] = {
    "none": None,
    "before_rope": QKNormConfig(position="before_rope"),
    "after_rope": QKNormConfig(position="after_rope"),
}
# The largest first: a grid that does not diverge shows early.
LEARNING_RATES = (3e-1, 1e-1, 4e-2, 1e-2, 4e-3, 1e-3, 3e-4)
ROTARY_WIDTHS = (4, 8, 16, 32, 64)
SEEDS = (0, 1, 2)
# Widths and schedules are trained without QK-norm, at the best learning rate of a model without it.
PLAIN_RATE = 1e-3
STRETCH = 4
RULES = {
    "confidence": 0.95,
    "clear_loss_share": 0.01,
    "diverged": "held-out loss not finite or above pair_loss, that of a table of byte pairs",
    "sensitivity": "mean over learning rates of min(loss, loss before training) - smallest loss",
    "decided": "the 95 % t-interval of differences between runs of the same seed leaves out zero",
    "best": "each setting's learning rate with the smallest mean held-out loss over seeds",
}


@dataclass(frozen=True)
class Size:
    """How large the models are and how long they train.

    Attributes:
        length: bytes of a training sequence; texts are read up to STRETCH times as far.
        every: steps between two records of the scores.
        sequences: held-out sequences of STRETCH times the trained length.
        read: how many of them attention and rounding are measured on.
    """

    d_model: int = 192
    n_heads: int = 3
    n_layers: int = 3
    d_mlp: int = 320
    d_head: int = 64
    length: int = 256
    batch: int = 4
    steps: int = 512
    every: int = 16
    sequences: int = 24
    read: int = 2


FULL = Size()
SMALL = Size(d_model=64, n_heads=1, n_layers=1, d_mlp=64, length=64, batch=2, steps=16, every=4, sequences=2, read=1)


@dataclass(frozen=True)
class Twin:
    """One run: what differs, and its seed.

    Attributes:
        kind: "rate" (a variant at a learning rate), "width" (a rotary width) or "schedule".
        again: the same run once more, to see whether it gives its numbers again.
    """

    kind: str
    seed: int
    variant: str = "none"
    rate: float = PLAIN_RATE
    rotary_dim: int = 64
    rope_type: str = "default"
    again: bool = False

    @property
    def name(self) -> str:
        """Its name in the file."""
        what = {"rate": f"{self.variant}@{self.rate:g}", "width": f"width{self.rotary_dim}", "schedule": self.rope_type}
        return f"{what[self.kind]}/seed{self.seed}" + ("/again" if self.again else "")


def all_twins() -> Iterator[Twin]:
    """Every run, seeds outermost. Width 64 and the default schedule are the plain run at PLAIN_RATE itself."""
    for seed in SEEDS:
        for rate in LEARNING_RATES:
            yield from (Twin("rate", seed, variant, rate) for variant in VARIANTS)
        yield from (Twin("width", seed, rotary_dim=width) for width in ROTARY_WIDTHS if width != 64)
        yield Twin("schedule", seed, rope_type="llama3")
        if seed == SEEDS[1]:
            yield Twin("rate", 0, "before_rope", PLAIN_RATE, again=True)
            yield Twin("width", 0, rotary_dim=8, again=True)
            yield Twin("schedule", 0, rope_type="llama3", again=True)


@lru_cache(maxsize=1)
def text() -> bytes:
    """Python's help topics and the docstrings of the modules at the top of its standard library, by name."""
    parts = [topics[topic] for topic in sorted(topics)]
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes in the sources of others
            tree = ast.parse(path.read_bytes())
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds))
        parts += [docstring for docstring in found if docstring]
    return "\n\n".join(parts).encode()


@lru_cache(maxsize=1)
def pieces(length: int) -> tuple[Tensor, Tensor]:
    """Training and held-out pieces of text, [piece byte]; a piece is 4 × STRETCH sequences, every 16th is held out."""
    size = 4 * STRETCH * length
    whole = torch.frombuffer(bytearray(text()), dtype=torch.uint8)
    cut = whole[: len(whole) // size * size].view(-1, size)
    held = torch.arange(len(cut)) % 16 == 15
    return cut[~held], cut[held]


def held_out(size: Size) -> Tensor:
    """[sequence byte] held-out sequences of STRETCH × the trained length."""
    rows = pieces(size.length)[1].reshape(-1, STRETCH * size.length)
    # Spread over the whole text: topics and docstrings differ.
    return rows[torch.linspace(0, len(rows) - 1, size.sequences).long()].long()


def pair_loss(size: Size) -> float:
    """Held-out loss of the table of byte pairs in the training text, each pair counted once more."""
    train, held = pieces(size.length)[0].long(), held_out(size)
    pairs = torch.bincount((256 * train[:, :-1] + train[:, 1:]).flatten(), minlength=256**2).double().view(256, 256) + 1
    return float(-(pairs / pairs.sum(1, keepdim=True)).log()[held[:, :-1], held[:, 1:]].mean())


def schedule(rope_type: str, size: Size, rotary_dim: int | None = None) -> RopeConfig:
    """RoPE with base 10,000, or Llama 3's smoothing of it for STRETCH times the trained length."""
    if rope_type == "default":
        return RopeConfig(rope_theta=1e4, rotary_dim=rotary_dim)
    return RopeConfig(
        rope_type="llama3",
        rope_theta=1e4,
        factor=float(STRETCH),
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=size.length,
    )


def build(twin: Twin, size: Size) -> HookedTransformer:
    """The model before training."""
    cfg = HookedTransformerConfig(
        d_model=size.d_model,
        d_head=size.d_head,
        n_layers=size.n_layers,
        n_ctx=size.length,
        n_heads=size.n_heads,
        d_vocab=256,
        d_mlp=size.d_mlp,
        gated_mlp=True,
        act_fn="silu",
        normalization_type="RMS",
        eps=1e-6,
        tie_word_embeddings=True,
        rope=schedule(twin.rope_type, size, twin.rotary_dim if twin.kind == "width" else None),
        qk_norm=VARIANTS[twin.variant],
        initializer_range=0.02,
        seed=twin.seed,
        device="cpu",
    )
    return HookedTransformer(cfg)


def batches(seed: int, size: Size) -> Iterator[Tensor]:
    """[batch byte] sequences from random places of the training pieces, the same for every run of a seed."""
    train = pieces(size.length)[0]
    generator = torch.Generator().manual_seed(seed)
    for _ in range(size.steps):
        piece = torch.randint(len(train), (size.batch,), generator=generator)
        start = torch.randint(train.shape[1] - size.length + 1, (size.batch, 1), generator=generator)
        yield train[piece[:, None], start + torch.arange(size.length)].long()


def rate_at(step: int, size: Size, peak: float) -> float:
    """Linear warm-up over a tenth of the steps, then a cosine down to a tenth of the peak."""
    warm = size.steps // 10
    if step < warm:
        return peak * (step + 1) / warm
    return peak * (0.1 + 0.45 * (1 + math.cos(math.pi * (step - warm) / (size.steps - warm))))


def dense_scores(q: Tensor, k: Tensor, scale: float) -> tuple[float, float]:
    """Smallest and largest causal score of a layer's heads, from whole score matrices."""
    scores = scale * torch.einsum("bqhd,bkhd->bhqk", q.double(), k.double())
    future = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool).triu(1)
    return float(scores.masked_fill(future, math.inf).min()), float(scores.masked_fill(future, -math.inf).max())


def bounds(model: HookedTransformer, size: Size) -> list[float | None]:
    """What the norm's gains prove of |score| in each layer, None without a norm."""
    found: list[float | None] = []
    for block in model.blocks:
        if model.cfg.qk_norm is None:
            found.append(None)
            continue
        gain_q, gain_k = (getattr(block.attn, name).effective_gain()[0] for name in ("q_norm", "k_norm"))
        spec, furthest = model.cfg.attention_spec(0), size.length - 1
        bound = score_bound(model.cfg.qk_norm, model.cfg.rope_for(0), gain_q, gain_k, spec, max_distance=furthest)
        found.append(float(bound))  # all heads have the same gain
    return found


def train(model: HookedTransformer, twin: Twin, size: Size) -> list[dict[str, Any]]:
    """Train in place; every few steps a record of the loss (mean since the last one), the scores and their bounds."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=twin.rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    finals: dict[str, Tensor] = {}
    records: list[dict[str, Any]] = []
    losses: list[float] = []

    def keep(x: Tensor, hook: Any) -> Tensor:
        finals[hook.name] = x.detach()
        return x

    for step, tokens in enumerate(batches(twin.seed, size)):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, size, twin.rate)
        due = step % size.every == size.every - 1 or step == 0
        proven = bounds(model, size) if due else []
        if due:
            points = [(f"blocks.{layer}.attn.hook_{t}_final", keep) for layer in range(size.n_layers) for t in "qk"]
            with model.hooks(fwd_hooks=points):
                loss = model(tokens, "loss")
        else:
            loss = model(tokens, "loss")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if due:
            tensors = list(finals.values())
            extremes = [dense_scores(q, k, model.cfg.scale) for q, k in zip(tensors[::2], tensors[1::2], strict=True)]
            low, high = (_short([layer[side] for layer in extremes]) for side in (0, 1))
            records.append(
                {"step": step, "loss": _short(np.mean(losses)), "min": low, "max": high, "bound": _short(proven)}
            )
            losses.clear()
        if not math.isfinite(loss.item()):
            break  # nothing that comes after it is a number
    return records


def _short(value: Any) -> Any:
    """Five significant digits, and None for what is not a finite number."""
    if isinstance(value, (list, tuple)):
        return [_short(v) for v in value]
    return None if value is None or not math.isfinite(value) else float(f"{float(value):.5g}")


@torch.no_grad()
def mean_nll(model: HookedTransformer, rows: Tensor) -> np.ndarray:
    """Mean loss in nats of each predicted position, [byte − 1], over the rows."""
    parts = [model.loss_per_token(part).double() for part in rows.split(8)]
    return torch.cat(parts).mean(0).numpy()


def read(model: HookedTransformer, twin: Twin, size: Size) -> dict[str, Any]:
    """The trained model on held-out text: at its length, at STRETCH times that, rounded, and where it attends."""
    rows = held_out(size)
    short = rows.view(-1, size.length)
    found: dict[str, Any] = {"loss": float(mean_nll(model, short).mean())}
    if not math.isfinite(found["loss"]):
        return found
    found["loss_at_length"] = _by_length(model, rows, size)
    if twin.kind == "rate" and twin.variant == "none" and twin.rate == PLAIN_RATE:
        smoothed = model.with_config(rope=schedule("llama3", size))
        found["loss_at_length_smoothed_after"] = _by_length(smoothed, rows, size)
    some = short[:: len(short) // min(len(short), size.sequences)]
    state = model.state_dict()
    rounded = HookedTransformer(model.cfg.replace(dtype=torch.bfloat16))
    rounded.load_state_dict(state)
    exact = float(mean_nll(model, some).mean())
    found["loss_change_bfloat16"] = _short(float(mean_nll(rounded, some).mean()) - exact)
    try:
        found["kl"] = rounding(model, rows[:: len(rows) // size.read][: size.read], size)
        found["attention"] = attention(model, rows[:: len(rows) // size.read][: size.read], size)
    except RopescopeError as error:  # scores that are no longer numbers
        found["unreadable"] = str(error)
    return found


def _by_length(model: HookedTransformer, rows: Tensor, size: Size) -> list[float | None]:
    """Mean loss within each trained length of the longer sequences."""
    nll = mean_nll(model, rows)
    return [_short(part.mean()) for part in np.split(nll, range(size.length - 1, len(nll), size.length))]


def attention(model: HookedTransformer, rows: Tensor, size: Size) -> dict[str, Any]:
    """Attention per pair and scores of each layer by distance, in bins of powers of two, over the rows."""
    edges = [0, *(2**i for i in range(int(math.log2(STRETCH * size.length)) + 1))]
    totals = np.zeros((size.n_layers, len(edges) - 1))
    pairs = np.zeros(len(edges) - 1)
    for row in rows:
        bias = positional_bias(capture(model, row))
        count = bias["count"].isel(layer=0).values.astype(float)
        summed = (bias["attention_mean"] * bias["count"]).fillna(0).sum("head").transpose("layer", "distance").values
        for b, (start, stop) in enumerate(pairwise(edges)):
            pairs[b] += count[start:stop].sum()
            totals[:, b] += summed[:, start:stop].sum(1)
    return {
        "edges": edges,
        "pairs": pairs.tolist(),
        "attention_mean": _short((totals / pairs / size.n_heads).tolist()),
    }


def rounding(model: HookedTransformer, rows: Tensor, size: Size) -> dict[str, Any]:
    """What q and k in float16, bfloat16 and int8 cost: KL of the pattern in nats, mean over layers, heads and rows."""
    costs = [precision_cost(capture(model, row[: size.length]))["kl"] for row in rows]
    return {
        str(kind): _short(np.mean([kl.sel(dtype=kind).values for kl in costs])) for kind in costs[0]["dtype"].values
    }


def run(twin: Twin, size: Size) -> dict[str, Any]:
    """One line of the file."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ContextLengthWarning)
        warnings.simplefilter("ignore", NarrowRotaryWarning)
        model = build(twin, size)
        records = train(model, twin, size)
        model.eval()
        end = read(model, twin, size)
    digest = hashlib.sha256()
    for value in model.state_dict().values():
        digest.update(value.detach().numpy().tobytes())
    line = {"name": twin.name, **dataclasses.asdict(twin), "records": records, **end}
    line["weights_sha256"] = digest.hexdigest()[:16]
    line["cpu_seconds"] = round(time.process_time() - start, 1)
    line["loss"] = line["loss"] if math.isfinite(line["loss"]) else None
    return line


def header(size: Size) -> dict[str, Any]:
    """What all runs share; a file with another one is not continued."""
    parameters = sum(p.numel() for p in build(Twin("rate", 0), size).parameters())
    return {
        "size": dataclasses.asdict(size),
        "parameters": parameters,
        "training_bytes": size.steps * size.batch * size.length,
        "learning_rates": sorted(LEARNING_RATES),
        "variants": list(VARIANTS),
        "rotary_widths": list(ROTARY_WIDTHS),
        "seeds": list(SEEDS),
        "plain_rate": PLAIN_RATE,
        "stretch": STRETCH,
        "rules": RULES,
        "pair_loss": pair_loss(size),
        "text_sha256": hashlib.sha256(text()).hexdigest()[:16],
        "text_bytes": len(text()),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
    }


def done(path: Path, first: dict[str, Any]) -> set[str]:
    """Names of the runs that a file holds; writes its first line if there is none.

    Raises:
        SystemExit: the file is of runs under other settings.
    """
    if not path.exists():
        path.write_text(json.dumps(first, separators=(",", ":")) + "\n", encoding="utf-8")
    lines = path.read_bytes().split(b"\n")
    if json.loads(lines[0]) != json.loads(json.dumps(first)):
        raise SystemExit(f"{path} holds runs of other settings, text or versions: give another --out")
    if lines[-1]:  # killed while it wrote: that run is done again
        path.write_bytes(b"\n".join(lines[:-1]) + b"\n")
    return {json.loads(line)["name"] for line in lines[1:-1]}


def run_all(path: Path, size: Size, workers: int, twins: list[Twin], niceness: int = 15) -> None:
    """Run what the file lacks, behind other work of the machine, and add a line for each run as it ends."""
    there = done(path, header(size))
    missing = [twin for twin in twins if twin.name not in there]
    print(f"{len(there)} of {len(twins)} runs are there, {len(missing)} to go", flush=True)
    with ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=os.nice, initargs=(niceness,)
    ) as pool:
        for future in as_completed([pool.submit(run, twin, size) for twin in missing]):
            line = future.result()
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, separators=(",", ":")) + "\n")
            shown = "not finite" if line["loss"] is None else f"{line['loss']:.4f}"
            print(f"{line['name']:>28}: held-out loss {shown}, {line['cpu_seconds']} CPU s", flush=True)


def main() -> None:
    """Run all, or what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--small", action="store_true", help="models and runs of a size for the tests")
    arguments = parser.parse_args()
    run_all(arguments.out, SMALL if arguments.small else FULL, arguments.workers, list(all_twins()))


if __name__ == "__main__":
    main()
