"""What helps to say a text back, and a middle model that thinks in ideas: the experiments on tiny backbones."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import call
from latent_tiny import SEVERAL, options, said_back, texts_folder, tiny_stack

from common.checkpoint import read_json
from common.options import parse
from latent_stack import evaluate, train
from latent_stack.config import PRESETS, EvalConfig, StackConfig, evaluated_on
from latent_stack.experiments import thinking
from latent_stack.model import load_run
from latent_stack.pairs import load_pairs
from latent_stack.pretrain import staged
from results import latent_ideas

# ----------------------------------------------------------------------------- the first stage, and variants of it


@pytest.mark.parametrize("longer, of_them", ((32, 20), (64, 13), (128, 8)))  # shares 1 : 1, 1 : 1/2 and 1 : 1/4
def test_a_part_of_the_first_pass_has_short_texts_first_and_fewer_of_those_that_cost_more(longer, of_them):
    data = SimpleNamespace(length=np.repeat([16, longer], 200), loss_denominators=lambda index: {})
    data.batch = lambda index, denominators: data.length[index]
    config, alone = StackConfig(batch_size=4), SimpleNamespace(rank=0, world=1)
    n_steps, batches = staged(data, config, alone, 40)
    lengths = [batch.mean() for k in range(n_steps) for batch in batches(0, k)]
    assert n_steps == 40 and lengths == sorted(lengths) and lengths.count(longer) == pytest.approx(of_them, abs=1)
    n_steps, batches = staged(data, config, alone)  # all of it
    assert sum(batch.sum() for k in range(n_steps) for batch in batches(0, k)) == data.length.sum()


def test_variants_of_the_first_stage_stand_beside_the_first_and_are_not_trained_twice(tmp_path, monkeypatch, capsys):
    for words in latent_ideas.VARIANTS.values():
        parse(StackConfig, PRESETS, "", f"{latent_ideas.BASE} {words}".split())
    trainings = []

    def train_here(summary, module, words):
        if not summary.is_file():
            trainings.append(module)
            call(train, *words)

    monkeypatch.setattr(latent_ideas, "train_once", train_here)
    small = (
        " ".join(map(str, options("")[:-2]))
        + " --pooling queries --ideas 4 --prefix-len 8 --pretrain-random 0 --pretrain-tokens 12"
    )
    words = ["--options", small, "--pretrain", str(texts_folder(tmp_path / "texts")), "--seeds", "0", "1"]
    words += ["--out", str(tmp_path / "runs"), "--json", str(tmp_path / "ideas.json"), "--only"]
    for _ in range(2):
        latent_ideas.main([*words, "16 ideas", "no lists of random words", "LoRA"])
    assert trainings == ["latent_stack.train"] * 6
    rows = read_json(tmp_path / "ideas.json")["variants"]
    first, second, said = rows.values()
    assert said["kind"] == "SAID" and said["exact_less_the_first"]["mean"] == 0.0  # the first of its kind
    assert first["exact_less_the_first"] == {"mean": 0.0, "ci95": [0.0, 0.0]} and len(first["by_seed"]) == 2
    assert first["exact"]["mean"] == pytest.approx(sum(first["by_seed"]) / 2) == second["exact"]["mean"]  # same options
    assert "| no lists of random words |" in capsys.readouterr().out


# ------------------------------------------------------------------------------------ thinking in ideas


def test_a_middle_model_learns_a_map_of_ideas_that_an_untrained_one_does_not_know(monkeypatch):
    monkeypatch.setattr(thinking, "STEPS", 150)
    model = tiny_stack(**SEVERAL)
    torch.manual_seed(0)
    turn = torch.linalg.qr(torch.randn(64, 64))[0]
    z = {name: torch.randn(n, 64) for name, n in (("train", 400), ("test", 50))}
    z |= {f"{name}_target": z[name] @ turn for name in z}
    found = thinking.thought(model, z, 0)
    error = {name: (x - z["test_target"]).square().mean().item() for name, (x, _) in found.items()}
    assert error["target"] == 0 and error["linear"] < 0.1
    assert error["transformer"] < error["untrained"] and error["transformer"] < error["shuffled"]
    assert torch.equal(found["identity"][0], z["test"])
    assert all(about["n_params"] > 0 for _, about in (found[name] for name in thinking.LAYERS))


def test_the_ideas_behind_the_end_of_every_text_are_zeros_and_left_out():
    model = tiny_stack(**SEVERAL)  # 4 ideas of 2 tokens
    z = {"one": model.encode(["Ana has"]), "other": model.encode(["Ana has 2 coins"])}  # and EOS
    assert z["one"].view(4, 16).ne(0).any(1).tolist() == [True, True, False, False]
    short = thinking.without_zeros(model, z)
    assert {name: x.shape for name, x in short.items()} == {"one": (1, 3 * 16), "other": (1, 3 * 16)}
    whole, part = model.prefix(z["other"]), model.prefix(short["other"])
    assert part.shape == (1, 6, 24) and torch.allclose(part, whole[:, :6], atol=1e-5)


@pytest.mark.parametrize("task", thinking.TASKS)
def test_tasks_for_thinking_keep_their_numbers_apart(task):
    train, test = ({p.input for p in thinking.generated(task, split, 300)} for split in ("train", "test"))
    assert not train & test
    for pair in thinking.generated("answer", "test", 50):
        a, b, c = (int(n) for n in re.findall(r"\d+", pair.input + pair.target))
        assert c == (a + b if "finds" in pair.input else a - b)


def test_thinking_is_measured_on_every_task_beside_its_controls(monkeypatch, capsys):
    for name, value in dict(STEPS=2, N_TRAIN=12).items():
        monkeypatch.setattr(thinking, name, value)
    evaluate.main(["--run", str(said_back() / "pretrain"), "--what", "thinking", "--limit", "10", "--device", "cpu"])
    result = read_json(said_back() / "pretrain" / "thinking.json")
    for task in thinking.TASKS:
        assert result[task]["n"] == 10 and {*thinking.LAYERS, *thinking.CONTROLS, "linear"} <= result[task].keys()
    assert "identity (control)" in capsys.readouterr().out


def test_thinking_on_a_data_set_is_measured_on_its_pairs_alone(monkeypatch):
    for name, value in dict(STEPS=2, N_TRAIN=12, N_TEST=6).items():
        monkeypatch.setattr(thinking, name, value)
    run = said_back() / "pretrain"
    evaluate.main(["--run", str(run), "--what", "thinking", "--dataset", "paraphrase", "--device", "cpu"])
    result = read_json(run / "thinking-paraphrase.json")
    assert {name for name, value in result.items() if isinstance(value, dict)} == {"paraphrase"}
    pairs = load_pairs(evaluated_on(EvalConfig(dataset="paraphrase"), load_run(run).config))["test"]
    inputs = {pair.input for pair in pairs}
    assert {example["input"] for example in result["paraphrase"]["examples"]} <= inputs
