"""common/plots.py: what is drawn, with which data and labels; the file is whole or not there."""

import json

import pytest

import common.plots as plots


def lines_of(axes) -> dict[str, list[tuple]]:
    """{label: points}."""
    return {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axes.get_lines()}


def test_a_curve_is_the_logged_values_over_their_steps(tmp_path, drawn):
    train = [{"step": 2, "loss": 3.0}, {"step": 4, "loss": 2.0}]
    val = [{"step": 4, "val_loss": 2.5}]
    curves = [
        ("train", train, "loss", plots.THIN),
        ("validation", val, "val_loss", plots.DOTTED),
        ("gain", train, lambda row: 3 - row["loss"], plots.THIN),
        ("absent", train, "other", plots.THIN),
    ]
    plots.plot_curves(tmp_path / "a.png", curves, "a title", "nats", "log")
    (axes,), (legend,) = drawn["a.png"].axes, drawn["a.png"].legends
    assert lines_of(axes) == {
        "train": [(2, 3.0), (4, 2.0)],
        "validation": [(4, 2.5)],
        "gain": [(2, 0.0), (4, 1.0)],
    }
    assert [text.get_text() for text in legend.get_texts()] == ["train", "validation", "gain"]
    labels = drawn["a.png"].get_suptitle(), axes.get_xlabel(), axes.get_ylabel(), axes.get_yscale()
    assert labels == ("a title", "optimiser step", "nats", "log")


def test_a_loss_curve_has_the_control_beside_the_claim(tmp_path, drawn):
    rows = [{"step": 1, "loss": 3.0}, {"step": 1, "val_loss": 2.0, "val_shuffled": 4.0}]
    (tmp_path / "log.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    plots.plot_loss(tmp_path, "a title", controls=[("shuffled", "val_shuffled")])
    (axes,) = drawn["loss_curve.png"].axes
    assert (tmp_path / "loss_curve.png").is_file()
    assert lines_of(axes) == {"train": [(1, 3.0)], "validation": [(1, 2.0)], "shuffled": [(1, 4.0)]}
    colour = {line.get_label(): line.get_color() for line in axes.get_lines()}
    assert colour["train"] == colour["validation"] == plots.BLUE != colour["shuffled"] == plots.ORANGE
    assert drawn["loss_curve.png"].get_suptitle() == "a title: train 3, validation 2, shuffled 4"


def test_a_point_that_averages_fewer_steps_is_not_drawn():
    """The last point of a curve was the mean of two steps: it jumped where nothing had happened."""
    rows = [{"step": 10, "window": 10}, {"step": 20, "window": 10}, {"step": 22, "window": 2}]
    assert plots.whole_windows(rows) == rows[:2]
    assert plots.whole_windows([{"step": 1}, {"step": 2}]) == [{"step": 1}, {"step": 2}] and not plots.whole_windows([])


def test_a_failing_figure_leaves_the_old_file_and_no_open_figure(tmp_path):
    import matplotlib.pyplot as plt

    with plots.figure(tmp_path / "a.png"):
        pass
    before, open_figures = (tmp_path / "a.png").read_bytes(), plt.get_fignums()
    assert before.startswith(b"\x89PNG") and not open_figures
    with pytest.raises(ZeroDivisionError), plots.figure(tmp_path / "a.png") as (_, axes):
        axes.plot([1, 1 / 0])
    assert (tmp_path / "a.png").read_bytes() == before and not plt.get_fignums()
    assert len(list(tmp_path.iterdir())) == 1


def test_a_figure_changes_no_setting_for_others(tmp_path):
    import matplotlib

    grid = matplotlib.rcParams["axes.grid"]
    with plots.figure(tmp_path / "a.png", 1, 2) as (_, axes):
        assert len(axes) == 2 and matplotlib.rcParams["axes.grid"]
    assert matplotlib.rcParams["axes.grid"] == grid


def test_what_happens_at_a_point_is_written_with_an_arrow_to_it(tmp_path, drawn):
    rows = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 1.0}]
    plots.plot_curves(tmp_path / "a.png", [("a", rows, "loss", {})], "t", "y", notes=[("a dip", (2, 1.0), (0.5, 0.9))])
    (axes,) = drawn["a.png"].axes
    (text,) = axes.texts
    assert text.get_text() == "a dip" and text.xy == (2, 1.0) and [(2, 1.0)] in lines_of(axes).values()


def test_texts_are_written_beside_their_points_where_there_is_room_and_never_over_each_other(tmp_path):
    points, texts = [(0.5, 0.5)] * 12 + [(0.1, 0.1)], [f"text {i}" for i in range(13)]
    with plots.figure(tmp_path / "a.png") as (_, axes):
        written = plots.label_points(axes, points, texts)
        boxes = [text.get_window_extent() for text in axes.texts]
        assert len(boxes) == written < 13 and {"text 0", "text 12"} <= {text.get_text() for text in axes.texts}
        assert not any(box.count_overlaps(boxes[:i]) for i, box in enumerate(boxes))


def test_a_title_is_broken_into_lines_that_fit_the_figure_and_nothing_is_written_small(tmp_path):
    assert min(size for name, size in plots.STYLE.items() if name.endswith("size")) >= 8
    with plots.figure(tmp_path / "a.png") as (fig, _):
        plots.headline(fig, "a finding of many wide words " * 8)
        fig.draw_without_rendering()
        lines = [text for text in fig.texts if text.get_text().startswith("a finding")]
        assert len(lines) == 1 and all(0 <= x.get_window_extent().x1 <= fig.bbox.width for x in lines)


def test_colours_and_markers_are_as_many_as_they_are_different():
    assert len(set(plots.COLOURS)) == len(plots.COLOURS) == len(plots.MARKERS) == len(set(plots.MARKERS))
