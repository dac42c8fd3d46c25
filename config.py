"""Every hyperparameter of nanoJEPA: one flat dataclass, presets, command-line overrides.

    python train.py --help                       all options and presets
    python train.py --preset quick --lr 1e-3     a preset, one field changed

Precedence, weakest first: the dataclass defaults, the preset, the command line. The defaults *are* the
founding configuration. `parse` knows nothing of nanoJEPA; a sibling system hands it its own dataclass.
"""

import argparse
import ctypes
import difflib
import errno
import json
import os
import re
import sys
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import torch
from safetensors import SafetensorError


class UserError(Exception):
    """A mistake a user can mend: printed as one line, never as a traceback. Say what, where, and what to do."""


def opt(default, help, choices=None, low=None, below=None):
    """A dataclass field with its `--help` text, the values it may take if they are few, and its range if it has one."""
    return field(default=default, metadata={"help": help, "choices": choices, "low": low, "below": below})


@dataclass(frozen=True)
class Preset:
    """Named overrides. `about` says the hardware, the minutes and the figures to expect."""

    about: str
    values: dict


# ---------------------------------------------------------------------------------------------- options


@dataclass
class LoopConfig:
    """What `train.fit` reads: the run, the schedule, the device. Every system's configuration extends this."""

    # run
    run: str = opt("out/nanojepa", "folder of the run: configuration, weights, logs, curves")
    resume: bool = opt(False, "continue the run in --run where it stopped, bit for bit on a CPU")
    overwrite: bool = opt(False, "start afresh in a folder that already holds a run")
    seed: int = opt(1337, "seed of the initialisation, the batch order and dropout", low=0)
    # schedule
    epochs: int = opt(25, "passes over the training set", low=1)
    max_steps: int = opt(
        0, "stop a training after this many optimiser steps; the schedule still spans --epochs (0: no limit)", low=0
    )
    eval_every: int = opt(0, "steps between validations; one also follows each epoch (0: only those)", low=0)
    batch_size: int = opt(32, "examples per optimiser step, over all processes and micro-batches", low=1)
    grad_accum: int = opt(
        1,
        "micro-batches per step and process; no change to the step, but for losses on statistics of a micro-batch",
        low=1,
    )
    lr: float = opt(6e-4, "peak learning rate, reached after --warmup-steps", low=0.0, below=float("inf"))
    min_lr: float = opt(0.0, "learning rate at the end of the cosine decay, as a fraction of --lr", low=0.0)
    warmup_steps: int = opt(100, "steps of linear warm-up", low=0)
    weight_decay: float = opt(0.1, "AdamW decay of weight matrices and embeddings; gains are not decayed", low=0.0)
    beta2: float = opt(
        0.95, "AdamW second-moment decay; 0.95 because batches are small and runs short", low=0.0, below=1.0
    )
    grad_clip: float = opt(1.0, "largest gradient norm (0: no clipping)", low=0.0)
    # device
    device: str = opt("auto", "auto, cpu, cuda, cuda:N or mps; auto takes the best one present")
    precision: str = opt("auto", "matrix products in", ("auto", "fp32", "bf16", "fp16"))
    compile: bool = opt(
        False, "torch.compile the trunk, one program for all batch shapes; what it brings is not measured yet"
    )
    # logging
    log_every: int = opt(10, "steps between log lines, the only steps that wait for the device", low=1)
    save_every: int = opt(200, "steps between checkpoints; one is also written after each epoch", low=1)


@dataclass
class Config(LoopConfig):
    """nanoJEPA. The defaults are the founding configuration: GSM8K, 45M parameters, lambda = 1, 25 epochs."""

    # data
    dataset: str = opt("gsm8k", "questions and numeric answers from", ("gsm8k", "wordproblems"))
    data_dir: str = opt("", "read DIR/train.jsonl and DIR/test.jsonl (GSM8K's format) instead of the Hub")
    difficulty: int = opt(
        1,
        "word problems: 1 one step, small, 2 one step to 999, 3 two steps, 4 two steps with distractors",
        (1, 2, 3, 4),
    )
    variants: int = opt(
        0, "GSM8K: variants of each training question with other numbers, through its calculations", low=0
    )
    n_train: int = opt(50_000, "word problems: training problems generated", low=1)
    answer_view: str = opt("answer", "what the answer view holds: the final answer; or, for --mask causal, how it "
                           "is found (program: over letters for the question's numbers, which it then reads, too)",
                           ("answer", "solution", "equations", "program"))  # fmt: skip
    tokenizer: str = opt("gpt2", "gpt2 (tiktoken) or bpe:N, trained on the training split with N entries")
    batching: str = opt("grouped", "grouped: rows of one example, like lengths together; packed: rows of several",
                        ("grouped", "packed"))  # fmt: skip
    # model
    n_layer: int = opt(6, "Transformer blocks", low=1)
    n_head: int = opt(8, "attention heads", low=1)
    n_embd: int = opt(512, "width C of the residual stream and of the latents", low=2)
    block_size: int = opt(256, "longest row in tokens; GSM8K's longest question has 213 under gpt2", low=8)
    dropout: float = opt(
        0.1, "on embeddings and residual branches; 7k questions overfit within a few epochs", low=0.0, below=1.0
    )
    mask: str = opt("jepa", "jepa: isolated views; causal: the answer sees the question; none: all see all",
                    ("jepa", "causal", "none"))  # fmt: skip
    # objective
    jepa_weight: float = opt(1.0, "lambda in L_token + lambda * (1 - cos)", low=0.0)
    question_weight: float = opt(1.0, "next-token loss on the question, part of L_token", low=0.0)
    decode_weight: float = opt(1.0, "loss of decoding the answer from its own latent z, part of L_token", low=0.0)
    decode_pred_weight: float = opt(
        0.0, "loss of decoding it from the prediction z_hat; 0: z_hat learns by L_jepa alone", low=0.0
    )
    decode_noise: float = opt(
        0.0, "norm of the Gaussian noise on a unit latent before it is decoded; spreads latents", low=0.0
    )
    target: str = opt("stopgrad", "z in L_jepa: stopped gradient, an EMA copy of the trunk, or grad (neither)",
                      ("stopgrad", "ema", "grad"))  # fmt: skip
    ema_decay: float = opt(0.99, "decay of the target network under --target ema", low=0.0, below=1.0)
    predictor: str = opt("none", "between h[PRED] and z_hat", ("none", "mlp"))
    vicreg_var: float = opt(0.0, "weight of VICReg's variance hinge on z and z_hat", low=0.0)
    vicreg_cov: float = opt(0.0, "weight of VICReg's covariance term on z and z_hat", low=0.0)
    sigreg: float = opt(0.0, "weight of LeJEPA's SIGReg on z and z_hat", low=0.0)
    # evaluation
    max_new_tokens: int = opt(16, "longest answer that is decoded, in tokens", low=1)
    val_accuracy: bool = opt(False, "each validation also decodes its questions: val_exact_match in log.jsonl")
    final_eval: bool = opt(True, "measure the test split when training ends")

    # Filled in by train.py, never from the command line: the tokenizer decides it.
    vocab_size: int = field(default=0, metadata={"hidden": True})
    system: str = field(default="nanojepa", metadata={"hidden": True})


# --------------------------------------------------------------------------------------------- presets

PRESETS = {
    # The first command of a newcomer: no download, no GPU. Reasoning is learned through L_jepa alone (decode-on-z_hat
    # is 0). lambda 4 and a light question loss because the wording is a means here, the arithmetic is the end.
    "quick": Preset(
        "any laptop CPU, about 5 min: word problems; exact match >= 90% on operand pairs never trained on",
        dict(
            run="out/quick",
            dataset="wordproblems",
            tokenizer="bpe:1024",
            n_train=28_000,
            epochs=4,
            batch_size=32,
            n_embd=96,
            n_head=4,
            block_size=64,
            dropout=0.0,
            lr=2e-3,
            weight_decay=0.3,
            jepa_weight=4.0,
            question_weight=0.1,
            decode_noise=0.5,
        ),  # fmt: skip
    ),
    # Real GSM8K without a GPU. A small vocabulary because with GPT-2's half of the work would be the output layer.
    "gsm8k-small": Preset(
        "2 CPU cores, under 40 min: GSM8K, 5.9M parameters; answers at the constant baseline of 3%",
        dict(
            run="out/gsm8k-small", tokenizer="bpe:4096", n_embd=256, block_size=320, epochs=6, lr=1e-3, decode_noise=0.5
        ),
    ),
    # The founding configuration on small cards. Minutes are estimates from FLOPs, not measurements.
    "rtx3050": Preset(
        "RTX 3050 (4 GiB), about 15 min (estimate): the defaults in two micro-batches; figures as the defaults",
        dict(run="out/rtx3050", batch_size=32, grad_accum=2),
    ),
    "rtx3060": Preset(
        "RTX 3060 (12 GiB), about 8 min (estimate): the defaults, compiled; figures as the defaults",
        dict(run="out/rtx3060", batch_size=64, lr=8e-4, compile=True),
    ),
}

# ---------------------------------------------------------------------------------------------- parser


class _Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one line, and an unknown option is told with the nearest name there is."""

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}\n")

    def parse_args(self, args=None):
        known, unknown = self.parse_known_args(args)
        if unknown:
            word = next((w for w in unknown if w.startswith("-")), unknown[0]).split("=")[0]
            near = difflib.get_close_matches(word, self._option_string_actions, n=1, cutoff=0.5)
            self.error(f"unknown option {word}" + (f"; did you mean {near[0]}?" if near else "; see --help"))
        return known


def parse(cls, presets, description, argv=None):
    """Command line -> (config, given): an instance of dataclass `cls`, and the names set by hand.

    Every visible field of `cls` is an option `--field-name`; a bool is a pair `--x / --no-x`.
    Exits with status 2 and one line if the command line is wrong.
    """
    listing = (
        "  (none)        any GPU: the defaults; on GSM8K expect the constant baseline of 3%\n" if cls is Config else ""
    )
    listing += "\n".join(f"  {name:<14}{preset.about}" for name, preset in presets.items())
    module = getattr(sys.modules["__main__"], "__spec__", None)  # python -m NAME
    parser = _Parser(prog=f"python -m {module.name}" if module else f"python {Path(sys.argv[0]).name}",
                     description=description, epilog=f"presets:\n{listing}" if presets else None, allow_abbrev=False,
                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    if presets:
        parser.add_argument("--preset", choices=presets, metavar="NAME", help=f"one of {', '.join(presets)} (below)")
    for f in fields(cls):
        if f.metadata.get("hidden"):
            continue
        kind = type(f.default)
        extra = dict(action=argparse.BooleanOptionalAction) if kind is bool else dict(type=kind)
        if kind is tuple:
            extra = dict(nargs="+", metavar="TEXT")
        elif kind is not bool:
            extra["choices"] = f.metadata["choices"]
            extra["metavar"] = None if extra["choices"] else {int: "N", float: "X", str: "TEXT"}[kind]
        told = f.metadata["help"].endswith("]")  # the default, in words
        text = f.metadata["help"] + ("" if told else f" [{f.default if f.default not in ('', ()) else 'none'}]")
        parser.add_argument(f"--{f.name.replace('_', '-')}", default=argparse.SUPPRESS,
                            help=text.replace("%", "%%"), **extra)  # fmt: skip
    given = vars(parser.parse_args(argv))
    for f in fields(cls):
        value, low, below = given.get(f.name), f.metadata.get("low"), f.metadata.get("below")
        if value is not None and ((low is not None and not value >= low) or (below is not None and not value < below)):
            bounds = " and ".join(
                [f"at least {low}"] * (low is not None) + [f"less than {below}"] * (below is not None)
            )
            parser.error(f"--{f.name.replace('_', '-')} {value}: wants {bounds}")
    preset = given.pop("preset", None)
    return replace(cls(), **({} if preset is None else presets[preset].values) | given), frozenset(given)


@dataclass
class EvalConfig:
    """What the evaluation scripts read."""

    run: str = opt("out/nanojepa", "folder of the trained run; RUN/best is one too")
    data_dir: str = opt("", "read DIR/train.jsonl and DIR/test.jsonl instead of what the run was trained on")
    split: str = opt("test", "questions of", ("test", "val", "train"))
    limit: int = opt(0, "use the first N questions only (0: all)", low=0)
    batch_size: int = opt(64, "questions per forward pass", low=1)
    device: str = opt("auto", "auto, cpu, cuda, cuda:N or mps; auto takes the best one present")


def from_dict(cls, values, where):
    """dict -> dataclass; a key that `cls` lacks means that another system or version wrote it."""
    unknown = sorted(set(values) - {f.name for f in fields(cls)})
    if unknown:
        raise UserError(f"{where} is not a configuration of this system: unknown {', '.join(unknown)}")
    return cls(**values)


# ---------------------------------------------------------------------------------------------- device


@dataclass(frozen=True)
class Device:
    """Where the tensors live and what matrix products are computed in; `why` is printed once at the start."""

    device: torch.device
    dtype: torch.dtype
    why: str

    def autocast(self):
        """Context of a forward pass: mixed precision, or nothing under fp32."""
        return nullcontext() if self.dtype is torch.float32 else torch.autocast(self.device.type, self.dtype)

    def synchronize(self):
        """Wait for the device: before reading a clock, nowhere else."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()


def keep_freed_memory():
    """On Linux with glibc: this process keeps large blocks that it freed, instead of giving each back to the system.

    A training step on a CPU frees and asks again for the same hundreds of MiB; fresh pages cost it a tenth of its time.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # no glibc: nothing to do
        return
    mmap_max, trim_threshold = -4, -1  # from malloc.h
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)


def resolve_device(name="auto", precision="auto"):
    """("auto", "auto") -> Device. bf16 where the GPU computes it, fp16 on older GPUs, fp32 on everything else.

    A CPU never gets bf16: without AMX or AVX512-BF16 instructions its bf16 matrix products are emulated, about a
    hundred times slower than fp32.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, here in present.items() if here)
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        device = torch.device(name)
        if not present[device.type]:
            raise RuntimeError
        if device.type == "cuda":
            torch.cuda.set_device(device)
    except (RuntimeError, KeyError, ValueError):
        raise UserError(
            f"--device {name}: no such device here; present: {', '.join(k for k, v in present.items() if v)}"
        ) from None
    if device.type == "cuda":
        bf16 = torch.cuda.get_device_capability(device) >= (8, 0)
        best = (
            ("bf16", "this GPU computes bf16") if bf16 else ("fp16", "this GPU is older than bf16; losses are scaled")
        )
        label = torch.cuda.get_device_name(device)
        torch.set_float32_matmul_precision("high")
    else:
        best, label = ("fp32", "no fast half precision here"), device.type
    if precision != "auto":
        if device.type != "cuda" and precision != "fp32":
            raise UserError(
                f"--precision {precision} needs a CUDA GPU; on {device.type} half precision is emulated and slow"
            )
        best = (precision, "as asked")
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[best[0]]
    return Device(device, dtype, f"{label}, {best[0]} ({best[1]})")


# ----------------------------------------------------------------------------------------------- files


@contextmanager
def atomic(path):
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


def write_json(path, values):
    """Write a dict as JSON, atomically."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def run_main(main):
    """Run a script's `main()`: a UserError becomes one line on stderr and exit status 1."""
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:  # before or after the training loop, which leaves a checkpoint
        print("interrupted", file=sys.stderr)
        sys.exit(130)
