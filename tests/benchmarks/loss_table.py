"""Loss by position of SmolLM2-135M under each RoPE schedule, beside figures measured once with transformers 5.23.

    python tests/benchmarks/loss_table.py [--schedules "default" "llama3 ×2" …]

The first 16,384 tokens of the standard text in one shot; mean loss in nats per 2,048-token window. The reference was
computed by transformers on Python 3.11's standard text, so another Python's differs.
"""

import argparse
import warnings

import torch

from hooks import HookedTransformer, RopeConfig
from interp.texts.texts import standard_text

warnings.filterwarnings("ignore", message=".*beyond the .* tokens.*")
N, WINDOW = 16_384, 2_048
TRAINED = {"original_max_position_embeddings": 8192}
LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, **TRAINED}
YARN = {"rope_type": "yarn", "beta_fast": 32, "beta_slow": 1, **TRAINED}
TABLE = {
    "default": (None, [2.475, 2.292, 2.388, 2.160, 1.862, 3.300, 5.498, 6.661]),
    "linear ×2": ({"rope_type": "linear", "factor": 2.0}, [3.414, 3.527, 3.360, 3.380, 3.213, 3.509, 3.586, 3.461]),
    "llama3 ×2": (LLAMA3 | {"factor": 2.0}, [2.508, 2.370, 2.447, 2.290, 1.959, 2.426, 2.624, 2.330]),
    "llama3 ×4": (LLAMA3 | {"factor": 4.0}, [2.589, 2.625, 2.794, 2.710, 2.410, 2.879, 3.067, 2.783]),
    "yarn ×2": (YARN | {"factor": 2.0}, [2.496, 2.314, 2.423, 2.209, 1.859, 2.379, 2.580, 2.256]),
    "dynamic ×2": ({"rope_type": "dynamic", "factor": 2.0}, [2.532, 2.365, 2.461, 2.295, 2.001, 2.451, 2.643, 2.344]),
}


def windows(nll: torch.Tensor) -> list[float]:
    """Mean loss of the tokens predicted at positions of each window."""
    starts = range(0, N, WINDOW)
    return [float(nll[start : start + WINDOW].mean()) for start in starts]


def main() -> None:
    """Print measured and reference loss per window, and the largest difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedules", nargs="+", default=list(TABLE), choices=list(TABLE))
    arguments = parser.parse_args()
    model = HookedTransformer.from_pretrained("smollm2-135m")
    tokens = model.to_tokens(standard_text().content)[:, :N]
    worst = 0.0
    for name in arguments.schedules:
        settings, reference = TABLE[name]
        variant = model if settings is None else model.with_config(rope=RopeConfig(**settings))
        measured = windows(variant.loss_per_token(tokens)[0])
        worst = max(worst, *(abs(a - b) for a, b in zip(measured, reference, strict=True)))
        print(f"{name:>10} measured  " + " ".join(f"{x:6.3f}" for x in measured))
        print(f"{'':>10} reference " + " ".join(f"{x:6.3f}" for x in reference), flush=True)
    print(f"largest difference {worst:.4f} nats")


if __name__ == "__main__":
    main()
