"""Train the latent stack: pooling, compression, middle model and prefix learn, the backbones only by LoRA.

    python -m latent_stack.train --preset quick --data-dir DIR        DIR/samsum, small backbones from pip
    python -m latent_stack.train --preset quick                       the embedded paraphrases, no download
    python -m latent_stack.train --preset phase1                      ModernBERT, GPT-2 and SAMSum from the Hub
    python -m latent_stack.train --run out/latent-quick --resume      continue

A run is a folder as everywhere: config.json (with the backbones' names and revisions), model.safetensors (what was
trained, and the mean and spread of pooled texts), best/, state.pt, log.jsonl, loss_curve.png, summary.json.
"""

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

from config import UserError, parse, resolve_device, run_main, write_json
from data import epoch_order
from latent_stack.config import PRESETS, StackConfig
from latent_stack.data import Encoded, Pair, load_pairs, make_batches
from latent_stack.model import BagOfWords, LatentStack
from train import Processes, clear_run, fit, learning_rate, make_optimizer, open_run, plot_loss


def teach_words(model, data, config, device, quiet=False):
    """`words_epochs` passes with the bag-of-words loss alone, in fp32: ideas reach the soft tokens before the language
    model is asked. An optimiser of its own, the schedule of the rest; every process does the same. -> dict for the log.

    Steps of 32 pairs, whatever --cache: with the encoder's states at hand a pass over 1,000 pairs takes seconds, else
    the encoder reads everything anew, in micro-batches of the size of the rest.
    """
    began, losses, batch_size = time.perf_counter(), [], 32
    micro = batch_size if data.states is not None else max(1, config.batch_size // config.grad_accum)
    optimizer = make_optimizer(model, config)
    orders = [epoch_order(data.length, batch_size, config.seed, epoch) for epoch in range(config.words_epochs)]
    batches = [index for order in orders for index in order]
    model.train()
    for step, index in enumerate(tqdm(batches, desc="words of the targets", unit="step", disable=quiet)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, len(batches), config)
        n_targets, loss = data.total(index), 0.0
        for i in range(0, len(index), micro):
            batch = data.batch(index[i : i + micro], n_targets).to(device.device)
            part = model.bag_of_words(model.prefix_of(batch), batch.tokens) / n_targets
            part.backward()
            loss += part.detach()
        if config.grad_clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss)
    last = torch.stack(losses[-len(orders[-1]) :]).mean().item()
    return {"words_loss": last, "words_seconds": round(time.perf_counter() - began, 1)}


@torch.no_grad()
def validation_losses(model, data, device, batch_size=32):
    """Nats of each text's target, in eval mode, given its own idea and another text's -> two arrays (N,)."""
    model.eval()
    losses, order = ([], []), np.random.default_rng(0).permutation(len(data))
    with device.autocast():
        before = model.prefix_of(data.batch(order[-1:], 1.0).to(device.device))  # of the text before
        for i in range(0, len(order), batch_size):
            batch = data.batch(order[i : i + batch_size], 1.0).to(device.device)
            own = model.prefix_of(batch)
            for of, prefix in zip(losses, (own, torch.cat((before, own[:-1]))), strict=True):
                of.append(model.text_losses(prefix, batch).cpu().double())
            before = own[-1:]
    model.train()
    back = np.argsort(order)
    return tuple(torch.cat(of).numpy()[back] for of in losses)


def validation_loss(model, data, device):
    """Loss per target token of a split and the same given another text's idea -> dict of floats.

    Without a difference between the two, the language model has learned the style of the targets and no content.
    """
    own, other = (x.sum() / data.total(range(len(data))) for x in validation_losses(model, data, device))
    return {"loss": float(own), "loss_shuffled": float(other)}


def describe(batch, model):
    """The first pair of a batch as text: what the encoder reads, and what the language model must say."""
    read = model.encoder_tokenizer.decode(batch.input_ids[0][batch.seen[0]].tolist())
    said = model.decoder_tokenizer.decode(batch.tokens[0][batch.tokens[0] >= 0].tolist())
    cut = lambda text: " ".join(text.split())[:240]  # noqa: E731
    return f"encoder reads    {cut(read)}\nprefix, then     {cut(said)}"


def main():
    began = time.perf_counter()
    config, given = parse(StackConfig, PRESETS, __doc__.split("\n\n")[0])
    config = open_run(config, given, StackConfig)
    if config.dataset == "auto":
        config = replace(config, dataset="samsum" if config.data_dir else "paraphrase")
    if config.cache and config.lora_encoder:
        raise UserError("--cache keeps the outputs of a frozen encoder; with --lora-encoder give --no-cache")
    device = resolve_device(config.device, config.precision)
    processes = Processes(device.device)
    say = print if processes.main else (lambda *a: None)
    run = Path(config.run)

    pairs = load_pairs(config)
    torch.manual_seed(config.seed)
    model = LatentStack(config).to(device.device)
    config = model.config  # with the backbones' revisions, widths and hashes
    say(f"device     {device.why}")
    say(
        f"data       {config.dataset}: {', '.join(f'{len(v):,} {k}' for k, v in pairs.items())} pairs"
        + (", and each target with itself" if config.reconstruct else "")
    )
    say(f"model      {model.n_params() / 1e6:.2f}M parameters trained, {model.n_frozen() / 1e6:.1f}M frozen: "
        f"{config.encoder} ({config.encoder_dim}) → {config.latent_dim} → {config.prefix_len} soft tokens → "
        f"{config.decoder} ({config.decoder_dim})")  # fmt: skip
    same = [Pair(p.target, p.target) for p in pairs["train"]] if config.reconstruct else []
    train, val = Encoded(pairs["train"] + same, model, "train"), Encoded(pairs["val"], model, "val")
    if config.cache:
        for data, name in ((train, "train"), (val, "validation")):
            data.cache(progress=lambda x, name=name: tqdm(x, desc=f"encoding {name}", unit="batch"))
    if min(config.batch_size, len(train)) < processes.world * config.grad_accum:
        raise UserError(f"a batch of {min(config.batch_size, len(train))} is less than a pair for each of the "
                        f"{processes.world * config.grad_accum} micro-batches")  # fmt: skip
    if processes.main and not config.resume:
        clear_run(run)
    if config.words_weight:
        model.bag_of_words = BagOfWords(train.targets, model.lm, (model.bos, model.eos))
    if not config.resume:
        model.standardise(train, among=len(pairs["train"]))
        if config.words_weight and config.words_epochs:
            taught = teach_words(model, train, config, device, quiet=not processes.main)
            if processes.main:
                (run / "log.jsonl").write_text(json.dumps({"step": 0, **taught}) + "\n", encoding="utf-8")
    steps, batches = make_batches(train, config, processes.rank, processes.world)
    say(f"schedule   {config.epochs} epochs of {steps} steps of {config.batch_size} pairs\n")
    say(describe(train.batch([0]), model) + "\n")
    summary = fit(model, steps, batches, config, processes=processes, device=device,
                  validate=lambda m: validation_loss(m, val, device))  # fmt: skip
    if processes.main:
        from latent_stack.evaluate import summaries  # ROUGE beside its controls

        plot_loss(run, f"Latent stack on {config.dataset}: target given the prefix", "linear",
                  [("validation, another text's idea", "val_loss_shuffled")])  # fmt: skip
        model.eval()
        tested = pairs["test"][: max(2, config.n_eval) if config.n_eval else None]
        measured, _ = summaries(model, tested, references=("own", "shuffled"))
        first = json.loads((run / "log.jsonl").read_text(encoding="utf-8").partition("\n")[0])
        summary |= {k: v for k, v in first.items() if k.startswith("words_")}
        summary = {"n_params": model.n_params(), **summary, "device": device.why, "torch": torch.__version__}
        for kind, suffix in (("own", ""), ("shuffled", "_shuffled")):
            for name in measured[kind]:
                summary[f"{name}{suffix}"] = measured[kind][name]["mean"]
                summary[f"{name}{suffix}_ci95"] = measured[kind][name]["ci95"]
        minutes = round((time.perf_counter() - began) / 60, 2)  # of this process, from its first line to here
        write_json(run / "summary.json", {**summary, "n": measured["n"], "minutes": minutes})
        say(f"\ntest split: {measured['n']:,} texts; ROUGE-L F1 with 95% bootstrap intervals")
        for kind, label in (("own", "said from the own idea"), ("shuffled", "another text's idea (the control)")):
            mean, (low, high) = measured[kind]["rougeL"]["mean"], measured[kind]["rougeL"]["ci95"]
            say(f"  {label:<36}{mean:.4f}   {low:.4f} to {high:.4f}")
        memory = f", at most {summary['peak_memory_gib']:.1f} GiB" if "peak_memory_gib" in summary else ""
        say(f"\ntrained {summary['steps']:,} steps in {summary['train_seconds']:.0f} s{memory}; the run is in {run}/")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    run_main(main)
