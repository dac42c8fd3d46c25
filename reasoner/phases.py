"""The folder of a run: which phases it has, what each of them starts from, how a whole run is loaded.

RUN/config.json                    the configuration of the whole
RUN/pretrain  RUN/sst  RUN/talker  a run each, that starts from the one before it; of a baseline RUN/coupled
"""

from dataclasses import asdict, replace
from pathlib import Path

import torch

from common.checkpoint import clear_run, is_started, lock_run, read_config, weights_hash, write_json
from common.options import UserError, resumed
from common.pretrained import load_checkpoint
from reasoner.baselines import Coupled
from reasoner.config import DATA, PHASES, ReasonerConfig
from reasoner.model import Reasoner, ReasonerTalker, Talker
from reasoner.steps import StepReasoner, StepTalker

BEFORE = {"sst": "pretrain", "talker": "sst"}  # a phase starts from …

# what a phase must have in common with the one before it: the data and the Reasoner
SAME = (*DATA, "tokenizer", "n_layer", "n_head", "n_embd", "n_hidden")


def phases_of(config: ReasonerConfig) -> tuple[str, ...]:
    """The phases that this command trains, in order."""
    if config.model != "decoupled":
        return ("coupled",)
    return PHASES if config.phase == "all" else (config.phase,)


def phase_config(config: ReasonerConfig, phase: str) -> ReasonerConfig:
    """The configuration of one phase: its folder, its passes over the data, its learning rate."""
    epochs = {
        "pretrain": config.epochs,
        "sst": config.sst_epochs,
        "talker": config.talker_epochs,
        "coupled": config.epochs + config.sst_epochs + config.talker_epochs,
    }
    lr = {"sst": config.sst_lr, "talker": config.talker_lr}
    run = str(Path(config.run) / phase)
    return replace(config, run=run, epochs=epochs[phase], lr=lr.get(phase, config.lr), trained=phase)


# ------------------------------------------------------------------------------------------------ loading


def read_phase(folder: str | Path, phase: str) -> ReasonerConfig:
    """The configuration of a phase's checkpoint; a UserError reports what is missing or differs."""
    folder = Path(folder)
    how = "--model coupled" if phase == "coupled" else f"--phase {phase}"
    config = read_config(folder, ReasonerConfig, f"python -m reasoner.train {how} --run {folder.parent}")
    if config.trained != phase:
        raise UserError(f"{folder}: a checkpoint of phase {config.trained or 'none'!r}; needed is one of {phase!r}")
    return config


def class_of(config: ReasonerConfig, phase: str) -> type:
    """The model of a phase. Under --reasoning steps pretraining is a Reasoner's as ever."""
    sst, talker = (StepReasoner, StepTalker) if config.of_steps else (Reasoner, Talker)
    return {"pretrain": Reasoner, "sst": sst, "talker": talker, "coupled": Coupled}[phase]


def load_phase(folder: str | Path, phase: str, device: torch.device | str = "cpu"):
    """The checkpoint of a phase -> model, in eval mode; a UserError reports what is missing or differs."""
    return load_checkpoint(class_of(read_phase(folder, phase), phase), folder, device)


def load_run(run: str | Path, device: torch.device | str = "cpu") -> ReasonerTalker | Coupled:
    """The folder of a complete run -> its models, for a baseline its model: both have `answer(prompts)`."""
    run = Path(run)
    config = read_config(run, ReasonerConfig, f"python -m reasoner.train --run {run}", needed=("config.json",))
    if config.model != "decoupled":
        return load_phase(run / "coupled", "coupled", device)
    earlier = Path((config.init if config.phase == "talker" else "") or run / "sst")
    reasoner = load_phase(earlier, "sst", device)
    talker = load_phase(run / "talker", "talker", device)
    if talker.config.init_sha != weights_hash(earlier):
        raise UserError(
            f"{run / 'talker'} was trained on other latents than those now in {earlier}; "
            "--phase talker --overwrite trains it anew"
        )
    return ReasonerTalker(reasoner, talker)


# ----------------------------------------------------------------------------------- before the training


def check_options(config: ReasonerConfig) -> None:
    """Options that do not go together."""
    if config.model != "decoupled" and config.phase != "all":
        raise UserError(f"--model {config.model} has a single phase; leave --phase {config.phase} out")
    if config.init and config.phase not in BEFORE:
        raise UserError("--init is for --phase sst or --phase talker: the checkpoint that one phase starts from")
    if config.of_steps and (config.contrast or config.sst_loss == "hard") and not config.resume:
        raise UserError(
            "--reasoning steps: its loss is that of the steps' decoder; give --sst-loss cosine and leave --contrast out"
        )
    if config.shard and config.n_thoughts:
        raise UserError("--shard is not for --model coconut: FSDP2 gives its blocks copies of the cache they must fill")


def outdated_phases(config: ReasonerConfig) -> list[str]:
    """The trained phases in --run that this command would make outdated: its own, and all that come after it."""
    first = phases_of(config)[0]
    later = PHASES[PHASES.index(first) :] if first in PHASES else PHASES
    return [name for name in (*later, "coupled") if is_started(Path(config.run) / name)]


def open_whole_run(config: ReasonerConfig, given: frozenset) -> ReasonerConfig:
    """The configuration of the whole run: the command line's, or under --resume the saved one with it on top."""
    run = Path(config.run)
    if is_started(run):
        raise UserError(f"--run {run} is the folder of a single phase; the run's own is {run.parent}")
    if config.resume:
        if not (run / "config.json").is_file():
            raise UserError(f"--resume: there is no run in {run} (no config.json); leave --resume out to start it")
        config = resumed(config, given, read_config(run, ReasonerConfig, "", needed=("config.json",)))
    check_options(config)
    outdated = outdated_phases(config)
    if outdated and not config.resume and not config.overwrite:
        raise UserError(
            f"{run} already holds a run ({', '.join(outdated)}); --resume continues it, --overwrite starts afresh, "
            "--run NAME is another"
        )
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock_run(run)
    except OSError as error:
        raise UserError(f"--run {run}: cannot write there ({error.strerror})") from None
    return config


def clear_whole_run(config: ReasonerConfig) -> None:
    """Started afresh: remove the phases to be trained anew and what was measured on them; write RUN/config.json.

    Called when data and the earlier phase have been read, so that a mistake costs nothing.
    """
    run, outdated = Path(config.run), outdated_phases(config)
    if outdated:
        clear_run(run, checkpoints=outdated)
    write_json(run / "config.json", asdict(config))


def folder_before(phase: str, whole: ReasonerConfig) -> Path | None:
    """Folder of the checkpoint that a phase starts from, checked; None for one that starts from nothing."""
    if phase not in BEFORE:
        return None
    folder, needed = Path(whole.init or Path(whole.run) / BEFORE[phase]), BEFORE[phase]
    found = read_phase(folder, needed)
    for name in SAME:
        if getattr(whole, name) != getattr(found, name):
            raise UserError(
                f"{folder} has {name} = {getattr(found, name)}, not {getattr(whole, name)}; give the options or the "
                "--preset that it was trained with"
            )
    if not (folder / "summary.json").is_file():
        raise UserError(
            f"{folder} is not finished; python -m reasoner.train --run {folder.parent} --phase {needed} --resume"
        )
    return folder
