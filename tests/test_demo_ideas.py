"""The Ideas tab: what one text's idea gives beside another's, and the line between the two."""

import re
from dataclasses import replace

import pytest
import torch
from helpers import call
from latent_tiny import PAIRS, tiny_stack, tokenized

import main
from common.checkpoint import write_json
from common.options import UserError
from demo import ideas
from demo.drawing import Plane
from demo.page import build
from latent_stack.pairs import Pair
from latent_stack.trace import ideas_at_hand


@pytest.fixture(scope="module")
def tab():
    """The tiny stack with 20 test texts."""
    model = tiny_stack(max_new_tokens=5)
    model.standardise(tokenized(PAIRS, model))  # else the ideas of an untrained stack are all alike
    test, _ = ideas_at_hand(model, limit=20)
    return ideas.IdeasTab("out/tiny", model, "about", test, Plane.fit(test.z))


@pytest.fixture(scope="module")
def texts(tab):
    return tab.examples()[:2]


@pytest.fixture(scope="module")
def found(tab, texts):
    return ideas.generate(tab, ideas.compare(tab, *texts))


# --------------------------------------------------------------------------------------- the comparison


def test_the_line_begins_with_as_text_and_ends_with_bs(tab, texts, found):
    assert [found.generated[0], found.generated[-1]] == tab.model.rewrite(texts)
    assert len(found.generated) == 5 and not torch.allclose(found.z[0], found.z[-1])
    assert torch.allclose(found.z[2], (found.z[0] + found.z[-1]) / 2)


def test_the_same_texts_get_the_same_page_whatever_was_compared_between(tab, texts, found):
    other = ideas.generate(tab, ideas.compare(tab, texts[0], "Ben lost it."))
    assert other.generated[0] == found.generated[0] and not torch.equal(other.z[-1], found.z[-1])
    again = ideas.generate(tab, ideas.compare(tab, *texts))
    assert ideas.show(tab, again) == ideas.show(tab, found) and ideas.draw(tab, again) == ideas.draw(tab, found)


def test_the_page_has_both_texts_their_references_and_the_cosine_beside_its_control(tab, texts, found):
    page = ideas.show(tab, found)
    cosine = torch.nn.functional.cosine_similarity(*tab.model.think(tab.model.encode(texts)), dim=0)
    assert re.findall(r"<td>(-?\d\.\d{3})</td>", page) == [f"{cosine:.3f}", f"{tab.test.mean_cosine():.3f}"]
    assert re.findall(r'"said">(.*?)</p>', page) == [found.generated[0], found.generated[-1]]
    assert [p.target in page for p in tab.test.pairs[:3]] == [True, True, False]
    assert page.count("(control)") == 1 and page.count("Nearest test text") == 2


def test_the_ideas_are_on_the_page_before_the_texts_are(tab, texts):
    early = ideas.compare(tab, *texts)
    assert ideas.show(tab, early).count("generating…") == 2 and ideas.show_path(early).count("generating…") == 5
    assert "<svg" in ideas.draw(tab, early)


def test_the_list_and_the_map_have_a_place_for_every_point_of_the_slider(tab, found):
    rows = re.findall(r'<li class="at-(\d)">.*?</span> <span>(.*?)</span>', ideas.show_path(found))
    assert rows == [(str(k), text) for k, text in enumerate(found.generated)]
    drawn = ideas.draw(tab, found)
    assert drawn.count('class="dot"') == 20 and drawn.count("<title>A: ") == drawn.count("<title>B: ") == 1
    rings = re.findall(r'class="at at-\d" cx="([\d.]+)" cy="([\d.]+)"', drawn)
    (a, b) = (re.search(rf'class="{kind}" cx="([\d.]+)" cy="([\d.]+)"', drawn).groups() for kind in ("near", "mark"))
    assert len(rings) == 5 and (rings[0], rings[-1]) == (a, b)
    assert all(f'[data-at="{k}"] .at-{k}' in ideas.CSS for k in range(5))


def test_the_plane_holds_the_largest_variance_and_says_how_much(tab):
    z = tab.test.z - tab.test.z.mean(0)
    values = torch.linalg.eigvalsh(z.T @ z).flip(0)
    assert tab.plane.variance == pytest.approx((values[:2] / values.sum()).tolist(), abs=1e-4)
    assert tab.plane.project(tab.test.z).var(0).tolist() == pytest.approx((values[:2] / 19).tolist(), rel=1e-3)
    assert f"{sum(tab.plane.variance):.0%} of their variance" in ideas.legend(tab)


# -------------------------------------------------------------------------------------------- its limits


@pytest.mark.parametrize(
    "a, b, words",
    (
        ("", "Ben lost it.", "Text A is empty"),
        ("Ben lost it.", " \n", "Text B is empty"),
        (None, None, "Text A is empty"),
        ("x" * 3073, "Ben lost it.", "Text A is too long: 3,073 characters, and 3,072 are read at most"),
    ),
)
def test_a_text_that_cannot_be_read_is_one_message_and_nothing_else(tab, monkeypatch, a, b, words):
    monkeypatch.setattr(tab.model.backbones, "tokenize", lambda texts: pytest.fail("tokenized"))
    refused = ideas.compare(tab, a, b)
    assert refused == ideas.Comparison(message=refused.message) and words in refused.message
    assert ideas.show(tab, refused) == f'<p class="message" role="alert">{refused.message}</p>'
    assert ideas.show_path(refused) == ideas.draw(tab, refused) == ""


def test_half_an_emoji_is_compared_and_a_request_has_room_for_two_texts(tab):
    found = ideas.compare(tab, "half an emoji \ud83c", "Ben lost it.")
    assert found.texts[0] == "half an emoji ?" and tab.max_characters == 2 * 3072


def test_what_the_encoder_does_not_read_is_reported(tab):
    page = ideas.show(tab, ideas.compare(tab, "Ben lost it.", "Ana has two coins. " * 40))
    assert "The encoder reads 48 tokens: the end of text B is not read." in page and "text A is not" not in page


def test_what_is_typed_generated_or_in_the_data_is_shown_as_text_not_as_markup(tab, texts):
    pairs = [Pair(texts[0], "<i>x</i>"), Pair("<u>y</u>", "z"), *tab.test.pairs[2:]]
    marked = replace(tab, test=replace(tab.test, pairs=pairs))
    found = ideas.compare(marked, texts[0], "<b>bold</b>")
    found = replace(found, generated=("<s>0</s>", *["<s>1</s>"] * 4))
    page = ideas.show(marked, found) + ideas.show_path(found) + ideas.draw(marked, found)
    assert not re.search("<[ibus]>", page)
    for text in ("i&gt;x", "u&gt;y", "b&gt;bold", "s&gt;0", "s&gt;1"):
        assert f"&lt;{text}" in page


# ----------------------------------------------------------------------------------------------- the tab


def test_the_tab_opens_on_two_examples_that_are_compared_already(tab, texts, found):
    page = build({"latent_stack": tab})
    assert [block.selected for block in page.blocks.values() if hasattr(block, "selected")] == ["latent_stack"]
    values = [block.value for block in page.blocks.values() if hasattr(block, "value")]
    assert all(text in values for text in texts)
    assert {ideas.show(tab, found), ideas.show_path(found), ideas.draw(tab, found)} <= set(map(str, values))


def test_without_the_runs_data_there_are_no_examples_and_no_map_and_it_says_so(tmp_path, monkeypatch, capsys):
    model = tiny_stack(dataset="jsonl", data_dir=str(tmp_path / "gone"), max_new_tokens=5)
    monkeypatch.setattr(ideas, "load_run", lambda run, device: model)
    tab = ideas.load("out/tiny", "", "cpu")
    assert "gone: no train.jsonl" in capsys.readouterr().out and "No examples and no map" in tab.about
    assert str(tmp_path) not in tab.about and tab.examples() == [] and ideas.legend(tab) == ""
    found = ideas.generate(tab, ideas.compare(tab, "Ana has two coins.", "Ben lost it."))
    assert "any two" not in ideas.show(tab, found) and ideas.draw(tab, found) == ""
    assert len(found.generated) == 5 and build({"latent_stack": tab})
    assert "not known: the run's data is not on this machine" in ideas.ask(tab, "Ana has two coins.")
    with pytest.raises(UserError, match="elsewhere"):
        ideas.load("out/tiny", str(tmp_path / "elsewhere"), "cpu")


@pytest.mark.parametrize(
    "low, words", ((0.05, "holds something of its text"), (-0.05, "nothing of its text that could"))
)
def test_the_page_says_what_the_runs_ideas_hold(tab, tmp_path, low, words):
    assert "never measured against another text's idea" in ideas.describe(tab.model, tmp_path)
    figures = {"n": 1200, "rougeL": 0.2, "rougeL_shuffled": 0.1}
    write_json(tmp_path / "summary.json", figures | {"rougeL_difference_ci95": [low, 0.3]})
    about = ideas.describe(tab.model, tmp_path)
    assert words in about and "1,200 test texts: 0.200 from a text's idea, 0.100 from another text's" in about
    assert "one idea, 16 numbers" in about and "5 soft tokens → language model (frozen)" in about


def test_ask_prints_what_is_generated_on_its_last_line(tab, texts, tmp_path, monkeypatch):
    write_json(tmp_path / "config.json", {"system": "latent_stack"})
    for name in ("HF_DATASETS_OFFLINE", "GRADIO_ANALYTICS_ENABLED"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr(ideas, "load", lambda *a: tab)
    printed = call(main, "--run", tmp_path, "--device", "cpu", "--ask", texts[0]).stdout.splitlines()
    assert printed[-1] == tab.model.rewrite(texts[:1])[0] and printed[1].startswith("nearest")
    done = call(main, "--run", tmp_path, "--device", "cpu", "--ask", "x" * 4000, check=False)
    assert done.stderr.splitlines()[-1] == "error: the text has 4,000 characters, and 3,072 are read at most"
