"""The benchmarks: the plain loop computes what the fast path computes, and the commands run."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import call, script
from reasoner_tiny import TINY as TINY_REASONER
from tiny import PROBLEMS, tiny_config, tiny_data, tiny_model

from bench import cross_entropy, demo_load, eval_speed, jepa_overhead, measure, reliability, train_speed
from bench.latent_memory import BenchConfig as MemoryConfig
from bench.latent_memory import measure as measure_memory
from bench.straightforward import plain_answer, plain_loss
from common.checkpoint import read_json
from common.options import parse
from latent_stack.config import StackConfig

TINY = (
    "--dataset wordproblems --tokenizer bpe:400 --n-layer 1 --n-embd 32 --n-head 2 --n-train 64 --batch-size 4 "
    "--device cpu"
).split()


def pairs(examples, tokenizer):
    questions, answers = (tokenizer.encode([getattr(e, key) for e in examples]) for key in ("question", "answer"))
    return list(zip(questions, answers, strict=True))


def test_the_fast_loss_and_its_gradients_equal_the_plain_loop():
    model, examples = tiny_model(), PROBLEMS[:12]
    fast, metrics = model(tiny_data(examples).batch(range(12)))
    fast.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    slow, terms = plain_loss(model, pairs(examples, model.tokenizer))
    slow.backward()
    torch.testing.assert_close(fast, slow)
    for name, term in terms.items():
        torch.testing.assert_close(metrics[name], term.detach(), msg=name)
    for name, p in model.named_parameters():
        torch.testing.assert_close(gradients[name], p.grad, msg=name, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("system", cross_entropy.SYSTEMS)
def test_all_output_layers_have_the_loss_and_the_gradients_of_the_model(system, monkeypatch):
    monkeypatch.setattr(cross_entropy, "CHUNK_LOGITS", 5000)  # several chunks of 11 positions
    batch, found = tiny_data().batch(range(12)), []
    for cls in (cross_entropy.SYSTEMS[system], cross_entropy.SYSTEMS["linear"]):
        torch.manual_seed(0)
        model = cls(tiny_config(question_weight=0.3, decode_weight=0.7))
        loss, _ = model(batch)
        loss.backward()
        found.append((loss.detach(), {name: p.grad for name, p in model.named_parameters()}))
    (loss, gradients), (expected, expected_gradients) = found
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("keep_latent", [False, True])
def test_batched_answers_equal_the_plain_ones(keep_latent):
    model = tiny_model(max_new_tokens=5).eval()
    questions = [e.question for e in PROBLEMS[:10]]
    assert model.answer(questions) == [plain_answer(model, q, keep_latent) for q in questions]


def test_systems_take_the_same_steps_there_and_back():
    taken = []
    steps = {name: lambda index, name=name: taken.append((name, index)) or 1.0 for name in "ab"}
    assert measure.alternate(steps, [0, 1, 2]) == {"a": [1.0] * 3, "b": [1.0] * 3}
    timed = taken[2 * measure.WARM_UP :]
    assert timed == [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2)]


def test_the_memory_of_a_latent_stack_grows_with_its_texts():
    """Activations are counted, weights are not: twice the texts, twice the activations."""
    size = dict(
        vocab_size=32,
        hidden_size=24,
        n_embd=24,
        intermediate_size=32,
        num_hidden_layers=1,
        n_layer=1,
        num_attention_heads=2,
        n_head=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    config = StackConfig(latent_dim=8, middle_hidden=8, prefix_len=2, max_input=16, max_target=16, device="cpu")
    one, two = (measure_memory(replace(config, batch_size=B), size) for B in (8, 16))
    assert one["trained"] == two["trained"] and one["precision"] == "fp32"
    assert two["activations_gib"] / one["activations_gib"] == pytest.approx(2, rel=0.2)


# ------------------------------------------------------------------------------------- the commands


def in_this_process(function, *args):
    return function(*args), 0.5


def test_the_training_benchmark_runs_and_writes_its_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(train_speed, "alone", in_this_process)
    options = ["--rounds", 1, "--steps", 2, "--scale", 4, 8]
    done = call(train_speed, *TINY, *options, "--out", tmp_path / "speed.json")
    found = json.loads((tmp_path / "speed.json").read_text())
    assert set(found["examples_per_second"]) == {"ours", "language_model", "straightforward", "llm_jepa"}
    assert [row["batch_size"] for row in found["scaling"]] == [4, 8]
    assert found["startup_seconds"] > 0 and "MFU" in done.stdout
    refused = call(train_speed, *TINY, "--target", "ema", check=False)
    assert refused.returncode == 1 and "--target" in refused.stderr


def peak_of(n):
    return n + 1


def test_a_system_is_timed_in_a_process_of_its_own_with_its_memory():
    result, gib = measure.alone(peak_of, 1)
    assert result == 2 and 0.01 < gib < 4


def test_the_overhead_of_the_jepa_part_is_measured(tmp_path):
    call(jepa_overhead, *TINY, "--pairs", 4, "--out", tmp_path / "overhead.json")
    found = json.loads((tmp_path / "overhead.json").read_text())
    low, median, high = (found["overhead"][key] for key in ("lower_quartile", "median", "upper_quartile"))
    assert found["pairs"] == 4 and low <= median <= high


def test_the_cross_entropies_are_measured_an_entry_a_configuration(tmp_path):
    for run in ("a", "b"):
        options = ["--steps", 3, "--run", f"out/{run}", "--out", tmp_path / "ce.json"]
        call(cross_entropy, *TINY, *options)
    found = json.loads((tmp_path / "ce.json").read_text())
    assert set(found) == {"a", "b"} and set(found["a"]["seconds_a_step"]) == set(cross_entropy.SYSTEMS)


def test_the_evaluation_benchmark_runs_and_gives_the_answers_of_the_plain_loop(tmp_path, trained):
    options = ["--rounds", 1, "--sample", 5, "--limit", 20, "--device", "cpu"]
    call(eval_speed, "--run", trained.run, *options, "--out", tmp_path / "speed.json")
    found = json.loads((tmp_path / "speed.json").read_text())
    assert found["questions"] == 20 and found["same_answers"] == 1.0


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="peak memory is read from Linux's /proc")
def test_under_load_every_answer_of_the_demo_is_the_one_of_the_question_alone(trained, monkeypatch):
    monkeypatch.setattr(demo_load, "QUESTIONS", demo_load.QUESTIONS[:4])
    found = demo_load.measure(str(trained.run), clients=6, seconds=2)
    assert found["answers"] > 10 and found["refused"] and not found["wrong"] and not found["errors"]
    assert found["rss_after"] < found["rss_before"] + 50


def test_faults_on_purpose_are_survived(tmp_path):
    """The short form of what results/reliability.json has of many more."""
    words = "--systems nanojepa --kills 1 --damages 6 --rows 300 --options 60 --out".split()
    call(reliability, *words, tmp_path / "reliability.json")
    found = json.loads((tmp_path / "reliability.json").read_text(encoding="utf-8"))
    killed = found["kills, nanojepa"]
    assert killed["kills"] >= 1 and killed["bit_equal"] == killed["trainings"] and not killed["files_left_over"]
    for name, outcomes in found["damage, nanojepa"].items():
        allowed = {"refused", "same"} | ({"another value"} if name == "log.jsonl" else set())
        assert outcomes.keys() <= allowed, name
    for what in ("rows", "options"):
        assert not found[what].keys() & {"traceback", "several lines"} and found[what]["refused"] > 0


def test_the_siblings_part_of_the_gpu_script_runs_on_a_cpu_at_toy_size(tmp_path):
    """Its first run on a GPU must not fail for a spelling. The table of memory is too large and only parsed."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    small = " ".join(TINY_REASONER)
    done = script("siblings", launcher=("bash", "bench/gpu.sh"), OUT=str(tmp_path), SMALL=small, PATH=path)
    assert "failed" not in done.stdout, done.stdout
    assert read_json(tmp_path / "tree-42m" / "tree.json")["examples"] == 12
    assert "route accuracy" in (tmp_path / "tree.txt").read_text(encoding="utf-8")
    text = (Path(measure.__file__).parent / "gpu.sh").read_text(encoding="utf-8")
    words = text.partition("python -m bench.latent_memory ")[2].partition("\n")[0].replace('"', "").split()
    assert parse(MemoryConfig, {}, "", words)[0].out.endswith("latent_memory_cuda.json")
