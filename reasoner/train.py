"""Train JEPA-Reasoner: `python -m reasoner.train --preset quick` does all three phases on a CPU.

    python -m reasoner.train --preset quick                            pretrain, sst, talker, then the test split
    python -m reasoner.train --run out/reasoner-quick --resume         continue wherever it was interrupted
    python -m reasoner.train --preset quick --model coupled --run out/coupled     a baseline, as many steps in one phase
    python -m reasoner.train --preset gsm8k-small --data-dir DIR       real GSM8K, its equations as the chain

Each phase is a run of its own, in RUN/pretrain, RUN/sst and RUN/talker, that starts from the one before it;
RUN/config.json is the configuration of the whole.
"""

import json
import shutil
import time
from collections import defaultdict
from dataclasses import asdict, replace
from pathlib import Path

import torch
import torch.distributed as dist

from config import UserError, parse, resolve_device, run_main, write_json
from data import parse_answer, same_answer
from evaluate_accuracy import wilson
from model import read_config
from reasoner.config import EXPERIMENTS, PHASES, PRESETS, ReasonerConfig
from reasoner.data import Encoded, EncodedPassages, load_items, make_batches, make_tokenizer, ordered_batches
from reasoner.data import load_tokenizer as tokenizer_of
from reasoner.model import Coupled, Reasoner, Talker, load, load_phase, read_phase, sha_of
from train import Processes, clear_run, fit, open_run, plot_loss

BEFORE = {"sst": "pretrain", "talker": "sst"}
FREE = {  # may change under --resume
    *("phase", "run", "resume", "overwrite", "device", "precision", "compile", "max_steps", "grad_accum", "log_every"),
    *("save_every", "eval_every", "data_dir", "epochs", "sst_epochs", "talker_epochs"),
}

# what a phase must share with the one before it: the data and the Reasoner
SAME = ("dataset", "reasoning", "leaves", "depth", "labels", "levels", "tokenizer", "n_layer", "n_head", "n_embd",
        "n_hidden")  # fmt: skip


# ---------------------------------------------------------------------------------------------- the run


def phases_of(config):
    """The phases that this command trains, in order."""
    return ("coupled",) if config.model != "decoupled" else PHASES if config.phase == "all" else (config.phase,)


def of_phase(config, phase):
    """The configuration of one phase: its folder, its passes over the data, its learning rate."""
    epochs = {"pretrain": config.epochs, "sst": config.sst_epochs, "talker": config.talker_epochs,
              "coupled": config.epochs + config.sst_epochs + config.talker_epochs}[phase]  # fmt: skip
    lr = {"sst": config.sst_lr, "talker": config.talker_lr}.get(phase, config.lr)
    return replace(config, run=str(Path(config.run) / phase), epochs=epochs, lr=lr, trained=phase)


def open_whole(config, given):
    """The configuration of the whole run: the command line's, or under --resume that of RUN/config.json."""
    run, path = Path(config.run), Path(config.run) / "config.json"
    if (run / "state.pt").is_file():
        raise UserError(f"--run {run} is the folder of a single phase; the run's own is {run.parent}")
    if config.resume:
        if not path.is_file():
            raise UserError(f"--resume: there is no run in {run} (no config.json); leave --resume out to start it")
        saved = read_config(run, ReasonerConfig, "", needed=("config.json",))
        for name in sorted(given - FREE):
            if getattr(config, name) != getattr(saved, name):
                raise UserError(f"--resume: the run in {run} has {name} = {getattr(saved, name)}, not "
                                f"{getattr(config, name)}; leave the option out, or start another run")  # fmt: skip
        config = replace(saved, **{k: getattr(config, k) for k in given & FREE} | {"resume": True, "run": config.run})
    check(config)
    if stale(config) and not config.resume and not config.overwrite:
        raise UserError(f"{run} already holds a run ({', '.join(stale(config))}); --resume continues it, --overwrite "
                        "starts afresh, --run NAME is another")  # fmt: skip
    return config


def stale(config):
    """Names of the phases in --run that this command would train: its own, and all that came after it."""
    first = phases_of(config)[0]
    names = (*PHASES[PHASES.index(first) if first in PHASES else 0 :], "coupled")
    return [name for name in names if (Path(config.run) / name / "state.pt").is_file()]


def clear_whole(config):
    """Started afresh: remove what would be trained anew and what was measured on it, then write RUN/config.json.

    Called when data and the earlier phase have been read, so that a mistake costs nothing.
    """
    run, old = Path(config.run), stale(config)
    for phase in old:
        shutil.rmtree(run / phase)
    for name in ("summary.json", "noise.png", "chain_*.png", *(f"{what}.json" for what in EXPERIMENTS)) if old else ():
        for path in run.glob(name):
            path.unlink()
    try:
        run.mkdir(parents=True, exist_ok=True)
        write_json(run / "config.json", asdict(config))
    except OSError as error:
        raise UserError(f"--run {run}: cannot write there ({error.strerror})") from None


def check(config):
    """Options that do not go together."""
    if config.model != "decoupled" and config.phase != "all":
        raise UserError(f"--model {config.model} has a single phase; leave --phase {config.phase} out")
    if config.init and config.phase not in BEFORE:
        raise UserError("--init is for --phase sst or --phase talker: the checkpoint that one phase starts from")


def describe(batch, tokenizer):
    """The first row of a batch as text: what is read, and each chain token with the token it is predicted at."""
    ids, n = batch.tokens[0, : batch.length[0]].tolist(), int(batch.start[0])
    pieces = tokenizer.pieces(ids)
    steps = [f"{a!r} → {b!r}" for a, b in zip(pieces[n - 1 :], pieces[n:], strict=False)]
    return f"prompt       {' '.join(pieces[:n])[-300:]}\nat → predicts   {', '.join(steps)[:400]}"


@torch.no_grad()
def validation_loss(model, data, config, device, after):
    """Losses and shares of a split, in eval mode -> dict of floats, each exactly its mean over the split."""
    model.eval()
    total = defaultdict(float)
    for batch in ordered_batches(data, config.batch_size):
        batch = after(batch.to(device.device))
        with device.autocast():
            _, metrics = model(batch)
        for name, value in metrics.items():
            total[name] += value
    model.train()
    return {name: float(v) for name, v in total.items()}


def right(config, item, text):
    """Is `text` the answer? GSM8K: the number behind ####; trees and strings: the whole chain, word by word."""
    if config.dataset == "gsm8k":
        answer = parse_answer(text)
        return answer is not None and same_answer(answer, parse_answer(item.chain) or "")
    return text.split() == item.chain.split()


@torch.no_grad()
def chain_accuracy(model, items, batch_size=256, dataset=None):
    """Pair or Coupled, items -> (share answered rightly, its 95% interval, list of what was said)."""
    said = [""] * len(items)
    config = replace(model.config, dataset=dataset or model.config.dataset)
    order = sorted(range(len(items)), key=lambda i: len(items[i].prompt))
    for begin in range(0, len(items), batch_size):
        index = order[begin : begin + batch_size]
        for i, text in zip(index, model.answer([items[i].prompt for i in index]), strict=True):
            said[i] = text
    hits = sum(right(config, item, text) for item, text in zip(items, said, strict=True))
    return hits / len(items), wilson(hits, len(items)), said


def folder_before(phase, whole):
    """Folder of the checkpoint that a phase starts from, checked; None for one that starts from nothing."""
    if phase not in BEFORE:
        return None
    folder, wanted = Path(whole.init or Path(whole.run) / BEFORE[phase]), BEFORE[phase]
    found = read_phase(folder, wanted)
    for name in SAME:
        if getattr(whole, name) != getattr(found, name):
            raise UserError(f"{folder} has {name} = {getattr(found, name)}, not {getattr(whole, name)}; give the "
                            "options or the --preset that it was trained with")  # fmt: skip
    if not (folder / "summary.json").is_file():
        raise UserError(f"{folder} is not finished; python -m reasoner.train --run {folder.parent} --phase {wanted} "
                        "--resume")  # fmt: skip
    return folder


def run_phase(phase, whole, splits, device, processes):
    """Train one phase from the one before it, in its own folder -> its summary."""
    config, say = of_phase(whole, phase), print if processes.main else (lambda *a: None)
    run, earlier = Path(config.run), folder_before(phase, whole)
    reasoner, init_sha = None, ""
    if earlier:
        reasoner, init_sha = load_phase(Reasoner, earlier, BEFORE[phase], device.device), sha_of(earlier)
    resume = whole.resume and (run / "state.pt").is_file()
    if resume:
        began_from = json.loads((run / "config.json").read_text(encoding="utf-8"))["init_sha"]
        if began_from != init_sha:
            raise UserError(f"{run} was trained from other weights than those now in {earlier}; --phase {phase} "
                            "--overwrite trains it anew")  # fmt: skip
        if (run / "summary.json").is_file():
            done = json.loads((run / "summary.json").read_text(encoding="utf-8"))
            if done["epochs"] >= config.epochs or 0 < config.max_steps <= done["steps"]:
                say(f"{phase}: finished, in {run}")
                return done
    config = replace(config, resume=resume, overwrite=not resume, init_sha=init_sha)
    if not resume:
        open_run(config, frozenset(), ReasonerConfig)
    tokenizer = reasoner.tokenizer if reasoner else tokenizer_of(config, run) if resume else None
    tokenizer = tokenizer or make_tokenizer(config, splits["train"])
    slots = config.thoughts if config.model == "coconut" else 0
    cls = EncodedPassages if config.dataset == "text" else Encoded
    train, val = (cls(splits[s], tokenizer, config.block_size, s, slots) for s in ("train", "val"))
    if min(config.batch_size, len(train)) < processes.world * config.grad_accum:
        raise UserError(f"a batch of {min(config.batch_size, len(train))} is less than an example for each of the "
                        f"{processes.world * config.grad_accum} micro-batches")  # fmt: skip
    longest = reasoner.config.max_chain if reasoner else int(train.r.max())
    config = replace(config, vocab_size=tokenizer.n_vocab, max_chain=config.max_chain or longest)

    torch.manual_seed(config.seed)
    model = {"pretrain": Reasoner, "sst": Reasoner, "talker": Talker, "coupled": Coupled}[phase](config)
    model.tokenizer = tokenizer
    if phase == "sst":
        model.load_state_dict(reasoner.state_dict())
        model.target.weight.data.copy_(model.embed.weight)

    def after(batch):  # what a Talker reads: the frozen Reasoner's latents
        if phase != "talker":
            return batch
        batch = batch.to(device.device)
        with device.autocast():
            return replace(batch, latents=reasoner.teacher_forced(batch).float())

    steps, batches = make_batches(train, config, processes.rank, processes.world, after)
    count = f"{model.n_params() / 1e6:.2f}M parameters trained"
    frozen = f", {reasoner.n_params() / 1e6:.2f}M frozen" if phase == "talker" else ""
    say(f"\n{phase:<10} {count}{frozen}; {config.epochs} epochs of {steps} steps of {config.batch_size} examples")
    if not earlier:
        say(describe(train.batch([0]), tokenizer) + "\n")
    if processes.main and not resume:
        clear_run(run)
    summary = fit(model, steps, batches, config, processes=processes, device=device,
                  validate=lambda m: validation_loss(m, val, config, device, after),
                  after_step=getattr(model, "update_target", None),
                  again=f"--run {whole.run} --phase {whole.phase} --resume")  # fmt: skip
    summary = {"n_params": model.n_params(), **summary, "device": device.why, "torch": torch.__version__}
    if processes.main:
        plot_loss(run, f"{phase}: {config.dataset}")
        write_json(run / "summary.json", summary)
    processes.wait()  # the next phase reads what this one wrote
    return summary


def main():
    config, given = parse(ReasonerConfig, PRESETS, __doc__.split("\n\n")[0])
    if config.resume and "phase" not in given and (Path(config.run) / "config.json").is_file():
        saved = read_config(config.run, ReasonerConfig, "", needed=("config.json",))
        config = replace(config, phase=saved.phase)  # --epochs and --lr are that phase's
    if config.phase in BEFORE:  # --epochs and --lr are pretraining's, or those of the one phase that is trained
        config = replace(config, **{f"{config.phase}_{k}": getattr(config, k) for k in {"epochs", "lr"} & given})
        given = {f"{config.phase}_{k}" if k in ("epochs", "lr") else k for k in given}
    device = resolve_device(config.device, config.precision)
    processes = Processes(device.device)
    say = print if processes.main else (lambda *a: None)
    config = open_whole(config, given)
    began = time.perf_counter()
    splits = {split: load_items(split, config) for split in ("train", "val", "test")}
    folder_before(phases_of(config)[0], config)
    processes.wait()  # all have looked at what is there
    if processes.main and not config.resume:
        clear_whole(config)
    processes.wait()
    say(f"device     {device.why}")
    if config.dataset != "text":  # which is read as it is encoded
        say(f"data       {config.dataset}: {', '.join(f'{len(v):,} {k}' for k, v in splits.items())} examples; "
            f"made or read in {time.perf_counter() - began:.1f} s")  # fmt: skip
    summaries = {phase: run_phase(phase, config, splits, device, processes) for phase in phases_of(config)}

    if processes.main and list(summaries)[-1] in ("talker", "coupled") and config.dataset != "text":
        run = Path(config.run)
        for phase in PHASES if config.model == "decoupled" else ():  # phases that earlier commands trained
            path = run / phase / "summary.json"
            if phase not in summaries and path.is_file():
                summaries[phase] = json.loads(path.read_text(encoding="utf-8"))
        share, interval, _ = chain_accuracy(load(run, device.device), splits["test"])
        name = {"tree": "route_accuracy", "cfg": "derivation_accuracy", "gsm8k": "exact_match"}[config.dataset]
        low, high = interval
        say(f"\ntest split, never seen: {len(splits['test']):,} examples, chains free-running")
        say(f"  {name.replace('_', ' '):<24}{share:8.2%}   95% interval {low:.2%} to {high:.2%}")
        write_json(run / "summary.json", {
            "n_params": sum(s["n_params"] for p, s in summaries.items() if p != "pretrain"),
            "steps": sum(s["steps"] for s in summaries.values()),
            "train_seconds": sum(s["train_seconds"] for s in summaries.values()),
            "n": len(splits["test"]), name: share, f"{name}_ci95": interval,
            "phases": {p: summaries[p] for p in (*PHASES, "coupled") if p in summaries}})  # fmt: skip
        say(f"the run is in {run}/, a folder a phase")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    run_main(main)
