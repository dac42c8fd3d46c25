"""Train nanoJEPA: the reference configuration, or with `--preset quick` two minutes on a laptop.

    python train.py --preset quick                                   word problems, no download, no GPU
    python train.py --data-dir DIR --preset gsm8k-small              GSM8K from DIR/train.jsonl and test.jsonl
    python train.py --run out/nanojepa --resume                      continue after Ctrl-C, a crash or a full disk
    torchrun --standalone --nproc_per_node=2 -- train.py             data-parallel, the same result on the same batch

A run is a folder: config.json, model.safetensors (the last weights), best/ (those of the lowest validation loss),
state.pt (what --resume needs), log.jsonl, the two curves, and summary.json when it has ended.
"""

import time
from dataclasses import replace
from pathlib import Path
from textwrap import shorten

import torch

from common.batching import length_bucketed, make_batches
from common.checkpoint import clear_run, open_run, write_json
from common.device import Distributed, resolve_device
from common.log import last_metrics, measuring, read_log
from common.loop import fit, mean_metrics
from common.options import parse, run_main
from common.plots import BLUE, DOTTED, THIN, plot_curves, whole_windows
from common.sources import Example
from common.tokenizers import Tokenizer, load_tokenizer, train_tokenizer
from common.verdict import against, nearer, try_next
from config import PRESETS, Config
from data import Batch, TokenizedDataset, load_splits, view_texts
from eval_alignment import alignment, plot_jepa_loss
from evaluate_accuracy import accuracy, coverage, exact_match
from model import NanoJEPA, jepa_mask, load_run

MIN_STEPS = 2_000  # what --epochs 0 trains at least: a small file of one's own is passed many times
IN_SUMMARY = {  # what summary.json has of the test split: {evaluation: {its name here: its name there}}
    "accuracy": {
        "exact_match": "exact_match_decoded",
        "exact_match_ci95": "exact_match_decoded_ci95",
        **{name: name for name in ("constant_from_train", "constant_from_train_answer", "equation_decoded")},
        **{name: name for name in ("majority_program", "majority_program_exact_match")},
    },
    "alignment": {name: name for name in ("retrieval_at_1", "cos_own", "cos_other", "margin_ci95")},
    "coverage": {name: name for name in ("threshold", "coverage", "answered", "answered_correct")},
}
PROGRESS = {"token_loss": "token", "jepa_loss": "jepa", "cos_own": "cos", "cos_other": "other"}


# ------------------------------------------------------------------------------------- what is printed


def describe(batch: Batch, tokenizer: Tokenizer, config: Config) -> str:
    """The first example of a batch as text: each token, what it must predict, and which tokens it sees."""
    segment, tokens = batch.segment[0], batch.tokens[0].tolist()
    shown = [i for i, s in enumerate(segment.tolist()) if s in (0, 1)]
    target = dict(zip(batch.question_at.tolist(), batch.question_ids.tolist(), strict=True))
    if config.writes_tokens:
        target |= dict(zip(batch.answer_at.tolist(), batch.answer_ids.tolist(), strict=True))
    sees = jepa_mask(batch.segment[:1], config.mask)[0, 0]  # (T, T)

    def piece(id):
        return repr(tokenizer.pieces([id])[0])[1:-1]

    lines = [f"{'':>4}{'token':<16}{'predicts':<16}attends to (■) the tokens 0 … {len(shown) - 1}"]
    for i in shown:
        row = "".join("■" if sees[i, j] else "·" for j in shown)
        predicts = piece(target[i]) if i in target else "-"
        lines.append(f"{i:>3} {piece(tokens[i]):<16}{predicts:<16}{row}")
    return "\n".join(lines)


def overview(model: NanoJEPA, steps_per_epoch: int, n_train: int) -> str:
    """Three lines on the model, the schedule and the objective; a fourth where the schedule ends in its warm-up."""
    config, steps = model.config, model.config.epochs * steps_per_epoch
    shape = f"{config.n_layer} layers, {config.n_head} heads, width {config.n_embd}, vocabulary {config.vocab_size:,}"
    lines = [
        f"model      {model.n_params() / 1e6:.2f}M parameters: {shape}; mask {config.mask}",
        f"schedule   {config.epochs} epochs of {steps_per_epoch} steps of {min(config.batch_size, n_train)} examples",
        f"objective  L_token + {config.jepa_weight:g} (1 - cos)",
    ]
    if steps <= config.warmup_steps:
        warning = f"{steps} steps are all warm-up, --lr {config.lr:g} is never reached: --epochs 0 makes 2,000 steps"
        lines.insert(2, f"WARNING    {warning}")
    return "\n".join(lines)


def plot(run: Path) -> None:
    """log.jsonl -> token_loss_curve.png and jepa_loss_curve.png, the control beside the claim."""
    train, val = read_log(run)
    train = whole_windows(train)
    reached = f"{val[-1]['val_token_loss']:.3f}" if val else "of training"
    plot_curves(
        run / "token_loss_curve.png",
        [
            ("train", train, "token_loss", dict(color=BLUE, **THIN)),
            ("validation", val, "val_token_loss", dict(color=BLUE, **DOTTED)),
        ],
        f"Token loss {reached}: question, and answer decoded from its latent",
        "cross-entropy (nats per token, terms added)",
        "log",
    )
    plot_jepa_loss(run)


def final_evaluation(model: NanoJEPA | None, splits: dict[str, list[Example]], run: Path) -> dict:
    """The test split: exact match, retrieval and cosines beside their controls -> what summary.json has of it.

    Without a `model` the run's is loaded. What cannot be measured is None, with its reason under "not_measured".
    """
    found, rows, missing = {}, [], {}
    with measuring("accuracy", missing):
        model = (model or load_run(run)).eval()
        found, rows = accuracy(model, splits["test"], splits["train"])
    with measuring("alignment", missing):
        found |= alignment(model, splits["test"])[0]
    if rows and not model.config.writes_tokens:
        with measuring("coverage", missing):
            found |= coverage(model, splits, rows, splits["test"])
    summary = {"not_measured": missing} if missing else {}
    for evaluation, names in IN_SUMMARY.items():
        summary |= {name: found.get(key) for name, key in names.items() if key in found or evaluation in missing}
    return summary


def describe_test_split(summary: dict, config: Config, n_test: int) -> list[str]:
    """Lines on the test split."""
    unseen = ", operand pairs never seen in training" if config.dataset == "wordproblems" else ""
    low, high = summary.get("exact_match_ci95") or (0, 0)
    known = summary.get("coverage") or 0
    lines = [f"test split: {n_test:,} questions{unseen}"]
    for label, name, note in (
        (
            f"exact match, {'token by token' if config.writes_tokens else 'decoded from z_hat'}",
            "exact_match",
            f"95% interval {low:.2%} to {high:.2%}",
        ),
        ("retrieval@1 among all test answers", "retrieval_at_1", ""),
        (f"correct of the {known:6.1%} it answers", "answered_correct", "(it does not know the others)"),
    ):
        if summary.get(name) is not None:
            lines.append(f"  {label:<36} {summary[name]:7.2%}   {note}".rstrip())
    return lines + [f"  {what} was not measured: {reason}" for what, reason in summary.get("not_measured", {}).items()]


def answers_in_words(summary: dict) -> str:
    """Exact match against the best constant, the majority answer of training or the majority program."""
    answer = shorten(str(summary.get("constant_from_train_answer", "the majority answer")), 40, placeholder="…")
    constants = [(summary["constant_from_train"], f"answering {answer}")]
    if summary.get("majority_program_exact_match") is not None:
        constants.append((summary["majority_program_exact_match"], f"computing {summary['majority_program']}"))
    rate, constant = max(constants)
    verdict = against(summary["exact_match"], summary["exact_match_ci95"], rate)
    return (
        f"It answers {summary['exact_match']:.1%} of the test questions correctly, "
        f"{verdict} always {constant} ({rate:.1%})."
    )


def latents_in_words(summary: dict, config: Config) -> str:
    """The cosine to the own answer's latent against that to another's."""
    if not config.jepa_weight and config.writes_tokens:
        return "It is a language model, trained without the cosine loss: there is no latent to predict."
    if config.mask == "none":
        leaked = f"{summary['val_cos_own']:.3f} " if "val_cos_own" in summary else ""
        return (
            f"In training, without a mask, the prediction read its answer: that cosine {leaked}is a leak, no alignment."
        )
    low = (summary.get("margin_ci95") or [None])[0]
    found = nearer(summary["cos_own"], summary["cos_other"], "answer", low)
    return found if config.jepa_weight else f"{found[:-1]}; with λ = 0 the cosine was not trained."


def in_words(summary: dict, config: Config) -> list[str]:
    """What was learned, against which control, as far as it was measured."""
    if not config.final_eval:
        return ["The test split was not measured (--no-final-eval)."]
    lines = [answers_in_words(summary)] if summary.get("exact_match") is not None else []
    return lines + ([latents_in_words(summary, config)] if summary.get("cos_own") is not None else [])


def report(summary: dict, config: Config, n_test: int) -> str:
    """What training prints last: the test split, what was learned in words, where the run is, what to try next."""
    lines = [*describe_test_split(summary, config, n_test), ""] if config.final_eval else []
    words = in_words(summary, config)
    lines += [*words, ""] if words else []
    trained = f"trained {summary['steps']:,} steps in {summary['train_seconds']:.0f} s"
    lines += [
        f"{trained}, {summary['examples_per_second']:,.0f} examples/s; the run and its curves are in {config.run}/",
        try_next(config.run, "main.py", "evaluate_accuracy.py" if config.writes_tokens else "eval_alignment.py"),
    ]
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------ main


def main(argv: list[str] | None = None) -> None:
    config = open_run(*parse(Config, PRESETS, __doc__, argv))
    device = resolve_device(config.device, config.precision)
    distributed = Distributed(device.device)
    run, say = Path(config.run), distributed.print

    # data
    began = time.perf_counter()
    splits = load_splits(config)
    if config.resume:
        tokenizer = load_tokenizer(config.tokenizer, run)
    else:
        texts = view_texts(splits["train"], config.answer_view)
        tokenizer = train_tokenizer(config.tokenizer, texts, keep_spaces=config.dataset == "pairs")
    config = replace(config, vocab_size=tokenizer.n_vocab)
    train, val = (TokenizedDataset(splits[name], tokenizer, config, name) for name in ("train", "val"))
    config = replace(config, max_new_tokens=config.max_new_tokens or int(train.m.max()) + 1)  # with [EOS]
    steps_per_epoch, batches = make_batches(train, config, distributed.rank, distributed.world)
    config = replace(config, epochs=config.epochs or -(-MIN_STEPS // steps_per_epoch))
    seconds = time.perf_counter() - began

    # model
    torch.manual_seed(config.seed)
    model = NanoJEPA(config)
    model.tokenizer = tokenizer

    processes = f", {distributed.world} processes" if distributed.world > 1 else ""
    sizes = f"{len(train):,} training, {len(val):,} validation, {len(splits['test']):,} test examples"
    say(f"device     {device.why}{processes}")
    say(f"data       {config.dataset}: {sizes}; {train.length.mean():.1f} tokens each; read in {seconds:.1f} s")
    say(overview(model, steps_per_epoch, len(train)) + "\n")
    say(describe(train.batch([0]), tokenizer, config) + "\n")

    # train
    def validate(model):
        metrics = mean_metrics(model, length_bucketed(val, config.batch_size), device)
        if config.val_accuracy:
            metrics["exact_match"] = exact_match(model, splits["val"])
        return metrics

    if distributed.main and not config.resume:
        clear_run(run)
    summary = fit(
        model,
        steps_per_epoch,
        batches,
        config,
        validate=validate,
        after_step=model.update_target,
        distributed=distributed,
        device=device,
        progress=PROGRESS,
        draw=lambda: plot(run),
    )

    # report
    if distributed.main:
        summary = {"n_params": model.n_params(), **summary, **last_metrics(run, ("token_loss", "jepa_loss"))}
        summary |= {"device": device.why, "torch": torch.__version__}
        write_json(run / "summary.json", summary)  # it is finished, whatever an evaluation comes to
        with measuring("the curves", {}):
            plot(run)
        if config.final_eval:
            summary |= final_evaluation(None if config.shard else model, splits, run)
            write_json(run / "summary.json", summary)
        say("\n" + report(summary, config, len(splits["test"])))
    distributed.close()


if __name__ == "__main__":
    run_main(main)
