"""The figures of eval_alignment.py: every question is drawn, the correct and the others apart, the control beside."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from helpers import call
from matplotlib.colors import to_hex
from test_evaluate import latents

import eval_alignment
from common.checkpoint import read_json
from common.log import read_log
from common.plots import BLUE, ORANGE


def test_the_histograms_show_every_question_and_its_control_before_and_after_training(tmp_path, drawn):
    trained, fresh = latents(noise=0.5), latents(noise=5.0)
    eval_alignment.plot_cosines(trained, fresh, tmp_path / "a.png")
    for axes, given in zip(drawn["a.png"].axes, (fresh, trained), strict=True):
        own, other = given.own_and_other()
        counts = {ORANGE: other, BLUE: own}
        for container, (colour, values) in zip(axes.containers, counts.items(), strict=True):
            edges = [*(bar.get_x() for bar in container), container[-1].get_x() + container[-1].get_width()]
            assert [bar.get_height() for bar in container] == np.histogram(values, edges)[0].tolist()
            assert to_hex(container[0].get_facecolor()) == colour.lower()
            assert sum(bar.get_height() for bar in container) == 40


def test_the_map_marks_each_prediction_as_correct_or_not_and_links_the_wrong_ones_to_their_own_answer(tmp_path, drawn):
    given, correct = latents(noise=0.1), [i % 8 != 0 for i in range(40)]
    eval_alignment.plot_map(given, correct, tmp_path / "a.png")
    (axes,) = drawn["a.png"].axes
    right, wrong, z = axes.collections
    assert (len(right.get_offsets()), len(wrong.get_offsets()), len(z.get_offsets())) == (35, 5, 7)
    assert [to_hex(x.get_facecolor()[0]) for x in (right, wrong)] == [BLUE.lower(), ORANGE.lower()]
    assert right.get_paths()[0].vertices.shape != wrong.get_paths()[0].vertices.shape, "legible without colour, too"
    ends = np.array([line.get_xydata() for line in axes.get_lines()])  # (5, prediction and answer, 2)
    own = given.own[~np.array(correct)]
    assert np.allclose(ends[:, 0], wrong.get_offsets()) and np.allclose(ends[:, 1], z.get_offsets()[own])
    assert {text.get_text() for text in axes.texts} <= set(given.answers) and len(axes.texts) >= 4
    title = " ".join(drawn["a.png"].get_suptitle().split())
    assert title.startswith("35 of 40 ") and title.endswith(f"other 5 belong to {len(set(own.tolist()))} of 7 answers")
    distance, control = (float(x) for x in re.findall(r"\d\.\d+", axes.get_title("left")))
    assert distance < control / 2


def rows(*cosines: tuple) -> list[dict]:
    """Training lines of log.jsonl, ten steps apart: cosines to the own answer and to another's."""
    return [
        {"step": 10 * i, "loss": 1.0, "cos_own": own, "cos_other": other} for i, (own, other) in enumerate(cosines, 1)
    ]


def log(run: Path, lines: list[dict]) -> None:
    (run / "log.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in lines))


def test_an_evaluation_maps_as_many_correct_as_training_measured_and_reports_the_collapse(run, drawn):
    log(run, rows((0.1, 0.1), (0.95, 0.94), (0.98, 0.4)))
    call(eval_alignment, "--run", run, "--device", "cpu")
    found, rate = read_json(run / "alignment.json"), read_json(run / "summary.json")["exact_match"]
    n = found["n"]
    assert found["decoded_correctly"] == round(n * rate)
    assert found["collapse"] == {"step": 20, "cos_own": 0.95, "cos_other": 0.94}
    assert drawn["latents.png"].get_suptitle().startswith(f"{round(n * rate):,} of {n:,} ")


@pytest.mark.parametrize(
    "cosines, step",
    (
        ([(0.1, 0.1), (0.95, 0.94), (0.9, 0.5), (0.98, 0.4)], 20),
        ([(0.1, 0.1), (0.8, 0.79), (0.9, 0.9), (1.0, 1.0)], None),  # it never recovers
        ([(0.1, 0.1), (0.5, 0.2), (0.9, 0.1)], None),  # there was none
        ([], None),
    ),
)
def test_a_collapse_is_where_all_latents_look_alike_before_they_part(cosines, step):
    assert (eval_alignment.collapse(rows(*cosines)) or {"step": None})["step"] == step


def test_the_curve_of_the_jepa_loss_states_both_cosines_of_the_collapse(tmp_path, drawn):
    val = {"step": 40, "val_loss": 1.0, "val_jepa_loss": 0.03, "val_cos_other": 0.42}
    log(tmp_path, [*rows((0.1, 0.1), (0.95, 0.94), (0.9, 0.5), (0.98, 0.4)), val])
    eval_alignment.plot_jepa_loss(tmp_path)
    figure = drawn["jepa_loss_curve.png"]
    (text,) = figure.axes[0].texts
    assert text.xy == (20, pytest.approx(0.06)) and {"20", "0.950", "0.940"} <= set(
        re.findall(r"[\d.]+\d", text.get_text())
    )
    assert "0.030" in figure.get_suptitle() and "0.580 to another's (control)" in figure.get_suptitle()


def test_runs_are_compared_over_training_own_and_other_answer(run, drawn):
    call(eval_alignment, "--run", run, "--limit", 20, "--compare", run, "--device", "cpu")
    assert read_json(run / "alignment-first-20.json")["compared"].keys() == {str(run)}
    (axes,) = drawn["alignment-first-20_over_training.png"].axes
    _, val = read_log(run)
    lines = {line.get_label(): line for line in axes.get_lines()}
    for key, what in (("val_cos_own", "own answer"), ("val_cos_other", "another's (control)")):
        assert lines[f"λ = 1 (run), {what}"].get_ydata().tolist() == [row[key] for row in val]
