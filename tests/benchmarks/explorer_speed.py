"""How long the explorer's questions take, each asked with nothing kept: tiles at every scale, a screen, a what-if.

    python tests/benchmarks/explorer_speed.py                          # 32,768 tokens, heads 64 wide: about 1 minute
    python tests/benchmarks/explorer_speed.py --d-head 256
    python tests/benchmarks/explorer_speed.py --tokens 131072          # about 10 minutes
    python tests/benchmarks/explorer_speed.py --capture gemma-32k --layer 5

Prints the median of wall time and of processor time; on a machine that others use, only the second means much. A random
model stands for a real one: what a tile costs does not depend on what is in it.
"""

import argparse
import resource
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from tiny_hooked import random_tokens, tiny_model

from interp.captures import capture, open_capture
from interp.explorer.asking import TILE, read_variant
from interp.explorer.questions import Explorer
from interp.measure.statistics import attention_statistics


def timed(what, ask, repeat):
    """Ask several times, afresh each time, and say how long it took."""
    walls, works = [], []
    for round_ in range(repeat):
        wall, work = time.perf_counter(), time.process_time()
        ask(round_)
        walls.append(time.perf_counter() - wall)
        works.append(time.process_time() - work)
    wall, work = statistics.median(walls), statistics.median(works)
    print(f"{what:<44} {wall * 1e3:9.1f} ms  {work * 1e3:9.1f} ms of processor", flush=True)
    return work


def made(args):
    """A capture of one full layer."""
    if args.capture:
        return open_capture(args.capture).select(args.layer)
    sizes = {"n_heads": 1, "n_key_value_heads": 1, "d_head": args.d_head, "n_layers": 1}
    model = tiny_model(n_ctx=args.tokens, **sizes)
    return capture(model, random_tokens(args.tokens), loss=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=32_768)
    parser.add_argument("--d-head", type=int, default=64)
    parser.add_argument("--capture", help="a capture on disk instead of a random model")
    parser.add_argument("--layer", type=int, default=0)
    args = parser.parse_args()
    cap = made(args)
    layer, n = cap.layers[-1], len(cap.positions)
    explorer = Explorer(cap)
    width = cap.cfg.d_head
    print(f"{n:,} tokens, heads {width} wide, {torch.get_num_threads()} threads: wall and processor time, medians")
    atlas, picture = explorer.atlas, {"layer": layer, "head": 0}
    explorer.ask({"kind": "row", "heads": [[layer, 0]], "query": 5})
    scale = 1
    while scale < atlas.map_scale:
        last = n // (TILE * scale) - 1
        kind = {"kind": "tile", **picture, "scale": scale, "row": last}
        timed(f"tile, {scale} × {scale} cells a pixel", lambda i, kind=kind: explorer.ask({**kind, "column": i}), 3)
        scale *= 2

    def screen(_, scale=scale // 2):
        side = n // (TILE * scale)
        for row in range(max(side - 5, 0), side):
            for column in range(min(4, side)):
                explorer.atlas.cache.__init__(explorer.atlas.cache.most_bytes)
                explorer.ask({"kind": "tile", **picture, "scale": scale, "row": row, "column": column})

    timed(f"a screen of 20 tiles, {scale // 2} × {scale // 2} cells a pixel", screen, 1)
    top = {"kind": "tile", **picture, "scale": atlas.map_scale, "row": 0, "column": 0}
    timed("the pooled map of a head", lambda i: explorer.ask(top), 1)
    timed("a row", lambda i: explorer.ask({"kind": "row", "heads": [[layer, 0]], "query": n - 1 - i}), 3)
    timed("a column", lambda i: explorer.ask({"kind": "column", "heads": [[layer, 0]], "key": i}), 3)
    variant = {"rope": {"rope_theta": 123_456.0}}
    asked = timed("row sums of a what-if, q and k made anew", lambda i: atlas.lse(layer, 0, read_variant(variant)), 1)
    side = atlas.side(layer, 0, None).rows
    q, k = side.q[:, None], side.k[:, None]
    plain = timed("the rows pass of that head", lambda i: attention_statistics(q, k, side.spec, groups=("rows",)), 1)
    print(f"what-if: {asked / plain:.2f} × the rows pass")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GB")


if __name__ == "__main__":
    main()
