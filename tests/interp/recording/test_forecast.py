"""What a forecast says against what captures took: bytes on disk to the last one, memory measured, sizes published."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny import Shape, tiny_config, tiny_model

from hooks import HookedTransformer
from hooks.errors import StageError
from hooks.loading.describing import read_config, weight_sizes
from interp import capture
from interp.recording.cost import attention_operations
from interp.recording.forecast import LIBRARIES, Forecast, Speed, measure_speed
from interp.recording.plan import plan_capture

ROOT = Path(__file__).parents[3]
FAMILIES = ["llama", "gemma3_text", "qwen3", "olmo2", "gpt_neox", "gptj", "phi3", "cohere", "gemma2", "starcoder2"]
LLAMA_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
QWEN_06B = {
    "model_type": "qwen3",
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
load = HookedTransformer.from_pretrained
pytestmark = [
    pytest.mark.filterwarnings("ignore::hooks.errors.NarrowRotaryWarning"),
    pytest.mark.filterwarnings("ignore::hooks.model.ContextLengthWarning"),
]


def config_file(path, values):
    (path / "config.json").write_text(json.dumps(values))
    return path / "config.json"


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_bytes_are_those_that_a_capture_wrote(tmp_path, family, tied):
    shape = Shape(layers=3, tied=tied, heads=4, kv_heads=2, head_dim=64)
    theirs = tiny_model(family, shape, dtype=torch.bfloat16 if tied else torch.float32)
    theirs.save_pretrained(tmp_path / "model")
    model, n = load(tmp_path / "model"), 1000
    alone = tmp_path / "alone" / "model"
    alone.mkdir(parents=True)
    (alone / "config.json").write_bytes((tmp_path / "model" / "config.json").read_bytes())
    found = Forecast.of_config(read_config(alone), n, layers=[0, 2])
    ids = torch.randint(97, (n,), generator=torch.Generator().manual_seed(0))
    cap = capture(model, ids, tmp_path / "a.capture", layers=[0, 2])
    assert found.qkv_bytes == cap.stored_bytes
    assert found == Forecast.of_plan(plan_capture(model, ids, layers=[0, 2]))
    on_disk = sum(file.stat().st_size for file in (tmp_path / "a.capture").iterdir())
    assert found.disk == pytest.approx(on_disk, rel=0.01)
    cap.statistics()
    beside = sum(file.stat().st_size for file in (tmp_path / "a.capture" / "statistics").iterdir())
    assert found.statistics_disk == pytest.approx(beside, rel=0.01)
    assert found.weights.whole == sum(p.numel() for p in model.parameters())
    blocks = [sum(p.numel() for p in block.parameters()) for block in model.blocks]
    assert blocks == [found.weights.block] * 3


@pytest.mark.parametrize(("config", "published"), [(LLAMA_8B, 8_030_261_248), (QWEN_06B, 596_049_920)])
def test_weights_are_as_many_as_published(tmp_path, config, published):
    cfg = read_config(config_file(tmp_path, config))
    assert weight_sizes(cfg).whole == published
    assert cfg.dtype == torch.bfloat16


def test_a_model_of_any_size_is_planned_from_its_config(tmp_path):
    found = Forecast.of_config(read_config(config_file(tmp_path, LLAMA_8B)), 1024, "pre_rope")
    # q and k before the rotation, from which those after it follow, and v; 2 bytes a number.
    assert found.qkv_bytes == 1024 * 32 * 128 * 2 * (32 + 8 + 8)
    assert found.weight_bytes == 2 * 8_030_261_248
    block = 2 * 4096 * (2 * 4096 + 2 * 1024 + 3 * 14336 / 1)
    embedding = 2 * 128256 * 4096
    assert found.memory - found.memory_streamed == pytest.approx(31 * block + embedding, rel=0.01)
    assert found.memory_streamed < 4e9
    assert found.with_tokens(2048).qkv_bytes == 2 * found.qkv_bytes
    assert Forecast.of_config(found.cfg, 1024, "pre_rope", [0, 1], loss=False).n_blocks == 2
    with pytest.raises(StageError, match="pre_norm"):
        Forecast.of_config(found.cfg, 1024, "pre_norm")
    with pytest.raises(StageError, match="no layer 32"):
        Forecast.of_config(found.cfg, 1024, layers=32)


def test_the_longest_text_is_the_longest(tmp_path):
    found = Forecast.of_config(read_config(config_file(tmp_path, LLAMA_8B)), 1024)
    for memory, disk in ((6e9, 1e12), (1e12, 1e9), (24e9, 64e9)):
        longest = found.longest_within(memory, disk)
        fits = found.with_tokens(longest)
        assert max(fits.memory_streamed, fits.statistics_memory) <= memory
        assert fits.disk_with_statistics <= disk
        more = found.with_tokens(int(longest * 1.01))
        assert max(more.memory_streamed, more.statistics_memory) > memory or more.disk_with_statistics > disk
    assert found.longest_within(1e9, 1e12) == 0


def test_times_follow_from_speeds(tmp_path):
    cfg = read_config(config_file(tmp_path, LLAMA_8B))
    found = Forecast.of_config(cfg, 1000)
    # Two operations for each weight in a matrix and each token; the embedding is looked up.
    matrices = 2 * 1000 * (8_030_261_248 - 128256 * 4096 - 65 * 4096)
    assert found.seconds(Speed(1.0, float("inf"), 1.0)) == pytest.approx(matrices, rel=1e-6)
    pairs = 1000 * 1001 / 2
    assert found.seconds(Speed(float("inf"), 1.0, 1.0)) == 32 * 4 * pairs * 32 * 128
    assert found.statistics_seconds(Speed(1.0, 1.0, 2.0)) == 32 * 4 * pairs * 32 * 128 / 2
    speed = measure_speed(cfg, torch.float32)
    assert all(1e6 < each < 1e16 for each in (speed.matrices, speed.attention, speed.statistics))
    assert attention_operations(cfg, 0, 1000) == 4 * pairs * 32 * 128


MEASURED = """
import sys, torch
from hooks import HookedTransformer
from interp import capture
source, out, n, stream, loss = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "1", sys.argv[5] == "1"
def anonymous():
    return 1024 * int(next(x.split()[1] for x in open("/proc/self/status") if x.startswith("RssAnon")))
import threading, time
peak, done = [0], threading.Event()
def watch():
    while not done.wait(0.002):
        peak[0] = max(peak[0], anonymous())
import transformers, interp.captures, interp.storage.writing
before = anonymous()
threading.Thread(target=watch, daemon=True).start()
model = HookedTransformer.from_pretrained(source, stream=stream)
ids = torch.randint(model.cfg.d_vocab, (n,), generator=torch.Generator().manual_seed(0))
capture(model, ids, out, loss=loss)
done.set()
print(peak[0] - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="anonymous memory is counted by Linux")
@pytest.mark.parametrize(
    ("family", "dtype", "stream", "loss"),
    [("llama", "float32", False, True), ("llama", "bfloat16", True, False), ("gemma3_text", "float32", True, True)],
)
def test_memory_is_what_a_run_took_within_a_factor(tmp_path, family, dtype, stream, loss):
    shape = Shape(layers=4, heads=8, kv_heads=2, head_dim=64, d_model=512, d_mlp=2048, vocab=8000, tied=True)
    theirs = tiny_model(family, shape, dtype=getattr(torch, dtype))
    theirs.save_pretrained(tmp_path / "model")
    del theirs
    n = 16_384
    cfg = read_config(tmp_path / "model")
    found = Forecast.of_config(cfg, n, loss=loss)
    run = partial(subprocess.run, capture_output=True, text=True, check=True, cwd=ROOT)
    arguments = [tmp_path / "model", tmp_path / "a.capture", n, int(stream), int(loss)]
    took = int(run([sys.executable, "-W", "ignore", "-c", MEASURED, *map(str, arguments)]).stdout)
    said = (found.memory_streamed if stream else found.memory) - LIBRARIES
    assert took / 1.5 < said < took * 1.5, (took, said)


def test_configs_of_all_families_are_enough(tmp_path):
    for family in FAMILIES:
        config = tiny_config(family, Shape(layers=2)).to_dict() | {"model_type": family, "dtype": "bfloat16"}
        found = Forecast.of_config(read_config(config_file(tmp_path, config)), 100)
        assert found.qkv_bytes > 0
        assert found.memory_streamed <= found.memory + 1
