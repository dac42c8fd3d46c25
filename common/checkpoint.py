"""A run's folder: files written atomically, checkpoints that load from a folder or the Hugging Face Hub alone."""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_model, save_file

from common.device import keep_freed_memory
from common.options import UserError, resumed

RUN_FILES = (".json", ".jsonl", ".png", ".pt", ".safetensors", ".tmp")  # what scripts write into a run's folder


# ----------------------------------------------------------------------------------------------- files


@contextmanager
def atomic(path: str | Path):
    """`with atomic(path) as temporary:` write there; `path` appears whole, or stays as it was if anything fails."""
    path, temporary = Path(path), Path(f"{path}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors wrap a full disk in their own
        full = getattr(error, "errno", None) == errno.ENOSPC or re.search(
            "No space left|write failed|iostream error|unexpected pos", str(error)
        )
        if not full and not isinstance(error, OSError):
            raise
        reason = "no space left on the device" if full else error.strerror
        raise UserError(f"could not write {path}: {reason}; what was there before is intact") from None
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, values: dict) -> None:
    """Write a dict as JSON, atomically."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: str | Path) -> dict:
    """A UserError names the file, and the line where it is no JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not valid JSON ({error.msg})") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None


# ----------------------------------------------------------------------------------------- run folders


def clear_run(folder: str | Path, checkpoints: Iterable[str] = ("best",)) -> None:
    """Remove what an earlier run left in its folder: files of the kinds that runs write, and its checkpoints inside.

    Other folders stay: they may be runs of their own. Called when all else is ready, so that a mistake costs nothing.
    """
    folder = Path(folder)
    (folder / "log.jsonl").unlink(missing_ok=True)  # also of a run that ended before its first checkpoint
    if not (folder / "config.json").is_file():
        return
    for name in checkpoints:
        shutil.rmtree(folder / name, ignore_errors=True)
    for path in folder.iterdir():
        if path.is_file() and path.suffix in RUN_FILES:
            path.unlink()


def read_config(folder: str | Path, cls, how: str, needed=("config.json", "model.safetensors")):
    """Folder of a checkpoint -> its configuration, a `cls`; a UserError reports what is missing or differs.

    `how` is the command that trains what is missing.
    """
    folder = Path(folder)
    for name in needed:
        if not (folder / name).is_file():
            raise UserError(f"no checkpoint in {folder} ({name} is missing); train one with: {how}")
    values = read_json(folder / "config.json")
    if values.get("system") != cls.system:
        raise UserError(f"{folder}: a checkpoint of system {values.get('system')!r}, not of {cls.system}")
    unknown = sorted(set(values) - {f.name for f in fields(cls)})
    if unknown:
        raise UserError(
            f"{folder / 'config.json'} is of another version: unknown {', '.join(unknown)}; train the run anew"
        )
    return cls(**values)


def open_run(config, given: frozenset = frozenset()):
    """Prepare the folder of a run -> its configuration: under --resume the saved one, with the command line over it."""
    run = Path(config.run)
    started = (run / "state.pt").is_file()
    if config.resume:
        if not started:
            raise UserError(
                f"--resume: there is no checkpoint in {run} (no state.pt); leave --resume out to start the run"
            )
        how = "the same command without --resume"
        return resumed(config, given, read_config(run, type(config), how, needed=("config.json",)))
    if (run / "config.json").is_file() and "system" not in read_json(run / "config.json"):  # a model of the Hub, say
        raise UserError(f"{run} is not a run: its config.json is of something else; give another folder as --run")
    if started and not config.overwrite:
        raise UserError(
            f"{run} already holds a run; --resume continues it, --overwrite starts afresh, --run NAME is another"
        )
    try:
        run.mkdir(parents=True, exist_ok=True)
        (run / "log.jsonl").touch()
    except OSError as error:
        raise UserError(f"--run {run}: cannot write there ({error.strerror})") from None
    return config


# ---------------------------------------------------------------------------------------- checkpoints


def save_model(model, config, folder: str | Path) -> None:
    """Write what `from_pretrained` reads: config.json, model.safetensors, the tokenizer if it was trained."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", asdict(config))
    if getattr(model, "tokenizer", None) is not None:
        model.tokenizer.save(folder)
    with atomic(folder / "model.safetensors") as path:
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)


def weights_hash(folder: str | Path) -> str:
    """Fingerprint of a checkpoint's weights."""
    return hashlib.sha256((Path(folder) / "model.safetensors").read_bytes()).hexdigest()[:16]


class PretrainedMixin:
    """What the models of all systems share: a device, a count, and `from_pretrained` of a folder or the Hub.

    Stands before huggingface_hub's PyTorchModelHubMixin in a class's bases.
    """

    tokenizer = None

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def n_params(self) -> int:
        """Trained parameters; a tied embedding and head count once."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def read_tokenizer(self, find) -> None:
        """Set `tokenizer` from the checkpoint, where there is one; find(name) -> path of one of its files."""

    def _save_pretrained(self, folder):
        super()._save_pretrained(folder)
        if self.tokenizer is not None:
            self.tokenizer.save(folder)

    @classmethod
    def _from_pretrained(cls, *, model_id, config, map_location="cpu", **hub):
        """Called by the mixin's `from_pretrained`: a run's folder or a repository on the Hub -> model, in eval mode."""
        hub = {k: hub[k] for k in ("revision", "cache_dir", "force_download", "token", "local_files_only") if k in hub}

        def find(name):
            return os.path.join(model_id, name) if os.path.isdir(model_id) else hf_hub_download(model_id, name, **hub)

        model = cls(config)
        try:
            load_model(model, find("model.safetensors"), device=str(map_location))
        except (RuntimeError, SafetensorError) as error:  # names or shapes that differ, or a damaged file
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"{model_id}: model.safetensors does not fit config.json: {reason}") from None
        model.read_tokenizer(find)
        return model.to(map_location).eval()


def load_checkpoint(cls, folder: str | Path, device: torch.device | str):
    """The model `cls` of a folder, in eval mode."""
    if torch.device(device).type == "cpu":
        keep_freed_memory()
    return cls.from_pretrained(folder, map_location=str(device))
