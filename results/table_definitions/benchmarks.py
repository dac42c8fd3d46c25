"""The tables of results/README.md on human-written problems, and on questions that a person types."""

from common.stats import wilson
from results.tables import get, interval, load, number, plus_minus, table, with_ci

BENCHMARKS = {"mawps": "MAWPS", "asdiv": "ASDiv-A", "svamp": "SVAMP"}
# Answer accuracy in per cent, from the table in MWPToolkit's repository (LYH-YF/MWPToolkit; Lan et al. 2021, arXiv
# 2109.00799): the same ASDiv-A folds and SVAMP. Its MAWPS is another split.
MWPTOOLKIT = {
    "Transformer, from scratch": {"asdiv": 59.3, "svamp": 20.7},
    "AttSeq (LSTM with attention), from scratch": {"asdiv": 68.3, "svamp": 25.4},
    "Graph2Tree, from scratch": {"asdiv": 75.3, "svamp": 35.0},
    "GPT-2, pretrained and fine-tuned": {"asdiv": 61.4, "svamp": 25.7},
    "RoBERTaGen, pretrained encoder": {"asdiv": 72.1, "svamp": 30.3},
}


def rate(row: dict, key: str) -> str:
    """A rate over all folds with its interval, "" if it was not measured."""
    return interval(row[key]["mean"], row[key]["ci95"], ".1%") if key in row else ""


def rates(rows: tuple) -> list[list[str]]:
    """(label, model, measure) a row -> its rates on the three benchmarks."""
    found = load("benchmarks.json")
    return [[label, *(rate(found[b].get(name, {}), key) for b in BENCHMARKS)] for label, name, key in rows]


def benchmarks() -> str:
    """Answers and equations that are correct, of all models and baselines, beside published figures."""
    rows = rates(
        (
            ("**latent model**, decoded from ẑ", "latent", "exact_match_decoded"),
            ("latent model, nearest training program", "latent", "exact_match_nearest"),
            ("language model, same size and steps", "language model", "exact_match_decoded"),
            ("language model with LLM-JEPA's loss", "llm-jepa", "exact_match_decoded"),
            ("bag of words and pairs of words", "bag of words", "exact_match_decoded"),
            ("majority program", "majority program", "exact_match_decoded"),
            ("equations: latent model, decoded", "latent", "equation_decoded"),
            ("equations: latent model, nearest", "latent", "equation_nearest"),
            ("equations: language model", "language model", "equation_decoded"),
        )
    )
    for label, values in MWPTOOLKIT.items():
        rows.append([f"published: {label}", *(f"{values[b]}%" if b in values else "" for b in BENCHMARKS)])
    return table(["answers correct", *BENCHMARKS.values()], rows)


def benchmark_controls() -> str:
    """The latent model where it should fail, and the language model beside it."""
    rows = rates(
        (
            ("latent model", "latent", "exact_match_decoded"),
            ("given the latent of another program", "latent", "another question's latent, exact_match_decoded"),
            ("before training", "latent", "untrained, exact_match_decoded"),
            ("λ = 0: no cosine loss", "lambda 0", "exact_match_decoded"),
            ("words of the question in another order", "latent", "shuffled, exact_match_decoded"),
            ("without the last sentence", "latent", "without the last sentence, exact_match_decoded"),
            ("language model, words in another order", "language model", "shuffled, exact_match_decoded"),
            ("language model, no last sentence", "language model", "without the last sentence, exact_match_decoded"),
        )
    )
    found = load("benchmarks.json")
    for label, key in (("cosine, matched", "cos_own"), ("cosine, mismatched (control)", "cos_other")):
        rows.append([label, *(number(found[b]["latent"][key], ".3f") for b in BENCHMARKS)])
    return table(["answers correct", *BENCHMARKS.values()], rows)


def typed_questions() -> str:
    """What the quick runs make of questions that a person types."""
    rows = []
    for run, sets in load("typed.json").items():
        for name, row in sets.items():
            counts = [str(row[key]) for key in ("correct", "wrong", "unknown")]
            rows.append([f"`{run}`", name, str(row["n"]), *counts])
    return table(["run", "questions", "n", "correct", "wrong", "“I do not know”"], rows)


def llm_jepa() -> str:
    """A language model with and without LLM-JEPA's loss, each run with its seeds."""
    rows = []
    for name, run in load("llm-jepa.json")["runs"].items():
        data, size, model = name.split(", ", 2)
        found = run["exact_match_decoded"]
        n = int(run["n"]["mean"])
        accuracy = plus_minus(found, ".1%")
        if len(found["values"]) == 1:
            accuracy = interval(found["mean"], wilson(round(found["mean"] * n), n), ".1%")
        cosines = [number(run[key]["mean"], ".3f") for key in ("cos_own", "cos_other")]
        is_jepa = not model.startswith("language model") and model != "lambda 0"
        rows.append(
            [
                f"{data.capitalize()}, {int(size):,}",
                model.replace("lambda ", "λ = "),
                str(len(found["values"])),
                accuracy,
            ]
            + ([" / ".join(cosines), number(run["retrieval_at_1"]["mean"], ".1%")] if is_jepa else ["", ""])
        )
    return table(
        ["NL-RX, training pairs", "model", "seeds", "exact match", "cosine matched / mismatched", "retrieval@1"], rows
    )


def gsm8k_programs() -> str:
    """Programs in latent space on GSM8K, beside constants."""
    rows = []
    for label, run in (("GSM8K", "gsm8k-programs"), ("GSM8K, MAWPS and ASDiv-A", "gsm8k-programs-more")):
        file = f"{run}/accuracy.json"
        measures = ("exact_match_decoded", "exact_match_nearest", "equation_decoded")
        constants = ("majority_program_exact_match", "constant_best_on_test")
        rows.append([label, *(with_ci(file, key, ".1%") for key in measures)])
        rows[-1] += [number(get(file, key), ".1%") for key in constants]
    header = ["trained on", "decoded", "nearest program", "equation decoded", "majority program", "oracle constant"]
    return table(header, rows)


def parts_of_quick() -> str:
    """How soon `quick` is at 95% without one of its parts."""
    rows = []
    for name, run in load("parts.json")["runs"].items():
        points = [(point["examples"], point["exact_match"][0]) for point in run["curve"]]
        soonest = next((f"{n:,}" for n, correct in points if correct >= 0.95), "not reached")
        found = run["exact_match_decoded"]
        rows.append([name, soonest, number(points[-1][1], ".1%"), number(found["mean"], ".1%")])
    return table(["", "training problems until 95% of validation", "validation at the end", "test"], rows)


TABLES = {
    "notebook-parts": parts_of_quick,
    "notebook-gsm8k-programs": gsm8k_programs,
    "notebook-llm-jepa": llm_jepa,
    "notebook-benchmarks": benchmarks,
    "notebook-benchmark-controls": benchmark_controls,
    "notebook-typed": typed_questions,
}
