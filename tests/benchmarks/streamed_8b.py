"""A model far larger than the memory that its capture takes: anonymous memory, bytes of weights read, seconds.

    python tests/benchmarks/streamed_8b.py [--shape 8b] [--layers 2] [--tokens 1024] [--directory DIR]
    python tests/benchmarks/streamed_8b.py --shape 70b --layers 2

Makes a checkpoint of random bfloat16 weights in the shape of Llama 3.1 8B (32 layers, 16 GB in shards) or 70B in a
temporary directory, runs ``ropescope capture`` on it, then all statistics and the first layer's attention from the
capture alone, each in a process of its own. The 70B shape runs without its loss. Prints for each process the peak of
anonymous memory (which files that are mapped do not count to), and for the capture the bytes of weights that were read
from their files against the bytes that there are. The figures we hold ourselves to: under 4 GB at the 8B shape and 6 GB
at two layers of 70B, every byte read once.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import in_own_process
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SHAPES = {
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_hidden_layers": 32},
    "70b": {"hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64, "num_hidden_layers": 80},
}
WORDS, KV_HEADS, D_HEAD = 128_256, 8, 128
LIMITS = {"8b": 4e9, "70b": 6e9}


def checkpoint(directory: Path, shape: str, layers: int) -> int:
    """Write config, tokenizer and random weights, a shard for each layer; returns the bytes of the weights."""
    sizes = SHAPES[shape] | {"num_hidden_layers": layers}
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        **sizes,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": WORDS,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    (directory / "config.json").write_text(json.dumps(config))
    tokenizer().save_pretrained(directory)
    width, inner, kv = sizes["hidden_size"], sizes["intermediate_size"], KV_HEADS * D_HEAD
    block = {
        "self_attn.q_proj.weight": (width, width),
        "self_attn.k_proj.weight": (kv, width),
        "self_attn.v_proj.weight": (kv, width),
        "self_attn.o_proj.weight": (width, width),
        "mlp.gate_proj.weight": (inner, width),
        "mlp.up_proj.weight": (inner, width),
        "mlp.down_proj.weight": (width, inner),
        "input_layernorm.weight": (width,),
        "post_attention_layernorm.weight": (width,),
    }
    shards = [{f"model.layers.{layer}.{name}": size for name, size in block.items()} for layer in range(layers)]
    shards.insert(0, {"model.embed_tokens.weight": (WORDS, width)})
    shards.append({"model.norm.weight": (width,), "lm_head.weight": (WORDS, width)})
    places, total, generator = {}, 0, torch.Generator().manual_seed(0)
    for number, shard in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: drawn(size, generator) for name, size in shard.items()}
        save_file(tensors, directory / file, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, file)
        total += sum(x.nbytes for x in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def drawn(size: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """A gain of ones, or a matrix whose product with a unit-size vector is of unit size."""
    if len(size) == 1:
        return torch.ones(size, dtype=torch.bfloat16)
    spread = 12**0.5 * size[1] ** -0.5
    return (torch.rand(size, dtype=torch.bfloat16, generator=generator) - 0.5) * spread


def tokenizer() -> PreTrainedTokenizerFast:
    """One token for each byte."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytewise = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bytewise)


def watched(work: Callable[[], Any]) -> dict[str, Any]:
    """Peak of anonymous memory in bytes, and seconds, of this process while it works; and what the work gives."""
    peak, done = [anonymous()], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            peak[0] = max(peak[0], anonymous())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    before = time.perf_counter()
    found = work()
    done.set()
    watcher.join()
    return {"peak": peak[0], "seconds": time.perf_counter() - before, "cpu": time.process_time(), "found": found}


def anonymous() -> int:
    """Bytes of this process's memory that no file backs."""
    with open("/proc/self/status") as status:
        return 1024 * int(next(line.split()[1] for line in status if line.startswith("RssAnon")))


def captured(model: str, out: str, tokens: int, loss: bool) -> dict[str, Any]:
    """Run the command in this process, and count what it reads of each weight file."""
    from hooks.loading.weight_files import WeightFile
    from interp.cli import command

    read, tensors = Counter(), Counter()
    plain = WeightFile.read

    def counted(file: WeightFile, name: str, start: int, n_bytes: int) -> Any:
        read[name] += n_bytes
        tensors[name] += 1
        return plain(file, name, start, n_bytes)

    WeightFile.read = counted  # pyright: ignore[reportAttributeAccessIssue]
    sys.argv = ["ropescope", "capture", "--model", model, "--tokens", str(tokens), "--out", out]
    sys.argv += [] if loss else ["--no-loss"]

    def run() -> dict[str, Any]:
        try:
            command.main()
        except SystemExit as left:
            if left.code:
                raise RuntimeError(f"ropescope capture left with {left.code}") from None
        weights = {name: count for name, count in tensors.items() if name != "the header"}
        again = sorted({name.split("layers.")[-1].split(".", 1)[-1] for name, n in weights.items() if n > 1})
        return {"read": sum(read[name] for name in weights), "again": again}

    return watched(run)


def measured(path: str) -> dict[str, Any]:
    """All statistics of a capture, and its first layer's attention drawn."""
    from interp import attention_pattern, open_capture, plots

    def run() -> None:
        cap = open_capture(path)
        cap.statistics()
        shown = slice(0, 512)
        plots.show(attention_pattern(cap, cap.layers[0], 0, shown, shown)).to_json()

    return watched(run)


def main() -> None:
    """Make the checkpoint, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--layers", type=int, help="how many layers; by default all of the 8B shape, two of 70B")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--directory", help="where the temporary directory is made; by default the system's")
    arguments = parser.parse_args()
    layers = arguments.layers or (SHAPES["8b"]["num_hidden_layers"] if arguments.shape == "8b" else 2)
    sizes = SHAPES[arguments.shape]
    width, inner = sizes["hidden_size"], sizes["intermediate_size"]
    block = 2 * width * (2 * width + 2 * KV_HEADS * D_HEAD + 3 * inner)
    needed = layers * (block + 2 * arguments.tokens * 3 * (width + 2 * KV_HEADS * D_HEAD)) + 4 * WORDS * width
    with tempfile.TemporaryDirectory(dir=arguments.directory) as scratch:
        free = shutil.disk_usage(scratch).free
        if 1.2 * needed > free:
            sys.exit(f"this needs {1.2 * needed / 1e9:.1f} GB of disk in {scratch}, and {free / 1e9:.1f} GB are free")
        model, out = Path(scratch) / "model", str(Path(scratch) / "a.capture")
        model.mkdir()
        before = time.perf_counter()
        total = in_own_process(checkpoint, model, arguments.shape, layers)
        print(f"made {total / 1e9:.2f} GB of weights in {time.perf_counter() - before:.0f} s", flush=True)
        os.sync()
        loss = arguments.shape == "8b"
        took = in_own_process(captured, str(model), out, arguments.tokens, loss)
        there = total if loss else total - 2 * WORDS * width - 2 * width  # nothing needs the unembedding
        read, again = took["found"]["read"], took["found"]["again"]
        print(
            f"capture of {arguments.tokens:,} tokens, {layers} layers: {took['seconds']:.0f} s ({took['cpu']:.0f} s of "
            f"processor), anonymous memory {took['peak'] / 1e9:.2f} GB (at most {LIMITS[arguments.shape] / 1e9:.0f}), "
            f"read {read / 1e9:.3f} of {there / 1e9:.3f} GB of weights ({read / there:.3f} ×), more than once: "
            f"{', '.join(again) or 'nothing'}",
            flush=True,
        )
        took = in_own_process(measured, out)
        print(
            f"all statistics and a figure: {took['seconds']:.0f} s ({took['cpu']:.0f} s of processor), anonymous "
            f"memory {took['peak'] / 1e9:.2f} GB"
        )


if __name__ == "__main__":
    main()
