"""Pairs of texts: where they come from, what is left out, how they become batches, and the encoder's cache on disk."""

import json

import numpy as np
import pytest
import torch
from latent_tiny import PAIRS, tiny_stack, tokenized

from common.options import UserError
from common.word_problems import NAMES
from latent_stack.config import StackConfig
from latent_stack.pairs import Pair, from_hub, load_pairs, paraphrases, read_jsonl


def write_lines(path, *pairs, keys=("input", "target")):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = (dict(zip(keys, pair, strict=True)) for pair in pairs)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


# --------------------------------------------------------------------------------------------- embedded


def sentences(text: str) -> set[str]:
    return {part.strip() for part in text.replace("?", ".").split(".") if part.strip()}


def words(text: str) -> list[str]:
    return text.replace(".", " ").replace("?", " ").replace("'", " ").split()


def test_paraphrases_have_the_same_facts_and_share_no_sentence():
    for pair in PAIRS:
        assert not sentences(pair.input) & sentences(pair.target)
        numbers_in, numbers_out = (
            sorted(w for w in words(text) if w.isdecimal()) for text in (pair.input, pair.target)
        )
        assert numbers_in == numbers_out and len(numbers_in) == 2
        assert {w for w in words(pair.target) if w in NAMES} <= set(words(pair.input)), pair


def test_splits_of_paraphrases_are_disjoint_and_only_training_follows_the_seed():
    def facts(pairs):
        return {tuple(sorted(int(w) for w in words(p.input) if w.isdecimal())) for p in pairs}

    train, val, test = (paraphrases(split, 300) for split in ("train", "val", "test"))
    assert not facts(train) & facts(test) and not facts(train) & facts(val) and not facts(val) & facts(test)
    assert paraphrases("test", 20, seed=0) == paraphrases("test", 20, seed=7)
    assert paraphrases("train", 20, seed=0) != paraphrases("train", 20, seed=7)


# ------------------------------------------------------------------------------------------ files, Hub


def test_samsum_from_a_folder_trains_on_validation_and_never_on_test(shared_data):
    pairs = load_pairs(StackConfig(dataset="samsum", data_dir=str(shared_data)))
    assert len(pairs["test"]) == 819 and len(pairs["train"]) > 1100 and len(pairs["val"]) > 90
    trained_on = {p.input for split in ("train", "val") for p in pairs[split]}
    assert not trained_on & {p.input for p in pairs["test"]}


def test_a_training_text_that_is_in_the_test_split_is_left_out(tmp_path, capsys):
    write_lines(tmp_path / "train.jsonl", ("a", "1"), ("b", "2"), ("c", "3"), ("d", "4"))
    write_lines(tmp_path / "validation.jsonl", ("e", "5"), ("c", "6"))
    write_lines(tmp_path / "test.jsonl", ("b", "7"), ("c", "8"))
    pairs = load_pairs(StackConfig(dataset="jsonl", data_dir=str(tmp_path)))
    inputs = {split: "".join(p.input for p in found) for split, found in pairs.items()}
    assert inputs == {"train": "ad", "val": "e", "test": "bc"}
    assert "left out 3 training and validation pairs" in capsys.readouterr().out


def test_without_a_validation_file_every_tenth_training_pair_is_set_aside(tmp_path):
    write_lines(tmp_path / "train.jsonl", *[(str(i), "x") for i in range(30)])
    write_lines(tmp_path / "test.jsonl", ("t", "x"))
    pairs = load_pairs(StackConfig(dataset="jsonl", data_dir=str(tmp_path)))
    assert [p.input for p in pairs["val"]] == ["0", "10", "20"] and len(pairs["train"]) == 27


def test_no_test_file_of_dialogsum_is_trained_on(tmp_path):
    keys = ("dialogue", "summary")
    for split in ("validation", "test"):
        write_lines(tmp_path / f"samsum/{split}.jsonl", *[(f"{split} {i}", "x") for i in range(9)], keys=keys)
    for split in ("train", "dev", "test"):
        write_lines(tmp_path / f"dialogsum/dialogsum.{split}.jsonl", (f"dialogsum {split}", "x"), keys=keys)
    config = StackConfig(dataset="samsum", data_dir=str(tmp_path))
    inputs = {p.input for p in load_pairs(config)["train"]}
    assert {x for x in inputs if "dialogsum" in x} == {"dialogsum train", "dialogsum dev"}
    write_lines(tmp_path / "dialogsum/dialogsum.dev.jsonl", ("a", "b"), keys=("dialogue", "summary1"))
    with pytest.raises(UserError, match="dev.jsonl:1: needs the strings"):
        load_pairs(config)


def test_pairs_that_are_no_paraphrases_are_not_reported_as_empty(monkeypatch, capsys):
    rows = [{"sentence1": "a", "sentence2": "b", "label": 1}, {"sentence1": "c", "sentence2": "d", "label": 0}]
    monkeypatch.setattr("datasets.load_dataset", lambda *a: dict.fromkeys(("train", "validation", "test"), rows))
    assert from_hub("pairs")["train"] == [Pair("a", "b")] and "empty" not in capsys.readouterr().out


def test_a_data_set_of_the_hub_without_a_test_split_halves_its_validation_split(monkeypatch):
    rows = [{"question": f"q{i}", "context": "c", "answers": {"text": [str(i)]}} for i in range(4)]
    monkeypatch.setattr("datasets.load_dataset", lambda *a: dict.fromkeys(("train", "validation"), rows))
    found = from_hub("qa")
    assert found["train"][0] == Pair("q0\nc", "0")
    assert [[p.target for p in found[split]] for split in ("validation", "test")] == [["0", "2"], ["1", "3"]]


@pytest.mark.parametrize(
    "second_line, message",
    [('{"input": "a"}', r"train.jsonl:2: needs the strings"), ("x", r"train.jsonl:2: not valid JSON")],
)
def test_a_wrong_line_is_named(tmp_path, second_line, message):
    (tmp_path / "train.jsonl").write_text('{"input": "a", "target": "b"}\n' + second_line + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_jsonl(tmp_path / "train.jsonl")


def test_data_that_does_not_fit_is_refused(tmp_path):
    write_lines(tmp_path / "train.jsonl", ("a", "b"))
    with pytest.raises(UserError, match="no test.jsonl"):
        load_pairs(StackConfig(dataset="jsonl", data_dir=str(tmp_path)))
    with pytest.raises(UserError, match="--dataset jsonl needs --data-dir"):
        load_pairs(StackConfig(dataset="jsonl"))
    with pytest.raises(UserError, match="--dataset paraphrase is generated"):
        load_pairs(StackConfig(dataset="paraphrase", data_dir=str(tmp_path)))
    with pytest.raises(UserError, match="needs samsum/test and .* found none of them"):
        load_pairs(StackConfig(dataset="samsum", data_dir=str(tmp_path)))


# --------------------------------------------------------------------------------------------- batches


def test_a_batch_pads_inputs_and_targets_and_counts_what_is_predicted():
    model = tiny_stack()
    data = tokenized([PAIRS[0], Pair("Ana has 2 coins.", "coins remain")], model)
    batch = data.batch([0, 1])
    bos, eos = model.backbones.bos, model.backbones.eos
    inputs = batch.inputs
    assert inputs.attention_mask.sum(1).tolist() == [len(row.encoder) for row in data.inputs]
    assert [[i for i in row if i >= 0] for row in inputs.lm_ids.tolist()] == [row.lm for row in data.inputs]
    assert (inputs.input_ids[~inputs.attention_mask] == 0).all() and not inputs.attention_mask[1, -1]
    assert batch.tokens[1, :4].tolist() == data.targets[1] == [bos, *data.targets[1][1:-1], eos]
    assert (batch.tokens[1, 4:] == -1).all() and batch.tokens[0, -1] == eos
    predicted = sum(len(ids) - 1 for ids in data.targets)
    assert batch.loss_denominators == {"targets": predicted} == data.loss_denominators(slice(None))
    assert batch.n_tokens == sum(len(row.encoder) for row in data.inputs) + sum(map(len, data.targets))


def test_what_is_truncated_is_reported_and_does_not_end(capsys):
    model = tiny_stack(max_target=4)
    data = tokenized([Pair("Ana has 2 coins. " * 40, PAIRS[0].target)], model, "train")
    printed = capsys.readouterr().out
    assert "train: 1 of 1 inputs truncated at --max-input 48" in printed
    assert "train: 1 of 1 targets truncated at --max-target 4" in printed
    assert (
        len(data.targets[0]) == 5
        and model.backbones.eos not in data.targets[0]
        and len(data.inputs[0].encoder) == len(data.inputs[0].lm) == 48
    )


# ----------------------------------------------------------------------------------------------- cache


def test_the_cache_on_disk_gives_the_encoders_hidden_states_and_is_used_again(tmp_path):
    model = tiny_stack()
    plain, cached = tokenized(PAIRS, model), tokenized(PAIRS, model).cache(tmp_path)
    a, b = plain.batch([3, 7]), cached.batch([3, 7])
    assert a.inputs.hidden_states is None
    mask, known = a.inputs.attention_mask, model.backbones.hidden_states(a.inputs)
    assert torch.allclose(b.inputs.hidden_states[mask], known[mask], atol=2e-3)
    assert torch.allclose(model(a)[0], model(b)[0], atol=1e-3)

    model.backbones.encoder.forward = None  # it is not asked again
    tokenized(PAIRS, model).cache(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(TypeError):
        tokenized(PAIRS[:5], model).cache(tmp_path)  # other texts are another file


def test_a_damaged_cache_is_refused(tmp_path):
    model = tiny_stack()
    tokenized(PAIRS, model).cache(tmp_path)
    path = next(tmp_path.iterdir())
    stored = np.load(path)
    stored[-1, 0] = np.inf
    np.save(path, stored)
    for damage in (lambda: None, lambda: path.write_bytes(path.read_bytes()[:200])):
        damage()
        with pytest.raises(UserError, match="is damaged; delete it"):
            tokenized(PAIRS, model).cache(tmp_path)


def test_hidden_states_beyond_half_precision_are_refused_and_leave_no_file(tmp_path):
    model = tiny_stack()
    hidden_states = model.backbones.hidden_states
    model.backbones.hidden_states = lambda *a: hidden_states(*a) * 1e6
    with pytest.raises(UserError, match="too large for the cache's half precision"):
        tokenized(PAIRS, model).cache(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_too_small_is_noticed_before_anything_is_written(tmp_path, monkeypatch):
    """A memory-mapped file on a full disk kills the process instead of raising."""
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(UserError, match="--no-cache does without them"):
        tokenized(PAIRS, tiny_stack()).cache(tmp_path)
    assert not list(tmp_path.iterdir())
