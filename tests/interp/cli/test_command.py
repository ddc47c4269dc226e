"""The command: quick to answer, and one line on what is wrong instead of a traceback."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import Shape
from tiny import tiny_model as tiny_llama
from tiny_gguf import write_gguf

from hooks import HookedTransformer, HookedTransformerConfig, RopeConfig
from hooks.loading.weight_files import WeightFile
from interp.cli import command as cli
from interp.cli import options

ROOT = Path(__file__).parents[3]
# Processor time of the same work on a busy machine with shared caches against a quiet one.
BUSY = 2
COMMAND = [sys.executable, "-m", "interp.cli"]


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run main() in this process, in an empty directory; gives exit status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run_main(*arguments):
        monkeypatch.setattr(sys, "argv", ["ropescope", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        out, err = capsys.readouterr()
        return left.value.code, out, err

    return run_main


class OneTokenPerCharacter:
    bos_token_id = None

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": [ord(c) % 61 for c in text]}

    def batch_decode(self, rows, **_):
        return [chr(48 + row[0]) for row in rows]


@pytest.fixture
def tiny(monkeypatch):
    """Every model name gives a tiny model."""

    def load(source, *, dtype=None, device=None, stream=None):
        dtype = str(dtype or "float32").removeprefix("torch.")
        cfg = HookedTransformerConfig(
            d_model=32,
            d_head=32,
            n_layers=3,
            n_ctx=512,
            n_heads=2,
            d_mlp=16,
            d_vocab=61,
            act_fn="silu",
            gated_mlp=True,
            normalization_type="RMS",
            rope=RopeConfig(rope_type="default", rope_theta=10_000.0),
            seed=0,
            initializer_range=0.2,
            dtype=getattr(torch, dtype),
        )
        model = HookedTransformer(cfg, OneTokenPerCharacter()).eval()
        model.loaded_from = source
        return model

    monkeypatch.setattr(HookedTransformer, "from_pretrained", load)


def one_line_error(status, out, err, expected_status=1):
    assert status == expected_status
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


def beside_the_plan(err):
    """What a capture says on stderr behind the line on what it will take."""
    said = "note: memory about .* free now\\), disk .* free, time roughly .* for its statistics"
    line, _, rest = err.partition("\n")
    assert re.fullmatch(said, line)
    return rest


def test_report_writes_the_file(run, tiny, tmp_path):
    status, out, err = run("report", "--tokens", 50, "--layers", "0,2", "--heads", "1", "--dtype", "bfloat16")
    assert (status, err) == (0, "")
    assert out.startswith("wrote ropescope-report.html (")
    page = (tmp_path / "ropescope-report.html").read_text(encoding="utf-8")
    assert page.count("<img ") == 2
    assert "L0 H1" in page
    assert "L2 H1" in page
    assert "L1 H1" not in page


def test_a_short_text_is_read_whole_and_said_so(run, tiny, tmp_path):
    (tmp_path / "t.txt").write_text("twelve chars")
    status, _, err = run("report", "--text", "t.txt", "--tokens", 50)
    assert status == 0
    assert err == "note: the text has 12 tokens, fewer than the 50 asked for; all of it was read\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tokens", "0"], "--tokens 0: attention needs at least 2"),
        (["--tokens", "-5"], "--tokens -5"),
        (["--dtype", "int7"], "choose from float32, bfloat16, float16"),
        (["--layers", "1-"], "such as 0,3-5"),
        (["--layers", ""], "such as 0,3-5"),
        (["--heads", "3-1"], "small to large"),
        (["--heads", "a"], "such as 0,3-5"),
        (["--layers", "3"], "layers are 0 to 2"),
        (["--heads", "0-2"], "heads are 0 to 1"),
        (["--out", "missing/r.html"], "there is no directory"),
        (["--out", "."], "is a directory"),
        (["--text", "missing.txt"], "no such text file"),
        (["--text", "."], "is a directory"),
        (["--text", "empty.txt"], "holds no text"),
        (["--text", "latin.txt"], "not UTF-8 (byte 0xe9 at offset 3)"),
        (["--text", "one.txt"], "attention needs at least 2"),
        (["--text", "bad\nname\x1b[31m"], "no such text file"),
        (["--device", "cuda:99"], "--device"),
        (["--device", "nonsense"], "--device"),
        (["--model", ""], "the model '' has no name"),
        (["--out", "x" * 300], "File name too long"),
        (["--csv", "x" * 300], "File name too long"),
        (["--text", "x" * 300], "File name too long"),
        (["--capture", "x" * 300], "File name too long"),
        (["--out", "empty.txt"], "ropescope did not write it"),
    ],
)
def test_bad_input_is_one_line(run, tiny, tmp_path, arguments, said):
    (tmp_path / "empty.txt").write_text(" \n\t")
    (tmp_path / "latin.txt").write_bytes("caf\u00e9".encode("latin-1"))
    (tmp_path / "one.txt").write_text("x")
    line = one_line_error(*run("report", *arguments))
    assert said in line
    assert line.isprintable()
    assert not list(tmp_path.glob("*.html"))
    assert not list(tmp_path.glob(".ropescope*"))


def test_capture_info_and_report(run, tiny, tmp_path):
    status, out, err = run("capture", "--tokens", 50, "--layers", "0,2", "--stages", "pre_rope", "--out", "c")
    assert (status, beside_the_plan(err)) == (0, "")
    size = 2 * 50 * (2 * (2 + 2) + 2) * 32 * 4
    assert f"50 tokens × 2 layers: {size:,} bytes of q, k and v in c, where patterns would take" in out
    assert f"; {2 * 50 * (2 + 2 + 2) * 32 * 4:,} are stored if later stages follow from the first" in out
    assert out.splitlines()[1].startswith("at the speed of a trial on 50 tokens it takes about ")
    assert "layer 0 took" in out
    assert out.splitlines()[-1].startswith("wrote c (")
    assert run("capture", "--tokens", 50, "--layers", "0,2", "--stages", "pre_rope", "--out", "c")[0] == 0
    status, out, err = run("info", "c", "--verify")
    assert (status, err) == (0, "")
    assert "50 tokens" in out
    assert "verified: 6 files" in out
    stored = 2 * 50 * (2 + 2 + 2) * 32 * 4
    assert f"stored      {stored:,} bytes" in out and "derived     q.final, k.final when read, in layers 0, 2" in out
    assert run("resume", "c")[:2] == (0, "c is complete\n")
    status, out, err = run("report", "--capture", "c", "--layers", "2")
    assert (status, err) == (0, "")
    page = (tmp_path / "ropescope-report.html").read_text(encoding="utf-8")
    assert "L2 H1" in page
    assert "L0 H1" not in page


def test_plan_needs_a_config_alone(run, tmp_path, monkeypatch):
    monkeypatch.setattr(HookedTransformer, "from_pretrained", None)
    sizes = {"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336}
    more = {"num_hidden_layers": 32, "vocab_size": 128256, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5}
    llama = {"model_type": "llama", "tie_word_embeddings": False, "torch_dtype": "bfloat16", **sizes, **more}
    (tmp_path / "config.json").write_text(json.dumps(llama))
    status, out, err = run("plan", ".", "--tokens", 131072, "--stages", "pre_rope", "--layers", "0-1")
    assert (status, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    assert "8.03 billion weights, 16.1 GB in bfloat16" in out
    assert re.search(r"^memory, weights streamed +[\d.]+ GB +[\d.]+ GB   (fits|does not fit)$", out, re.MULTILINE)
    assert "The longest text that fits here" in out
    assert "Assumed: " in out
    status, out, err = run("plan", "config.json", "--tokens", 1024, "--dtype", "float32", "--no-loss", "--json")
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert found["weight_bytes"] == 4 * 8_030_261_248
    assert found["stages"] == ["pre_rope", "final"]
    stored, triangles = 1024 * 32 * 128 * 4 * (32 + 8 + 8), 32 * 32 * 128 * 128 * 4  # q and k once, v; W_O's factor
    assert found["capture_bytes"] == pytest.approx(stored + triangles, rel=0.01)
    assert found["free_disk_bytes"] > 0
    assert found["longest_that_fits"] > 2


def test_plan_reads_no_weight_of_a_gguf_file(run, tmp_path, monkeypatch):
    path = write_gguf(tiny_llama("llama", Shape(layers=3, head_dim=32)), tmp_path / "tiny.gguf")
    monkeypatch.setattr(WeightFile, "read", None)
    status, out, err = run("plan", path.name, "--tokens", 100, "--json")
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert (found["model"], found["dtype"], len(found["layers"])) == ("tiny", "float32", 3)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["gemma4-270m"], "no model 'gemma4-270m'"),
        (["nowhere/at-all"], "cannot fetch"),
        ([".", "--tokens", "1"], "attention needs at least 2"),
        ([".", "--stages", "pre_norm"], "no layer of this model has a stage 'pre_norm'"),
        ([".", "--layers", "7"], "no layer 7"),
        ([".", "--dtype", "int8"], "choose from"),
        (["missing"], "no model"),
        ([""], "has no name"),
    ],
)
def test_what_cannot_be_planned_is_one_line(run, tmp_path, arguments, said):
    sizes = {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 64, "num_hidden_layers": 2}
    llama = {"model_type": "llama", "vocab_size": 50, "max_position_embeddings": 128, "rms_norm_eps": 1e-5, **sizes}
    (tmp_path / "config.json").write_text(json.dumps(llama))
    assert said in one_line_error(*run("plan", *arguments))


@pytest.mark.filterwarnings("always::hooks.errors.CaptureWarning")
def test_gradients_are_asked_for_in_words_and_gone_on_with(run, tiny, monkeypatch, tmp_path):
    def interrupt(*_):
        raise KeyboardInterrupt

    arguments = ("capture", "--tokens", 20, "--gradient-of", "logit_difference('b', 3, position=-2)", "--out", "c")
    with monkeypatch.context() as patch:
        patch.setattr("interp.recording.gradients._block_gradient", interrupt)
        status, out, err = run(*arguments)
    assert (status, err.splitlines()[-1]) == (130, "error: interrupted; go on with: ropescope resume c")
    assert "gradients of logit_difference('b', 3, position=-2) take" in out
    status, out, err = run("info", "c")
    assert "gradients   unfinished: go on with `ropescope resume c`" in out
    assert run("resume", "c")[0::2] == (0, "")
    assert run("resume", "c")[1] == "c is complete\n"
    status, out, err = run("info", "c", "--verify")
    assert (status, err) == (0, "")
    assert "gradients   of logit_difference('b', 3, position=-2), which is " in out
    other = (*arguments[:4], "loss()", *arguments[5:])
    assert "holds gradients of" in run(*other)[2]
    (tmp_path / "c" / "gradients" / "gradient_001.safetensors").unlink()
    assert "gradient_001.safetensors is missing" in one_line_error(*run("info", "c", "--verify"))


@pytest.mark.parametrize(
    ("metric", "says"),
    [
        ("custom(len, 1, 'x')", "a custom metric is a function; capture in Python"),
        ("logit(__import__('os').getcwd())", "is no metric: write logit("),
        ("logit", "is no metric"),
        ("logit(1, 2, 3)", "is no metric"),
        ("entropy()", "is no metric"),
        ("loss([])", "at least one"),
        ("logit('b c')", "'b c' is 3 tokens"),
        ("loss(99)", "no position 99"),
    ],
)
def test_a_metric_that_is_none_is_one_line(run, tiny, metric, says):
    assert says in one_line_error(*run("capture", "--tokens", 20, "--gradient-of", metric, "--out", "c"))
    assert not Path("c").exists()


def test_a_capture_without_loss_says_so(run, tiny):
    assert run("capture", "--tokens", 20, "--layers", "1", "--no-loss", "--out", "c")[0] == 0
    status, out, _ = run("info", "c")
    assert status == 0
    assert "loss        left out" in out
    assert "complete    yes" in out
    assert "holds no loss" in one_line_error(*run("report", "--capture", "c"))


@pytest.mark.filterwarnings("always::hooks.errors.CaptureWarning")
def test_an_interrupted_capture_says_how_to_go_on(run, tiny, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    arguments = ("capture", "--tokens", 20, "--out", "c", "--dtype", "bfloat16")
    with monkeypatch.context() as patch:
        patch.setattr(HookedTransformer, "residual_loss", interrupt)
        status, _, err = run(*arguments)
    assert (status, beside_the_plan(err)) == (130, "error: interrupted; go on with: ropescope resume c\n")
    status, out, err = run("info", "c")
    assert status == 0
    assert "complete    no: go on with `ropescope resume c`" in out
    assert "3 of 3 layers have run" in err
    status, out, _ = run("resume", "c")
    assert status == 0
    assert out.splitlines()[-1].startswith("wrote c (")


def test_an_interrupt_before_anything_is_written_says_so(run, tiny, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("interp.storage.wanted.weight_hash", interrupt)
    status, _, err = run("capture", "--tokens", 20, "--out", "c")
    assert (status, beside_the_plan(err)) == (130, "error: interrupted; nothing was captured yet: run it again\n")


def test_every_damaged_file_is_named(run, tiny, tmp_path):
    run("capture", "--tokens", 20, "--out", "c")
    (tmp_path / "c" / "layer_001.safetensors").unlink()
    (tmp_path / "c" / "loss.safetensors").write_bytes(b"short")
    line = one_line_error(*run("info", "c", "--verify"))
    assert "layer_001.safetensors is missing" in line
    assert "loss.safetensors has 5 bytes" in line


def test_wrong_captures_are_one_line(run, tiny, tmp_path):
    run("capture", "--tokens", 20, "--out", "c")
    assert "another text" in run("capture", "--tokens", 21, "--out", "c")[2]
    one_line_error(*run("info", "missing"))
    one_line_error(*run("resume", "missing"))
    one_line_error(*run("report", "--capture", "missing"))
    assert "--model, --tokens cannot go with --capture" in one_line_error(
        *run("report", "--capture", "c", "--model", "gemma3-270m", "--tokens", 20)
    )
    assert "unknown stage 'pre_nrom'" in one_line_error(*run("capture", "--out", "d", "--stages", "pre_nrom"))
    path = tmp_path / "c" / "layer_001.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    status, _, err = run("info", "c", "--verify")
    assert status == 1
    assert err.startswith("error: c/layer_001.safetensors was changed after it was written")


@pytest.mark.parametrize("arguments", [["--tokens", "many"], ["--nonsense"], ["extra"]])
def test_usage_errors_are_one_line_with_status_2(run, arguments):
    one_line_error(*run("report", *arguments), expected_status=2)


@pytest.mark.parametrize("command", ["report", "capture"])
def test_a_text_named_without_its_option(run, command):
    line = one_line_error(*run(command, "essay.txt"), expected_status=2)
    assert "essay.txt" in line
    assert "Name what it is with --text" in line


def test_a_capture_compared_with_itself(run, tiny):
    run("capture", "--tokens", 20, "--layers", "0", "--out", "c")
    status, out, err = run("compare", "c", "c")
    assert (status, err) == (0, "")
    assert out.startswith("heads by profile_divergence, c (second) − c (first):")


def child(arguments, tmp_path, shell="exec {}", encoding="utf-8", **environment):
    """The command in a process of its own, its output where the shell puts it."""
    line = shell.format(" ".join([*COMMAND, *arguments]))
    everything = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(["bash", "-c", line], cwd=tmp_path, env=everything, capture_output=True, encoding=encoding)


@pytest.mark.parametrize("arguments", [["stats"], ["--help"]])
def test_a_full_disk_is_one_line(tmp_path, arguments):
    done = child(arguments, tmp_path, "exec {} > /dev/full")
    assert (done.returncode, done.stderr) == (1, "error: cannot write the output: No space left on device\n")


@pytest.mark.parametrize("arguments", [["stats"], ["--help"]])
def test_a_reader_that_has_gone_is_no_error(tmp_path, arguments):
    done = child(arguments, tmp_path, "set -o pipefail; sleep 0 | true; {} | true")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_encoding_of_the_output(tmp_path, encoding):
    done = child(["stats"], tmp_path, encoding=encoding, PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, "")
    assert "score_mean" in done.stdout


def test_without_anybody_to_read_it_a_capture_is_written(run, tiny, tmp_path, monkeypatch):
    """As in ``ropescope capture … | true``: what it says goes nowhere, what it does is done."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", pipe)
        status, _, err = run("capture", "--tokens", 20, "--out", "c")
        assert (status, beside_the_plan(err)) == (0, "")
        assert sys.stdout is pipe
    assert "complete    yes" in run("info", "c")[1]


def test_a_directory_that_is_gone(tmp_path):
    (tmp_path / "gone").mkdir()
    done = child(["report"], tmp_path / "gone", "rmdir ../gone; exec {}")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "error: " in done.stderr


def test_a_missing_capture_is_told_before_anything_heavy_is_imported(tmp_path):
    for arguments in (["info", "no"], ["resume", "no"], ["report", "--capture", "no"], ["compare", "no", "no"]):
        script = (
            "import sys\n"
            "from interp.cli import main\n"
            f"sys.argv = ['ropescope', *{arguments}]\n"
            "try:\n    main()\n"
            "finally:\n    print([m for m in ('torch', 'numpy', 'xarray') if m in sys.modules])\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stdout) == (1, "[]\n")
        assert "there is no capture in 'no'" in done.stderr


def test_unknown_command(run):
    assert "No such command" in one_line_error(*run("rapport"), expected_status=2)


def test_unknown_model(run):
    line = one_line_error(*run("report", "--model", "no-such-model"))
    assert "no-such-model" in line


def test_out_of_memory_is_one_line(run, tiny, monkeypatch):
    def load(*_, **__):
        raise MemoryError

    monkeypatch.setattr(HookedTransformer, "from_pretrained", load)
    assert "fewer tokens" in one_line_error(*run("report"))


def test_interrupt_leaves_nothing(run, tiny, monkeypatch, tmp_path):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("interp.reporting.page.render", interrupt)
    line = one_line_error(*run("report", "--tokens", 20), expected_status=130)
    assert "interrupted" in line
    assert os.listdir(tmp_path) == []


def test_a_signal_during_a_real_run(tmp_path):
    script = (
        "import time, hooks, interp.cli.command as cli\n"
        "import hooks.model\n"
        "def load(*a, **k):\n print('loading', flush=True)\n time.sleep(60)\n"
        "hooks.model.HookedTransformer.from_pretrained = load\n"
        "import sys; sys.argv = ['ropescope', 'report']\n"
        "cli.main()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Under nohup or in a shell's background the signal is ignored, and a child inherits that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"loading\n"
        process.send_signal(signal.SIGINT)
        try:
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert err == b"error: interrupted; nothing was written\n"
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing"], "there is no capture in 'missing'"),
        (["a", "--model", "gemma3-270m", "--tokens", "9"], "--model, --tokens cannot go with a capture"),
        (["--tokens", "1"], "--tokens 1: attention needs at least 2"),
        (["--layers", "x"], "such as 0,3-5"),
    ],
)
def test_explore_says_what_it_cannot_do_in_a_line(run, arguments, said):
    assert said in one_line_error(*run("explore", *arguments))


def test_explore_without_its_extra_says_what_to_install(run, tiny, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'ropescope[explore]'" in one_line_error(*run("explore", "--tokens", 50))


def test_explore_serves_what_it_ran_and_says_how_to_make_it(run, tiny, monkeypatch, tmp_path):
    served = []
    serving = pytest.importorskip("interp.explorer.server", reason="exploring needs the extra explore")

    def serve(explorer, port, *, ready):
        served.append((explorer, port))
        ready("http://127.0.0.1:1/x/")

    monkeypatch.setattr(serving, "serve", serve)
    (tmp_path / "t.txt").write_text("a text to explore, long enough")
    status, out, err = run("explore", "--text", "t.txt", "--tokens", 20, "--layers", 1, "--port", 4321, "--no-open")
    assert (status, out) == (0, "http://127.0.0.1:1/x/\n") and err == "Ctrl-C ends it\n"
    explorer, port = served[0]
    assert port == 4321 and explorer.cap.layers == (1,) and len(explorer.cap.tokens) == 20
    scope = {}
    exec(compile(explorer.source, "copied", "exec"), scope)
    assert torch.equal(scope["cap"].q(1), explorer.cap.q(1))


def test_help_is_quick_and_shows_an_example():
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}

    def processor_seconds():
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = processor_seconds()
    done = subprocess.run([*COMMAND, "--help"], env=environment, capture_output=True, text=True, check=True)
    assert processor_seconds() - before < 0.5 * BUSY
    assert "report" in done.stdout
    shown = subprocess.run([*COMMAND, "report", "--help"], env=environment, capture_output=True, text=True, check=True)
    assert "Example: ropescope report --model" in shown.stdout


@pytest.mark.parametrize("command", ["capture", "corpus", "resume", "info", "explore"])
def test_every_command_shows_an_example(run, command):
    assert f"Example: ropescope {command} " in run(command, "--help")[1]


def test_nothing_heavy_is_imported():
    script = (
        "import sys, interp, hooks, interp.cli.command\n"
        "heavy = {'torch', 'numpy', 'xarray', 'plotly', 'transformers', 'transformer_lens', 'jinja2', 'numba'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("text", "numbers"), [("0", [0]), ("0,3-5", [0, 3, 4, 5]), (" 2 , 1-1,2", [1, 2]), ("17-17", [17])]
)
def test_number_lists(text, numbers):
    assert options.numbers(text, "--layers") == numbers
