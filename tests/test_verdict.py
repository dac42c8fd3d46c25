"""The last screen of a training: what was learned, against which control, and what to try next, by its figures."""

import pytest

import latent_stack.train
import reasoner.train
import train
from common.verdict import against, try_next
from config import Config
from reasoner.config import ReasonerConfig
from reasoner.tasks import Example, trees

TRAINED = {"steps": 10, "train_seconds": 3.0, "examples_per_second": 20.0, "n": 100}
GOOD = TRAINED | {
    "exact_match": 0.9,
    "exact_match_ci95": [0.82, 0.94],
    "constant_from_train": 0.1,
    "constant_from_train_answer": "5",
    "cos_own": 0.95,
    "cos_other": 0.3,
    "margin_ci95": [0.6, 0.7],
}
CASES = {  # {what the last screen says: (what was measured, the options)}
    "It answers 90.0% of the test questions correctly, better than always answering 5 (10.0%).": ({}, {}),
    "nearer to its own answer's (cosine 0.950) than to another's (0.300).": ({}, {}),
    "correctly, no better than always answering 5 (10.0%).": ({"exact_match_ci95": [0.09, 0.94]}, {}),
    "worse than always answering 5 (10.0%).": ({"exact_match_ci95": [0.0, 0.04]}, {}),
    "always computing α+β (90.0%).": ({"majority_program": "α+β", "majority_program_exact_match": 0.9}, {}),
    "than to another's (0.960): all latents point one way.": ({"cos_other": 0.96, "margin_ci95": [-0.02, 0.01]}, {}),
    "is no nearer to its own": ({"margin_ci95": [-0.01, 0.01]}, {}),
    "(0.300): no sign that anything was learned about the answer.": ({"margin_ci95": [-0.01, 0.01]}, {}),
    "is hardly nearer to its own": ({"margin_ci95": [0.005, 0.01]}, {}),
    "(0.300); with λ = 0 the cosine was not trained.": ({}, {"jepa_weight": 0.0}),
    "that cosine 0.996 is a leak": ({"val_cos_own": 0.996}, {"mask": "none"}),
    "It is a language model": ({}, {"jepa_weight": 0.0, "mask": "causal"}),
    "was not measured (--no-final-eval).": ({}, {"final_eval": False}),
    "alignment was not measured: too few": ({"cos_own": None, "not_measured": {"alignment": "too few"}}, {}),
    "accuracy was not measured: why": ({"exact_match": None, "not_measured": {"accuracy": "why"}}, {}),
}


@pytest.mark.parametrize("said", CASES)
def test_nanojepa_says_what_its_figures_say_and_no_more(said):
    changes, options = CASES[said]
    shown = train.report(GOOD | changes, Config(run="out/x", **options), 100)
    assert said in shown
    assert ("It answers" in shown) == (options != {"final_eval": False} and "exact_match" not in changes)
    assert ("nearer" in shown) == ("mask" not in options and "final_eval" not in options and "cos_own" not in changes)


def test_a_figure_is_better_than_its_control_only_if_its_interval_is_above_it():
    assert against(0.5, [0.4, 0.6], 0.39) == "better than"
    assert against(0.5, [0.4, 0.6], 0.41) == against(0.5, [0.4, 0.6], 0.59) == "no better than"
    assert against(0.5, [0.4, 0.6], 0.61) == "worse than"


def test_the_commands_to_try_next_can_be_pasted():
    lines = try_next("out/my run", "main.py", "-m reasoner.evaluate --what tree").splitlines()
    assert lines[0] == "try next:  python main.py --run 'out/my run'"
    assert lines[1].strip() == "python -m reasoner.evaluate --what tree --run 'out/my run'"


# ------------------------------------------------------------------------------------------ JEPA-Reasoner


def reported(accuracy: float | None, ci95, model: str = "decoupled") -> str:
    phases = {"sst": {"val_cos_own": 0.99, "val_cos_other": 0.1}} if model == "decoupled" else {"coupled": {}}
    summary = {"n": 50, "route_accuracy": accuracy, "route_accuracy_ci95": ci95, "phases": phases}
    summary |= {"control": 0.25, "control_is": "guessing at every fork", "not_measured": {"route_accuracy": "why"}}
    return reasoner.train.report(ReasonerConfig(run="out/r", model=model), summary)


def test_the_reasoner_stands_beside_a_guess_at_every_fork():
    assert "solves 90.0% of them, better than guessing at every fork (25.0%)." in reported(0.9, [0.8, 0.95])
    assert "solves 30.0% of them, no better than guessing at every fork" in reported(0.3, [0.2, 0.4])
    assert "nearer to its own token's (cosine 0.990) than to another's (0.100)." in reported(0.9, [0.8, 0.95])
    assert "route accuracy was not measured: why" in reported(None, None)


def test_a_baseline_has_no_latents_to_report_and_no_page():
    shown = reported(0.9, [0.8, 0.95], "coupled")
    assert "nearer" not in shown and "main.py" not in shown and "-m reasoner.evaluate --what tree --run out/r" in shown


def test_the_reasoners_control_is_chance_at_every_step_or_the_majority_answer():
    rows = [Example("", "1 2 3"), Example("", "1 2")]
    assert reasoner.train.control(ReasonerConfig(), [], rows) == (0.375, "guessing at every fork")
    assert reasoner.train.control(ReasonerConfig(dataset="cfg"), [], rows) == (0.1875, "guessing every rule")
    rows = [Example("", f"steps\n#### {n}") for n in (7, 7, 7, 2)]
    assert reasoner.train.control(ReasonerConfig(dataset="gsm8k"), rows[1:], rows) == (0.75, "always answering 7")


def test_every_step_in_a_tree_has_two_ways():
    """What the chance above takes for granted."""
    for example in trees("test", 20, ReasonerConfig(leaves=4, depth=3, labels=12)):
        words, route = example.prompt.split(), example.chain.split()
        assert [words[:-4:3].count(node) for node in route] == [2] * (len(route) - 1) + [0]


# ---------------------------------------------------------------------------------------- latent stack


@pytest.mark.parametrize(
    "ci95, said",
    (([0.02, 0.04], "0.040): the"), ([-0.01, 0.04], ": no sign that the"), ([-0.04, -0.01], ": no sign that the")),
)
def test_the_latent_stack_says_whether_an_idea_carries_something_of_its_text(ci95, said, tmp_path):
    summary = TRAINED | {"rougeL_difference": 0.03, "rougeL_difference_ci95": ci95}
    summary |= {f"rougeL{suffix}{x}": v for suffix in ("", "_shuffled") for x, v in (("", 0.1), ("_ci95", [0, 1]))}
    shown = latent_stack.train.report(summary, tmp_path)
    assert f"{said} idea carries something of its text." in shown
    assert f"python -m latent_stack.evaluate --what summaries --run {tmp_path}" in shown
