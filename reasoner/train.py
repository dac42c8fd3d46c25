"""Train JEPA-Reasoner: `python -m reasoner.train --preset quick` does all three phases on a CPU.

    python -m reasoner.train --preset quick                            three phases, then the test split
    python -m reasoner.train --run out/reasoner-quick --resume         continue wherever it was interrupted
    python -m reasoner.train --preset quick --model coupled --run out/coupled     a baseline, as many steps in one phase
    python -m reasoner.train --preset gsm8k-small --data-dir DIR       real GSM8K, its equations as the chain
    python -m reasoner.train --preset mwp --data-dir DIR               MAWPS and ASDiv-A, programs as the chain

Each phase is a run of its own, in RUN/pretrain, RUN/sst and RUN/talker, that starts from the one before it;
RUN/config.json is the configuration of the whole.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from common.batching import length_bucketed, make_batches
from common.checkpoint import (
    clear_run,
    is_started,
    lock_run,
    open_run,
    read_config,
    read_json,
    weights_hash,
    write_json,
)
from common.device import Device, Distributed, resolve_device
from common.log import last_metrics, measuring
from common.loop import fit, mean_metrics
from common.options import UserError, parse, run_main
from common.plots import plot_loss
from common.sources import parse_answer
from common.tokenizers import Tokenizer
from common.verdict import against, nearer, try_next
from reasoner.baselines import Coupled
from reasoner.config import PHASES, PRESETS, QUESTIONS, ReasonerConfig
from reasoner.data import Batch, TokenizedDataset, TokenizedPassages, load_examples, load_tokenizer, make_tokenizer
from reasoner.experiments.measures import chain_accuracy, percent
from reasoner.model import Reasoner, Talker
from reasoner.phases import (
    BEFORE,
    class_of,
    clear_whole_run,
    folder_before,
    load_phase,
    load_run,
    open_whole_run,
    phase_config,
    phases_of,
)
from reasoner.routes import guessing
from reasoner.tasks import MEASURED, is_correct

PROGRESS = {"loss": "loss", "cos_own": "cos matched", "cos_other": "mismatched", "chain_accuracy": "accuracy"}


# ------------------------------------------------------------------------------------------- the options


def saved_config(run: str | Path) -> ReasonerConfig | None:
    """RUN/config.json, or None."""
    if not (Path(run) / "config.json").is_file():
        return None
    return read_config(run, ReasonerConfig, "", needed=("config.json",))


def options(argv: list[str] | None) -> tuple[ReasonerConfig, frozenset]:
    """Command line -> (config, given). Where a single later phase is trained, --epochs and --lr are that phase's."""
    config, given = parse(ReasonerConfig, PRESETS, __doc__, argv)
    if config.resume and "phase" not in given and (saved := saved_config(config.run)):
        config = replace(config, phase=saved.phase)
    if config.phase in BEFORE:
        own_name = {name: f"{config.phase}_{name}" for name in ("epochs", "lr") if name in given}
        config = replace(config, **{own: getattr(config, name) for name, own in own_name.items()})
        given = frozenset(own_name.get(name, name) for name in given)
    return config, given


# --------------------------------------------------------------------------------------------- one phase


def describe_row(batch: Batch, tokenizer: Tokenizer) -> str:
    """The first row of a batch as text: what is read, and each chain token with the token it is predicted at."""
    ids, n = batch.tokens[0, : batch.length[0]].tolist(), int(batch.start[0])
    pieces = tokenizer.pieces(ids)
    steps = [f"{a!r} → {b!r}" for a, b in zip(pieces[n - 1 :], pieces[n:], strict=False)]
    return f"prompt       {' '.join(pieces[:n])[-300:]}\nat → predicts   {', '.join(steps)[:400]}"


def open_phase(phase: str, whole: ReasonerConfig, earlier: Path | None) -> ReasonerConfig:
    """The configuration of a phase that starts from the checkpoint in `earlier`; its folder is made or checked."""
    config = phase_config(whole, phase)
    run = Path(config.run)
    config.init_sha = weights_hash(earlier) if earlier else ""
    config.resume = whole.resume and is_started(run)
    config.overwrite = not config.resume
    if not config.resume:
        return open_run(config)
    if saved_config(run).init_sha != config.init_sha:
        raise UserError(
            f"{run} was trained from other weights than those now in {earlier}; "
            f"--phase {phase} --overwrite trains it anew"
        )
    lock_run(run)
    return config


def finished(config: ReasonerConfig) -> dict | None:
    """The summary of a resumed phase that has no step left to train, or None."""
    path = Path(config.run) / "summary.json"
    if not config.resume or not path.is_file():
        return None
    done = read_json(path)
    return done if done["epochs"] >= config.epochs or 0 < config.max_steps <= done["steps"] else None


def tokenizer_of(config: ReasonerConfig, reasoner: Reasoner | None, train) -> Tokenizer:
    """The earlier phase's tokenizer, a resumed run's own, or a new one."""
    if reasoner:
        return reasoner.tokenizer
    return load_tokenizer(config, config.run) if config.resume else make_tokenizer(config, train)


def tokenized_splits(config: ReasonerConfig, splits: dict, tokenizer: Tokenizer) -> list[TokenizedDataset]:
    """Training and validation split."""
    cls = TokenizedPassages if config.dataset == "text" else TokenizedDataset
    return [cls(splits[name], tokenizer, config.block_size, name, config.n_thoughts) for name in ("train", "val")]


def make_model(config: ReasonerConfig, tokenizer: Tokenizer, reasoner: Reasoner | None) -> Reasoner | Talker | Coupled:
    """A new model; self-supervised training starts from the pretrained Reasoner."""
    torch.manual_seed(config.seed)
    model = class_of(config, config.trained)(config)
    model.tokenizer = tokenizer
    if config.trained == "sst":
        model.load_state_dict(reasoner.state_dict(), strict=not config.of_steps)  # whose auxiliary decoder is new
        model.target.weight.data.copy_(model.embed.weight)
    return model


def with_latents(reasoner: Reasoner, device: Device) -> Callable[[Batch], Batch]:
    """-> batch -> the batch with what a Talker reads, the frozen Reasoner's latents."""

    def transform(batch):
        batch = batch.to(device.device)
        with device.autocast():
            return replace(batch, latents=reasoner.teacher_forced(batch).float())

    return transform


def describe_phase(config: ReasonerConfig, steps: int, model, reasoner: Reasoner | None) -> str:
    """What is trained, and for how long."""
    frozen = f", {reasoner.n_params() / 1e6:.2f}M frozen" if config.trained == "talker" else ""
    count = f"{model.n_params() / 1e6:.2f}M parameters trained{frozen}"
    return f"\n{config.trained:<10} {count}; {config.epochs} epochs of {steps} steps of {config.batch_size} examples"


def run_phase(phase: str, whole: ReasonerConfig, splits: dict, device: Device, distributed: Distributed) -> dict:
    """Train one phase from the one before it, in its own folder -> its summary."""
    earlier = folder_before(phase, whole)
    config = open_phase(phase, whole, earlier)
    if done := finished(config):
        distributed.print(f"{phase}: finished, in {config.run}")
        return done

    reasoner = load_phase(earlier, BEFORE[phase], device.device) if earlier else None
    tokenizer = tokenizer_of(config, reasoner, splits["train"])
    train, val = tokenized_splits(config, splits, tokenizer)
    config.vocab_size = tokenizer.n_vocab
    config.max_chain = config.max_chain or (reasoner.config.max_chain if reasoner else int(train.chain_length.max()))
    model = make_model(config, tokenizer, reasoner)
    transform = with_latents(reasoner, device) if phase == "talker" else None
    steps, batches = make_batches(train, config, distributed.rank, distributed.world, transform)
    distributed.print(describe_phase(config, steps, model, reasoner))
    if not earlier:
        distributed.print(describe_row(train.batch([0]), tokenizer) + "\n")
    if distributed.main and not config.resume:
        clear_run(config.run)

    def validate(model):
        found = length_bucketed(val, config.batch_size)
        return mean_metrics(model, map(transform, found) if transform else found, device)

    draw = partial(plot_loss, config.run, f"{phase}: {config.dataset}")
    summary = fit(
        model,
        steps,
        batches,
        config,
        validate=validate,
        after_step=getattr(model, "update_target", None),
        distributed=distributed,
        device=device,
        progress=PROGRESS,
        draw=draw,
        resume_options=f"--run {whole.run} --phase {whole.phase} --resume",
    )
    if distributed.main:
        summary |= last_metrics(config.run, ("token_loss", "jepa_loss"))
        summary = {"n_params": model.n_params(), **summary, "device": device.why, "torch": torch.__version__}
        write_json(Path(config.run) / "summary.json", summary)
        with measuring("the curve", {}):
            draw()
    distributed.wait()  # the next phase reads what this one wrote
    return summary


# --------------------------------------------------------------------------------------------- the whole


def control(config: ReasonerConfig, train: list, test: list) -> tuple[float, str]:
    """What no model is needed for -> (rate correct, in words): a guess at every step, of answers the majority class."""
    if config.dataset in QUESTIONS:
        answers = Counter(filter(None, (x.chain if config.computes else parse_answer(x.chain) for x in train)))
        answer = answers.most_common(1)[0][0] if answers else "0"
        hits = sum(is_correct(config.dataset, x, answer if config.computes else f"#### {answer}") for x in test)
        return hits / len(test), f"always answering {answer}"
    if config.dataset == "routes":
        return sum(map(guessing, test)) / len(test), "guessing at every fork"
    # two ways a step, two rules a symbol; a tree's root is given, and a late goal, and what stands before it is free
    known = {"tree": 1, "clue": 4, "cfg": 0}[config.dataset]
    chance = sum(0.5 ** max(0, len(x.chain.split()) - known) for x in test) / len(test)
    return chance, "guessing at every fork" if known else "guessing every rule"


def report(config: ReasonerConfig, summary: dict) -> str:
    """What training prints last: the test split, what was learned in words, where the run is, what to try next."""
    name, run, latents = MEASURED[config.dataset], config.run, summary["phases"].get("sst", {})
    lines = [f"\ntest split, never seen: {summary['n']:,} examples, chains free-running"]
    if summary[name] is None:
        lines.append(f"  {name.replace('_', ' ')} was not measured: {summary['not_measured'][name]}\n")
    else:
        verdict = against(summary[name], summary[f"{name}_ci95"], summary["control"])
        lines += [
            f"  {name.replace('_', ' '):<22}{percent(summary[name], summary[f'{name}_ci95'])}\n",
            f"It solves {summary[name]:.1%} of them, {verdict} {summary['control_is']} ({summary['control']:.1%}).",
        ]
    if "val_cos_own" in latents:
        lines.append(nearer(latents["val_cos_own"], latents["val_cos_other"], "token"))
    lines.append(f"\nthe run is in {run}/, a folder a phase, its curves inside")
    what = {"tree": "tree", "clue": "clue", "routes": "posterior", "cfg": "cfg"}.get(config.dataset)
    what = what or ("trajectory" if config.reasoning in ("equations", "steps") else "containment")
    page = ["main.py"] if config.model == "decoupled" else []
    return "\n".join([*lines, try_next(run, *page, f"-m reasoner.evaluate --what {what}")])


def measure_test_split(config: ReasonerConfig, summaries: dict[str, dict], splits: dict, device: Device) -> dict:
    """-> summary.json of the whole run: the test split, its control, and the summaries of all phases."""
    run = Path(config.run)
    for phase in PHASES if config.model == "decoupled" else ():  # phases that earlier commands trained
        path = run / phase / "summary.json"
        if phase not in summaries and path.is_file():
            summaries[phase] = read_json(path)
    name, accuracy, ci95, missing = MEASURED[config.dataset], None, None, {}
    with measuring(name, missing):
        accuracy, ci95, _ = chain_accuracy(load_run(run, device.device), splits["test"])
    chance, words = control(config, splits["train"], splits["test"])
    return {
        "n_params": sum(s["n_params"] for phase, s in summaries.items() if phase != "pretrain"),
        "steps": sum(s["steps"] for s in summaries.values()),
        "train_seconds": sum(s["train_seconds"] for s in summaries.values()),
        "n": len(splits["test"]),
        name: accuracy,
        f"{name}_ci95": ci95,
        "control": chance,
        "control_is": words,
        **({"not_measured": missing} if missing else {}),
        "phases": {phase: summaries[phase] for phase in (*PHASES, "coupled") if phase in summaries},
    }


def main(argv: list[str] | None = None) -> None:
    config, given = options(argv)
    device = resolve_device(config.device, config.precision)
    distributed = Distributed(device.device)
    config = open_whole_run(config, given)

    began = time.perf_counter()
    splits = {split: load_examples(split, config) for split in ("train", "val", "test")}
    folder_before(phases_of(config)[0], config)
    distributed.wait()  # all have looked at what is there
    if distributed.main and not config.resume:
        clear_whole_run(config)
    distributed.wait()
    distributed.print(f"device     {device.why}")
    if config.dataset != "text":  # which is read as it is tokenized
        sizes = ", ".join(f"{len(examples):,} {split}" for split, examples in splits.items())
        seconds = time.perf_counter() - began
        distributed.print(f"data       {config.dataset}: {sizes} examples; made or read in {seconds:.1f} s")

    summaries = {phase: run_phase(phase, config, splits, device, distributed) for phase in phases_of(config)}
    if distributed.main and list(summaries)[-1] in ("talker", "coupled") and config.dataset != "text":
        summary = measure_test_split(config, summaries, splits, device)
        write_json(Path(config.run) / "summary.json", summary)
        print(report(config, summary))
    distributed.close()


if __name__ == "__main__":
    run_main(main)
