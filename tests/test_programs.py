"""common/programs.py: solutions as operations over the question's numbers, and their calculation."""

import re
import time

import pytest
from simpleeval import InvalidExpression

from common.programs import calculate, computable, compute, function_of, normal_form, number_placeholders, program_of
from common.sources import Example, load_jsonl

APPLES = Example(
    "Ana has 12 apples and buys 8 boxes of 6 apples. Each costs $2.50. How many apples has she?",
    "60",
    "*+",
    "She buys 8*6=<<8*6=48>>48 apples.\nShe has 12+48=<<12+48=60>>60 apples.\n#### 60",
)


def made_of(question: str, solution: str, answer: str) -> str | None:
    return program_of(Example(question, answer, "", solution))


def test_a_questions_numbers_become_letters_in_order():
    text, numbers = number_placeholders(APPLES.question)
    assert text == "Ana has α apples and buys β boxes of γ apples. Each costs $ δ. How many apples has she?"
    assert numbers == {"α": 12, "β": 8, "γ": 6, "δ": 2.5}


def test_numbers_are_read_as_they_are_written_and_equal_ones_share_a_letter():
    assert number_placeholders(".5 and $.20 of 7.5.") == (" α and $ β of γ.", {"α": 0.5, "β": 0.2, "γ": 7.5})
    assert number_placeholders("1,200 and 1200") == (" α and α", {"α": 1200})


def test_a_program_is_the_solution_over_letters_and_computes_its_answer():
    assert program_of(APPLES) == "β*γ,α+a"
    assert compute("β*γ,α+a", number_placeholders(APPLES.question)[1]) == "60"


def test_programs_that_compute_the_same_are_one_function_and_others_are_not():
    for same in (("α+β", "β+α"), ("α-(β+γ)", "α-β-γ"), ("α*β,a+γ", "γ+α*β"), ("nonsense", "nonsense")):
        assert function_of(same[0]) == function_of(same[1])
    programs = ("α+β", "α-β", "β-α", "α*β", "α/β", "β/α", "α+γ", "α*2", "α+2", "(α+β)/γ", "α+β/γ", "nonsense", "")
    assert len({function_of(program) for program in programs}) == len(programs)


@pytest.mark.parametrize(
    "program, expected",
    (
        ("β+α", "α+β"),
        ("α*β,a+α/2", "α*β,α/2+a"),
        ("α-(γ+β)", "α-β-γ"),
        ("α-(β-γ)", "α+γ-β"),
        ("(β+α)*γ/2,(3-a)*α", "γ*(α+β)/2,α*(3-a)"),
        ("α/(γ*β)", "α/β/γ"),
        ("α/(β/γ)", "α*γ/β"),
        ("α-β*(γ+α)", "α-β*(α+γ)"),
        ("no program(", "no program("),
    ),
)
def test_a_program_has_one_form_that_computes_the_same(program, expected):
    assert normal_form(program) == expected == normal_form(expected)
    assert function_of(program) == function_of(expected)


def test_a_program_is_computable_where_the_question_has_its_numbers():
    _, numbers = number_placeholders("2 and 3")
    assert computable("α*β,a/100", numbers) and computable("", numbers) and not computable("α+γ", numbers)


@pytest.mark.parametrize(
    "question, solution, answer, program",
    (
        ("20% of $1,500, twice.", "<<1500*20%=300>> <<300*2=600>> <<600=600>>", "600", "α*β/100,2*a"),
        ("20% of 100.", "<<100*20%=20>>", "20", "α*β/100"),
        ("Half of 3.", "<<3*.5=1.5>>", "1.5", "α*0.5"),
    ),
)
def test_percent_signs_and_numbers_that_the_question_does_not_write(question, solution, answer, program):
    assert made_of(question, solution, answer) == program


@pytest.mark.parametrize(
    "solution, answer", (("<<1+2=3>>", "4"), ("three", "3"), ("<<1+x=3>>", "3"), ("<<1/0=3>>", "3"), ("", "3"))
)
def test_a_solution_that_does_not_compute_its_answer_is_no_program(solution, answer):
    assert made_of("1 and 2", solution, answer) is None


BROKEN = ("", "α/0", "b+1", "9**9**9", "α//2", "(α", "α(2)", "α.real", "-", "α+", "__import__", "α,", "(" * 5000 + "α")


@pytest.mark.parametrize("program", BROKEN)
def test_what_is_no_program_computes_nothing(program):
    assert compute(program, {"α": 3.0}) == ""


def test_a_program_that_overflows_computes_nothing():
    assert compute("β*β", {"β": 1e200}) == ""


@pytest.mark.parametrize(
    "program",
    (
        "*".join(["100"] * 60) + "*",
        "9" * 40_000 + "x",
        ",".join(["9*9", *(f"{x}*{x}" for x in "abcdefghijkl")]),  # whole numbers would have thousands of digits
    ),
)
def test_no_text_that_a_model_may_write_takes_long_to_refuse(program):
    """A pattern that can read a number in two ways took time exponential in the number of factors."""
    began = time.perf_counter()
    assert compute(program, {"α": 3.0}) == ""
    assert time.perf_counter() - began < 0.5


@pytest.mark.parametrize("text", ("__import__('os')", "x.__class__", "abs(1)", "9**9**9**9", "[x] * 9"))
def test_nothing_but_arithmetic_is_calculated(text):
    """It is what a model wrote: `eval` would run it."""
    with pytest.raises((SyntaxError, InvalidExpression)):
        calculate(text, {"x": 1.0})


def test_results_are_written_as_answers_are():
    assert compute("α*05", {"α": 3.0}) == "15" and compute("α+0.004", {"α": 3.0}) == "3.004"
    assert compute("1/3", {}) == "0.333333" and compute("2-5", {}) == "-3"


def test_nearly_every_solution_of_gsm8k_is_a_program_that_computes_its_answer(gsm8k):
    examples = load_jsonl(gsm8k / "test.jsonl")
    programs = {e: p for e in examples if (p := program_of(e)) is not None}
    assert len(programs) > 0.88 * len(examples)
    blind = [p for e, p in programs.items() if number_placeholders(e.question)[1] and not re.search("[α-ω]", p)]
    assert len(blind) < 20, "programs that use none of the question's numbers"
