"""The Chain tab and --ask: one prompt followed through the chain of latents, undisturbed and disturbed."""

import io
from dataclasses import asdict, replace

import pytest
import torch
from helpers import call
from reasoner_tiny import PROMPTS, tiny_model

from common.checkpoint import save_model, weights_hash, write_json
from common.options import UserError
from demo import chain
from demo.page import build
from demo.tree import Mark, draw, positions
from reasoner import evaluate
from reasoner.baselines import Coupled
from reasoner.model import Reasoner, ReasonerTalker, Talker
from reasoner.tasks import parse_tree
from reasoner.trace import ask, max_characters, trace

PROMPT = PROMPTS[1]  # 1 2 ; 1 7 ; 7 9 ; 7 8 ; root 1 goal 9 :


@pytest.fixture(scope="module")
def model():
    return ReasonerTalker(tiny_model(Reasoner, trained="sst"), tiny_model(Talker))


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
    """The folder of a run that holds the untrained models."""
    folder = tmp_path_factory.mktemp("out") / "chain"
    save_model(model.reasoner, model.reasoner.config, folder / "sst")
    config = replace(model.talker.config, trained="talker", init_sha=weights_hash(folder / "sst"))
    save_model(model.talker, config, folder / "talker")
    write_json(folder / "config.json", asdict(config))
    return folder


# ------------------------------------------------------------------------------------------- the trace


def test_a_trace_is_the_plain_rollout_and_its_words_the_answer(model):
    found = trace(model, PROMPT)
    latents = model.reasoner.rollout([PROMPT])[0]
    assert torch.equal(found.latents, latents) and found.words == model.answer([PROMPT])[0]
    assert [step.thought for step in found.steps] == model.tokenizer.pieces(model.reasoner.nearest(latents).tolist())
    assert len(found.steps) == model.config.max_chain and not found.ended  # untrained: it never ends by itself
    assert [step.fed_back() for step in found.steps] == [*["itself"] * (len(found.steps) - 1), ""]


def test_a_trace_with_noise_is_the_rollout_with_that_noise_and_the_same_every_time(model):
    found = trace(model, PROMPT, noise=0.5, seed=3)
    latents = model.reasoner.rollout([PROMPT], noise=0.5, generator=torch.Generator().manual_seed(3))[0]
    assert torch.equal(found.latents, latents) and found == trace(model, PROMPT, noise=0.5, seed=3)
    assert found != trace(model, PROMPT, noise=0.5, seed=4) != trace(model, PROMPT)
    assert "itself with noise, cos" in found.steps[0].fed_back() and 0.6 < found.steps[0].cos_fed_back < 0.99


@pytest.mark.parametrize("k", (1, 3))
def test_a_replaced_latent_changes_what_follows_and_nothing_before(model, k):
    plain, replaced = trace(model, PROMPT).latents, trace(model, PROMPT, replace={k: "8"})
    assert torch.equal(plain[:k], replaced.latents[:k]) and not torch.isclose(plain[k], replaced.latents[k]).all()
    assert replaced.steps[k - 1].thought == "8" and "embedding of 8, cos" in replaced.steps[k - 1].fed_back()
    assert [bool(step.replaced) for step in replaced.steps] == [i + 1 == k for i in range(len(plain))]


def test_the_talker_reads_the_thought_that_took_a_latents_place(model, monkeypatch):
    seen = []
    monkeypatch.setattr(model.talker, "speak", lambda latents: seen.append(latents[0]) or [""])
    found = trace(model, PROMPT, replace={2: "8"})
    new = model.reasoner.inputs(torch.tensor(model.tokenizer.id_of["8"]))
    assert torch.equal(seen[0][1], new) and torch.equal(seen[0][2:], found.latents[2:])


def test_cosines_are_sorted_and_name_words_only(model):
    for step in trace(model, PROMPT, top=5).steps:
        cosines = [cos for _, cos in step.nearest]
        assert len(cosines) == 5 and cosines == sorted(cosines, reverse=True) and all(-1 <= c <= 1 for c in cosines)
        assert all(token in (*model.tokenizer.words, "[EOS]") for token, _ in step.nearest[1:])


@pytest.mark.parametrize(
    "prompt, changes, words",
    (
        ("", {}, "there is no prompt yet"),
        (" \n", {}, "there is no prompt yet"),
        (None, {}, "there is no prompt yet"),
        ("who am I", {}, "'who' is not a word of this model"),
        ("half an emoji \ud83c", {}, "'half' is not a word"),
        ("1 2 ; " * 200 + "root 1 goal 2 :", {}, "605 tokens, the model reads 255 at most"),
        ("1 " * 10_000, {}, "20,000 characters, the model reads 16,384 at most"),
        ("1 2 ; 1 root 1 goal 2 :", {}, 'write "parent child ;" for every edge'),
        ("1 2 ; 3 2 ; root 1 goal 2 :", {}, "two edges lead to node 2"),
        ("1 2 ; 2 1 ; root 1 goal 2 :", {}, "an edge leads to the root 1"),
        ("1 2 ; 3 4 ; 4 3 ; root 1 goal 2 :", {}, "two edges|no edges lead from the root 1 to node 3"),
        ("1 2 ; 1 3 ; root 1 goal 4 :", {}, "no edges lead from the root 1 to node 4"),
        (PROMPT, dict(replace={6: "3"}), "r6 cannot be replaced: the latents that are fed back are 1 to 5"),
        (PROMPT, dict(replace={0: "3"}), "r0 cannot be replaced"),
        (PROMPT, dict(replace={1: "gnu"}), "'gnu' is not a word of this model"),
        (PROMPT, dict(replace={1: "3 4"}), "must be one token, and is 2"),
        (PROMPT, dict(replace={1: ""}), "must be one token, and is 0"),
    ),
)
def test_what_cannot_be_followed_is_one_clear_line(model, prompt, changes, words):
    with pytest.raises(UserError, match=words) as error:
        trace(model, prompt, **changes)
    assert "\n" not in str(error.value)


def test_a_prompt_of_a_megabyte_is_refused_before_it_is_read(model, monkeypatch):
    monkeypatch.setattr(type(model.tokenizer), "encode", lambda *a: pytest.fail("tokenized"))
    with pytest.raises(UserError, match="too long"):
        trace(model, "1" * (max_characters(model) + 1))


def test_a_typed_tree_knows_its_route():
    tree = parse_tree(PROMPT)
    assert (tree.root, tree.goal, tree.route(), tree.route("8")) == ("1", "9", ["1", "7", "9"], ["1", "7", "8"])
    assert tree.children == {"1": ["2", "7"], "7": ["9", "8"], "2": [], "9": [], "8": []}
    assert parse_tree("root 3 goal 3 :").route() == ["3"]


# ---------------------------------------------------------------------------------------------- --ask


def test_ask_prints_the_chain_and_the_words_alone_on_the_last_line(run, monkeypatch):
    prompt, *latents, words = call(evaluate, "--run", run, "--device", "cpu", "--ask", PROMPT).stdout.splitlines()
    assert PROMPT in prompt and latents[0].startswith("r1 ") and "fed back: itself" in latents[0]
    assert words == (evaluate.load_run(run).answer([PROMPT])[0] or "(none)") and "fed back" not in latents[-1]
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{PROMPTS[0]}\n\n{PROMPT}\n"))
    assert call(evaluate, "--run", run, "--ask", "-").stdout.count("prompt ") == 2


def test_ask_refuses_what_it_would_ignore_and_an_empty_input(run, monkeypatch):
    assert "leave --limit out" in call(evaluate, "--ask", PROMPT, "--limit", "3", check=False).stderr
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert "no question on standard input" in call(evaluate, "--run", run, "--ask", "-", check=False).stderr
    assert call(evaluate, "--run", run, "--ask", "", check=False).stderr == "error: there is no prompt yet: type one"


@pytest.mark.parametrize("kind", ("coupled", "coconut"))
def test_a_baseline_that_is_asked_gives_its_answer_alone(kind):
    model = tiny_model(Coupled, model=kind)
    assert ask(model, PROMPT) == (model.answer([PROMPT])[0] or "(none)")


def test_a_derivation_is_followed_as_well():
    model = ReasonerTalker(*(tiny_model(cls, dataset="cfg", trained="sst") for cls in (Reasoner, Talker)))
    *_, words = ask(model, "a c b b a :").splitlines()
    assert words == model.answer(["a c b b a :"])[0]


# ---------------------------------------------------------------------------------------------- the page


def tab_of(model, examples=()) -> chain.ChainTab:
    return chain.ChainTab("out/run", model, tuple(examples), frozenset({0}), "about", max_characters(model))


@pytest.fixture(scope="module")
def tab(model):
    return tab_of(model, chain.read_examples(model, "")[:5])


def test_the_page_shows_words_tree_latents_and_the_true_route(tab):
    said, shown, plain = chain.show(tab, PROMPT)
    assert plain == trace(tab.model, PROMPT) and "✗ the true route is 1 7 9" in shown and plain.words in said
    assert shown.count('<section class="panel">') == 1 and shown.count('class="step-number"') == len(plain.steps)
    assert 'aria-label="Tree with root 1 and goal 9. Steps:' in shown and ">goal</text>" in shown
    assert chain.show(tab, PROMPT) == (said, shown, plain)


def test_a_correct_chain_gets_its_mark(tab):
    found, true = trace(tab.model, PROMPT), "1 7 9 [EOS]".split()
    steps = [replace(step, nearest=((word, 1.0),)) for step, word in zip(found.steps[:4], true, strict=True)]
    panel = chain.panel(tab, "", replace(found, steps=tuple(steps), words="1 7 9"), chain.expected(tab, PROMPT))
    assert "✓ the true route" in panel and 'class="mark bad"' not in panel and panel.count('class="step good"') == 2


def test_a_disturbed_chain_stands_beside_the_undisturbed_one(tab):
    said, shown, _ = chain.show(tab, PROMPT, 0.5, 2, "8")
    assert shown.count('<section class="panel">') == 2 and "Disturbed: r2 replaced by 8, noise 0.5" in shown
    assert 'class="mark new"' in shown and "Disturbed:" in said and "embedding of 8 with noise" in shown
    plain = chain.show(tab, PROMPT)[1].partition("<h3>")[2].partition("</h3>")[2]
    assert plain.removesuffix("</div>") in shown  # the first panel stays what it was


@pytest.mark.parametrize(
    "typed",
    (("<b>1</b>",), ("1 2 ; <i>",), ("",), (None,), ("x" * 10**6,), ("half an emoji \ud83c",), (PROMPT, 0.0, 1, "<u>")),
)
def test_errors_are_one_line_and_what_somebody_typed_is_text(tab, typed):
    _, shown, _ = chain.show(tab, *typed)
    assert shown.count('<p class="message" role="alert">') == 1 and not any(x in shown for x in ("<b>1", "<i>", "<u>"))
    shown.encode()


def test_a_latent_that_is_not_there_is_an_error_beside_the_chain(tab):
    _, shown, plain = chain.show(tab, PROMPT, 0.0, 99, "8")
    assert plain and "R99 cannot be replaced" in shown and shown.count('<section class="panel">') == 1


def test_a_tree_unlike_those_of_training_is_answered_with_a_warning(tab):
    for prompt, words in (
        ("1 2 ; root 1 goal 2 :", "every inner node had two children, node 1 has 1"),
        ("1 2 ; 1 3 ; 3 4 ; 3 5 ; 5 6 ; 5 7 ; 7 8 ; 7 9 ; root 1 goal 9 :", "a route of more than 3 edges"),
        ("1 2 ; 1 3 ; 3 4 ; 3 5 ; root 1 goal 3 :", "the goal was a leaf, node 3 is none"),
        ("root 1 goal 1 :", "every tree had two leaves or more"),
    ):
        assert words in chain.show(tab, prompt)[1]
    assert "Unlike" not in chain.show(tab, PROMPT)[1]


def test_nodes_of_a_drawing_have_a_place_of_their_own_and_steps_elsewhere_are_left_out():
    tree = parse_tree(PROMPT)
    at = positions(tree)
    assert len(set(at.values())) == 5 and at["1"][1] < at["7"][1] < at["9"][1]
    assert at["7"][0] == (at["9"][0] + at["8"][0]) / 2 and at["2"][0] < at["9"][0] < at["8"][0]
    drawn = draw(tree, [Mark(1, "1", "good"), Mark(2, "9", "bad"), Mark(3, "11", "bad"), Mark(4, "9", "new")])
    assert drawn.count('class="mark') == 3 and drawn.count("Q") == 1  # no edge leads from 1 to 9


def test_derivations_are_shown_without_a_tree():
    model = ReasonerTalker(*(tiny_model(cls, dataset="cfg", trained="sst") for cls in (Reasoner, Talker)))
    tab = tab_of(model, chain.read_examples(model, ""))
    _, shown, plain = chain.show(tab, tab.examples[0].prompt)
    assert "✗ the true derivation is S" in shown and 'class="tree"' not in shown and 'class="mark bad"' in shown
    assert chain.replaceable(tab, plain)[1] and "the true" not in chain.show(tab, "a b c :")[1]


def test_the_tab_builds_with_examples_and_without(tab):
    for one in (tab, replace(tab, examples=())):
        page = build({"reasoner": one})
        shown = str(page.get_config_file())
        assert ("from " in shown and "1. ✗" in shown) == bool(one.examples) and "Follow the chain" in shown
        assert all(not event.api_name for event in page.fns.values() if event.api_visibility != "private")


def test_a_run_is_loaded_with_its_examples_and_asked_in_the_terminal(run, model):
    loaded = chain.load(str(run), "", "cpu")
    assert len(loaded.examples) == chain.N_EXAMPLES and loaded.wrong and "unseen" not in loaded.about
    lengths = [len(x.chain.split()) for x in loaded.examples]
    assert lengths == sorted(lengths, reverse=True) and chain.ask(loaded, PROMPT) == ask(model, PROMPT)
    write_json(run / "summary.json", {"route_accuracy": 0.989, "n": 1000})
    assert "98.9% of 1,000 unseen test examples correct" in chain.describe(model, str(run))


def test_a_baseline_has_no_chain_to_show(tmp_path):
    model = tiny_model(Coupled, model="coupled", trained="coupled")
    save_model(model, model.config, tmp_path / "coupled")
    write_json(tmp_path / "config.json", asdict(model.config))
    with pytest.raises(UserError, match="a baseline, which has no chain of latents"):
        chain.load(str(tmp_path), "", "cpu")
