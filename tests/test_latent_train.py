"""Training a stack: the bag-of-words passes, validation beside its control, resume, several processes, the settings."""

import numpy as np
import pytest
import torch
from helpers import call, same, script, torchrun, weights
from latent_tiny import PAIRS, options, tiny_stack, tokenized, trained_run

from common.checkpoint import read_json
from common.device import resolve_device
from common.options import UserError, parse
from latent_stack import train
from latent_stack.config import PRESETS, StackConfig
from latent_stack.losses import BagOfWords
from latent_stack.model import LatentStack, load_run
from latent_stack.pairs import paraphrases
from latent_stack.train import train_bag_of_words, validation_loss, validation_losses
from model import load_run as load_nanojepa
from results import latent_settings

CPU = resolve_device("cpu")

# --------------------------------------------------------------------------------------- bag of words


def test_bag_of_words_passes_bring_ideas_into_the_prefix_without_the_language_model():
    model = tiny_stack(words_epochs=60, lr=3e-3, warmup_steps=5)
    data = tokenized(PAIRS[:16], model)
    model.standardise(data)
    model.bag_of_words = BagOfWords(data.targets, model.backbones.lm)
    batch = data.batch(range(16))

    def matched_and_mismatched():
        prefix, n = model.prefix_of(batch).detach(), batch.loss_denominators["targets"]
        return [model.bag_of_words(p, batch.tokens).item() / n for p in (prefix, prefix.roll(1, 0))]

    before, _ = matched_and_mismatched()
    calls = []
    model.backbones.lm.register_forward_hook(lambda *a: calls.append(1))
    train_bag_of_words(model, data, CPU, quiet=True)
    model.eval()
    matched, mismatched = matched_and_mismatched()
    assert matched < before - 0.1 and matched < mismatched - 0.1 and not calls


def test_bag_of_words_passes_take_the_same_steps_with_the_cache_and_without(tmp_path, monkeypatch):
    """Steps as large as a micro-batch, and a run without the cache would have four times as many."""
    optimizers, make = [], train.make_optimizer
    monkeypatch.setattr(train, "make_optimizer", lambda *a: optimizers.append(make(*a)) or optimizers[-1])
    moved, steps, pairs = [], [], paraphrases("train", 64)
    for cached in (False, True):
        model = tiny_stack(words_epochs=3, lr=1e-3, warmup_steps=0)
        data = tokenized(pairs, model)
        model.standardise(data)
        model.bag_of_words = BagOfWords(data.targets, model.backbones.lm)
        before = model.expand[-1].weight.detach().clone()
        train_bag_of_words(model, data.cache(tmp_path) if cached else data, CPU, quiet=True)
        moved.append(model.expand[-1].weight.detach() - before)
        steps.append({int(state["step"]) for state in optimizers[-1].state.values()})
    assert steps == [{6}, {6}]
    # half precision turns the sign of a gradient near 0, and so of Adam's step: up to 0.012 was seen
    assert (moved[0] - moved[1]).norm() < 0.05 * moved[0].norm()


# ------------------------------------------------------------------------------------------ validation


def test_the_validation_loss_stands_beside_that_of_a_mismatched_idea():
    """One text more than a batch: none is given its own idea as the control, alone in the last batch or not."""
    model = tiny_stack()
    data = tokenized(PAIRS[:9], model)
    found = validation_loss(model, data, CPU)
    matched, mismatched = validation_losses(model, data, CPU, batch_size=4)
    n = data.loss_denominators(slice(None))["targets"]
    assert [matched.sum() / n, mismatched.sum() / n] == pytest.approx(list(found.values()), rel=1e-5)

    batches = [data.batch([i]) for i in np.random.default_rng(0).permutation(9)]
    prefixes = [model.prefix_of(batch).detach() for batch in batches]
    expected = [
        sum(model.target_losses(prefix, batch).item() for prefix, batch in zip(shifted, batches, strict=True)) / n
        for shifted in (prefixes, prefixes[-1:] + prefixes[:-1])
    ]
    assert list(found.values()) == pytest.approx(expected, rel=1e-4) and expected[0] != expected[1]
    alone = data.batch([5])
    assert matched[5] == pytest.approx(model.target_losses(model.prefix_of(alone), alone).item(), rel=1e-5)


# ---------------------------------------------------------------------------------------- the command


def test_one_command_trains_and_measures_the_matched_idea_beside_the_mismatched():
    run, stdout = trained_run().run, trained_run().stdout
    summary = read_json(run / "summary.json")
    for suffix in ("", "_shuffled"):
        low, high = summary[f"rougeL{suffix}_ci95"]
        assert low <= summary[f"rougeL{suffix}"] <= high
        assert f"{summary[f'rougeL{suffix}']:.4f}   {low:.4f} to {high:.4f}" in stdout
    assert summary["n"] == 12 and summary["steps"] == 12 and "each target with itself" in stdout
    assert summary["val_loss"] > 0 and summary["words_loss"] > 0 and summary["minutes"] > 0
    assert (run / "loss_curve.png").is_file() and load_run(run).origin.abs().sum() > 0


def test_what_is_printed_first_is_what_the_encoder_reads_and_what_must_be_generated():
    lines = trained_run().stdout.splitlines()
    source = next(line for line in lines if line.startswith("encoder reads"))
    target = next(line for line in lines if line.startswith("prefix, then"))
    first = paraphrases("train", 48, seed=StackConfig().seed)[0]

    def letters(text):
        return "".join(text.split())

    assert letters(first.input) in letters(source) and letters(f"<bos>{first.target}<eos>") in letters(target)


def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(tmp_path):
    call(train, *options(tmp_path), "--max-steps", 5)
    call(train, *options(tmp_path), "--max-steps", 0, "--resume")
    assert same(weights(trained_run().run), weights(tmp_path))
    summary, whole = (read_json(run / "summary.json") for run in (tmp_path, trained_run().run))
    assert summary["words_loss"] == whole["words_loss"] and summary["rougeL"] == whole["rougeL"]


def test_a_training_with_the_cache_learns_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where out/latent-cache goes
    call(train, *options(tmp_path / "run"), "--cache")
    assert len(list((tmp_path / "out/latent-cache").glob("*.npy"))) == 2
    cached, plain = (read_json(run / "summary.json") for run in (tmp_path / "run", trained_run().run))
    for name in ("val_loss", "words_loss"):
        assert cached[name] == pytest.approx(plain[name], rel=1e-2)


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    # dropout draws another mask in every process; the bag-of-words passes are done by each alone
    plain = ["--dropout", "0", "--max-steps", "6", "--warmup-steps", "0", "--lr", "1e-2", "--words-epochs", "0"]
    call(train, *options(tmp_path / "one"), *plain)
    script("latent_stack.train", *options(tmp_path / "two"), *plain, launcher=torchrun("-m"))
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    config = load_run(tmp_path / "one").config
    torch.manual_seed(config.seed)
    start = LatentStack(config).state_dict()
    for name in one:
        moved = one[name] - start[name]
        assert moved.abs().max() > 0.02, f"{name} has hardly moved: nothing is compared"
        assert (one[name] - two[name]).norm() < 0.005 * moved.norm(), name


@pytest.mark.parametrize(
    "words, message",
    [
        (["--cache", "--lora-encoder", 2], "with --lora-encoder give --no-cache"),
        (["--shard"], "--shard is for what is trained whole"),
        (["--grad-accum", 9], "a batch of 8 is less than one example for each of the 9 micro-batches"),
        (["--middle", "transformer", "--latent-dim", 12], "--latent-dim 12: --middle transformer has 4 heads"),
    ],
)
def test_options_that_do_not_go_together_are_refused_in_one_line(tmp_path, words, message):
    done = call(train, *options(tmp_path), *words, check=False)
    assert done.returncode and message in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_a_checkpoint_of_another_system_is_refused():
    with pytest.raises(UserError, match="of system 'latent_stack', not of nanojepa"):
        load_nanojepa(trained_run().run)


# ----------------------------------------------------------------------------------------- the settings


def test_settings_are_trained_side_by_side_and_not_twice(tmp_path, capsys, monkeypatch):
    for words in latent_settings.SETTINGS.values():
        parse(StackConfig, PRESETS, "", f"{latent_settings.BASE} {words}".split())
    trainings = []

    def train_here(summary, module, words):
        if not summary.is_file():
            trainings.append(module)
            call(train, *words)

    monkeypatch.setattr(latent_settings, "train_once", train_here)
    small = " ".join(options("")[:-2])
    words = ["--options", small, "--out", str(tmp_path / "runs"), "--json", str(tmp_path / "s.json")]
    for _ in range(2):
        latent_settings.main([*words, "--only", "no middle model"])
    rows = read_json(tmp_path / "s.json")["settings"]
    row = rows["no middle model"]
    assert list(rows) == ["no middle model"] and trainings == ["latent_stack.train"]
    difference = row["val_loss_difference"]
    assert difference["mean"] == pytest.approx(row["val_loss_shuffled"] - row["val_loss"], abs=1e-4)
    assert difference["ci95"][0] < difference["mean"] < difference["ci95"][1]
    assert row["val_loss_difference_less_the_first"] == {"mean": 0.0, "ci95": [0.0, 0.0]}
    assert f"| {row['n_params']:,} | {row['val_loss']:.3f} |" in capsys.readouterr().out
