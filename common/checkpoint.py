"""A run's folder: one writer, files that are whole or not there, checkpoints that are what was saved.

Every byte of a checkpoint is under a checksum, state.pt by its format, model.safetensors by one in its header.
"""

import errno
import hashlib
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from zipfile import BadZipFile, ZipFile
from zlib import crc32

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from common.options import UserError, fault, resumed

RUN_FILES = (".json", ".jsonl", ".png", ".pt", ".safetensors", ".tmp")  # what scripts write into a run's folder
RETIRED = {"compile", "rename"}  # options that earlier runs have in their config.json
STATE, PREVIOUS = "state.pt", "state.previous.pt"  # what --resume needs; the second if the first is damaged


# ----------------------------------------------------------------------------------------------- files


@contextmanager
def atomic(path: str | Path, previous: str | Path = ""):
    """`with atomic(path) as temporary:` write there; `path` appears whole, or stays as it was if anything fails.

    What was there before is kept as `previous`, if that is a name.
    """
    path, temporary = Path(path), Path(f"{path}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        if previous and path.is_file():
            os.replace(path, previous)
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


def strict_json(values, **layout) -> str:
    """JSON as its standard has it: a number that is not finite is null. A path that is no UTF-8 keeps its bytes."""

    def finite(x):
        if isinstance(x, dict):
            return {key: finite(value) for key, value in x.items()}
        if isinstance(x, list | tuple):
            return [finite(value) for value in x]
        return None if isinstance(x, float) and not math.isfinite(x) else x

    return json.dumps(finite(values), ensure_ascii=False, allow_nan=False, **layout)


def write_json(path: str | Path, values: dict) -> None:
    """Write a dict as strict JSON, atomically."""
    text = strict_json(values, indent=2) + "\n"
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # JSON's escape of an undecodable byte


def read_json(path: str | Path) -> dict:
    """A UserError names the file, and the line where it is no JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not valid JSON ({error.msg})") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None


# ----------------------------------------------------------------------------------------- run folders


_locks = {}  # {folder: its lock}, held until this process ends


def lock_run(run: Path) -> None:
    """One run, one writer, until this process ends, in whatever way. Then what killed writers left half is removed."""
    if int(os.environ.get("RANK", 0)):  # the first of torchrun's processes writes
        return
    try:
        _locks.setdefault(run.resolve(), FileLock(run / ".lock", timeout=0)).acquire()
    except Timeout:
        raise UserError(f"{run} is being written by another training; wait for it, or give another --run") from None
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
        print(f"{run}: this disk has no locks; nothing keeps a second training out", file=sys.stderr)
    for folder in (run, run / "best"):
        for path in folder.glob("*.tmp"):
            if re.fullmatch(r".+\.\d+\.tmp", path.name):
                path.unlink(missing_ok=True)


def is_started(run: str | Path) -> bool:
    """Does a folder hold a checkpoint that --resume continues?"""
    return any((Path(run) / name).is_file() for name in (STATE, PREVIOUS))


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


def _is_like(value, default) -> bool:
    """Is a value of JSON of the type of a default?"""
    return type(value) in {float: (int, float), tuple: (list,)}.get(type(default), (type(default),))


def read_config(folder: str | Path, cls, how: str, needed=("config.json", "model.safetensors")):
    """Folder of a checkpoint -> its configuration, a `cls`; a UserError reports what is missing or differs.

    `how` is the command that trains what is missing.
    """
    folder = Path(folder)
    for name in needed:
        if not (folder / name).is_file():
            raise UserError(f"no checkpoint in {folder} ({name} is missing); train one with: {how}")
    values = read_json(folder / "config.json")
    if not isinstance(values, dict):
        raise UserError(f"{folder / 'config.json'} holds no configuration; train the run anew")
    if values.get("system") != cls.system:
        raise UserError(f"{folder}: a checkpoint of system {values.get('system')!r}, not of {cls.system}")
    values = {name: value for name, value in values.items() if name not in RETIRED}
    unknown = sorted(set(values) - {f.name for f in fields(cls)})
    if unknown:
        raise UserError(
            f"{folder / 'config.json'} is of another version: unknown {', '.join(unknown)}; train the run anew"
        )
    for f in fields(cls):
        value = values.get(f.name, f.default)
        reason = fault(f, value) if _is_like(value, f.default) else f"of the type of {f.default!r}"
        if reason:
            raise UserError(f"{folder / 'config.json'}: {f.name} is {value!r} and must be {reason}; train the run anew")
    as_path = {k: os.fsdecode(x.encode("utf-8", "surrogateescape")) for k, x in values.items() if isinstance(x, str)}
    return cls(**values | as_path)


def open_run(config, given: frozenset = frozenset(), stages: Iterable[str] = ()):
    """Prepare the folder of a run -> its configuration: under --resume the saved one, with the command line over it.

    `stages`: folders inside, whose trainings come before the run's own.
    """
    run = Path(config.run)
    started = any(is_started(run / stage) for stage in ("", *stages))
    if config.resume and config.overwrite and "overwrite" in given:
        raise UserError("--resume continues a run and --overwrite starts it afresh; give one of them")
    if config.resume:
        if not started:
            raise UserError(
                f"--resume: there is no checkpoint in {run} (no {STATE}); leave --resume out to start the run"
            )
        lock_run(run)
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
        lock_run(run)
        (run / "log.jsonl").touch()
    except OSError as error:
        raise UserError(f"--run {run}: cannot write there ({error.strerror})") from None
    return config


# ---------------------------------------------------------------------------------------- checkpoints


def read_state(path: Path, device: torch.device) -> dict:
    """What `torch.save` wrote, tensors and plain values alone; any error if a byte of it is another."""
    with ZipFile(path) as archive:  # torch.load does not look at the checksums
        if damaged := archive.testzip():
            raise BadZipFile(f"checksum of {damaged}")
    return torch.load(path, map_location=device, weights_only=True)


def checksum(tensors: dict[str, Tensor]) -> str:
    """Of all bytes of named tensors, in the order of their names, and of names, types and shapes."""
    total = crc32(repr(sorted((name, x.dtype, tuple(x.shape)) for name, x in tensors.items())).encode())
    for name in sorted(tensors):
        total = crc32(tensors[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy(), total)
    return f"{total:08x}"


def read_weights(path: str | Path, device: torch.device | str) -> dict[str, Tensor]:
    """model.safetensors -> its tensors; a UserError if it is damaged."""
    try:
        tensors = load_file(path)
        with safe_open(path, "pt") as file:
            noted = (file.metadata() or {}).get("crc32")
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is damaged or no checkpoint ({' '.join(str(error).split())[:200]})") from None
    if noted not in (None, checksum(tensors)):  # None: written by others, as the Hub's own save_pretrained
        raise UserError(f"{path} is damaged: its checksum does not match")
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def save_model(model, config, folder: str | Path, weights: dict[str, Tensor] | None = None) -> None:
    """Write what `from_pretrained` reads: config.json, model.safetensors, the tokenizer if it was trained.

    `weights`: the model's state_dict, where its own parameters are sharded.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", asdict(config))
    if getattr(model, "tokenizer", None) is not None:
        model.tokenizer.save(folder)
    tensors = {name: tensor.contiguous() for name, tensor in (weights or model.state_dict()).items()}
    with atomic(folder / "model.safetensors") as path:
        save_file(tensors, path, metadata={"crc32": checksum(tensors)})


def weights_hash(folder: str | Path) -> str:
    """Fingerprint of a checkpoint's weights."""
    return hashlib.sha256((Path(folder) / "model.safetensors").read_bytes()).hexdigest()[:16]
