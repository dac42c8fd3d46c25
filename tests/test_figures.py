"""The figures of results/: what is drawn is what the JSON or the model says; results/collect.py: what is left out."""

import json
import re

import pytest
from helpers import ROOT, call

from common.plots import BLUE, GREEN, GREY, ORANGE, YELLOW
from results import collect, draw_architectures, draw_mask, figures

STUDIES = [name for name in figures.FIGURES if (ROOT / "results" / f"{name}.json").is_file()]


def runs_of(study: str) -> dict:
    path = ROOT / "results" / f"{study}.json"
    if not path.is_file():
        pytest.skip(f"results/ has no {study}.json")
    return json.loads(path.read_text(encoding="utf-8"))["runs"]


def means(runs: dict, key: str, part: str = "") -> list[float]:
    return [run[key]["mean"] for name, run in runs.items() if name.startswith(part)]


def heights(axes) -> list[float]:
    return [bar.get_height() for bar in axes.patches]


@pytest.fixture(scope="module")
def kept() -> dict:
    """{study: its figure}: each is drawn once."""
    return {}


@pytest.fixture
def draw(tmp_path, drawn, kept):
    """draw(study) -> its figure, of the JSON in results/."""

    def draw_study(study: str):
        if study not in kept:
            figures.FIGURES[study](runs_of(study), tmp_path / f"{study}.png")
            kept[study] = drawn[f"{study}.png"]
        return kept[study]

    return draw_study


def numbers_of(value) -> set[float]:
    """Every figure of a JSON, as a fraction and in per cent."""
    if isinstance(value, dict | list):
        return {x for part in (value.values() if isinstance(value, dict) else value) for x in numbers_of(part)}
    return {value, 100 * value} if isinstance(value, int | float) else set()


@pytest.mark.parametrize("study", STUDIES)
def test_a_title_states_numbers_of_the_json_and_a_control_is_named(study, draw):
    figure, known = draw(study), numbers_of(runs_of(study))
    stated = re.findall(r"\d+\.\d+|\d+(?=%)", figure.get_suptitle())
    assert len(stated) >= 2
    for number in stated:
        decimals = len(number.partition(".")[2])
        assert any(f"{x:.{decimals}f}" == number for x in known), number
    texts = [text.get_text() for text in figure.findobj(lambda x: hasattr(x, "get_text"))]
    assert any(word in text for text in texts for word in ("(control)", "constant", "chance", "(baseline)"))


@pytest.mark.parametrize("study", STUDIES)
def test_no_legend_lies_over_a_curve(study, draw):
    figure = draw(study)
    legends = figure.legends + [axes.get_legend() for axes in figure.axes if axes.get_legend()]
    assert legends
    for axes in figure.axes:
        inside = axes.get_window_extent()
        assert not any(legend.get_window_extent().overlaps(inside) for legend in legends)


def test_the_leak_shows_cosines_of_both_passes_and_exact_match_beside_the_constant(draw):
    runs, panels = runs_of("leak"), draw("leak").axes
    pairs = [*figures.LEAK.values()] * 2
    for axes, (claim, control), part in zip(panels, pairs, ["words"] * 3 + ["gsm8k"] * 3, strict=True):
        assert heights(axes) == pytest.approx(means(runs, claim, part) + means(runs, control, part))


def test_lambda_shows_every_figure_over_its_lambda(draw):
    runs, panels = runs_of("lambda"), iter(draw("lambda").axes)
    for series in figures.LAMBDA_ROWS.values():
        for part in figures.PARTS:
            axes = next(panels)
            for bars, (label, key, colour, _) in zip(axes.containers, series, strict=True):
                assert bars.get_label() == label and bars[0].get_color() == colour
                assert bars[0].get_ydata() == pytest.approx(means(runs, key, part))
                assert bars[0].get_xdata().tolist() == [0, 0.1, 0.5, 1, 2, 4]


def test_collapse_shows_nearest_latents_both_cosines_and_rank_in_the_order_of_the_settings(draw):
    runs, (nearest, cosines, rank) = runs_of("collapse"), draw("collapse").axes
    assert [t.get_text() for t in nearest.get_yticklabels()][::-1] == [n.replace(", no decoding", "") for n in runs]
    for axes, key in ((nearest, "exact_match_nearest"), (rank, "effective_rank_z")):
        assert [bar.get_width() for bar in axes.patches][::-1] == pytest.approx(means(runs, key))
    found = {points.get_label(): points.get_offsets()[::-1, 0].tolist() for points in cosines.collections[1:]}
    assert found["to the matched answer"] == pytest.approx(means(runs, "cos_own"))
    assert found["cosine to a mismatched answer (control)"] == pytest.approx(means(runs, "cos_other"))


def test_space_shows_the_mean_of_the_seeds_by_examples_and_by_compute(draw):
    runs, panels = runs_of("space"), draw("space").axes
    for name, run in runs.items():
        label, colour, _ = figures.SPACE[name]
        lines = [next(line for line in axes.get_lines() if line.get_label() == label) for axes in panels]
        examples = [point["examples"] for point in run["curve"]]
        flops = run["flops_per_example"]["mean"]
        assert lines[0].get_xdata() == pytest.approx([n / 1000 for n in examples])
        assert lines[1].get_xdata() == pytest.approx([n * flops / 1e12 for n in examples])
        for line in lines:
            scores = [point["exact_match"] for point in run["curve"]]
            assert line.get_color() == colour
            assert line.get_ydata() == pytest.approx([sum(x) / len(x) for x in scores])


def test_similar_shows_every_setting_and_chance_side_by_side(draw):
    runs, panels = runs_of("similar"), iter(draw("similar").axes)
    for part in figures.PARTS:
        kinds = [kind for kind in figures.ALIKE if part != "words" or kind != "steps"]
        own = {name: run for name, run in runs.items() if name.startswith(part)}
        for what in ("neighbours", "probe"):
            shown = [run[f"{what}, {kind}"]["mean"] for run in own.values() for kind in kinds]
            chance = [next(iter(own.values()))[f"{what}, {kind}, chance"]["mean"] for kind in kinds]
            assert heights(next(panels)) == pytest.approx(shown + chance)


def test_scratch_shows_every_read_out_in_per_cent(draw):
    runs, (axes,) = runs_of("scratch"), draw("scratch").axes
    shown = [bars[0].get_xdata()[0] for bars in axes.containers]
    wanted = [
        100 * run[key]["mean"] for _, _, key, *_ in figures.READOUTS for run in list(runs.values())[::-1] if key in run
    ]
    assert shown == pytest.approx(wanted)


def test_a_system_has_one_colour_in_all_figures():
    assert figures.SPACE["latent"][1] == figures.SCRATCH["latent, variants"][1] == BLUE
    assert figures.SPACE["language model"][1] == figures.SCRATCH["direct"][1] == ORANGE
    assert figures.SPACE["language model, worked solution"][1] == figures.SCRATCH["equations, variants"][1] == YELLOW
    lines = [line for row in figures.LAMBDA_ROWS.values() for line in row]
    assert {colour for _, key, colour, _ in lines if key.startswith("constant")} == {GREY}
    assert {colour for _, key, colour, _ in lines if key == "effective_rank_z"} == {GREEN}
    assert {colour for _, key, colour, _ in lines if key == "effective_rank_z_hat"} == {BLUE}


def test_the_mask_is_drawn_as_the_model_has_it_and_only_without_one_does_pred_see_the_answer(tmp_path, drawn):
    draw_mask.draw(tmp_path / "mask.png")
    leak = list(draw_mask.CELLS).index("leak: the answer is visible to [PRED]")
    shown = {axes.get_title("left").split("\n")[0]: axes.images[0].get_array() for axes in drawn["mask.png"].axes}
    assert list(shown) == ["jepa", "causal", "none"]
    assert {name: int((cells == leak).sum()) for name, cells in shown.items()} == {"jepa": 0, "causal": 0, "none": 3}
    answer = slice(draw_mask.N_QUESTION, None)
    assert not shown["jepa"][answer, : draw_mask.N_QUESTION].any() and shown["causal"][answer, 0].all()


@pytest.mark.parametrize("system", draw_architectures.DRAWINGS)
def test_a_drawing_of_a_system_is_whole_and_shows_what_is_cut_off(system, tmp_path, drawn):
    draw_architectures.DRAWINGS[system](tmp_path / "a.png")
    figure = drawn["a.png"]
    (axes,), inside = figure.axes, figure.bbox
    texts = [text for text in axes.texts if text.get_text()]
    assert (tmp_path / "a.png").is_file() and figure.get_suptitle()
    assert all(inside.contains(*corner) for text in texts for corner in text.get_window_extent().corners())
    assert any(line.get_marker() == "X" and line.get_color() == ORANGE for line in axes.lines)
    assert any("gradient" in text.get_text() for text in texts)


def test_collecting_leaves_texts_and_folders_out_however_deep_and_takes_an_evaluation_on_other_data(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(collect, "RESULTS", tmp_path / "results")
    run = tmp_path / "run"
    run.mkdir()
    deep = {"x": 1, "examples": 7, "by": [{"ways": ["ä text"], "n": 2}], "data": {"data_dir": "/somebody", "y": "é"}}
    for name in ("summary", "accuracy-other", "config", "tokenizer"):
        (run / f"{name}.json").write_text(json.dumps(deep), encoding="utf-8")
    call(collect, "name", run)
    found = {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "results" / "name").iterdir()}
    assert set(found) == {"summary.json", "accuracy-other.json"}
    for text in found.values():
        assert json.loads(text) == {"x": 1, "examples": 7, "by": [{"n": 2}], "data": {"y": "é"}}
