"""What a training comes to, in words: a figure against its control, and the commands to go on with."""

import shlex

MARGIN = 0.05  # a cosine that is higher than its control by less is hardly higher, however many examples there are
COLLAPSED = 0.9  # a cosine to any other target above this


def against(value: float, ci95: list[float], control: float) -> str:
    """A figure and its 95% interval beside a control -> 'better than', 'no better than' or 'worse than'."""
    low, high = ci95
    return "better than" if low > control else "worse than" if high < control else "no better than"


def nearer(own: float, other: float, what: str, low: float | None = None) -> str:
    """Mean cosines to the own target and another -> a sentence; `low`: where the interval of the difference begins."""
    margin = own - other if low is None else low
    how, end = "nearer" if margin >= MARGIN else "hardly nearer" if margin > 0 else "no nearer", ""
    if margin < MARGIN and other > COLLAPSED:
        end = ": all latents point one way"
    elif margin <= 0:
        end = f": no sign that anything was learned about the {what}"
    return f"The predicted latent is {how} to its own {what}'s (cosine {own:.3f}) than to another's ({other:.3f}){end}."


def try_next(run: str, *commands: str) -> str:
    """Commands without their --run -> the last lines of a training."""
    return "try next:  " + "\n           ".join(f"python {command} --run {shlex.quote(run)}" for command in commands)
