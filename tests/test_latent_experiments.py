"""The experiments of latent_stack: their measures against definitions, their controls against what they control."""

import re

import numpy as np
import pytest
import torch
from helpers import call, same
from latent_tiny import PAIRS, TEXTS, tiny_stack, tokenized, trained_run
from scipy.stats import spearmanr

from common.batching import pad
from common.checkpoint import read_json
from common.options import UserError
from latent_stack import evaluate
from latent_stack.config import EvalConfig, StackConfig, evaluated_on, output_name
from latent_stack.experiments import capacity
from latent_stack.experiments.baselines import lead3, prompted
from latent_stack.experiments.cluster import centroid_scores, typical_words
from latent_stack.experiments.measures import bleu_and_meteor, derangement, lower_case_words, recall_of, rouge_of
from latent_stack.experiments.neighbours import rank_correlations, vectors_of, word_overlap
from latent_stack.experiments.summaries import summaries
from latent_stack.model import load_run
from latent_stack.pairs import load_pairs
from latent_stack.trace import ideas_at_hand, report

# --------------------------------------------------------------------------------------------- measures


def test_rouge_bleu_and_meteor_are_one_for_the_same_text_and_lower_for_another():
    texts = [
        "Ana will buy the coins tomorrow morning.",
        "Ben sold his old red bicycle to Eva.",
        "They meet at the park.",
    ]
    others = texts[1:] + texts[:1]
    assert all((scores == 1).all() for scores in rouge_of(texts, texts).values())
    assert all((scores < 0.4).all() for scores in rouge_of(texts, others).values())
    found = bleu_and_meteor(texts, texts)
    assert found["bleu"]["mean"] > 0.999 and found["meteor_no_synonyms"]["mean"] > 0.98
    assert bleu_and_meteor(texts, others)["meteor_no_synonyms"]["mean"] < 0.4


def test_an_interval_of_bleu_is_about_its_resampled_texts():
    generated = ["Ana will buy the coins tomorrow", "Ben sold a car", "They meet", "He sells the coins tomorrow"] * 5
    references = ["Ana will buy the coins today", "Ben sold his bike", "They met", "He sells the cards tomorrow"] * 5
    bleu = bleu_and_meteor(generated, references)["bleu"]
    assert 0 < bleu["ci95"][0] < bleu["mean"] < bleu["ci95"][1] < 1


def test_names_and_other_words_are_counted_separately():
    generated = ["Ana will buy coins. Ana goes.", "And then Ben sleeps."]
    references = ["Ana and Eva will sell coins.", "Then they sleep, buys Tom."]
    found = recall_of(generated, references, lower_case_words([*references, "And then?"]))
    assert found["names"].tolist() == [1 / 2, 0] and found["words"].tolist() == [2 / 3, 0]
    assert not len(recall_of(["x"], ["1 2 3"], set())["names"])


def test_what_is_generated_does_not_decide_which_words_are_names():
    """An older rule took the generated texts' lower-case words, too: another model, other names."""
    references = ["May comes.", "Rose sells coins."]
    lower_case = lower_case_words(references)
    for generated in (["May comes.", "Rose sells coins."], ["she may", "the rose and the coins"]):
        assert [len(v) for v in recall_of(generated, references, lower_case).values()] == [2, 2]
    assert recall_of(["may", "rose"], references, lower_case)["names"].tolist() == [0, 0]


def test_the_first_three_lines_or_sentences():
    assert lead3("A: hi\r\nB: hello\r\nA: bye\r\nB: so long") == "A: hi B: hello A: bye"
    assert lead3("One. Two! Three? Four.") == "One. Two! Three?"


def test_the_overlap_of_words_is_their_jaccard_similarity():
    assert word_overlap(["green apples", "green pears", "none here"])[0].tolist() == pytest.approx([1, 1 / 3, 0])


def test_typical_words_are_frequent_in_the_cluster_and_rare_elsewhere():
    words = [{"pears", "many"}, {"pears", "many"}, {"coins", "many"}, {"coins", "many"}]
    assert typical_words(words, np.array([0, 1]), 1) == ["pears"]


def test_a_targets_control_is_the_centroid_of_the_cluster_before():
    centroids = ["red apples", "green pears", "blue coins"]
    references = ["red apples", "red apples", "red apples"]
    own, other = centroid_scores(centroids, np.array([0, 1, 2]), references)
    assert own.tolist() == [1, 0, 0] and other.tolist() == [0, 1, 0]


def test_a_rank_correlation_is_scipys_and_ignores_a_text_with_itself():
    x, y = (a + a.T for a in np.random.default_rng(0).random((2, 60, 60)))
    upper, diagonal = np.triu_indices(60, 1), np.eye(60, dtype=bool)
    rho, (low, high) = rank_correlations({"x": x}, {"y": x + y}, diagonal)["x", "y"]
    assert rho == pytest.approx(spearmanr(x[upper], (x + y)[upper]).statistic)
    assert low < rho < high and high - low < 0.2
    twice = diagonal.copy()
    twice[0, 1] = twice[1, 0] = True
    outlier = x.copy()
    outlier[0, 1] = outlier[1, 0] = 1e6
    assert rank_correlations({"x": outlier}, {"y": y}, twice, n=5) == rank_correlations({"x": x}, {"y": y}, twice, n=5)


# --------------------------------------------------------------------------------------------- controls


def test_the_shuffled_control_gives_no_text_its_own_idea():
    for n in (2, 7, 100):
        order = derangement(n)
        assert sorted(order) == list(range(n)) and all(i != x for i, x in enumerate(order))
    _, rows = summaries(tiny_stack(), PAIRS[:16], systems=("own", "shuffled"))
    assert [row["shuffled"] for row in rows] == [rows[i]["own"] for i in derangement(16)]


def test_an_untrained_compression_reads_the_same_encoder_and_leaves_the_trained_one():
    model, texts = tiny_stack(pooling="attention"), TEXTS[:5]
    model.standardise(tokenized(PAIRS, model))
    before = {name: x.clone() for name, x in model.state_dict().items()}
    found = vectors_of(model, texts, seed=3, batch_size=2)
    z_in, untrained = model.encode(texts), found["z_in, untrained"]
    assert torch.allclose(found["z_in"], z_in, atol=1e-5)
    assert torch.allclose(found["z_out"], model.think(z_in), atol=1e-5)
    assert untrained.shape == z_in.shape and not torch.allclose(untrained, z_in, atol=1e-2)
    assert torch.equal(untrained, vectors_of(model, texts, seed=3, batch_size=2)["z_in, untrained"])
    assert same(before, model.state_dict())
    first = model.backbones.hidden_states(model.backbones.pad(model.backbones.tokenize(texts[:1])[0]))
    assert torch.allclose(found["encoder, mean of states"][0], first[0].mean(0), atol=1e-5)


def test_a_long_text_is_truncated_to_the_language_models_room(monkeypatch, capsys):
    model = tiny_stack(max_new_tokens=8)
    tokenizer, short = model.backbones.lm_tokenizer, "Ben  has\nÿ 3."
    before, seen = (tokenizer.padding_side, tokenizer.pad_token_id), []
    encode = type(tokenizer).__call__
    monkeypatch.setattr(type(tokenizer), "__call__", lambda self, x, **k: seen.append(x) or encode(self, x, **k))
    generated = prompted(model, ["Ana has 2 coins. " * 60, short])
    assert any(text.startswith(short) for text in seen[-1]), "a text that is short enough was taken apart"
    assert (tokenizer.padding_side, tokenizer.pad_token_id) == before
    assert len(generated) == 2 and "1 of 2 texts truncated at 20 tokens" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------ experiments


def experiment(what: str, limit: int = 16, *options) -> tuple[dict, str]:
    """Run an experiment on the trained run -> (what its JSON file holds, what was printed)."""
    run = trained_run().run
    clusters = ["--clusters", 3] if what in ("cluster", "map") else []
    done = call(evaluate, "--run", run, "--what", what, "--limit", limit, *clusters, *options, "--device", "cpu")
    assert all(line == line.rstrip() for line in done.stdout.splitlines()), "blanks at the end of a line"
    return read_json(run / f"{what}.json"), done.stdout


def test_the_trained_middle_model_scores_what_matched_ideas_score():
    found, printed = experiment("summaries")
    middle, _ = experiment("middle")
    assert middle["trained"]["rougeL"] == found["own"]["rougeL"] and middle["trained"]["same_as_trained"] == 1
    for measure, difference in found["own_less_shuffled"].items():
        assert difference["mean"] == pytest.approx(found["own"][measure]["mean"] - found["shuffled"][measure]["mean"])
        assert difference["ci95"][0] <= difference["mean"] <= difference["ci95"][1]
    for name, label in (("own", "matched idea"), ("lead3", "first three lines or sentences")):
        row = next(line for line in printed.splitlines() if line.startswith(label))
        means = [f"{found[name][measure]['mean']:.4f}" for measure in ("rouge1", "rouge2", "rougeL")]
        assert re.findall(r"(\d\.\d{4}) \(", row) == means


def test_a_path_from_idea_to_idea_begins_and_ends_with_the_texts_of_the_two():
    found, printed = experiment("interpolate")
    model = load_run(trained_run().run)
    inputs = {p.target: p.input for p in load_pairs(model.config)["test"][:16]}
    assert found["n"] == 16 and "last - third" in printed
    for way in found["ways"]:
        ends = model.rewrite([inputs[way["from"]], inputs[way["to"]]])
        assert [way["said"][0], way["said"][-1]] == ends and len(way["said"]) == 5
    table, differences = found["rougeL"], found["rougeL_less_third"]
    for name in ("first", "last"):
        for own, third, difference in zip(table[name], table["third"], differences[name], strict=True):
            assert difference["mean"] == pytest.approx(own["mean"] - third["mean"])


def test_ideas_dealt_out_to_other_texts_are_no_nearer_to_similar_ones():
    found, _ = experiment("neighbours", limit=100)
    names = ("encoder, mean of states", "encoder, standardised", "z_in, untrained", "z_in", "z_out")
    rows = [found[f"{name}, {words}"] for name in names for words in ("input", "target")]
    assert all(abs(row["shuffled"]) < 0.1 for row in rows)
    assert all(row["ci95"][0] < row["spearman"] < row["ci95"][1] for row in rows)
    assert found["encoder, mean of states, input"]["ci95"][0] > 0.1


def test_a_centroid_is_measured_on_its_own_texts_and_on_the_next_clusters():
    found, printed = experiment("cluster")
    rows = found["clusters"]
    assert sum(row["size"] for row in rows) == 16 and len(rows) == 3
    assert f"silhouette {found['silhouette']:.3f}" in printed
    assert sum(row["size"] * row["rougeL"] for row in rows) / 16 == pytest.approx(found["rougeL"]["mean"])
    next_sizes = [row["size"] for row in rows[1:] + rows[:1]]
    mismatched = sum(n * row["rougeL_next"] for n, row in zip(next_sizes, rows, strict=True)) / 16
    assert mismatched == pytest.approx(found["rougeL_next"]["mean"])
    assert found["own_less_next"]["mean"] == pytest.approx(found["rougeL"]["mean"] - mismatched)


def test_the_map_shows_every_text_once_in_either_panel(drawn):
    found, _ = experiment("map")
    assert found["n"] == 16 and 0 < sum(found["explained_variance"]) <= 1
    for panel in drawn["map.png"].axes:
        assert sum(len(dots.get_offsets()) for dots in panel.collections) == 16 and len(panel.collections) == 3


def test_an_experiment_on_other_data_leaves_the_runs_own_result():
    trained = StackConfig(data_dir="a/data")
    assert output_name(EvalConfig(what="map"), trained) == "map"
    assert output_name(EvalConfig(what="map", data_dir="a/data"), trained) == "map"
    assert output_name(EvalConfig(what="map", data_dir="b/other"), trained) == "map-other"
    assert output_name(EvalConfig(what="map", dataset="qa"), trained) == "map-qa"
    own, moved, other = (
        evaluated_on(EvalConfig(**changes), trained)
        for changes in (dict(), dict(data_dir="b"), dict(dataset="paraphrase"))
    )
    assert [(x.dataset, x.data_dir) for x in (own, moved, other)] == [
        ("samsum", "a/data"),
        ("samsum", "b"),
        ("paraphrase", ""),
    ]


# ------------------------------------------------------------------------------------------ one's own text


@pytest.fixture
def given_text(monkeypatch):
    """A function: evaluate --text on the trained run -> what was printed; `main` sets a switch in the environment."""
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    return lambda *words: call(evaluate, "--run", trained_run().run, "--device", "cpu", "--text", *words).stdout


def test_a_text_by_hand_or_on_stdin_is_generated_from_its_idea_on_the_last_line(given_text, monkeypatch):
    printed = given_text(TEXTS[0], "--limit", 20)
    assert printed.splitlines()[-1] == load_run(trained_run().run).rewrite([TEXTS[0]])[0]
    assert f"text                    {TEXTS[0]}" in printed and "mean cosine to 20 test texts" in printed
    halves = TEXTS[0].replace(". ", ".\r\n", 1)  # all lines are one text
    monkeypatch.setattr("sys.stdin", type("Stdin", (), {"read": lambda self: halves})())
    assert given_text("-", "--limit", 20) == printed


def test_the_nearest_texts_are_sorted_different_and_stand_above_the_control(given_text):
    model = load_run(trained_run().run)
    test, _ = ideas_at_hand(model, limit=20)
    pairs, z = test.pairs, model.think(model.encode([p.input for p in test.pairs])).detach()
    cosines = torch.nn.functional.cosine_similarity(z[:, None], z[None], dim=-1)
    assert test.mean_cosine() == pytest.approx(float((cosines.sum() - 20) / (20 * 19)), abs=1e-4)
    found = test.nearest(pairs[0].input, test.z[0])
    assert [p for p, _ in found] == [pairs[i] for i in cosines[0].argsort(descending=True)[1:4]]
    assert [cos for _, cos in found] == pytest.approx(cosines[0].sort(descending=True).values[1:4].tolist(), abs=1e-4)
    rows = [line.split() for line in given_text(pairs[0].input, "--limit", 20).splitlines()]
    nearest, control = (
        next(row for row in rows if row[0] == "nearest"),
        next(row for row in rows if row[0] == "control"),
    )
    assert float(nearest[1]) == pytest.approx(found[0][1], abs=1e-3) and float(control[1]) < float(nearest[1])


def test_a_text_is_generated_from_where_the_data_is_not_at_hand(monkeypatch):
    model = tiny_stack(dataset="jsonl", data_dir="gone", max_new_tokens=4)
    test, absent = ideas_at_hand(model)
    assert test is None and absent.startswith("gone: no train.jsonl")
    *rows, last = report(model, TEXTS[0], test, absent).split("\n")
    assert last == model.rewrite([TEXTS[0]])[0] and any(row.startswith("nearest") and "gone" in row for row in rows)
    with pytest.raises(UserError, match="elsewhere"):
        ideas_at_hand(model, "elsewhere")


def test_a_text_beyond_the_encoders_window_is_generated_from_and_the_cut_reported():
    model = tiny_stack(max_new_tokens=4)
    assert "truncated               the encoder reads 48 tokens" in report(model, TEXTS[0] * 20, None, "no data")
    assert "truncated" not in report(model, TEXTS[0], None, "no data")
    assert report(model, "half an emoji \ud83c", None, "no data").startswith("text                    half an emoji ?")


def test_an_empty_text_and_too_few_texts_are_refused_in_one_line():
    run = trained_run().run
    for words, message in ((("--text", " "), "the text is empty"), (("--limit", 5), "an experiment needs 10 or more")):
        done = call(evaluate, "--run", run, *words, check=False)
        assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr


# -------------------------------------------------------------------------------------------- capacity


def test_soft_tokens_are_moved_until_more_of_a_text_is_said(monkeypatch):
    """Stage by stage; a text that is said whole takes no further part, and none is said less than before."""
    monkeypatch.setattr(capacity, "LR", 0.3)
    model = tiny_stack()
    tokens = pad([ids[1:7] for ids in tokenized(PAIRS[:10], model).targets], -1)
    x, prefix_of = capacity.conditions(model, PAIRS[:10], 0)["16 soft tokens"]
    curve, needed = capacity.optimise(x, prefix_of, tokens, model, 60)
    assert (np.diff(curve, axis=0) >= 0).all() and curve[-1].sum() > curve[0].sum() + 6 and curve.shape == (61, 10)
    assert [min(60, int((curve[:, i] < 6).sum())) for i in range(10)] == needed.tolist()


def test_tokens_count_as_said_up_to_the_first_error():
    logits = torch.nn.functional.one_hot(torch.tensor([[1, 2, 0, 3], [1, 1, 1, 1]]), 5).float()
    assert capacity.said_exactly(logits, torch.tensor([[1, 2, 3, 3], [1, 1, -1, -1]])).tolist() == [2, 2]


def test_capacity_is_measured_for_soft_tokens_and_for_ideas(drawn):
    found, printed = experiment("capacity", 12, "--steps", 3)
    rows = found["capacity"]
    assert [row["numbers"] for row in rows.values()] == [24, 96, 384, 64, 256, 512, 16]
    assert found["n"] == 12 and found["steps"] == 3
    assert all(row["at_first"]["mean"] <= row["said"]["mean"] for row in rows.values())
    assert "an idea of 16, trained expansion" in printed and len(drawn["capacity.png"].axes[0].lines) == len(rows)


def test_where_soft_tokens_are_sharpened_an_idea_is_optimised_without_that_too():
    model = tiny_stack(sharpen=0.01)
    (z, sharpened), (same, soft) = list(capacity.conditions(model, PAIRS[:3], 0).values())[-2:]
    assert torch.equal(z, same) and not torch.allclose(sharpened(z), soft(z))
    assert torch.allclose(sharpened(z), model.sharpened(soft(z)))
