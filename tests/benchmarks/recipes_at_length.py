"""Seconds and peak memory of every recipe at length on one random layer; what removing the sink costs SmolLM2.

    python tests/benchmarks/recipes_at_length.py [--tokens 65536] [--recipes remove_sink keep_top_k …]
    python tests/benchmarks/recipes_at_length.py --loss [--tokens 16384]

The layer has 2 heads of width 32 on 1 kv head. Each recipe runs in a process of its own, on the rows point; peak
memory is above the loaded model, beside what the scores alone would take whole. "none" is the same pass with a hook
that changes nothing. Growth between two lengths: run it at both.

``--loss`` runs SmolLM2-135M on the standard text under YaRN × 2, because it was trained on 8,192 tokens. Without the
sink in any layer it should lose nothing, for that equals deleting the first token and the second becomes the sink.
"""

import argparse
import time
import warnings

import torch
from measuring import in_own_process, peak_above

from hooks import HookedTransformer, HookedTransformerConfig, RopeConfig, recipes
from interp.texts.texts import standard_text

warnings.filterwarnings("ignore", message=".*beyond the .* tokens.*")
ROWS = "blocks.*.attn.hook_attn_scores_rows"
N_HEADS, WINDOW = 2, 2_048
RECIPES = {
    "none": lambda n: lambda scores, hook: scores,
    "remove_sink": lambda n: recipes.remove_sink(),
    "limit_distance": lambda n: recipes.limit_distance(1024),
    "keep_top_k": lambda n: recipes.keep_top_k(64),
    "knock_out": lambda n: recipes.knock_out(range(n // 2, n), range(n // 2)),
    "boost_keys": lambda n: recipes.boost_keys(range(n // 4, n // 4 + 32), 2.0),
    "cap_scores": lambda n: recipes.cap_scores(1.0),
    "distance_temperature": lambda n: recipes.distance_temperature(lambda distance: 1 + distance / 4096),
}


def measure(name: str, n: int) -> tuple[float, float]:
    """Seconds and peak bytes of one layer under a recipe."""
    cfg = HookedTransformerConfig(
        d_model=64,
        d_head=32,
        n_layers=1,
        n_ctx=n,
        n_heads=N_HEADS,
        n_key_value_heads=1,
        d_vocab=128,
        attn_only=True,
        normalization_type="RMS",
        rope=RopeConfig(rope_theta=10_000.0),
        initializer_range=0.2,
        seed=0,
        device="cpu",
    )
    model = HookedTransformer(cfg).eval()
    tokens = torch.randint(cfg.d_vocab, (1, n), generator=torch.Generator().manual_seed(0))
    seconds = 0.0

    def run() -> None:
        nonlocal seconds
        start = time.perf_counter()
        with torch.no_grad():
            model.run_with_hooks(tokens, return_type=None, fwd_hooks=[(ROWS, RECIPES[name](n))])
        seconds = time.perf_counter() - start

    return peak_above(run), seconds


def lengths(names: list[str], n: int) -> None:
    """Print one line per recipe."""
    whole = N_HEADS * n * n * 4
    for name in names:
        peak, seconds = in_own_process(measure, name, n)
        share = f"1/{whole / peak:,.0f} of the scores whole"
        print(f"{name:>20} {n:>7,} tokens: {seconds:6.1f} s, peak + {peak / 2**20:5.0f} MiB ({share})", flush=True)


def loss(n: int) -> None:
    """Print SmolLM2's loss with the sink, without it anywhere, and without it after the first layer."""
    yarn = RopeConfig(
        rope_type="yarn", factor=2.0, original_max_position_embeddings=8192, beta_fast=32.0, beta_slow=1.0
    )
    model = HookedTransformer.from_pretrained("smollm2-135m", rope=yarn)
    tokens = model.to_tokens(standard_text().content)[:, :n]
    last = model.cfg.n_layers
    plain = 0.0
    for label, first in (("as it is", last), ("no sink in any layer", 0), ("no sink after layer 0", 1)):
        hooks = [(ROWS.replace("*", str(layer)), recipes.remove_sink()) for layer in range(first, last)]
        start = time.perf_counter()
        with model.hooks(fwd_hooks=hooks):
            nll = model.loss_per_token(tokens)[0]
        seconds, mean = time.perf_counter() - start, float(nll.mean())
        plain = plain or mean
        windows = " ".join(f"{float(w.mean()):6.3f}" for w in nll.split(WINDOW))
        print(
            f"{label:>22} {n:>7,} tokens: loss {mean:.3f} ({mean - plain:+.3f}), {seconds:.0f} s, by window {windows}"
        )


def main() -> None:
    """Print the table, or the losses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--loss", action="store_true")
    arguments = parser.parse_args()
    if arguments.loss:
        loss(arguments.tokens or 16_384)
    else:
        lengths(arguments.recipes, arguments.tokens or 65_536)


if __name__ == "__main__":
    main()
