"""Exact match: does the answer decoded from z_hat, or the nearest answer latent, name the right number?

    python evaluate_accuracy.py --run out/quick
    python evaluate_accuracy.py --run out/nanojepa --data-dir DIR --limit 100

Two read-outs of the same prediction: greedy decoding from z_hat, and the nearest latent among all distinct answers of
the split, or among the training split's programs, which are then computed. Beside them what no model is needed for: the
majority class (always the commonest training answer, or program) and the oracle constant (the best one that hindsight
could choose on the split itself). An accuracy that does not beat these is no result.

Writes accuracy.json and predictions.jsonl into the run's folder; for other data or another split, accuracy-NAME.json.

Shapes: B questions, A candidate answers, C width.
"""

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from common.checkpoint import atomic, write_json
from common.device import resolve_device
from common.known_world import KnownWorld, known_world
from common.losses import cosine
from common.options import parse, run_main
from common.plots import BLACK, BLUE, LEGEND, ORANGE, figure, headline
from common.programs import computable, compute, function_of, number_placeholders
from common.sources import Example, parse_answer, same_answer
from common.stats import wilson
from config import Config, EvalConfig
from data import answer_view_text, is_correct, load_splits
from model import NanoJEPA, load_run

WANTED = 0.95  # of the answers that are given, how many should be correct


def final_answer(model: NanoJEPA, text: str) -> str:
    """What the model generated -> its answer: all of it, or what follows the #### of a worked solution ("" if none)."""
    return text if model.config.answer_view == "answer" else (parse_answer(text) or "")


def answer_views(model: NanoJEPA, examples: list[Example]) -> list[str | None]:
    """What the answer views of the examples hold; None where there is none that fits the context."""
    views = [answer_view_text(e, model.config.answer_view) for e in examples]
    lengths = [len(ids) + 2 for ids in model.tokenizer.encode([text or "" for text in views])]  # [ANS] … [EOS]
    return [text if n <= model.config.block_size else None for text, n in zip(views, lengths, strict=True)]


def distinct_views(model: NanoJEPA, examples: list[Example]) -> list[str]:
    """The distinct answer views of the examples that have one, sorted."""
    return sorted(set(answer_views(model, examples)) - {None})


def by_length(model: NanoJEPA, questions: list[str], batch_size: int, quiet: bool = False) -> list[list[int]]:
    """Batches of like length over the questions that fit the context -> lists of positions in `questions`.

    Under right-padding a batch costs what its longest question costs. Questions that do not fit are counted, not cut.
    """
    length = [len(ids) + model.config.n_pred for ids in model.tokenize(questions)]
    fitting = [i for i, n in enumerate(length) if n <= model.config.block_size]
    if len(fitting) < len(questions) and not quiet:
        print(
            f"{len(questions) - len(fitting)} of {len(questions)} questions are longer than the context of "
            f"{model.config.block_size} tokens; they are not answered"
        )
    order = sorted(fitting, key=length.__getitem__)
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def encode_answers(model: NanoJEPA, answers: list[str]) -> Tensor:
    """A answers -> their unit latents (A, C)."""
    z = torch.cat([model.encode(answers[i : i + 256]) for i in range(0, len(answers), 256)])
    return F.normalize(z, dim=-1)


@torch.no_grad()
def exact_match(model: NanoJEPA, examples: list[Example], batch_size: int = 64) -> float:
    """Rate of questions whose decoded answer is right, alone: for validation during training."""
    model.eval()
    hits = 0
    for index in by_length(model, [e.question for e in examples], batch_size, quiet=True):
        texts = model.answer([examples[i].question for i in index])
        answers = [final_answer(model, text) for text in texts]
        hits += sum(is_correct(x, examples[i], model.config) for x, i in zip(answers, index, strict=True))
    model.train()
    return hits / len(examples)


@dataclass(frozen=True)
class Candidates:
    """Distinct answer views to compare predictions with, their unit latents z (A, C), and where they come from."""

    texts: list[str]
    z: Tensor
    source: str = ""


def candidates_of(model: NanoJEPA, texts: list[str], source: str = "") -> Candidates:
    """Answer views and their source in words -> the same with their latents."""
    return Candidates(texts, encode_answers(model, texts), source)


@dataclass(frozen=True)
class ReadOut:
    """What a model makes of one question: the answer views decoded and nearest, each with what it computes behind a
    ####, and the cosines to all candidates (A,), -2 for a program that the question has no numbers for."""

    decoded: str
    nearest: str
    cosines: Tensor

    def gap(self) -> float:
        """How much nearer the nearest candidate is than the second one."""
        first, *second = self.cosines.topk(min(2, len(self.cosines))).values.tolist()
        return first - max([-1.0, *second])


@torch.no_grad()
def read_out(model: NanoJEPA, questions: list[str], candidates: Candidates) -> tuple[list[ReadOut], Tensor]:
    """B questions -> both read-outs of each, and z_hat (B, C)."""
    z_hat = model.predict(questions)
    wrote = model.config.writes_tokens
    decoded = model.answer(questions) if wrote else model.computed(model.decode(z_hat), questions)
    cosines = F.normalize(z_hat, dim=-1) @ candidates.z.T  # (B, A)
    if model.config.answer_view == "program":  # a program over numbers that a question does not have is no candidate
        numbers = [number_placeholders(question)[1] for question in questions]
        there = torch.tensor([[computable(program, known) for program in candidates.texts] for known in numbers])
        cosines = cosines.masked_fill(~there.to(cosines.device), -2)
    nearest = model.computed([candidates.texts[k] for k in cosines.argmax(-1).tolist()], questions)
    return [ReadOut(*row) for row in zip(decoded, nearest, cosines, strict=True)], z_hat


@torch.no_grad()
def predictions(
    model: NanoJEPA, examples: list[Example], candidates: Candidates, batch_size: int = 64, progress: bool = False
) -> Iterator[tuple[int, dict]]:
    """-> (position in `examples`, decoded and nearest answer, cosine to the true one's latent, None if it has none;
    `gap`, -1 where the two read-outs disagree; the programs behind the answers) of each that fits."""
    view, batches = model.config.answer_view, by_length(model, [e.question for e in examples], batch_size)
    for index in tqdm(batches, desc="answering", unit="batch", disable=not progress):
        found, z_hat = read_out(model, [examples[i].question for i in index], candidates)
        own = answer_views(model, [examples[i] for i in index])
        cosines = cosine(z_hat, model.encode([text or "" for text in own])).tolist()
        for i, text, row, cos in zip(index, own, found, cosines, strict=True):
            decoded, nearest = final_answer(model, row.decoded), final_answer(model, row.nearest)
            values = {"prediction": decoded, "nearest": nearest, "cosine": None if text is None else round(cos, 4)}
            values["gap"] = round(row.gap(), 4) if decoded and same_answer(decoded, nearest) else -1.0
            if view == "program":
                programs = [x.partition(" ####")[0] for x in (row.decoded, row.nearest)]
                values |= dict(zip(("program", "nearest_program"), programs, strict=True)) | {"gold_program": text}
            yield i, values


def constants(examples: list[Example], train_examples: list[Example], config: Config) -> dict:
    """What always giving one answer comes to: the majority class of training, and the best constant in hindsight;
    where programs are wanted also the training split's commonest program, computed for each question."""
    gold = [e.answer for e in examples]
    majority = Counter(e.answer for e in train_examples).most_common(1)[0][0]
    oracle, oracle_hits = Counter(gold).most_common(1)[0]
    found = {
        "constant_from_train": gold.count(majority) / len(gold),
        "constant_from_train_answer": majority,
        "constant_best_on_test": oracle_hits / len(gold),
        "constant_best_on_test_answer": oracle,
    }
    if config.answer_view == "program":
        programs = Counter(answer_view_text(e, "program") for e in train_examples)
        program = next(text for text, _ in programs.most_common() if text)
        hits = sum(is_correct(compute(program, number_placeholders(e.question)[1]), e, config) for e in examples)
        found |= {"majority_program": program, "majority_program_exact_match": hits / len(gold)}
    return found


def accuracy(
    model: NanoJEPA,
    examples: list[Example],
    train_examples: list[Example],
    answers: Iterable[str] = (),
    batch_size: int = 64,
    progress: bool = False,
) -> tuple[dict, list[dict]]:
    """-> (accuracy.json's dict, one dict a question for predictions.jsonl).

    `answers` are the candidates of the nearest-latent read-out beside those of the examples; programs and solutions are
    taken from the training examples. A question that does not fit the context counts as wrong.
    """
    began, view = time.perf_counter(), model.config.answer_view
    texts = distinct_views(model, train_examples if view != "answer" else examples)
    candidates = candidates_of(model, sorted({*texts, *(answers if view == "answer" else ())}))
    blank = {"prediction": "", "nearest": "", "cosine": None, "gap": -1.0}
    rows = [{"question": e.question, "gold": e.answer, **blank} for e in examples]
    for i, found in predictions(model, examples, candidates, batch_size, progress):
        rows[i] |= found

    correct = {
        f"exact_match_{name}": [is_correct(row[key], e, model.config) for row, e in zip(rows, examples, strict=True)]
        for name, key in (("decoded", "prediction"), ("nearest", "nearest"))
    }
    if view == "program":  # α+β and β+α are one equation
        for name, key in (("decoded", "program"), ("nearest", "nearest_program")):
            gold = [function_of(row.get("gold_program") or "") for row in rows]
            correct[f"equation_{name}"] = [
                bool(x) and function_of(row.get(key, "")) == x for row, x in zip(rows, gold, strict=True)
            ]
    result = {"n": len(rows)}
    for name, hits in correct.items():
        result |= {name: sum(hits) / len(rows), f"{name}_ci95": wilson(sum(hits), len(rows))}
    result |= constants(examples, train_examples, model.config)
    return result | {"seconds": round(time.perf_counter() - began, 3)}, rows


# ------------------------------------------------------------------------------------ "I do not know"


def world_of(model: NanoJEPA, splits: dict[str, list[Example]]) -> KnownWorld:
    return known_world(splits["train"], splits["val"], model.tokenizer, model.tokenize)


def objection(model: NanoJEPA, world: KnownWorld, question: str) -> str:
    """Why a question is unlike those of training, or ""."""
    return world.objection(question, any_number=model.config.answer_view == "program")


def choose_threshold(gaps: list[float], correct: list[bool]) -> float | None:
    """The smallest gap above which WANTED of the answers are correct; None if there is none."""
    order = np.argsort(gaps)[::-1]
    rate = np.cumsum(np.array(correct)[order]) / np.arange(1, len(order) + 1)
    enough = [i for i in np.flatnonzero(rate >= WANTED) if gaps[order[i]] >= 0]
    return float(gaps[order[enough[-1]]]) if enough else None


def coverage(model: NanoJEPA, splits: dict[str, list[Example]], rows: list[dict], examples: list[Example]) -> dict:
    """When should the model say that it does not know? By a threshold on the gap, chosen on the validation split.

    It answers where a question is like those of training, both read-outs agree, and the gap is at the threshold or
    above. `splits` are the run's own data, `rows` are `accuracy`'s of the examples -> threshold, coverage, accuracy of
    what is answered, and the curve of the two.
    """
    world = world_of(model, splits)
    val_rows = accuracy(model, splits["val"], splits["train"])[1]

    def scored(rows, examples):
        strange = [bool(objection(model, world, row["question"])) for row in rows]
        gaps = [-1.0 if odd else row["gap"] for odd, row in zip(strange, rows, strict=True)]
        return gaps, [is_correct(row["prediction"], e, model.config) for row, e in zip(rows, examples, strict=True)]

    threshold = choose_threshold(*scored(val_rows, splits["val"]))
    gaps, correct = (np.array(x) for x in scored(rows, examples))
    answered = gaps >= (np.inf if threshold is None else threshold)
    hits, n = int(correct[answered].sum()), int(answered.sum())
    order = np.argsort(gaps, kind="stable")[::-1]
    steps = np.unique(np.linspace(1, len(order), 50).astype(int))
    return {
        "threshold": threshold,
        "coverage": n / len(rows),
        "answered": n,
        "answered_correct": hits / n if n else None,
        "answered_correct_ci95": wilson(hits, n),
        "curve": [[int(k) / len(order), float(correct[order[:k]].mean())] for k in steps],
    }


def plot_coverage(found: dict, path: Path) -> None:
    """Accuracy of the answers given, against how many are given: surest first, beside a random order."""
    x, y = zip(*found["curve"], strict=True)
    with figure(path) as (fig, axis):
        axis.plot(x, y, color=BLUE, label="surest first")
        axis.axhline(y[-1], color=ORANGE, linestyle="--", label="in a random order (control)")
        finding = "No threshold makes enough of the answers correct"
        if found["answered"]:
            point = (found["coverage"], found["answered_correct"])
            finding = f"{found['coverage']:.1%} answered, {found['answered_correct']:.1%} of those correct"
            axis.plot(*point, "o", color=BLACK, label=f"threshold of the validation split: {found['threshold']:.3f}")
        axis.set(xlabel="fraction of questions answered", ylabel="fraction correct", xlim=(0, 1.01))
        axis.set_ylim(top=1 + 0.03 * (1 - axis.get_ylim()[0]))
        headline(fig, f"{finding}; of all questions {y[-1]:.1%} (control)")
        fig.legend(ncols=3, **LEGEND)


# ------------------------------------------------------------------------------------------ the script


def load_examples(model: NanoJEPA, config: EvalConfig) -> tuple[list[Example], list[Example], list[str]]:
    """The data of the run -> (examples of `config.split`, at most `limit`; training examples; the split's answers)."""
    source = model.config
    if config.data_dir:
        dataset = "pairs" if source.dataset == "pairs" else "gsm8k"
        source = replace(source, dataset=dataset, data_dir=config.data_dir)
    splits = load_splits(source)
    answers = distinct_views(model, splits[config.split])  # all of them: a --limit must not make retrieval easier
    return splits[config.split][: config.limit or None], splits["train"], answers


def output_name(name: str, model: NanoJEPA, config: EvalConfig) -> str:
    """`accuracy`, with `-NAME` of another data folder, `-val` of another split, `-first-N`: the first must stay."""
    other, own = (folder and Path(folder).resolve() for folder in (config.data_dir, model.config.data_dir))
    name = f"{name}-{other.name}" if other and other != own else name
    return name + f"-{config.split}" * (config.split != "test") + f"-first-{config.limit}" * bool(config.limit)


def report(result: dict, config: EvalConfig, model: NanoJEPA) -> str:
    readout = "token by token" if model.config.writes_tokens else "from z_hat"
    lines = [f"{config.run}: exact match over {result['n']:,} questions of the {config.split} split"]
    for label, name in (
        (f"decoded greedily {readout}", "exact_match_decoded"),
        ("nearest answer latent", "exact_match_nearest"),
        ("equation decoded", "equation_decoded"),
        ("equation of the nearest latent", "equation_nearest"),
        (f"always the program {result.get('majority_program')}", "majority_program_exact_match"),
        (f"always {result['constant_from_train_answer']!r}, majority class of training", "constant_from_train"),
        (f"always {result['constant_best_on_test_answer']!r}, the oracle constant", "constant_best_on_test"),
    ):
        if name not in result:
            continue
        interval = result.get(f"{name}_ci95")
        shown = f"   95% interval {interval[0]:.2%} to {interval[1]:.2%}" if interval else ""
        lines.append(f"  {label:<44}{result[name]:8.2%}{shown}")
    if knows := result.get("knows"):
        lines.append(f"  answers {knows['coverage']:.1%} of the questions, says of the others that it does not know")
        if knows["answered"]:
            low, high = knows["answered_correct_ci95"]
            label, interval = "correct of what it answers", f"95% interval {low:.2%} to {high:.2%}"
            lines.append(f"  {label:<44}{knows['answered_correct']:8.2%}   {interval}")
    lines.append(f"  {result['seconds']:.1f} s, {result['n'] / result['seconds']:,.0f} questions/s")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    config, _ = parse(EvalConfig, {}, __doc__.split("\n\n")[0], argv)
    model = load_run(config.run, resolve_device(config.device).device)
    examples, train_examples, answers = load_examples(model, config)
    result, rows = accuracy(model, examples, train_examples, answers, config.batch_size, progress=True)
    run, name = Path(config.run), output_name("accuracy", model, config)
    if not model.config.writes_tokens:
        result["knows"] = coverage(model, load_splits(model.config), rows, examples)
        plot_coverage(result["knows"], run / f"{output_name('coverage', model, config)}.png")
    print("\n" + report(result, config, model))

    rows_name = output_name("predictions", model, config)
    data = {"dataset": "gsm8k" if config.data_dir else model.config.dataset}
    data["data_dir"] = Path(config.data_dir or model.config.data_dir).name  # figures are shared, paths are one's own
    write_json(run / f"{name}.json", {"split": config.split, **data, **result})
    with atomic(run / f"{rows_name}.jsonl") as path:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"\nwrote {run}/{name}.json and {run}/{rows_name}.jsonl")


if __name__ == "__main__":
    run_main(main)
