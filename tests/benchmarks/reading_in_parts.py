"""8,192 tokens read in parts of 1,000 with a cache against the same at once, in all layers, native and attached.

    python tests/benchmarks/reading_in_parts.py [--model smollm2-135m gemma3-270m]

Fails where q, k, z, a pattern, the residual stream or a logit differs by 1e-5 of its range.
"""

import argparse
import sys
from pathlib import Path

from reference_models import transformers_model

from hooks import HookedTransformer
from interp.texts.texts import standard_text

sys.path.append(str(Path(__file__).parents[1] / "support"))


def main() -> None:
    """Print the largest difference of each model."""
    from reading_parts import same_in_parts

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["smollm2-135m", "gemma3-270m"])
    for name in parser.parse_args().model:
        native = HookedTransformer.from_pretrained(name)
        tokens = native.to_tokens(standard_text().content)[:, :8192]
        print(f"{name}: differs by at most {same_in_parts(native, transformers_model(name), tokens):.1e} of the range")


if __name__ == "__main__":
    main()
