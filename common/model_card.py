"""The model card of a checkpoint: what it is, its data, its figures beside their controls, from the run's own JSON.

`save_pretrained` and `push_to_hub` write it as README.md. No figure in it is typed by hand.
"""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from common.checkpoint import read_json

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Card:
    """What a system says of its models. `figures`: (key in summary.json, what it is, key of its control, what that is).

    `use` is Python with {name} for the class and {where!r} for the folder or the name on the Hub.
    """

    about: str
    figures: tuple[tuple[str, str, str, str], ...]
    limits: str
    use: str


def code_version() -> str:
    """The commit of this checkout, "unknown" outside of one."""
    words = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def figures_of(card: Card, summary: dict) -> str:
    """A table of what summary.json has, each figure beside its control if it was measured."""
    rows = []
    for key, name, control, control_name in card.figures:
        if summary.get(key) is not None and (not control or summary.get(control) is not None):
            low, high = summary.get(f"{key}_ci95") or (None, None)
            interval = "" if low is None else f" (95% interval {low:.3f} to {high:.3f})"
            beside = f"{summary[control]:.3f} ({control_name})" if control else ""
            rows.append(f"| {name} | {summary[key]:.3f}{interval} | {beside} |")
    if not rows:
        return "No figures: this checkpoint was saved without the summary.json of its run."
    return "\n".join(["| measured | figure | control |", "|---|---|---|", *rows])


def model_card(model, where: str) -> str:
    """The Markdown of a model's card, below its metadata; `where`: the folder or name on the Hub to load it from."""
    config, path = model.config, Path(model.loaded_from or "") / "summary.json"
    summary = read_json(path) if model.loaded_from and path.is_file() else {}
    folder, seconds = Path(getattr(config, "data_dir", "")).name, summary.get("train_seconds")
    data = config.dataset + (f", the folder `{folder}`" if folder else "")
    training = f" {summary['steps']:,} steps in {seconds:.0f} s on {summary['device']}." if seconds else ""
    return f"""# {type(model).__name__}

{model.card.about} {model.n_params():,} trained parameters.

## Data and training

{data}.{training} All options: `config.json`.

## Figures

{figures_of(model.card, summary)}

## Limits

{model.card.limits}

## Use

The code is that of this library, commit `{code_version()}`; its README says how to get and install it. In its folder:

```python
{model.card.use.format(where=where, name=type(model).__name__)}
```

MIT licence; the data has its own.
"""
