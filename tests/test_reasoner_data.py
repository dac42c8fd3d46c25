"""The Reasoner's tasks and batches: splits that cannot leak, chains that answer their prompts, text of any size."""

import json
import random
from dataclasses import replace

import pytest
import torch
from reasoner_tiny import tiny_config, whole_batch

import reasoner.data
from common.options import UserError
from common.programs import compute
from reasoner import corpus
from reasoner.config import ReasonerConfig
from reasoner.corpus import tokenized_rows
from reasoner.data import TokenizedDataset, TokenizedPassages, WordTokenizer, load_examples, make_tokenizer
from reasoner.experiments.trajectory import parse_equations
from reasoner.tasks import (
    Example,
    derivations,
    derived_string,
    grammar,
    is_correct,
    is_valid,
    noisy_prompt,
    split_of,
    tree_of,
    trees,
)

# ------------------------------------------------------------------------------------------------ tasks


def test_a_route_leads_along_the_edges_from_the_root_to_the_goal():
    for example in trees("train", 200, tiny_config()):
        root, edges = tree_of(example)
        goal, route = example.prompt.split()[-2], example.chain.split()
        assert route[0] == root and route[-1] == goal and set(zip(route, route[1:], strict=False)) <= edges
        assert not any(parent == goal for parent, _ in edges)  # a leaf
        for parent, child, sibling in zip(route, route[1:], example.sibling[1:], strict=False):
            assert (parent, sibling) in edges and sibling != child


def test_no_labelled_tree_and_no_string_is_in_two_splits_under_any_seed():
    def name(example):
        return str(sorted((int(a), int(b)) for a, b in tree_of(example)[1]))

    few = tiny_config(leaves=3, labels=5)  # 60 trees in all: without the rule they would meet
    draws = (("train", 150, 1), ("train", 150, 2), ("val", 12, 1), ("test", 12, 1))
    found = {split: {name(x) for x in trees(split, n, replace(few, seed=seed))} for split, n, seed in draws}
    assert not found["train"] & found["test"] and not found["train"] & found["val"] and not found["val"] & found["test"]
    assert all(split_of(x) == split for split, names in found.items() for x in names)

    config = tiny_config(dataset="cfg", levels=3)
    strings = {split: {x.prompt for x in derivations(split, 100, config)} for split in ("train", "val", "test")}
    assert not strings["train"] & strings["test"] and not strings["train"] & strings["val"]


def test_the_data_is_a_function_of_its_seed_and_test_of_nothing():
    for config in (tiny_config(), tiny_config(dataset="cfg")):
        assert load_examples("train", config) == load_examples("train", config)
        assert load_examples("train", config) != load_examples("train", replace(config, seed=1))
        assert load_examples("test", config) == load_examples("test", replace(config, seed=1))


def test_the_grammar_is_unambiguous_so_that_a_derivation_is_a_function_of_its_string():
    rules = grammar(3)

    def all_strings(symbols):
        if not symbols:
            return [()]
        first = [(symbols[0],)] if symbols[0] not in rules else [s for r in rules[symbols[0]] for s in all_strings(r)]
        return [a + b for a in first for b in all_strings(symbols[1:])]

    strings = all_strings(("S",))
    assert len(strings) == len(set(strings)) == 1872
    low = sorted(s for x in "ABC" for s in all_strings((x,)))  # what the symbols of level 4's lowest three derive
    assert not any(b[: len(a)] == a for a, b in zip(low, low[1:], strict=False)), "none begins another: four levels too"
    for levels in (3, 4):
        for example in derivations("train", 50, tiny_config(dataset="cfg", levels=levels)):
            assert derived_string(example.chain, levels) == example.prompt.removesuffix(" :")
    assert derived_string("S1 A1", 4) is None and derived_string("A1", 4) is None


def test_noise_touches_the_wanted_fraction_of_the_prompt_and_leaves_its_end():
    prompt = " ".join(["a"] * 4000 + [":"])
    for kind, length in (("drop", 3200), ("replace", 4000), ("insert", 4800)):
        words = noisy_prompt(prompt, kind, 0.2, random.Random(0), ["b"]).split()
        assert words[-1] == ":" and abs(len(words) - 1 - length) < 120
        assert abs(words.count("b") - (0 if kind == "drop" else 800)) < 120
    assert noisy_prompt(prompt, "drop", 0.0, random.Random(0), ["b"]) == prompt


@pytest.mark.parametrize(
    "changes,message",
    [
        (dict(leaves=2, labels=3, n_train=500), "hardly more than"),
        (dict(leaves=9, depth=3), "at most 8"),
        (dict(leaves=8, labels=14), "15 nodes"),
    ],
)
def test_more_examples_than_there_are_or_a_tree_that_cannot_be_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        load_examples("train", tiny_config(**changes))


def test_a_valid_answer_is_a_walk_down_the_tree_or_a_derivation():
    config, example = tiny_config(), trees("test", 1, tiny_config())[0]
    route = example.chain.split()
    assert is_valid(config, example, example.chain) and is_valid(config, example, route[0])
    assert not is_valid(config, example, " ".join(route[1:])) and not is_valid(config, example, " ".join(route[::-1]))
    cfg = tiny_config(dataset="cfg")
    string = derivations("test", 1, cfg)[0]
    assert is_valid(cfg, string, string.chain) and not is_valid(cfg, string, "S1 S1")


# ------------------------------------------------------------------------------------------------- text


def test_passages_of_local_files_are_text_with_disjoint_splits(tmp_path):
    (tmp_path / "a.txt").write_text("\n\n".join(f"passage {i}" for i in range(30)), encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('{"text": "last"}\n', encoding="utf-8")
    config = ReasonerConfig(dataset="text", data_dir=str(tmp_path))
    parts = [list(load_examples(split, config)) for split in ("train", "val", "test")]
    assert sum(map(len, parts)) == len({x.chain for part in parts for x in part}) == 31 and len(parts[0]) > 15
    (tmp_path / "b.jsonl").write_text("{}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"b.jsonl:1: needs"):
        list(load_examples("train", config))
    (tmp_path / "b.jsonl").unlink()
    (tmp_path / "a.txt").write_text("one alone", encoding="utf-8")
    with pytest.raises(UserError, match="none falls into the val split"):
        list(load_examples("val", config))


@pytest.fixture
def text_folder(tmp_path, monkeypatch):
    """A folder with a file of 300 passages, and a cache of `datasets` of its own."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "text"
    folder.mkdir()
    passages = [f"passage {i} " + "of some words " * (i % 9) for i in range(300)]
    (folder / "a.txt").write_text("\n\n".join(passages), encoding="utf-8")
    return folder


@pytest.mark.parametrize("n_thoughts", [0, 3])
def test_passages_are_tokenized_as_they_stream_and_cut_at_the_block_size(text_folder, n_thoughts, capsys):
    config = ReasonerConfig(dataset="text", tokenizer="bpe:340", data_dir=str(text_folder), block_size=64)
    passages = load_examples("train", config)
    t = make_tokenizer(config, passages)
    whole = TokenizedDataset(list(passages), t, 1024)
    data = TokenizedPassages(passages, t, config.block_size, "train", n_thoughts)

    assert len(data) == len(whole) and data.length.max() == config.block_size
    assert data.batch([5, 0]).tokens[1, : data.length[0]].tolist() == next(iter(data.rows([0]))).tolist()
    room = config.block_size - 2 - n_thoughts
    for i, row in enumerate(data.rows(range(len(data)))):
        assert row[0] == t.ans and (row[1 : 1 + n_thoughts] == t.pred).all() and row[-1] == t.eos
        text = next(whole.rows([i]))[1:-1]
        assert row[1 + n_thoughts : -1].tolist() == text[:room].tolist()
    assert f"{(whole.chain_length - 1 > room).sum()} passages cut off" in capsys.readouterr().out


def test_the_next_phase_finds_tokenized_passages_on_disk_and_changed_files_are_read_again(text_folder, monkeypatch):
    read = []
    monkeypatch.setattr(
        corpus, "read_passages", lambda path, real=corpus.read_passages: read.append(path) or real(path)
    )
    config = ReasonerConfig(dataset="text", tokenizer="bpe:340", data_dir=str(text_folder), block_size=64)
    t = make_tokenizer(config, load_examples("train", config))
    read.clear()
    for _ in range(2):
        TokenizedPassages(load_examples("train", config), t, config.block_size)
    assert len(read) == 1

    (text_folder / "a.txt").write_text("\n\n".join(f"another {i}" for i in range(20)), encoding="utf-8")
    TokenizedPassages(load_examples("train", config), t, config.block_size)
    (text_folder / "b.jsonl").write_text("{}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"b.jsonl:1: needs"):
        TokenizedPassages(load_examples("train", config), t, config.block_size)
    assert len(read) == 4


def test_reading_passages_takes_no_more_of_them_than_it_gives():
    taken = []

    def endless():
        while True:
            taken.append(0)
            yield Example("", "a b")

    rows = tokenized_rows(endless(), WordTokenizer(["a", "b"]), 16, 0)
    assert [next(rows)["length"] for _ in range(1500)] == [4] * 1500 and len(taken) <= 2000


# ---------------------------------------------------------------------------------------------- batches


def test_a_row_is_prompt_chain_and_end_and_states_where_each_chain_token_is_predicted():
    config = tiny_config()
    batch, examples, t = whole_batch(config), load_examples("train", config), make_tokenizer(config, ())
    flat = batch.tokens.flatten()
    assert torch.equal(flat[batch.chain_at + 1], batch.chain_ids) and torch.equal(flat[batch.all_at + 1], batch.all_ids)
    assert torch.equal(batch.chain.flatten()[batch.latent_at], batch.chain_ids)
    for row, example, start, length in zip(batch.tokens, examples, batch.start, batch.length, strict=True):
        assert t.decode(row[:start].tolist()) == example.prompt and row[length - 1] == t.eos
        assert t.decode(row[start : length - 1].tolist()) == example.chain
    assert batch.loss_denominators == {
        "chain": float((batch.length - batch.start).sum()),
        "all": float((batch.length - 1).sum()),
    }


def test_the_batch_drawn_in_the_docstring_is_the_batch_that_is_made():
    t = WordTokenizer("a b c : S1 S2 A1 A2 B2 C1".split())
    examples = [Example("a c b :", "S1 A2"), Example("b a :", "S2 C1 A1 B2")]
    batch = TokenizedDataset(examples, t, 16).batch([0, 1])
    lines = reasoner.data.__doc__.splitlines()

    def drawn(name):
        """The eight columns of two rows; behind them stands what they mean."""
        at = next(i for i, line in enumerate(lines) if line.startswith(f"    {name} "))
        return [lines[at].split()[1:9], lines[at + 1].split()[:8]]

    def placed(at, ids):
        """Flat positions of `tokens` and the ids predicted there, as two rows."""
        row = ["-"] * batch.tokens.numel()
        for i, piece in zip(at.tolist(), t.pieces(ids.tolist()), strict=True):
            row[i] = piece
        return [row[:8], row[8:]]

    assert drawn("tokens") == [t.pieces(row) for row in batch.tokens.tolist()]
    assert drawn("all_ids") == placed(batch.all_at, batch.all_ids)
    assert drawn("chain_ids") == placed(batch.chain_at, batch.chain_ids)
    assert batch.chain.shape == (2, 5) and batch.start.tolist() == [4, 3] and batch.length.tolist() == [7, 8]


def test_a_thought_position_is_no_target():
    config = tiny_config(model="coconut", thoughts=2)
    batch = whole_batch(config)
    assert not (batch.all_ids == make_tokenizer(config, ()).pred).any()
    assert len(batch.all_ids) == batch.loss_denominators["all"]
    assert set(batch.chain_at.tolist()) <= set(batch.all_at.tolist())


# -------------------------------------------------------------------------------------------- questions


@pytest.fixture
def mwp(tmp_path):
    """A folder as `--dataset mwp` reads it: three questions in each data set, fold and split."""
    for name in ("mawps", "asdiv-a"):
        for fold in (0, 1):
            folder = tmp_path / name / f"fold{fold}"
            folder.mkdir(parents=True)
            rows = [
                {"question": f"{name} {'ab'[fold]} has 8 and 2 cups", "answer": f"<<{text}>> #### {text[-1]}"}
                for text in ("8-2=6", "8/2=4", "9-2=7")
            ]
            for split in ("train", "val", "test"):
                text = "".join(json.dumps(row | {"question": f"{split} {row['question']}"}) + "\n" for row in rows)
                (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return tmp_path


def test_programs_are_the_chain_and_what_they_compute_decides(mwp):
    config = tiny_config(dataset="mwp", data_dir=str(mwp), reasoning="program", fold=1)
    train, test = load_examples("train", config), load_examples("test", config)
    assert [x.chain for x in train] == ["α-β", "α/β", "9-β"] * 2
    assert test[1].prompt == "test mawps b has α and β cups"
    for text, correct in (("α-β", True), ("α-2", True), ("β-α", False), ("α-γ", False), ("", False)):
        assert is_correct("mwp", test[0], text) is correct
    with pytest.raises(UserError, match="--data-dir"):
        load_examples("train", replace(config, data_dir=""))


def test_a_question_without_a_program_is_not_trained_on_and_counts_as_wrong(mwp):
    path = mwp / "mawps/fold0/{}.jsonl"
    for split in ("train", "test"):
        with open(str(path).format(split), "a", encoding="utf-8") as file:
            file.write(json.dumps({"question": "how many?", "answer": "many #### 5"}) + "\n")
    config = tiny_config(dataset="mwp", data_dir=str(mwp), reasoning="program")
    train, test = load_examples("train", config), load_examples("test", config)
    assert len(train) == 6 and len(test) == 7
    asked = next(x for x in test if x.prompt == "how many?")
    assert not is_correct("mwp", asked, asked.chain)


def test_generated_problems_of_three_steps_are_chains_of_three_equations_that_hold():
    config = tiny_config(dataset="wordproblems", reasoning="equations", difficulty=6)
    for example in load_examples("test", config):
        chain = parse_equations(example.chain)
        assert len(chain) == 3 and all(float(compute(left, {})) == result for left, result in chain)
        assert [left.split(op)[0] for (left, _), op in zip(chain[1:], _ops(chain[1:]), strict=True)] == [
            f"{result:.0f}" for _, result in chain[:2]
        ]
        assert is_correct("wordproblems", example, example.chain)


def _ops(chain):
    return [next(c for c in left if c in "+-*") for left, _ in chain]
