"""common/loop.py: the loop that all systems share, with a model of a few numbers."""

import math

import pytest
import torch
import torch.nn as nn
from helpers import same, weights
from loop_tiny import STEPS, Line, Numbers, batches, logged, toy_config, trained

from common.checkpoint import read_json
from common.device import resolve_device
from common.log import append_log, last_metrics, read_log
from common.loop import Stopwatch, fit, learning_rate, mean_metrics
from common.options import LoopConfig, UserError
from common.plots import plot_loss

# -------------------------------------------------------------------------------------------- schedule


def test_the_learning_rate_warms_up_and_decays_to_its_floor():
    config = LoopConfig(lr=1.0, warmup_steps=10, min_lr=0.1)
    rates = [learning_rate(step, 100, config) for step in range(101)]
    assert rates[0] == 0.1 and rates[9] == 1.0 == max(rates) and rates[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))


# --------------------------------------------------------------------------------------------- training


def test_fit_asks_nothing_of_a_model_but_loss_and_metrics(tmp_path):
    summary = trained(tmp_path / "run", epochs=20)
    train, _ = read_log(tmp_path / "run")
    assert train[-1]["loss"] < 0.3 * train[0]["loss"]
    assert summary["steps"] == 20 * STEPS and summary["epochs"] == 20
    assert {"train_seconds", "examples_per_second"} <= summary.keys()


def test_a_step_is_adamw_on_the_clipped_gradient(tmp_path):
    """The step written out: gradient, clipping to a norm of 0.01, AdamW at the schedule's rate."""
    trained(tmp_path / "run", max_steps=2, grad_clip=0.01, seed=5)
    model = Line()
    optimizer = torch.optim.AdamW(
        [{"params": [model.linear.weight], "weight_decay": 0.1}, {"params": [model.linear.bias], "weight_decay": 0}],
        betas=(0.9, 0.95),
    )
    for step, lr in enumerate((0.05, 0.1)):
        torch.manual_seed((5 * 1_000_003 + step) * 1009)
        model(batches(0, step)[0])[0].backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        optimizer.zero_grad()
    for name, tensor in weights(tmp_path / "run").items():
        torch.testing.assert_close(tensor, model.state_dict()[name])


def test_micro_batches_make_the_same_step_as_the_whole_batch(tmp_path):
    for run, accum in (("whole", 1), ("micro", 4)):
        model = Line()
        model.dropout.p = 0.0
        config = toy_config(tmp_path / run, grad_accum=accum)
        fit(model, STEPS, lambda epoch, k, n=accum: batches(epoch, k, n), config)
    whole, micro = (weights(tmp_path / run) for run in ("whole", "micro"))
    for name in whole:
        torch.testing.assert_close(whole[name], micro[name])


def test_a_log_line_is_the_mean_over_the_steps_since_the_last(tmp_path):
    trained(tmp_path / "every", epochs=1, log_every=1)
    trained(tmp_path / "some", epochs=1, log_every=4)
    every, some = (read_log(tmp_path / run)[0] for run in ("every", "some"))
    assert [row["step"] for row in some] == [4, 6] and [row["window"] for row in some] == [4, 2]
    for row, part in zip(some, (every[:4], every[4:]), strict=True):
        assert row["loss"] == pytest.approx(sum(x["loss"] for x in part) / len(part)) and row["rows"] == 8
    assert [row["lr"] for row in some] == [every[3]["lr"], every[5]["lr"]]


def test_the_last_step_may_come_early_while_the_schedule_spans_all_epochs(tmp_path):
    trained(tmp_path / "whole")
    summary = trained(tmp_path / "short", max_steps=4)
    whole, short = (logged(tmp_path / run)[0] for run in ("whole", "short"))
    assert summary["steps"] == 4 and short == whole[:2]


def test_something_may_be_done_after_each_optimiser_step(tmp_path):
    calls = []
    trained(tmp_path / "run", epochs=1, after_step=lambda: calls.append(1))
    assert len(calls) == STEPS


def test_noise_depends_on_seed_and_step_alone(tmp_path):
    for run, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.manual_seed(ord(run))
        trained(tmp_path / run, seed=seed)
    a, b, c = (weights(tmp_path / run) for run in "abc")
    assert same(a, b) and not same(a, c)


# ------------------------------------------------------------------------------------------- validation


def test_validation_follows_each_epoch_and_every_so_many_steps(tmp_path):
    trained(tmp_path / "run", eval_every=4, validate=lambda model: {"loss": 1.0, "score": 2.0})
    _, val = read_log(tmp_path / "run")
    assert [row["step"] for row in val] == [4, 6, 8, 12, 16, 18]
    assert all(row["val_loss"] == 1.0 and row["val_score"] == 2.0 for row in val)


def test_the_weights_of_the_lowest_validation_loss_are_kept(tmp_path):
    losses, kept = iter((3.0, 1.0, 2.0)), []

    def validate(model):
        kept.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return {"loss": next(losses)}

    trained(tmp_path / "run", validate=validate)
    assert same(weights(tmp_path / "run" / "best"), kept[1])
    assert same(weights(tmp_path / "run"), kept[2])


def test_validation_means_are_of_the_model_without_dropout_which_is_then_trained_on():
    model = Line()
    found = [mean_metrics(model, batches(0, 0, 2), resolve_device("cpu")) for _ in range(2)]
    assert found[0] == found[1] and found[0]["rows"] == 8 and model.training


def test_what_a_person_watches_is_printed_under_short_names(tmp_path, capsys):
    trained(tmp_path / "run", epochs=1, progress={"score": "points"}, validate=lambda model: {"loss": 1.0, "score": 2})
    assert "epoch 1, validation: points 2.0000" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------- divergence


def test_a_loss_that_is_not_finite_stops_before_it_is_saved(tmp_path):
    """NaN weights were saved at a step that logs nothing, as the last checkpoint that was "intact"."""

    def make(epoch, k):
        return [Numbers(b.x * (math.inf if (epoch, k) == (1, 2) else 1), 8) for b in batches(epoch, k)]

    with pytest.raises(UserError, match="is nan at step 9, batch 3 of epoch 2, kept in .*state.pt is of step 8"):
        trained(tmp_path / "run", make, save_every=1, log_every=100)
    assert torch.load(tmp_path / "run" / "state.pt", weights_only=True)["step"] == 8
    assert not [row for rows in read_log(tmp_path / "run") for row in rows if not math.isfinite(row.get("loss", 0))]
    kept = torch.load(tmp_path / "run" / "not_finite.pt", weights_only=True)
    assert kept["step"] == 8 and kept["batches"][0]["x"].isinf().any()
    assert kept["model"].keys() == Line().state_dict().keys()


def test_a_gradient_that_is_not_finite_stops_before_it_is_saved_even_without_clipping(tmp_path):
    class Steep(Line):
        def forward(self, batch):
            loss, metrics = super().forward(batch)
            return loss + (self.linear.weight.sum() * 0).sqrt(), metrics  # its gradient is infinity times zero

    with pytest.raises(UserError, match="gradient is nan at step 1, .*no checkpoint was written yet"):
        fit(Steep(), STEPS, batches, toy_config(tmp_path / "run", save_every=1, grad_clip=0))
    assert not (tmp_path / "run" / "state.pt").exists()


def test_a_validation_that_is_not_finite_is_logged_as_null_and_not_kept(tmp_path):
    """It became the checkpoint, its log line was no JSON, and the final evaluation died of it."""
    losses = iter((1.0, math.nan))
    with pytest.raises(UserError, match="the validation loss is nan at step 12; .*state.pt is of step 6"):
        trained(tmp_path / "run", validate=lambda model: {"loss": next(losses)})
    last = (tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1]
    assert last == '{"step": 12, "epoch": 2.0, "val_loss": null}'


# --------------------------------------------------------------------------------------------- the log


def test_the_last_metrics_are_those_asked_for_and_all_of_validation(tmp_path):
    append_log(tmp_path, step=1, loss=3.0, token_loss=2.0, other=1.0)
    append_log(tmp_path, step=2, val_loss=4.0, val_score=5.0)
    found = last_metrics(tmp_path, ("token_loss", "absent"))
    assert found == {"token_loss": 2.0, "val_loss": 4.0, "val_score": 5.0}
    append_log(tmp_path, step=3, loss=1.0)
    assert "token_loss" not in last_metrics(tmp_path, ("token_loss",))


def test_a_folder_without_a_log_is_refused(tmp_path):
    with pytest.raises(UserError, match="log.jsonl: missing"):
        read_log(tmp_path)


def test_a_stopwatch_stands_still_while_it_is_paused(monkeypatch):
    now = iter(range(0, 100, 10))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(now)))
    watch = Stopwatch(5.0)  # began at 0
    with watch.paused():  # 5 + 10 s, and none until 20
        pass
    assert watch.read() == 25.0  # at 30


def test_a_checkpoint_holds_the_configuration_it_was_trained_with(tmp_path):
    trained(tmp_path / "run", epochs=1, lr=0.25)
    assert read_json(tmp_path / "run" / "config.json")["lr"] == 0.25
    assert not list((tmp_path / "run").glob("*.tmp"))


def test_where_no_terminal_shows_a_bar_progress_is_a_line_in_some_seconds(tmp_path, capsys, monkeypatch):
    """A log file had all of the bar's states in one endless line."""
    monkeypatch.setattr("common.log.SECONDS_A_LINE", -1)
    trained(tmp_path / "run", epochs=1)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"step {n} of {STEPS}" for n in (2, 4, 6)]
    monkeypatch.setattr("common.log.SECONDS_A_LINE", 1000)
    trained(tmp_path / "quiet", epochs=1)
    assert not capsys.readouterr().err


# ------------------------------------------------------------------------------- curves during training


def test_the_curves_are_drawn_anew_during_training_and_change_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("common.log.DRAW_SECONDS", 0)
    monkeypatch.setattr("common.log.DRAW_EVERY", 0)
    steps = []
    for run, words in (("plain", {"live": False}), ("live", {})):
        path = tmp_path / run

        def draw(path=path):
            steps.append(read_log(path)[0][-1]["step"])
            plot_loss(path, "title")

        trained(path, draw=draw, epochs=1, **words)
    assert steps == [2, 4], "the last is drawn when training has ended"
    assert (tmp_path / "live" / "loss_curve.png").is_file()
    assert same(weights(tmp_path / "plain"), weights(tmp_path / "live"))


def test_drawing_takes_a_small_part_of_the_time(tmp_path, monkeypatch):
    """After a drawing of a second there is none for the next 50 seconds of training."""
    monkeypatch.setattr("common.log.DRAW_SECONDS", 0)
    clock, drawn = [0.0], []
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    def draw():
        drawn.append(read_log(tmp_path / "run")[0][-1]["step"])
        clock[0] += 1

    def make(epoch, k):
        clock[0] += 4
        return batches(epoch, k)

    trained(tmp_path / "run", make, epochs=6, draw=draw)
    assert drawn == [2, 16, 30]


def test_curves_that_cannot_be_drawn_are_reported_once_and_end_no_training(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("common.log.DRAW_SECONDS", 0)

    def draw():
        raise RuntimeError("no fonts")

    assert trained(tmp_path / "run", draw=draw)["steps"] == 3 * STEPS
    assert capsys.readouterr().err == "the curves could not be measured: no fonts\n"
