"""Where do similar questions go? Neighbours and linear probes on the question latents of the λ study's runs.

Beside an untrained model, λ = 0 and a bag of words, and what chance gives. `results/studies.py similar` calls it.

Shapes: N questions, C width.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.sources import Example
from data import load_splits
from eval_alignment import neighbours, untrained
from evaluate_accuracy import by_length
from model import NanoJEPA, load_run
from results.study_runs import LAMBDA, folder_of

SIMILAR = {"words": "4", "gsm8k": "1"}  # the lambda whose latents are looked at, beside lambda 0
N_FIT = 4000  # training questions that a probe is fitted on


def runs_of(only: str | None) -> list[str]:
    """Options of the runs that are looked at."""
    return [LAMBDA[f"{part}, {x}"] for part, lam in SIMILAR.items() if only in (None, part) for x in (lam, "0")]


def labels_of(examples: list[Example]) -> dict[str, list]:
    """What a question may be like another in: the operations of its solution, their number, the answer's size."""
    return {
        "operations": ["".join(sorted(set(e.ops))) for e in examples],
        "steps": [min(len(e.ops), 5) for e in examples],  # 5: five or more
        "magnitude": [len(str(int(abs(float(e.answer))))) for e in examples],  # digits
    }


@torch.no_grad()
def question_latents(model: NanoJEPA, examples: list[Example]) -> Tensor:
    """-> unit z_hat (N, C), in the order of the examples."""
    z_hat = torch.empty(len(examples), model.config.n_embd)
    for index in by_length(model, [e.question for e in examples], 64):
        z_hat[index] = model.predict([examples[i].question for i in index]).cpu()
    return F.normalize(z_hat, dim=-1)


def probe(fit_on: np.ndarray, fit_labels: list, test_on: np.ndarray, test_labels: list) -> float:
    """Logistic regression on standardised features (N, C) -> its accuracy on the test labels."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    pipeline = make_pipeline(StandardScaler(with_mean=False), LogisticRegression(C=0.1, max_iter=300))
    return pipeline.fit(fit_on, fit_labels).score(test_on, test_labels)


def features_of(part: str, seed: int, fit_on: list[Example], test_on: list[Example]) -> dict[str, list[np.ndarray]]:
    """{where from: features of the questions to fit on and of those to test on, (N, C) each}."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    models = {f"lambda {x}": load_run(folder_of(LAMBDA[f"{part}, {x}"], seed)) for x in (SIMILAR[part], "0")}
    models["untrained"] = untrained(next(iter(models.values())))
    features = {name: [question_latents(m, x).numpy() for x in (fit_on, test_on)] for name, m in models.items()}
    words = TfidfVectorizer(min_df=2, token_pattern=r"\w+").fit([e.question for e in fit_on])
    features["bag of words"] = [words.transform([e.question for e in x]).toarray() for x in (fit_on, test_on)]
    return features


def measures_of(fit_x: np.ndarray, test_x: np.ndarray, fit_labels: dict, test_labels: dict) -> dict[str, float]:
    """How often neighbours share each label, how often a probe names it, and what chance gives."""
    row = {}
    for label, theirs in test_labels.items():
        near = neighbours(torch.from_numpy(test_x).float(), theirs, label)
        row[f"neighbours, {label}"] = near[f"neighbours_share_{label}"]
        row[f"neighbours, {label}, chance"] = near[f"neighbours_share_{label}_chance"]
        fitted = fit_labels[label]
        majority = max(set(fitted), key=fitted.count)
        row[f"probe, {label}, chance"] = theirs.count(majority) / len(theirs)
        if len(set(fitted)) > 1:
            row[f"probe, {label}"] = probe(fit_x, fitted, test_x, theirs)
    return row


def measure(args) -> dict[str, list[dict[str, float]]]:
    """{data and where the features come from: the measures of each seed}."""
    result = {}
    for part in SIMILAR:
        if args.only not in (None, part):
            continue
        for seed in args.seeds:
            config = load_run(folder_of(LAMBDA[f"{part}, 0"], seed)).config
            splits = load_splits(replace(config, data_dir=args.data_dir) if part == "gsm8k" else config)
            fit_on, test_on = ([e for e in x if e.ops] for x in (splits["train"][:N_FIT], splits["test"]))
            fit_labels, test_labels = labels_of(fit_on), labels_of(test_on)
            for name, features in features_of(part, seed, fit_on, test_on).items():
                row = measures_of(*features, fit_labels, test_labels)
                result.setdefault(f"{part}, {name}", []).append(row)
    return result
