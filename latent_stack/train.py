"""Train the latent stack: pooling, compression, middle model and prefix; the backbones only by LoRA.

    python -m latent_stack.train --preset quick --data-dir DIR        DIR/samsum, small backbones from pip
    python -m latent_stack.train --preset quick                       paraphrases, no download
    python -m latent_stack.train --preset phase1                      ModernBERT, GPT-2 and SAMSum from the Hub
    python -m latent_stack.train --run out/latent-quick --resume      continue

With --pretrain, texts are said back before all else (latent_stack/pretrain.py). A few passes follow with the
bag-of-words loss alone, then the loop of all systems, then ROUGE on the test split.

A run is a folder as everywhere: config.json (with the backbones' names and revisions), model.safetensors (what was
trained, and the mean and standard deviation of pooled texts), best/, state.pt, log.jsonl, loss_curve.png, summary.json.
"""

import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from common.batching import epoch_order, make_batches
from common.checkpoint import clear_run, is_started, open_run, write_json
from common.device import Device, Distributed, resolve_device
from common.log import append_log, last_metrics, measuring, read_lines
from common.loop import fit, learning_rate, set_learning_rate
from common.optimizers import make_optimizer
from common.options import UserError, parse, run_main
from common.plots import plot_loss
from common.verdict import against, try_next
from latent_stack.config import PRESETS, StackConfig
from latent_stack.data import Batch, TokenizedDataset
from latent_stack.experiments.summaries import summaries
from latent_stack.losses import BagOfWords
from latent_stack.model import LatentStack
from latent_stack.pairs import Pair, load_pairs
from latent_stack.pretrain import STAGES, begin_from, say_back, sentences, training

WORDS_BATCH = 32  # pairs of a step of the bag-of-words passes, whatever --cache


# ------------------------------------------------------------------------------------ before the loop


def train_bag_of_words(
    model: LatentStack, data: TokenizedDataset, device: Device, quiet: bool = False
) -> dict[str, float]:
    """`words_epochs` passes with the bag-of-words loss alone, in fp32 -> what log.jsonl has of them.

    Ideas reach the soft tokens before the language model takes part. An optimiser of its own, the schedule of the rest;
    every process does the same. With the encoder's hidden states cached a pass over 1,000 pairs takes seconds; else the
    encoder reads everything anew, in micro-batches of the size of the rest.
    """
    began, losses, config = time.perf_counter(), [], model.config
    micro = WORDS_BATCH if data.cached is not None else max(1, config.batch_size // config.grad_accum)
    optimizer = make_optimizer(model, config)
    epochs = [epoch_order(data.length, WORDS_BATCH, config.seed, epoch) for epoch in range(config.words_epochs)]
    steps = [index for epoch in epochs for index in epoch]
    model.train()
    for step, index in enumerate(tqdm(steps, desc="bag of words", unit="step", disable=quiet)):
        set_learning_rate(optimizer, learning_rate(step, len(steps), config))
        denominators, loss = data.loss_denominators(index), 0.0
        for i in range(0, len(index), micro):
            batch = data.batch(index[i : i + micro], denominators).to(device.device)
            part = model.bag_of_words(model.prefix_of(batch), batch.tokens) / denominators["targets"]
            part.backward()
            loss += part.detach()
        if config.grad_clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss)
    last_epoch = torch.stack(losses[-len(epochs[-1]) :])
    return {"words_loss": last_epoch.mean().item(), "words_seconds": round(time.perf_counter() - began, 1)}


# ------------------------------------------------------------------------------------------ validation


@torch.no_grad()
def validation_losses(
    model: LatentStack, data: TokenizedDataset, device: Device, batch_size: int = 32
) -> tuple[np.ndarray, np.ndarray]:
    """Nats of each text's target, in eval mode, given the matched idea and a mismatched one -> (N,), (N,)."""
    model.eval()
    matched, mismatched = [], []
    order = np.random.default_rng(0).permutation(len(data))
    with device.autocast():
        previous = model.prefix_of(data.batch(order[-1:]).to(device.device))  # the mismatched idea: of the text before
        for i in range(0, len(order), batch_size):
            batch = data.batch(order[i : i + batch_size]).to(device.device)
            prefix = model.prefix_of(batch)
            shifted = torch.cat((previous, prefix[:-1]))
            matched.append(model.target_losses(prefix, batch).cpu().double())
            mismatched.append(model.target_losses(shifted, batch).cpu().double())
            previous = prefix[-1:]
    model.train()
    back = np.argsort(order)
    return torch.cat(matched).numpy()[back], torch.cat(mismatched).numpy()[back]


def validation_loss(model: LatentStack, data: TokenizedDataset, device: Device) -> dict[str, float]:
    """Loss per target token of a split, and the same given a mismatched idea.

    Without a difference between the two, the language model has learned the style of the targets and no content.
    """
    n = data.loss_denominators(slice(None))["targets"]
    matched, mismatched = validation_losses(model, data, device)
    return {"loss": float(matched.sum() / n), "loss_shuffled": float(mismatched.sum() / n)}


# ------------------------------------------------------------------------------------- what is printed


def describe(batch: Batch, model: LatentStack) -> str:
    """The first pair of a batch as text: what the encoder reads, and what the language model must generate."""

    def shorten(text):
        return " ".join(text.split())[:240]

    backbones, inputs, tokens = model.backbones, batch.inputs, batch.tokens[0]
    source = backbones.encoder_tokenizer.decode(inputs.input_ids[0][inputs.attention_mask[0]].tolist())
    target = backbones.lm_tokenizer.decode(tokens[tokens >= 0].tolist())
    return f"encoder reads    {shorten(source)}\nprefix, then     {shorten(target)}"


def introduction(model: LatentStack, pairs: dict[str, list[Pair]], steps_per_epoch: int, device: Device) -> str:
    """What training prints first."""
    config = model.config
    sizes = ", ".join(f"{len(found):,} {split}" for split, found in pairs.items())
    twice = ", and each target with itself" if config.reconstruct else ""
    several = f"{config.ideas} × " if config.ideas > 1 else ""
    trained, frozen = model.n_params() / 1e6, model.backbones.n_frozen() / 1e6
    encoder, decoder = f"{config.encoder} ({config.encoder_dim})", f"{config.decoder} ({config.decoder_dim})"
    return (
        f"device     {device.why}\n"
        f"data       {config.dataset}: {sizes} pairs{twice}\n"
        f"model      {trained:.2f}M parameters trained, {frozen:.1f}M frozen: "
        f"{encoder} → {several}{config.latent_dim} → {config.prefix_len} soft tokens → {decoder}\n"
        f"schedule   {config.epochs} epochs of {steps_per_epoch} steps of {config.batch_size} pairs\n"
    )


def idea_in_words(summary: dict) -> str:
    """Is what is generated from a text's own idea nearer to its reference than what another idea gives?"""
    difference, (low, high) = summary["rougeL_difference"], summary["rougeL_difference_ci95"]
    verdict = against(difference, (low, high), 0.0)
    carries = "the idea carries" if verdict == "better than" else "no sign that the idea carries"
    return (
        f"What is generated from a text's own idea is {verdict} from another text's\n"
        f"(ROUGE-L {difference:+.3f}, {low:+.3f} to {high:+.3f}): {carries} something of its text."
    )


def report(summary: dict, run: Path) -> str:
    """What training prints last: the test split, what was learned in words, where the run is, what to try next."""
    lines = [f"{what} was not measured: {reason}" for what, reason in summary.get("not_measured", {}).items()]
    if "rougeL" in summary:
        lines.append(f"test split: {summary['n']:,} texts; ROUGE-L F1 with 95% bootstrap intervals")
        for suffix, label in (("", "matched idea"), ("_shuffled", "mismatched idea (control)")):
            low, high = summary[f"rougeL{suffix}_ci95"]
            lines.append(f"  {label:<36}{summary[f'rougeL{suffix}']:.4f}   {low:.4f} to {high:.4f}")
        lines += ["", idea_in_words(summary)]
    memory = f", at most {summary['peak_memory_gib']:.1f} GiB" if "peak_memory_gib" in summary else ""
    lines += [
        "",
        f"trained {summary['steps']:,} steps in {summary['train_seconds']:.0f} s{memory}; the run is in {run}/",
        try_next(str(run), "main.py", "-m latent_stack.evaluate --what summaries"),
    ]
    return "\n".join(lines)


def measure_test_split(model: LatentStack, pairs: list[Pair], n_eval: int) -> dict:
    """ROUGE of the test split beside its control -> what summary.json has of it."""
    model.eval()
    tested = pairs[: max(2, n_eval) if n_eval else None]
    measured, _ = summaries(model, tested, systems=("own", "shuffled"))
    found = {"n": measured["n"]}
    for system, suffix in (("own", ""), ("shuffled", "_shuffled")):
        for measure, value in measured[system].items():
            found |= {f"{measure}{suffix}": value["mean"], f"{measure}{suffix}_ci95": value["ci95"]}
    difference = measured["own_less_shuffled"]["rougeL"]
    return found | {"rougeL_difference": difference["mean"], "rougeL_difference_ci95": difference["ci95"]}


def words_metrics(run: Path) -> dict[str, float]:
    """What log.jsonl has of the bag-of-words passes."""
    return {name: value for line in read_lines(run) for name, value in line.items() if name.startswith("words_")}


# ------------------------------------------------------------------------------------------------ main


def checked(config: StackConfig) -> StackConfig:
    """--dataset auto resolved; a UserError for options that do not go together."""
    if config.cache and config.lora_encoder:
        raise UserError("--cache keeps the outputs of a frozen encoder; with --lora-encoder give --no-cache")
    if config.shard:
        raise UserError("--shard is for what is trained whole; here most weights are frozen, and each process has them")
    if config.ideas > 1 and config.pooling != "queries":
        raise UserError(f"--ideas {config.ideas} are read off by --pooling queries, not by {config.pooling}")
    if config.queries_read != "both" and config.pooling != "queries":
        raise UserError(f"--queries-read {config.queries_read} needs --pooling queries, not {config.pooling}")
    if config.trains == "decoder" and not (config.lora_decoder or config.prefix_kv):
        raise UserError("--trains decoder needs --lora-decoder or --prefix-kv: nothing else in it is trained")
    if config.trains == "decoder" and not (config.pretrain or config.init):
        raise UserError("--trains decoder needs ideas that say something: --pretrain TEXTS, or --init RUN/pretrain")
    if config.dataset == "auto":
        return replace(config, dataset="samsum" if config.data_dir else "paraphrase")
    return config


def prepare(model: LatentStack, pairs: list[Pair]) -> tuple | None:
    """What may fail, before a run's files are cleared: --init is loaded, the sentences of --pretrain are read."""
    config = model.config
    if config.init:
        if not config.resume and Path(config.run).resolve() in Path(config.init).resolve().parents:
            raise UserError(f"--init {config.init} lies in --run {config.run}, which starts afresh; name another --run")
        begin_from(model, config.init)
    return sentences(model, config, pairs) if config.pretrain else None


def start(model: LatentStack, train: TokenizedDataset, n_pairs: int, said: tuple | None, device: Device, distributed):
    """Where the task begins: at random weights, at those of another run, or where the sentences `said` are said
    back."""
    config = model.config
    if said:
        say_back(model, config, said, lambda model, data: validation_loss(model, data, device), device, distributed)
        torch.manual_seed(config.seed)  # the same dropout in what follows whether this was interrupted or not
    elif not config.init:
        model.standardise(train, among=n_pairs)


def main(argv: list[str] | None = None) -> None:
    began = time.perf_counter()
    config = checked(open_run(*parse(StackConfig, PRESETS, __doc__, argv), STAGES))
    resume = config.resume and is_started(config.run)  # else what is resumed is one of the stages before
    device = resolve_device(config.device, config.precision)
    distributed = Distributed(device.device)
    run, say = Path(config.run), distributed.print

    # model and data
    pairs = load_pairs(config)
    torch.manual_seed(config.seed)
    model = LatentStack(config).to(device.device)
    config, backbones = model.config, model.backbones  # the configuration now has the backbones' revisions and hashes
    same = [Pair(p.target, p.target) for p in pairs["train"]] if config.reconstruct else []
    train = TokenizedDataset(pairs["train"] + same, backbones, config, "train")
    val = TokenizedDataset(pairs["val"], backbones, config, "validation")
    steps_per_epoch, batches = make_batches(train, config, distributed.rank, distributed.world)
    if config.cache:
        train.cache()
        val.cache()
    say(introduction(model, pairs, steps_per_epoch, device))
    say(describe(train.batch([0]), model) + "\n")

    # train
    said = None if resume else prepare(model, pairs["train"])
    if not config.resume and distributed.main:
        clear_run(run, ("best", *STAGES))
    if not resume:
        start(model, train, len(pairs["train"]), said, device, distributed)
    if config.words_weight:
        model.bag_of_words = BagOfWords(train.targets, backbones.lm, (backbones.bos, backbones.eos))
    if config.words_weight and config.words_epochs and config.trains == "all" and not resume:
        found = train_bag_of_words(model, train, device, quiet=not distributed.main)
        if distributed.main:
            append_log(run, step=0, **found)
    title = f"Latent stack on {config.dataset}: target given the prefix"
    draw = partial(plot_loss, run, title, "linear", [("validation, mismatched idea (control)", "val_loss_shuffled")])
    summary = fit(
        model,
        steps_per_epoch,
        training(batches, config.trains),
        replace(config, resume=resume),
        validate=lambda model: validation_loss(model, val, device),
        distributed=distributed,
        device=device,
        draw=draw,
    )

    # report
    if distributed.main:
        summary = {"n_params": model.n_params(), **summary, **last_metrics(run), **words_metrics(run)}
        summary |= {"device": device.why, "torch": torch.__version__}
        write_json(run / "summary.json", summary)  # it is finished, whatever an evaluation comes to
        missing = {}
        with measuring("the curve", {}):
            draw()
        with measuring("ROUGE", missing):
            summary |= measure_test_split(model, pairs["test"], config.n_eval)
        summary |= {"not_measured": missing} if missing else {}
        summary["minutes"] = round((time.perf_counter() - began) / 60, 2)  # from the first line of this function
        write_json(run / "summary.json", summary)
        say("\n" + report(summary, run))
    distributed.close()


if __name__ == "__main__":
    run_main(main)
