"""Write the numbers of the READMEs from the JSON beside this file: `python results/tables.py` rewrites them in place.

    <!-- table: NAME -->                                         a table, declared in results/table_definitions
    | … |
    <!-- end -->

    <!-- figure: quick/summary.json exact_match .1% -->97.5%<!-- end -->      a number in prose: file, keys, format

Keys are joined by a full stop; a key that holds one is quoted with backticks. `--check` changes nothing and exits
with 1 if a README differs from its JSON.
"""

import argparse
import importlib
import json
import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

RESULTS = ROOT / "results"
READMES = ("README.md", "results/README.md", "reasoner/README.md", "latent_stack/README.md", "SCALING.md")
TABLE = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.S)
FIGURE = re.compile(r"(<!-- figure: (\S+) (.+?) (\S+) -->)[^\n]*?(<!-- end -->)")


# ---------------------------------------------------------------------------------------------- values


@cache
def load(file: str) -> dict:
    """A JSON file under results/."""
    return json.loads((RESULTS / file).read_text(encoding="utf-8"))


def get(file: str, keys: str):
    """('quick/alignment.json', 'untrained.cos_own') -> the value; a list takes numbers as keys."""
    value = load(file)
    for quoted, plain in re.findall(r"`([^`]*)`|([^.`]+)", keys):
        key = quoted or plain
        value = value[int(key)] if isinstance(value, list) else value[key]
    return value


def number(value: float, form: str = ".3f") -> str:
    """A number in a format; `.1p` is a percentage without its sign, `+.2p` with the number's own sign."""
    return format(100 * value, form.replace("p", "f")) if form.endswith("p") else format(value, form)


def interval(mean: float, ci95: list[float], form: str = ".3f") -> str:
    """'0.127 (0.121 to 0.133)', '97.5% (96.3 to 98.3)'."""
    bare = form.replace("%", "p")
    return f"{number(mean, form)} ({number(ci95[0], bare)} to {number(ci95[1], bare)})"


def with_ci(file: str, keys: str, form: str = ".3f") -> str:
    """A value with its interval: keys and keys_ci95, or a dict with mean (or share, exact_match) and ci95."""
    value = get(file, keys)
    if not isinstance(value, dict):
        return interval(value, get(file, f"{keys}_ci95"), form)
    mean = next(value[k] for k in ("mean", "share", "exact_match") if k in value)
    return interval(mean, value["ci95"], form)


def plus_minus(values: dict, form: str = ".3f") -> str:
    """{"mean", "std"} over seeds -> '95.3 ± 3.2%'."""
    bare, sign = form.replace("%", "p"), "%" if form.endswith("%") else ""
    return f"{number(values['mean'], bare)} ± {number(values['std'], bare)}{sign}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """Cells -> Markdown."""
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


# --------------------------------------------------------------------------------------------- writing


def definitions() -> dict[str, Callable[[], str]]:
    """{name: function that returns the Markdown of a table}, from every module of results/table_definitions."""
    found = {}
    for path in sorted((RESULTS / "table_definitions").glob("[a-z]*.py")):
        found |= importlib.import_module(f"results.table_definitions.{path.stem}").TABLES
    return found


def rewritten(text: str, tables: dict[str, Callable[[], str]], where: str) -> str:
    """A README's text with every table and figure written anew."""

    def write_table(match):
        if match[2] not in tables:
            raise SystemExit(f"error: {where}: no table {match[2]!r} in results/table_definitions")
        return f"{match[1]}{tables[match[2]]()}\n{match[3]}"

    def write_figure(match):
        return f"{match[1]}{number(get(match[2], match[3]), match[4])}{match[5]}"

    return FIGURE.sub(write_figure, TABLE.sub(write_table, text))


def differing(text: str, new: str) -> list[str]:
    """The tables and figures that are not what the JSON says: their markers."""
    pairs = zip(TABLE.finditer(text), TABLE.finditer(new), strict=True)
    found = [old[2] for old, fresh in pairs if old[0] != fresh[0]]
    pairs = zip(FIGURE.finditer(text), FIGURE.finditer(new), strict=True)
    return found + [old[0] for old, fresh in pairs if old[0] != fresh[0]]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a README differs")
    args = parser.parse_args(argv)
    tables, wrong = definitions(), []
    for name in READMES:
        path = ROOT / name
        text = path.read_text(encoding="utf-8")
        new = rewritten(text, tables, name)
        wrong += [f"{name}: {marker}" for marker in differing(text, new)]
        if not args.check:
            path.write_text(new, encoding="utf-8")
    for line in wrong:
        print(("differs: " if args.check else "wrote: ") + line)
    if args.check and wrong:
        sys.exit(1)


if __name__ == "__main__":
    main()
