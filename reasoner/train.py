"""Train JEPA-Reasoner: `python -m reasoner.train --preset quick` does all three phases, ten minutes on a laptop.

    python -m reasoner.train --preset quick                            pretrain, sst, talker, then the test split
    python -m reasoner.train --preset quick --phase sst --resume       one phase, continued
    python -m reasoner.train --preset quick --model coupled --run out/coupled     a baseline, as many steps in one phase
    python -m reasoner.train --preset gsm8k-small --data-dir DIR       real GSM8K, its equations as the chain

Each phase is a run of its own, in RUN/pretrain, RUN/sst and RUN/talker, that starts from the one before it.
"""

import json
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import torch

from config import UserError, parse, resolve_device, run_main, write_json
from data import same_answer
from evaluate_accuracy import wilson
from reasoner.config import PHASES, PRESETS, ReasonerConfig
from reasoner.data import Encoded, load_items, make_batches, make_tokenizer, ordered_batches
from reasoner.data import load_tokenizer as tokenizer_of
from reasoner.model import Coupled, Pair, Reasoner, Talker, load, load_phase
from train import Processes, clear_run, fit, open_run, plot_loss

FREE = ("phase", "init", "lr", "sst_epochs", "sst_lr", "talker_epochs", "talker_lr")  # may differ between phases


def of_phase(config, phase):
    """The configuration of one phase: its folder, its passes over the data, its learning rate.

    --epochs and --lr are pretraining's, or those of the one phase that --phase names.
    """
    epochs = {"pretrain": config.epochs, "sst": config.sst_epochs, "talker": config.talker_epochs,
              "coupled": config.epochs + config.sst_epochs + config.talker_epochs}[phase]  # fmt: skip
    lr = {"sst": config.sst_lr, "talker": config.talker_lr}.get(phase, config.lr)
    return replace(config, run=str(Path(config.run) / phase), epochs=epochs, lr=lr, trained=phase)


def describe(batch, tokenizer):
    """The first row of a batch as text: what is read, and where a latent or token of the chain is predicted."""
    ids, n = batch.tokens[0, : batch.length[0]].tolist(), int(batch.start[0])
    pieces = tokenizer.pieces(ids)
    return f"prompt  {' '.join(pieces[:n])[-300:]}\nchain   {' '.join(pieces[n:])[:300]}"


@torch.no_grad()
def validation_loss(model, data, config, device, after):
    """Losses and shares of a split, in eval mode -> dict of floats, each exactly its mean over the split."""
    model.eval()
    total = defaultdict(float)
    for _, batch in ordered_batches(data, config.batch_size):
        with device.autocast():
            _, metrics = model(after(batch.to(device.device)))
        for name, value in metrics.items():
            total[name] += value
    model.train()
    return {name: float(v) for name, v in total.items()}


def right(config, item, text):
    """Is `text` the answer? GSM8K: the number behind ####; trees and strings: the whole chain, word by word."""
    if config.dataset == "gsm8k":
        return same_answer(text.rpartition("####")[2].strip() or "none", item.chain.rpartition("####")[2].strip())
    return text.split() == item.chain.split()


@torch.no_grad()
def chain_accuracy(model, items, batch_size=256):
    """Pair or Coupled, items -> (share answered rightly, its 95% interval, list of what was said)."""
    said = [""] * len(items)
    order = sorted(range(len(items)), key=lambda i: len(items[i].prompt))
    for begin in range(0, len(items), batch_size):
        index = order[begin : begin + batch_size]
        for i, text in zip(index, model.answer([items[i].prompt for i in index]), strict=True):
            said[i] = text
    hits = sum(right(model.config, item, text) for item, text in zip(items, said, strict=True))
    return hits / len(items), wilson(hits, len(items)), said


def run_phase(phase, config, given, splits, device, processes):
    """Train one phase from the one before it, in its own folder -> its summary."""
    before = {"sst": "pretrain", "talker": "sst"}.get(phase)
    earlier = Path(config.init or Path(config.run) / before) if before else None
    config = open_run(of_phase(config, phase), given, ReasonerConfig, FREE)
    run, say = Path(config.run), print if processes.main else (lambda *a: None)
    if config.resume and (run / "summary.json").is_file():
        done = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        if done["epochs"] >= config.epochs or 0 < config.max_steps <= done["steps"]:
            say(f"{phase}: finished, in {run}")
            return done

    reasoner = load_phase(Reasoner, earlier, before, device.device) if before else None
    if reasoner:
        tokenizer = reasoner.tokenizer
        for name in ("dataset", "n_layer", "n_head", "n_embd", "n_hidden", "labels", "levels", "tokenizer"):
            if getattr(config, name) != getattr(reasoner.config, name):
                raise UserError(f"{earlier} has {name} = {getattr(reasoner.config, name)}, not {getattr(config, name)}")
    else:
        tokenizer = tokenizer_of(config, run) if config.resume else make_tokenizer(config, splits["train"])
    slots = config.thoughts if config.model == "coconut" else 0
    cut = config.dataset == "text"
    train, val = (Encoded(splits[s], tokenizer, config.block_size, s, slots, cut) for s in ("train", "val"))
    longest = reasoner.config.max_chain if reasoner else int(train.r.max())
    if phase == "talker" and config.talker_train:
        train = Encoded(splits["train"][: config.talker_train], tokenizer, config.block_size, "train", slots, cut)
    config = replace(config, vocab_size=tokenizer.n_vocab, max_chain=config.max_chain or longest)

    torch.manual_seed(config.seed)
    model = {"pretrain": Reasoner, "sst": Reasoner, "talker": Talker, "coupled": Coupled}[phase](config)
    model.tokenizer = tokenizer
    if phase == "sst":
        model.load_state_dict(reasoner.state_dict())
        model.target.weight.data.copy_(model.embed.weight)

    def after(batch):  # what a Talker reads: the frozen Reasoner's latents
        return replace(batch, latents=reasoner.teacher_forced(batch.to(device.device))) if phase == "talker" else batch

    steps, batches = make_batches(train, config, processes.rank, processes.world, after)
    count = f"{model.n_params() / 1e6:.2f}M parameters trained" + (
        f", {reasoner.n_params() / 1e6:.2f}M frozen" if phase == "talker" else ""
    )
    say(f"\n{phase:<10} {count}; {config.epochs} epochs of {steps} steps of {config.batch_size} examples")
    if not before:
        say(describe(train.batch([0]), tokenizer) + "\n")
    if processes.main and not config.resume:
        clear_run(run)
    summary = fit(model, steps, batches, config, processes=processes, device=device,
                  validate=lambda m: validation_loss(m, val, config, device, after),
                  after_step=getattr(model, "update_target", None))  # fmt: skip
    summary = {"n_params": model.n_params(), **summary, "device": device.why, "torch": torch.__version__}
    if processes.main:
        plot_loss(run, f"{phase}: {config.dataset}")
        write_json(run / "summary.json", summary)
    return summary


def main():
    config, given = parse(ReasonerConfig, PRESETS, __doc__.split("\n\n")[0])
    device = resolve_device(config.device, config.precision)
    processes = Processes(device.device)
    say = print if processes.main else (lambda *a: None)
    if config.phase != "all":
        config = replace(config, **{f"{config.phase}_{name}": getattr(config, name) for name in ("epochs", "lr")
                                    if name in given and config.phase != "pretrain"})  # fmt: skip
    phases = ["coupled"] if config.model != "decoupled" else PHASES if config.phase == "all" else [config.phase]
    began = time.perf_counter()
    splits = {split: load_items(split, config) for split in ("train", "val", "test")}
    say(f"device     {device.why}")
    say(f"data       {config.dataset}: {', '.join(f'{len(v):,} {k}' for k, v in splits.items())} examples; "
        f"made or read in {time.perf_counter() - began:.1f} s")  # fmt: skip

    summaries = {}
    for phase in phases:
        resumes = config.resume and (Path(config.run) / phase / "state.pt").is_file()
        if config.resume and not resumes and config.phase != "all":
            open_run(of_phase(config, phase), given, ReasonerConfig)  # raises: there is nothing to resume
        summaries[phase] = run_phase(phase, replace(config, resume=resumes), given, splits, device, processes)

    if processes.main and phases[-1] in ("talker", "coupled") and config.dataset != "text":
        if config.init:
            reasoner = load_phase(Reasoner, config.init, "sst", device.device)
            model = Pair(reasoner, load_phase(Talker, Path(config.run) / "talker", "talker", device.device))
        else:
            model = load(config.run, device.device)
        share, interval, _ = chain_accuracy(model, splits["test"])
        name = {"tree": "route_accuracy", "cfg": "derivation_accuracy", "gsm8k": "exact_match"}[config.dataset]
        low, high = interval
        say(f"\ntest split, never seen: {len(splits['test']):,} examples, chains free-running")
        say(f"  {name.replace('_', ' '):<24}{share:8.2%}   95% interval {low:.2%} to {high:.2%}")
        write_json(Path(config.run) / "summary.json", {
            "n_params": sum(s["n_params"] for p, s in summaries.items() if p != "pretrain"),
            "train_seconds": sum(s["train_seconds"] for s in summaries.values()),
            "n": len(splits["test"]), name: share, f"{name}_ci95": interval, "phases": summaries})  # fmt: skip
        say(f"the run is in {config.run}/, a folder a phase")


if __name__ == "__main__":
    run_main(main)
