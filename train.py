"""Train nanoJEPA: `python train.py` is the reference configuration, `--preset quick` five minutes on a laptop.

    python train.py --preset quick                                   word problems, no download, no GPU
    python train.py --data-dir DIR --preset gsm8k-small              real GSM8K from DIR/train.jsonl and DIR/test.jsonl
    python train.py --run out/nanojepa --resume                      continue after Ctrl-C, a crash or a full disk
    torchrun --standalone --nproc_per_node=2 -- train.py             data-parallel, the same result on the same batch

A run is a folder: config.json, model.safetensors (the last weights), best/ (those of the lowest validation loss),
state.pt (what --resume needs), log.jsonl, the two curves, and summary.json when it has ended.
"""

import time
from dataclasses import replace
from pathlib import Path

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
        **{name: name for name in ("constant_from_train", "equation_decoded")},
        **{name: name for name in ("majority_program", "majority_program_exact_match")},
    },
    "alignment": {name: name for name in ("retrieval_at_1", "cos_own", "cos_other")},
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
    """Lines on the test split, each figure beside its control."""
    unseen = ", operand pairs never seen in training" if config.dataset == "wordproblems" else ""
    low, high = summary.get("exact_match_ci95") or (0, 0)
    known = summary.get("coverage") or 0
    lines = [f"test split: {n_test:,} questions{unseen}"]
    for label, name, form, note in (
        (
            f"exact match, {'token by token' if config.writes_tokens else 'decoded from z_hat'}",
            "exact_match",
            "7.2%",
            f"95% interval {low:.2%} to {high:.2%}",
        ),
        ("always the majority training answer", "constant_from_train", "7.2%", ""),
        (f"always the program {summary.get('majority_program')}", "majority_program_exact_match", "7.2%", ""),
        ("retrieval@1 among all test answers", "retrieval_at_1", "7.2%", ""),
        ("cosine to the own answer's latent", "cos_own", "7.3f", ""),
        ("cosine to another answer's latent", "cos_other", "7.3f", "(the control)"),
        (f"correct of the {known:6.1%} it answers", "answered_correct", "7.2%", "(it does not know the others)"),
    ):
        if summary.get(name) is not None:
            lines.append(f"  {label:<36} {summary[name]:{form}}   {note}".rstrip())
    lines += [f"  {what} was not measured: {reason}" for what, reason in summary.get("not_measured", {}).items()]
    return [*lines, ""]


def report(summary: dict, config: Config, n_test: int) -> str:
    """What training prints last: the test split beside its controls, and where the run is."""
    run, lines = config.run, describe_test_split(summary, config, n_test) if config.final_eval else []
    speed = f"{summary['examples_per_second']:,.0f} examples/s"
    lines += [
        f"trained {summary['steps']:,} steps in {summary['train_seconds']:.0f} s, {speed}",
        f"the run is in {run}/, its curves in {run}/token_loss_curve.png and {run}/jepa_loss_curve.png",
    ]
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------ main


def main(argv: list[str] | None = None) -> None:
    config = open_run(*parse(Config, PRESETS, __doc__.split("\n\n")[0], argv))
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
