"""What a question leads to: the predicted latent, the answer decoded from it, the answers nearest to it, a doubt.

Shapes: A candidate answers, C width.
"""

import math
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

from torch import Tensor

from common.checkpoint import read_json
from common.known_world import KnownWorld
from common.options import UserError
from common.sources import Example, same_answer
from common.tokenizers import CHARACTERS, without_halves
from common.verdict import MARGIN
from data import load_splits
from evaluate_accuracy import (
    Candidates,
    ReadOut,
    candidates_of,
    distinct_views,
    final_answer,
    objection,
    read_out,
    world_of,
)
from model import NanoJEPA, greedy

TOP = 5  # candidates shown
N_EXAMPLES = 6  # questions of the test split on the page


# ------------------------------------------------------------------------------------------- the thought


@dataclass(frozen=True)
class Knowledge:
    """What a question is held against: candidate answers, the world of training if its data is here, the threshold on
    the gap (None: no validation answer was sure enough; NaN: never measured), and test examples to choose from."""

    candidates: Candidates
    world: KnownWorld | None = None
    threshold: float | None = math.nan
    examples: tuple[Example, ...] = ()


@dataclass(frozen=True)
class Thought:
    """What a question led to; if there is a `message`, it explains why there is no answer and all else is empty."""

    answer: str = ""
    program: str = ""
    doubt: str = ""  # why the answer is not to be trusted
    nearest: tuple = ()  # (candidate, cosine), nearest first
    control: float = 0.0  # mean cosine over all candidates
    tokens: tuple = ()  # (piece of text that the model read, is it strange?), with [PRED]
    steps: tuple = ()  # of the decoder: the TOP likeliest (piece, probability) of each token, the first one written
    z_hat: tuple = ()  # C numbers, the predicted latent
    message: str = ""


def load_knowledge(model: NanoJEPA, data_dir: str = "", summary: dict | None = None) -> Knowledge:
    """From the run's data and its summary.json; without the data the candidates are the whole numbers to 100.

    A `data_dir` that was asked for and cannot be read is a UserError: it is not quietly replaced.
    """
    config, summary = model.config, summary or {}
    threshold = math.nan if "coverage" in summary.get("not_measured", ()) else summary.get("threshold", math.nan)
    if data_dir:
        config = replace(config, dataset="pairs" if config.dataset == "pairs" else "gsm8k", data_dir=data_dir)
    try:
        splits = load_splits(config)
    except UserError as error:
        if data_dir:
            raise
        print(f"the candidates are the whole numbers from 0 to 100, because the run's data could not be read: {error}")
        words = "the whole numbers from 0 to 100 (the run's own answers are not on this machine; --data-dir names them)"
        return Knowledge(candidates_of(model, [str(i) for i in range(101)], words), None, threshold)
    kind, split = ("programs", "train") if config.answer_view == "program" else ("answers", "test")
    texts = distinct_views(model, splits[split])
    candidates = candidates_of(model, texts, f"the {len(texts):,} different {kind} of the {split} split")
    short = [e for e in splits["test"] if len(model.tokenize([e.question])[0]) < config.block_size]
    return Knowledge(candidates, world_of(model, splits), threshold, tuple(short[:N_EXAMPLES]))


def doubt_of(model: NanoJEPA, knowledge: Knowledge, question: str, found: ReadOut) -> str:
    """Why "I do not know" is the better answer, or "". The rule that evaluate_accuracy.py measures."""
    if knowledge.world and (reason := objection(model, knowledge.world, question)):
        return reason
    if model.config.writes_tokens:  # latents do not answer
        return ""
    decoded, nearest = (final_answer(model, text) for text in (found.decoded, found.nearest))
    if not decoded:
        return "what was decoded from the latent computes nothing"
    if not same_answer(decoded, nearest):
        return f"the two read-outs disagree: decoded {decoded}, nearest {nearest or 'nothing'}"
    if knowledge.threshold is None:
        return "on the validation split no confidence was high enough for its answers to be correct"
    if found.gap() < knowledge.threshold:
        return f"the second candidate is too near: {found.gap():.3f}, wanted {knowledge.threshold:.3f}"
    return ""


def decoder_steps(model: NanoJEPA, question: str, z_hat: Tensor) -> tuple:
    """z_hat (1, C) -> for each token that is decoded, with [EOS], its TOP likeliest pieces and their probabilities."""
    steps = []

    def choose(logits):  # (1, V)
        p, ids = logits[0].softmax(-1).topk(min(TOP, logits.size(-1)))
        steps.append(tuple(zip(model.tokenizer.pieces(ids.tolist()), p.tolist(), strict=True)))
        return greedy(logits)

    if model.config.writes_tokens:
        model.answer([question], choose=choose)
    else:
        model.decode(z_hat, choose=choose)
    return tuple(steps)


def max_characters(model: NanoJEPA) -> int:
    """Of the longest question that is read at all."""
    return CHARACTERS * model.config.block_size


def think(model: NanoJEPA, knowledge: Knowledge, question: str | None) -> Thought:
    """One question -> Thought. Deterministic; the answer has at most `config.max_new_tokens` tokens."""
    if len(question or "") > max_characters(model):
        size = f"{len(question):,} characters, and the model reads {max_characters(model):,} at most"
        return Thought(message=f"This question is too long: {size}. Shorten it.")
    question = without_halves(question).strip()
    if not question:
        return Thought(message="There is no question yet. Type one, or choose an example.")
    if model.config.dataset != "pairs" and not any(c.isalpha() for c in question):
        return Thought(message="There are no words in this. Ask in a sentence, as the examples do.")
    ids = model.tokenize([question])[0]
    n_tokens = len(ids) + model.config.n_pred
    if n_tokens > model.config.block_size:
        size = f"{n_tokens:,} tokens with [PRED], and the model reads {model.config.block_size:,} at most"
        return Thought(message=f"This question is too long: {size}. Shorten it.")

    candidates, world = knowledge.candidates, knowledge.world
    (found,), z_hat = read_out(model, [question], candidates)
    cosines = found.cosines.clamp(-1, 1)
    there = cosines[found.cosines > -2]
    order = cosines.topk(min(TOP, len(there))).indices.tolist()
    texts = model.computed([candidates.texts[i] for i in order], [question] * len(order))
    strange = world.strange_tokens(ids, model.tokenizer.unk) if world else [False] * len(ids)
    return Thought(
        answer=final_answer(model, found.decoded),
        program=found.decoded.partition(" ####")[0] if model.config.answer_view == "program" else "",
        doubt=doubt_of(model, knowledge, question, found),
        nearest=tuple((x.replace(" #### ", " = "), float(cosines[i])) for x, i in zip(texts, order, strict=True)),
        control=float(there.mean()) if len(there) else 0.0,
        tokens=tuple(zip_longest(model.tokenizer.pieces([*ids, *model.pred_tokens]), strange, fillvalue=False)),
        steps=decoder_steps(model, question, z_hat),
        z_hat=tuple(z_hat[0].tolist()),
    )


def worth_of_cosines(model: NanoJEPA, summary: dict) -> str:
    """A sentence on whether this run's cosines mean something; `summary` is its summary.json, or empty."""
    config = model.config
    if config.jepa_weight == 0:
        return "Trained with λ = 0: nothing drew a prediction towards its answer, so the cosines mean nothing."
    if config.mask == "causal":
        return (
            "In training an answer's latent saw its question, here the candidates' latents do not: the cosines mean "
            "little."
        )
    if config.mask == "none":
        return (
            "In training [PRED] saw the answer it predicts; here there is none to see, so neither the answer nor the "
            "cosines mean much."
        )
    if summary.get("cos_own") is None:
        return (
            "This run's cosines were never measured against another answer's; they mean as much as they stand above "
            "the control in the table."
        )
    own, other = summary["cos_own"], summary["cos_other"]
    verdict = "a cosine means as much as it stands above that"
    if own - other < MARGIN:
        verdict = "too near to each other for a cosine to mean anything"
    return f"The cosine is {own:.3f} to a question's own answer, {other:.3f} to another answer: {verdict}."


def summary_of(run: str | Path) -> dict:
    """A run's summary.json; RUN/best and unfinished runs have none."""
    path = Path(run) / "summary.json"
    return read_json(path) if path.is_file() else {}


def describe(model: NanoJEPA, run: str | Path, world: KnownWorld | None = None) -> str:
    """Markdown: which run answers, what it was trained on, how well it did on the test split, what its cosines mean."""
    config, summary = model.config, summary_of(run)
    data = Path(config.data_dir).name or "GSM8K"  # where it lies on this machine is nobody's business
    if config.dataset == "wordproblems":
        data = f"word problems, level {config.difficulty}"
    how = "From a question the model predicts the latent of an answer it cannot see, then puts it into words."
    if config.writes_tokens:
        how = "An ordinary language model, the baseline: it writes the answer token by token after the question."

    lines = [how, "", f"**{run}** · {data} · {model.n_params() / 1e6:.2f}M parameters · mask {config.mask}"]
    if summary.get("exact_match") is not None:
        lines.append(
            f"On its test split {summary['exact_match']:.1%} of the answers are correct; "
            f"always giving the majority training answer: {summary['constant_from_train']:.1%}."
        )
    if world:
        lines.append(f"Trained on {world.summary()}.")
    if summary.get("answered"):
        lines.append(
            f"Of the test questions it answers {summary['coverage']:.1%}, {summary['answered_correct']:.1%} of these "
            "correctly; to the others it says that it does not know."
        )
    if config.answer_view == "program":
        lines.append("Any numbers will do: α, β … are the question's in order, a, b … the results of the steps before.")
    return "  \n".join([*lines, worth_of_cosines(model, summary)])
