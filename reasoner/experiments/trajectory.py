"""How good is the way to the answer, and do errors come together? For chains of equations, GSM8K's.

    exact_match            the last number is the answer
    steps                  equations a chain, beside the solutions' own
    arithmetic             rate of equations whose left side comes to what stands right of it
    results_found          fraction of the solution's results that the chain has, at any place
    another_problems       the same for the chain of another problem: the control
    right_from_the_start   fraction of the solution's steps that are correct before the first wrong one
    after_a_right_step     rate of steps with the correct result, where the step before in the same place has it
    after_a_wrong_step     the same where it has not; hard problems alone make it lower. What an error does to the steps
                           after it is measured by an intervention: `containment`
    follows                rate of chains whose answer is the result of their last equation
    exposure               of a Reasoner: accuracy of chain tokens, with the true ones as inputs and without, each in
                           its place and wherever it stands in order

Intervals are over problems.
"""

import re
from collections import defaultdict
from statistics import mean

from common.options import UserError
from common.programs import compute
from common.sources import parse_answer
from common.stats import bootstrap_mean, clustered_mean, wilson
from reasoner.config import EvalConfig
from reasoner.experiments.measures import chain_accuracy, exposure_gap, percent
from reasoner.model import ReasonerTalker
from reasoner.tasks import Example

OF_PROBLEMS = ("results_found", "another_problems", "right_from_the_start")
OF_STEPS = ("arithmetic", "follows", "after_a_right_step", "after_a_wrong_step")


def parse_equations(text: str) -> list[tuple[str, float]]:
    """'48/2=24, 48+24=72 #### 72' -> [("48/2", 24.0), ("48+24", 72.0)]: what is computed, and its stated result."""
    # a comma always ends an equation: the numbers here have none, and a tokenizer may take the space behind it away
    found = re.findall(r"([-+*/().\d]+)=(-?\d*\.?\d+)", text.replace(" ", ""))
    return [(left, float(result)) for left, result in found]


def near(a: float, b: float) -> bool:
    return abs(a - b) < 0.0051  # solutions round to cents


def fraction_found(gold: list, chain: list) -> float:
    """How many of the solution's results a chain has, at any place."""
    return mean(any(near(result, true) for _, result in chain) for _, true in gold)


def score(gold: list[list], chains: list[list], texts: list[str]) -> tuple[dict, dict]:
    """Equations of the solutions and of the generated texts -> {name: a value a problem}, {name: (value, problem) of
    each step}."""
    problems, steps = defaultdict(list), defaultdict(list)
    for i, (reference, chain, text) in enumerate(zip(gold, chains, texts, strict=True)):
        if reference:
            problems["results_found"].append(fraction_found(reference, chain))
            problems["another_problems"].append(fraction_found(reference, chains[(i + 1) % len(chains)]))
            hits = [t < len(chain) and near(chain[t][1], reference[t][1]) for t in range(len(reference))]
            problems["right_from_the_start"].append([*hits, False].index(False) / len(reference))
            for before, now in zip(hits, hits[1:], strict=False):
                steps["after_a_right_step" if before else "after_a_wrong_step"].append((now, i))
        for left, stated in chain:
            value = compute(left, {})
            steps["arithmetic"].append((bool(value) and near(float(value), stated), i))
        answer = parse_answer(text)
        if chain and answer is not None:
            steps["follows"].append((near(float(answer), chain[-1][1]), i))
    return problems, steps


def measure(models: dict, examples: list[Example], config: EvalConfig) -> dict:
    """The scores of the module's docstring, of each run."""
    result, gold = {}, [parse_equations(x.chain) for x in examples]
    if len(examples) < 2 or not any(gold):
        raise UserError("--what trajectory needs two test problems or more, and equations in their solutions")
    for name, model in models.items():
        rate, ci95, texts = chain_accuracy(model, examples, config.batch_size)
        chains = [parse_equations(text) for text in texts]
        problems, steps = score(gold, chains, texts)
        row = {
            "n": len(examples),
            "exact_match": rate,
            "exact_match_ci95": ci95,
            "steps": mean(map(len, chains)),
            "steps_wanted": mean(map(len, gold)),
        }
        row |= {key: bootstrap_mean(problems[key], config.seed) for key in OF_PROBLEMS}
        for key in OF_STEPS:
            none = {"mean": 0.0, "ci95": wilson(0, 0)}
            row[key] = clustered_mean(*zip(*steps[key], strict=True), config.seed) if steps[key] else none
            row[key]["n"] = len(steps[key])
        if isinstance(model, ReasonerTalker) and not model.config.of_steps:
            row["exposure"] = exposure_gap(model.reasoner, examples, config.batch_size)
        print_row(name, row)
        result[name] = row
    return result


def print_row(name: str, row: dict) -> None:
    print(
        f"\n{name}: exact match {percent(row['exact_match'], row['exact_match_ci95'])}; {row['steps']:.1f} steps a "
        f"chain, {row['steps_wanted']:.1f} in the solutions"
    )
    for key in (*OF_PROBLEMS, *OF_STEPS):
        print(f"  {key.replace('right', 'correct').replace('_', ' '):<24}{percent(row[key]['mean'], row[key]['ci95'])}")
    if "exposure" in row:
        gap = row["exposure"]
        for how, of in (("", "in place"), ("_in_order", "in order")):
            print(
                f"  chain tokens {of:<11}{gap[f'teacher_forced{how}']:.2%} with the true ones as inputs, free-running "
                f"{gap[f'free_running{how}']:.2%}, with tokens fed back {gap[f'tokens_fed_back{how}']:.2%}"
            )
        print(f"  in another chain      {gap['another_in_order']:.2%} in order (control)")
