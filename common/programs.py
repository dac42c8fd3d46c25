"""Programs: the operations of a solution over the question's numbers, and their calculation without `eval`.

    question   "Tom has α pears. Ana gives Tom β more."     placeholders α = 12, β = 30, in order of appearance
    program    "α+β,a*2"                                    Greek letters: numbers; a, b, c …: results so far

After Amini et al. 2019 (MathQA, arXiv 1905.13319).
"""

import ast
import math
import operator
import re

from simpleeval import SimpleEval

from common.sources import Example, same_answer

PLACEHOLDERS, RESULTS = "αβγδεζηθικλμνξοπρστυφχψω", "abcdefghijklmnopqrstuvwxyz"
NUMBER = r"\d+(?:,\d{3})*(?:\.\d+)?"  # as written: 1,200 or 2.50
OPERAND = r"\d+(?:\.\d*)?|\.\d+"  # as calculated with; read in one way only, so that a refusal takes linear time
_WRITTEN = rf"(?<![\d.])\.\d+|{NUMBER}"
_TERM = rf"\(*(?:{OPERAND}|[a-z{PLACEHOLDERS}])\)*"
_STEP = re.compile(rf"{_TERM}(?:[-+*/]{_TERM})*")
MAX_STEP = 200  # characters; GSM8K's longest has 59. `ast` and simpleeval recurse into a thousand terms
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def values_of(pattern: str, text: str) -> list[float]:
    """The numbers that a pattern finds in a text."""
    return [float(x.replace(",", "")) for x in re.findall(pattern, text)]


def number_placeholders(question: str) -> tuple[str, dict[str, float]]:
    """Question -> (the same with its numbers as Greek letters, {letter: number}); equal numbers share a letter.

    A number too large for a float stays as it is.
    """
    values = (x for x in values_of(_WRITTEN, question) if math.isfinite(x))
    numbers = dict(zip(PLACEHOLDERS, dict.fromkeys(values), strict=False))
    letter = {x: name for name, x in numbers.items()}

    def placeholder(match):
        return f" {letter.get(float(match[1].replace(',', '')), match[1])}"

    return re.sub(rf" ?({_WRITTEN})", placeholder, question), numbers


def calculate(expression: str, names: dict[str, float]) -> float:
    """+ - * / and parentheses over numbers and names, all as floats: whole numbers could grow without end.

    Raises ArithmeticError, SyntaxError, or simpleeval's errors for anything else.
    """
    as_floats = re.sub(OPERAND, lambda m: repr(float(m[0])), expression)
    return SimpleEval(operators=OPERATORS, functions={}, names=names).eval(as_floats)


def is_step(text: str) -> bool:
    """Could a text be one step of a program, but for its parentheses?"""
    return len(text) <= MAX_STEP and _STEP.fullmatch(text) is not None


def normal_form(program: str) -> str:
    """A program with the operands of its sums and products in one order: 'β+α' -> 'α+β', 'α-(γ+β)' -> 'α-β-γ'."""
    if not all(map(is_step, program.split(","))):
        return program
    try:
        return ",".join(_normal(ast.parse(step, mode="eval").body) for step in program.split(","))
    except SyntaxError:  # an open parenthesis
        return program


def _normal(node: ast.expr) -> str:
    for signs, kinds in (("+-", (ast.Add, ast.Sub)), ("*/", (ast.Mult, ast.Div))):
        if isinstance(node, ast.BinOp) and isinstance(node.op, kinds):
            up, down = (
                [_operand(x, signs) for x, under in _operands(node, kinds) if under == u] for u in (False, True)
            )
            return signs[0].join(sorted(up, key=_order)) + "".join(signs[1] + text for text in sorted(down, key=_order))
    return ast.unparse(node)


def _order(operand: str) -> tuple:
    """Numbers of the question come first."""
    return operand[0] not in PLACEHOLDERS, operand


def _operands(node: ast.expr, kinds: tuple, under: bool = False) -> list[tuple[ast.expr, bool]]:
    """The operands of nested sums (or products), and whether each is subtracted (divided by)."""
    if not (isinstance(node, ast.BinOp) and isinstance(node.op, kinds)):
        return [(node, under)]
    right = _operands(node.right, kinds, under != isinstance(node.op, kinds[1]))
    return _operands(node.left, kinds, under) + right


def _operand(node: ast.expr, signs: str) -> str:
    text = _normal(node)
    is_sum = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub)
    return f"({text})" if is_sum and signs == "*/" else text


def value_of(program: str, numbers: dict[str, float]) -> float:
    """A program -> its last result, NaN if it is none or divides by zero."""
    known, value = dict(numbers), math.nan
    try:
        for step, name in zip(program.split(","), RESULTS, strict=False):
            if not is_step(step):
                return math.nan
            known[name] = value = calculate(step, known)
    except Exception:  # a letter that stands for nothing, a division by zero, an open parenthesis
        return math.nan
    return value


def compute(program: str, numbers: dict[str, float]) -> str:
    """A program -> its last result as text, "" if it is none or divides by zero."""
    value = value_of(program, numbers)
    return f"{value:.6f}".rstrip("0").rstrip(".") if math.isfinite(value) else ""


def computable(program: str, numbers: dict[str, float]) -> bool:
    """Does a question with these numbers have all that a program reads?"""
    return set(program) & set(PLACEHOLDERS) <= numbers.keys()


PROBES = {name: 2 + (0.618034 * (i + 1)) % 1 * 7 for i, name in enumerate(PLACEHOLDERS)}  # spread over 2 … 9


def function_of(program: str) -> str:
    """What a program computes at fixed numbers, equal for α+β and β+α; the program itself if it computes nothing."""
    value = value_of(program, PROBES)
    return f"{value:.9g}" if math.isfinite(value) else program


def _named(number: str, percent: str, letter: dict[float, str]) -> str:
    name = letter.get(float(number), number)
    return f"({name}/100)" if percent else name


def program_of(example: Example) -> str | None:
    """An annotated solution as a program, '<<48/2=24>> … <<48+24=72>>' -> 'α/2,α+a'.

    Digits are numbers that the question does not write. None if the program would not compute the answer.
    """
    _, numbers = number_placeholders(example.question)
    letter, steps = {x: name for name, x in numbers.items()}, []
    for left, right in re.findall(r"<<([^=<>]+)=([^<>]+)>>", example.solution):
        if not re.fullmatch(rf"{NUMBER}|{OPERAND}", right):
            return None
        left = re.sub(r"[\s,$]", "", left)
        if re.search(r"[-+*/]", left):  # "<<55=55>>" is no step
            if len(steps) == len(RESULTS):
                return None
            steps.append(re.sub(rf"({OPERAND})(%?)", lambda m, letter=letter: _named(*m.groups(), letter), left))
            letter[float(right.replace(",", ""))] = RESULTS[len(steps) - 1]
    text = normal_form(",".join(steps))
    return text if same_answer(compute(text, numbers), example.answer) else None
