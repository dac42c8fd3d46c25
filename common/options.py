"""The command line: a flat dataclass becomes options, a preset is a set of named overrides, a mistake is one line.

    python train.py --help                       the presets, and the options that a newcomer turns
    python train.py --help-all                   the presets, and every option in groups
    python train.py --preset quick --help-all    the same with that preset's defaults
    python train.py --preset quick --lr 1e-3     a preset, one option changed

Precedence, weakest first: the dataclass, the preset (under --resume: the saved configuration), the command line.
"""

import argparse
import difflib
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

LARGEST = 2**31 - 1  # of whole numbers; seeds are multiplied by 10^9 on their way into 63 bits


class UserError(Exception):
    """A mistake a user can mend: printed as one line, never as a traceback. Say what, where, and what to do."""


def opt(default, help, choices=None, low=None, below=None, group=None, path=False, library=False) -> Any:
    """A dataclass field that is an option: its `--help` text, the values it may take if they are few, its range.

    `group` is the heading in `--help-all` of this option and of those that follow. With `path` a file or folder that
    there is becomes an absolute path: a run remembers it, and is evaluated from anywhere. With `library` a value other
    than the default names an optional library, which must be installed.
    """
    metadata = dict(help=help, choices=choices, low=low, below=below, group=group, path=path, library=library)
    return field(default=default, metadata=metadata)


def internal(default) -> Any:
    """A dataclass field that scripts fill in and the command line does not know."""
    return field(default=default, metadata=dict(help=None))


@dataclass(frozen=True)
class Preset:
    """Named overrides. `about` gives the hardware, the minutes and the figures to expect."""

    about: str
    values: dict


@dataclass
class LoopConfig:
    """The options of every training script: the run, the schedule, the device, the log. `loop.fit` reads them."""

    run: str = opt("out/run", "folder of the run: configuration, weights, logs, curves", group="run")
    resume: bool = opt(False, "continue the run in --run where it stopped, bit for bit on a CPU")
    overwrite: bool = opt(False, "start afresh where a run is: its .json, .jsonl, .png and weights go")
    seed: int = opt(1337, "seed of the initialisation, the batch order and dropout", low=0)

    epochs: int = opt(25, "passes over the training set", low=1, group="schedule")
    max_steps: int = opt(0, "stop after N steps, within the schedule of --epochs (0: no limit)", low=0)
    eval_every: int = opt(0, "steps between validations; one also follows each epoch (0: only those)", low=0)
    batch_size: int = opt(32, "examples per optimiser step, over all processes and micro-batches", low=1)
    grad_accum: int = opt(1, "micro-batches per step and process; changes only losses on batch statistics", low=1)
    optimizer: str = opt("adamw", "adamw, or muon for the matrices of Transformer blocks", ("adamw", "muon"))
    lr: float = opt(6e-4, "peak learning rate, reached after --warmup-steps", low=0.0)
    min_lr: float = opt(0.0, "learning rate at the end of the cosine decay, as a fraction of --lr", low=0.0)
    warmup_steps: int = opt(100, "steps of linear warm-up", low=0)
    weight_decay: float = opt(0.1, "decay of matrices and embeddings; norm weights are not decayed", low=0.0)
    beta2: float = opt(0.95, "AdamW second-moment decay; 0.95: batches are small, runs short", low=0.0, below=1.0)
    grad_clip: float = opt(1.0, "largest gradient norm (0: no clipping)", low=0.0)

    device: str = opt("auto", "auto, cpu, cuda, cuda:N or mps; auto takes the best one present", group="device")
    precision: str = opt("auto", "of matrix products", ("auto", "fp32", "bf16", "fp16"))
    shard: bool = opt(False, "several processes hold a part each of weights, gradients and AdamW's state (FSDP2)")

    log_every: int = opt(10, "steps between log lines, the only steps that wait for the device", low=1, group="log")
    save_every: int = opt(200, "steps between checkpoints; one is also written after each epoch", low=1)
    live: bool = opt(True, "draw the curves anew during training, in 2% of its time at most")
    track: str = opt(
        "none",
        "send what log.jsonl gets to this tracker, too",
        ("none", "trackio", "wandb", "tensorboard"),
        library=True,
    )

    # What may differ from the saved configuration when a run is resumed.
    RESUMABLE: ClassVar[frozenset] = frozenset(
        "run resume overwrite device precision shard epochs max_steps grad_accum log_every save_every eval_every "
        "live track data_dir".split()
    )
    # What --help lists where a class says so itself; --help-all lists all.
    COMMON: ClassVar[frozenset] = frozenset(
        "run resume overwrite seed epochs max_steps batch_size lr device data_dir".split()
    )

    def __post_init__(self):
        if self.shard and self.optimizer == "muon":
            raise UserError("--shard goes with --optimizer adamw: Muon orthogonalises whole matrices")


# ---------------------------------------------------------------------------------------------- parser


def one_line(message: object, longest: int = 1000) -> str:
    """A message as one line, whatever it quotes: line breaks as \\n and the like, and cut off if it is too long."""
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(message))
    return text if len(text) <= longest else f"{text[:longest]}…"


class _Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one line."""

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {one_line(message)}\n")


class _Help(argparse.RawDescriptionHelpFormatter):
    """argparse's help with room for long names, and a switch as --[no-]name."""

    def __init__(self, prog):
        super().__init__(prog, max_help_position=28)

    def _format_action_invocation(self, action):
        if isinstance(action, argparse.BooleanOptionalAction):
            return f"--[no-]{action.option_strings[0][2:]}"
        return super()._format_action_invocation(action)


def listing(entries: dict[str, str]) -> str:
    """{name: text} as two columns of a terminal; the text of a long name stands below it."""
    width = shutil.get_terminal_size().columns - 2
    column = min(4 + max(map(len, entries)), width - 36)
    lines = []
    for name, text in entries.items():
        below = len(name) + 4 > column
        first = " " * column if below else f"  {name:<{column - 2}}"
        text = textwrap.fill(text, width, initial_indent=first, subsequent_indent=" " * column, break_on_hyphens=False)
        lines += [f"  {name}", text] if below else [text]
    return "\n".join(lines)


def examples(docstring: str) -> dict[str, str]:
    """The commands in the second paragraph of a script's docstring -> {command: what it does}."""
    lines = (docstring.split("\n\n") + [""])[1].splitlines()
    pairs = [re.split(r" {2,}", line.strip(), maxsplit=1) for line in lines]
    return {pair[0]: pair[-1] for pair in pairs if len(pair) == 2}


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def closest_option(word: str, help_of: dict[str, str]) -> str:
    """Mistyped option -> the flag meant: by a like name, by its beginning, or by its help; "" if none."""
    name = word.lstrip("-").replace("-", "_")
    near = difflib.get_close_matches(name, help_of, n=1, cutoff=0.7)
    near += [option for option in help_of if option.startswith(f"{name}_")]
    spoken = re.escape(name.replace("_", " "))
    near += [option for option, text in help_of.items() if re.search(rf"\b{spoken}\b", text)]
    return flag(near[0]) if near else ""


def program() -> str:
    """The running script as a user calls it."""
    module = getattr(sys.modules["__main__"], "__spec__", None)  # python -m NAME
    return f"python -m {module.name}" if module else f"python {Path(sys.argv[0]).name}"


def _preset_of(argv, presets) -> str | None:
    """The --preset of a command line, read first: it decides the defaults that --help shows."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--preset")
    try:
        name = first.parse_known_args(argv)[0].preset
    except argparse.ArgumentError:  # --preset without a name: the whole parser reports it
        return None
    return name if name in presets else None


def _add_options(parser: argparse.ArgumentParser, defaults, shown) -> dict[str, str]:
    """Every visible field of the dataclass as an option -> {name: help}. `shown`: those that --help lists, None: all,
    in groups."""
    group, help_of = parser, {}
    for f in fields(defaults):
        if f.metadata["help"] is None:
            continue
        if f.metadata["group"] and shown is None:
            group = parser.add_argument_group(f.metadata["group"])
        default, kind = getattr(defaults, f.name), type(f.default)
        if kind is bool:
            extra = dict(action=argparse.BooleanOptionalAction)
        elif kind is tuple:
            extra = dict(nargs="+", metavar="TEXT")
        elif f.metadata["choices"]:
            extra = dict(type=kind, choices=f.metadata["choices"])
            if len(",".join(map(str, extra["choices"]))) > 66:  # no room in 80 columns; the help text has them
                extra["metavar"] = "NAME"
        else:
            extra = dict(type=kind, metavar={int: "N", float: "X", str: "TEXT"}[kind])
        help_of[f.name] = f.metadata["help"]
        shown_default = "" if default is False else f" [{'none' if default in ('', ()) else default}]"
        text = f"{f.metadata['help']}{shown_default}".replace("%", "%%")
        text = text if shown is None or f.name in shown else argparse.SUPPRESS
        group.add_argument(flag(f.name), default=argparse.SUPPRESS, help=text, **extra)
    return help_of


def fault(f, value) -> str:
    """What a value must be and is not, or "". Numbers are finite and bounded; an empty text must have a meaning."""
    if (choices := f.metadata.get("choices")) and value not in choices:
        return f"one of {', '.join(map(str, choices))}"
    if isinstance(value, list | tuple):
        return next(filter(None, (fault(f, part) for part in value)), "")
    if isinstance(value, str):
        return "without NUL" if "\0" in value else "" if value or not f.default else "given"
    low, below = f.metadata.get("low"), f.metadata.get("below")
    top = LARGEST if isinstance(value, int) else sys.float_info.max
    if (-top if low is None else low) <= value <= top and (below is None or value < below):
        return ""
    most = f"less than {below}" if below is not None else "finite" if isinstance(value, float) else f"at most {top}"
    return most if low is None else f"at least {low} and {most}"


def _parser(presets: dict[str, Preset], docstring: str, few: bool, whole: bool) -> _Parser:
    """A parser that knows --help, --help-all if there are few options that --help lists, and --preset."""
    commands = list(examples(docstring).items())[: 2 if few else None]
    about = [textwrap.fill(docstring.split("\n\n")[0], shutil.get_terminal_size().columns - 2)]
    about += ["presets:\n" + listing({name: p.about for name, p in presets.items()})] if presets else []
    parser = _Parser(
        prog=program(),
        usage="%(prog)s [--preset NAME] [--option VALUE …]" if presets else "%(prog)s [--option VALUE …]",
        description="\n\n".join(about),
        epilog="examples:\n" + listing(dict(commands)) if commands else None,
        formatter_class=_Help,
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("-h", "--help", action="help", help="print this and end")
    if few or whole:
        parser.add_argument("--help-all", action="help", help="the same with every option, in groups")
    if presets:
        names = "a preset; with --help, its defaults"
        parser.add_argument("--preset", choices=presets, metavar="NAME", help=names)
    return parser


def parse(cls, presets: dict[str, Preset], docstring: str, argv: list[str] | None = None):
    """Command line -> (config, given): an instance of dataclass `cls`, and the names of the options given by hand.

    `docstring`: a script's own, of which --help shows the first sentence and the commands. A bool is a pair
    `--x / --no-x`. Exits with status 2 and one line if the command line is wrong.
    """
    argv = sys.argv[1:] if argv is None else argv
    preset, common = _preset_of(argv, presets), vars(cls).get("COMMON")  # a subclass has options of its own
    defaults = replace(cls(), **(presets[preset].values if preset else {}))
    shown = None if "--help-all" in argv else common
    parser = _parser(presets, docstring, few=shown is not None, whole=common is not None)
    help_of = _add_options(parser, defaults, shown)
    given, unknown = parser.parse_known_args(argv)
    given = vars(given)
    if unknown:
        word = next((w for w in unknown if w.startswith("-")), unknown[0]).split("=")[0]
        near, page = closest_option(word, help_of), "--help-all" if common else "--help"
        parser.error(f"unknown option {word}; {f'did you mean {near}?' if near else f'see {page}'}")
    given.pop("preset", None)
    for f in fields(cls):
        if f.name in given:
            value = given[f.name]
            if reason := fault(f, value):
                parser.error(f"{flag(f.name)} {value}: must be {reason}")
            if f.metadata["path"] and os.path.exists(value):
                given[f.name] = os.path.abspath(value)
            if f.metadata["library"] and value != f.default and find_spec(value) is None:
                raise UserError(f"{flag(f.name)} {value}: not installed; pip install {value}")
    return replace(defaults, **given), frozenset(given)


def resumed(config, given: frozenset, saved):
    """The command line over the saved configuration; what the run cannot change is refused."""
    for name in sorted(given - config.RESUMABLE):
        if getattr(config, name) != getattr(saved, name):
            raise UserError(
                f"--resume: the run in {config.run} has {name} = {getattr(saved, name)}, not {getattr(config, name)}; "
                "leave the option out, or start another run"
            )
    changes = {name: getattr(config, name) for name in given & config.RESUMABLE}
    return replace(saved, **changes | {"resume": True, "run": config.run})


def ask_each(text: str, answer: Callable[[str], str]) -> None:
    """--ask: print the answer to a text, or with - to every line of standard input; the lines that are refused are
    reported with their numbers when the others have been answered."""
    if text != "-":
        return print(answer(text), flush=True)
    lines, refused = [(i, line.strip()) for i, line in enumerate(sys.stdin, 1) if line.strip()], []
    for i, line in lines:
        try:
            print(answer(line), flush=True)
        except UserError as error:
            refused.append(f"line {i}: {error}")
    if not lines:
        raise UserError("--ask - : no question on standard input")
    if refused:
        raise UserError("; ".join(refused))


def run_main(main) -> None:
    """Run a script's `main()`: a UserError, or what the system refuses, becomes one line and exit status 1."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a console that is not UTF-8 gets replacements, never a traceback
            stream.reconfigure(errors="replace")
    try:
        main()
    except (UserError, OSError, UnicodeError) as error:  # a name too long, a full disk; bytes that are no text
        sys.exit(f"error: {one_line(error)}")
    except KeyboardInterrupt:  # before or after the training loop, which leaves a checkpoint
        print("interrupted", file=sys.stderr)
        sys.exit(130)
