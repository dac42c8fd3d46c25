"""The studies: what they train, measure, write and draw, in miniature."""

import json

import pytest
from test_train import ROOT

from config import PRESETS, Config, parse
from results import figures, studies

TINY = "--preset quick --n-train 96 --epochs 1 --n-embd 16 --n-head 2 --n-layer 1 --batch-size 16 --tokenizer bpe:400 "
TINY += "--block-size 128 --no-final-eval --eval-every 3 --val-accuracy"


@pytest.mark.parametrize("study", studies.STUDIES)
def test_every_run_of_a_study_is_a_command_that_train_py_takes(study):
    for name, options in studies.STUDIES[study].items():
        config, given = parse(Config, PRESETS, "", options.split())
        assert given and (config.dataset == "wordproblems") == (studies.part_of(options) == "words"), name


def test_runs_of_a_study_differ_and_the_same_options_are_the_same_run():
    every = [o for runs in studies.STUDIES.values() for o in runs.values()]
    assert len({studies.folder_of(o, 1) for o in every}) == len(set(every))
    assert studies.folder_of(every[0], 1) != studies.folder_of(every[0], 2)


def test_a_study_trains_measures_and_draws_and_does_not_train_twice(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(studies, "RUNS", tmp_path / "runs")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    lam = {f"words, {x}": f"{TINY} --jepa-weight {x}" for x in ("0", "4")}
    monkeypatch.setattr(studies, "LAMBDA", lam)
    monkeypatch.setitem(studies.STUDIES, "lambda", lam)
    monkeypatch.setitem(studies.STUDIES, "space", {"latent": lam["words, 4"]})
    monkeypatch.setitem(studies.STUDIES, "leak", {"words, jepa": lam["words, 4"], "words, none": f"{TINY} --mask none"})
    for study in ("collapse", "scratch"):
        monkeypatch.setitem(studies.STUDIES, study, {"stop-gradient": lam["words, 4"]})
    common = ["--seeds", "1", "2", "--out", str(tmp_path), "--only", "words", "--device", "cpu"]
    for study in ("lambda", "space", "leak", "collapse", "scratch", "similar"):
        studies.main([study, *common])
    assert capfd.readouterr().out.count("python train.py") == 6, "three sets of options, two seeds"
    row = json.loads((tmp_path / "lambda.json").read_text())["runs"]["words, 4"]
    assert len(row["cos_own"]["values"]) == 2 and row["options"] == lam["words, 4"]
    assert row["cos_own"]["mean"] == pytest.approx(sum(row["cos_own"]["values"]) / 2)
    curve = json.loads((tmp_path / "space.json").read_text())["runs"]["latent"]["curve"]
    assert [p["examples"] for p in curve] == [48, 96] and len(curve[0]["exact_match"]) == 2
    figures.draw(tmp_path)
    assert {p.stem for p in tmp_path.glob("*.png")} == {"lambda", "space", "leak", "collapse", "scratch", "similar"}


def test_every_study_in_results_has_its_figure():
    missing = [n for n in figures.FIGURES if (ROOT / "results" / f"{n}.json").is_file()
               and not (ROOT / "results" / f"{n}.png").is_file()]  # fmt: skip
    assert not missing, f"python results/figures.py draws {missing}"
