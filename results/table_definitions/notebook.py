"""The tables of results/README.md: the studies, the runs in full, and the benchmarks."""

from collections.abc import Callable

from common.stats import wilson
from results.tables import get, interval, load, number, plus_minus, table, with_ci

Run = dict[str, dict]  # of a study: {figure: {"mean", "std", "values"}}


def runs_of(study: str) -> dict[str, Run]:
    return load(f"{study}.json")["runs"]


def mean(run: Run, key: str, form: str = ".3f") -> str:
    return number(run[key]["mean"], form)


def pair(run: Run, matched: str, mismatched: str) -> str:
    """'0.932 / 0.106': a cosine and its control."""
    return f"{mean(run, matched)} / {mean(run, mismatched)}"


def spread(values: dict, form: str = ".2f") -> str:
    """{"median", "min", "max"} -> '8.37 (8.17 to 8.44)'."""
    return interval(values["median"], [values["min"], values["max"]], form)


# --------------------------------------------------------------------------------------- runs in full


def in_three(run: str, label: str, key: str, form: str, chance: str | None = None) -> list[str]:
    """A row of run_in_full: an alignment figure after training, before it, and by chance (from its key, or given)."""
    file = f"{run}/alignment.json"
    after = number(get(file, key), form)
    before = number(get(file, f"untrained.{key}"), form)
    if chance is None:
        chance = number(get(file, f"{key}_chance"), form)
    return [label, after, before, chance]


def run_in_full(run: str) -> str:
    """A run on its test split, the same model before training, and what chance or a constant gives."""
    accuracy = f"{run}/accuracy.json"
    oracle = number(get(accuracy, "constant_best_on_test"), ".2%")
    majority = number(get(accuracy, "constant_from_train"), ".2%")

    decoded = ["exact match, decoded from ẑ", with_ci(accuracy, "exact_match_decoded", ".2%"), ""]
    nearest = in_three(run, "exact match, nearest answer latent", "retrieval_at_1", ".2%")
    nearest[1] = with_ci(accuracy, "exact_match_nearest", ".2%")

    rows = [
        [*decoded, f"{oracle} (oracle constant)"],
        nearest,
        ["majority class of training", majority, "", ""],
        in_three(run, "correct answer among the 10 nearest latents", "retrieval_at_10", ".1%"),
        in_three(run, "cosine to the matched answer's latent", "cos_own", ".3f", ""),
        in_three(run, "cosine to a mismatched answer's (control)", "cos_other", ".3f", ""),
        in_three(run, "AUC, matched against mismatched", "auc", ".3f", "0.5"),
        in_three(run, "mean pairwise cosine of z", "mean_pairwise_cos_z", ".3f", ""),
        in_three(run, "effective rank of z", "effective_rank_z", ".1f", ""),
    ]
    return table(["", "trained", "before training", "chance"], rows)


def quick_seeds(run: str) -> str:
    found = load(f"{run}/seeds.json")
    rows = [
        [label, plus_minus(found[key], form)]
        for label, key, form in (
            ("exact match, decoded from ẑ", "exact_match", ".1%"),
            ("retrieval@1", "retrieval_at_1", ".1%"),
            ("cosine, matched", "cos_own", ".3f"),
            ("cosine, mismatched (control)", "cos_other", ".3f"),
        )
    ]
    n = len(found["exact_match"]["runs"])
    return table(["", f"mean ± standard deviation, {n} seeds"], rows)


def two_cores() -> str:
    found = load("two_cores.json")
    rows = [
        ["`quick`: examples per second", number(found["quick"]["examples_per_second"], ".1f")],
        ["`quick`: minutes for its 3,500 steps at that rate", number(found["quick"]["minutes_for_3500_steps"], ".1f")],
        ["reference configuration: examples per second", number(found["founding"]["examples_per_second"], ".2f")],
    ]
    return table(["both cores free", ""], rows)


def reference_on_a_cpu() -> str:
    found = load("45m-cpu/summary.json")

    def both(a: str, b: str, form: str) -> str:
        return f"{number(found[a], form)} / {number(found[b], form)}"

    rows = [
        ["parameters", number(found["n_params"], ",")],
        ["examples per second", number(found["examples_per_second"], ".2f")],
        ["token loss, training / validation", both("token_loss", "val_token_loss", ".2f")],
        ["JEPA loss, training / validation", both("jepa_loss", "val_jepa_loss", ".3f")],
        ["cosine matched / mismatched, validation", both("val_cos_own", "val_cos_other", ".3f")],
    ]
    return table([f"{found['steps']} steps", ""], rows)


# -------------------------------------------------------------------------------------------- studies

PARTS = {"words": "word problems", "gsm8k": "GSM8K (reduced)"}


def leak() -> str:
    rows = []
    for name, run in runs_of("leak").items():
        part, mask = name.split(", ")
        rows.append(
            [
                f"{PARTS[part]}, {'mask applied' if mask == 'jepa' else 'no mask'}",
                mean(run, "forward_question_loss"),
                pair(run, "forward_cos_own", "forward_cos_other"),
                pair(run, "cos_own", "cos_other"),
                plus_minus(run["exact_match_decoded"], ".1%"),
                mean(run, "constant_best_on_test", ".1%"),
            ]
        )
    header = ["", "question loss", "cosine in the training pass, matched / mismatched"]
    header += ["at generation, matched / mismatched", "exact match", "oracle constant"]
    return table(header, rows)


def lam(part: str) -> str:
    rows = []
    for name, run in runs_of("lambda").items():
        if name.startswith(part):
            rows.append(
                [
                    name.split(", ")[1],
                    plus_minus(run["exact_match_decoded"], ".1%"),
                    mean(run, "exact_match_nearest", ".1%"),
                    pair(run, "cos_own", "cos_other"),
                    mean(run, "auc"),
                    f"{mean(run, 'effective_rank_z', '.1f')} / {mean(run, 'effective_rank_z_hat', '.1f')}",
                    mean(run, "forward_question_loss"),
                ]
            )
    header = [f"{PARTS[part]}, λ", "exact match", "nearest", "cosine matched / mismatched", "AUC"]
    return table([*header, "effective rank of z / of ẑ", "question loss"], rows)


def collapse() -> str:
    rows = [
        [
            name,
            plus_minus(run["exact_match_decoded"], ".1%"),
            plus_minus(run["exact_match_nearest"], ".1%"),
            pair(run, "cos_own", "cos_other"),
            mean(run, "auc"),
            mean(run, "effective_rank_z", ".1f"),
            mean(run, "mean_pairwise_cos_z"),
        ]
        for name, run in runs_of("collapse").items()
    ]
    header = ["", "exact match, decoded", "nearest latent", "cosine matched / mismatched", "AUC"]
    return table([*header, "effective rank of z", "pairwise cosine of z"], rows)


def similar(part: str) -> str:
    kinds = ("operations", "magnitude") if part == "words" else ("operations", "steps", "magnitude")
    columns = [f"{what}, {kind}" for what in ("neighbours", "probe") for kind in kinds]
    found = {name.split(", ")[1]: run for name, run in runs_of("similar").items() if name.startswith(part)}
    rows = [
        [name.replace("lambda", "λ ="), *(mean(run, column, ".1%") for column in columns)]
        for name, run in found.items()
    ]
    first = next(iter(found.values()))
    rows.append(["chance", *(mean(first, f"{column}, chance", ".1%") for column in columns)])
    labels = {"neighbours": "5 nearest, same", "probe": "probe,"}
    header = [f"{labels[column.split(', ')[0]]} {column.split(', ')[1]}" for column in columns]
    return table([PARTS[part], *header], rows)


SPACE = {
    "latent": "latent: ẑ learns by cosine alone",
    "latent, tokens into it": "latent, and the answer decoded from ẑ is trained too",
    "language model": "language model, direct answer",
    "language model, worked solution": "language model, worked solution",
}


def space() -> str:
    shown, rows = (11_200, 28_000, 44_800), []
    for name, run in runs_of("space").items():
        curve = {point["examples"]: point["exact_match"] for point in run["curve"]}
        at = [number(sum(curve[n]) / len(curve[n]), ".1%") for n in shown]
        rows.append([SPACE[name], plus_minus(run["exact_match_decoded"], ".1%"), *at])
    return table(["word problems", "exact match", *(f"at {n:,} examples" for n in shown)], rows)


SCRATCH = {
    "latent, variants": "latent model (λ = 4), decoded from ẑ, 4 augmentations a question",
    "direct": "language model, direct answer",
    "direct, variants": "direct answer, 4 augmentations",
    "equations, variants": "equations, 4 augmentations",
    "equations, variants, 3x as long": "equations, 8 augmentations, three times as long",
    "program, width 256": "program, width 256",
}


def scratch() -> str:
    runs, rows = runs_of("scratch"), []

    def rate(run: Run, key: str, n: str) -> str:
        value, n = run[key]["mean"], int(run[n]["mean"])
        return interval(value, wilson(round(value * n), n), ".1%" if key.startswith("val") else ".2%")

    for name, run in runs.items():
        seen = f"{run['curve'][-1]['examples']:,}"
        rows.append([SCRATCH[name], seen, rate(run, "val_exact_match", "val_n"), rate(run, "exact_match_decoded", "n")])
        if "exact_match_voted" in run:
            label = f"the same, majority of {mean(run, 'votes', '.0f')} samples"
            voted = rate(run, "val_exact_match_voted", "val_n"), rate(run, "exact_match_voted", "n")
            rows.append([label, "", *voted])
    first = next(iter(runs.values()))
    rows.append(["oracle constant", "", "", mean(first, "constant_best_on_test", ".2%")])
    validation, test = (int(first[n]["mean"]) for n in ("val_n", "n"))
    return table(["", "examples seen", f"validation ({validation:,})", f"test ({test:,})"], rows)


# ----------------------------------------------------------------------------------------- benchmarks

PEERS = {
    "ours": "nanoJEPA",
    "language_model": "the same trunk as an ordinary language model",
    "straightforward": "a straightforward loop, same trunk",
    "llm_jepa": "transformers' GPT-2, trained as LLM-JEPA was first published",
}


def train_speed() -> str:
    found, rows = load("train_speed_cpu.json"), []
    for name, label in PEERS.items():
        over = found["ours_over"].get(name)
        utilisation = number(found["useful_share"][name]["median"], ".0%")
        rows.append([label, spread(found["examples_per_second"][name]), spread(over) if over else "", utilisation])
    return table(["training", "examples per second", "ours is faster by", "MFU"], rows)


def scaling() -> str:
    rows = [
        [
            str(row["batch_size"]),
            number(row["tokens"]["median"], ",.0f"),
            spread(row["tokens_per_second"], ",.0f"),
            number(row["peak_memory_gib"]["max"], ".2f"),
        ]
        for row in load("train_speed_cpu.json")["scaling"]
    ]
    return table(["batch", "tokens", "tokens per second", "peak memory, GiB"], rows)


def jepa_overhead() -> str:
    found = load("jepa_overhead_cpu.json")
    cells = [number(found["overhead"][key], ".1%") for key in ("median", "lower_quartile", "upper_quartile")]
    row = [f"added time, {found['pairs']} pairs of steps in alternation", *cells]
    header = ["the JEPA part, over an ordinary language model on the same tokens", "median"]
    return table([*header, "lower quartile", "upper quartile"], [row])


def cross_entropy() -> str:
    labels = {
        "linear": "`F.linear_cross_entropy`, a call a term (the model)",
        "linear_one_call": "the same, all positions in one call",
        "plain": "logits, then `F.cross_entropy`",
        "chunked": "an autograd function over chunks of logits, one call",
    }
    found, rows = load("cross_entropy_cpu.json"), []
    for name, label in labels.items():
        cells = []
        for configuration in ("nanojepa", "quick"):
            result = found[configuration]
            ratio = result["time_over_linear"].get(name)
            quartiles = [ratio["lower_quartile"], ratio["upper_quartile"]] if ratio else None
            cells.append(number(result["seconds_a_step"][name], ".3f"))
            cells.append(interval(ratio["median"], quartiles, ".3f") if ratio else "1")
        rows.append([label, *cells])
    header = ["cross-entropy of the output layer, whole training steps", "45M: seconds a step", "ratio (quartiles)"]
    return table([*header, "`quick`: seconds a step", "ratio (quartiles)"], rows)


def eval_speed() -> str:
    found = load("eval_speed_cpu.json")
    rows = [
        ["ours, both read-outs", spread(found["seconds"], ".1f"), ""],
        [
            "one question at a time, nothing kept from token to token",
            "",
            spread(found["ours_over"]["one_by_one"], ".1f"),
        ],
        ["one at a time, question read once", "", spread(found["ours_over"]["latent_kept"], ".1f")],
    ]
    return table([f"evaluation, {found['questions']:,} questions", "seconds", "ours is faster by"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "notebook-quick": lambda: run_in_full("quick"),
    "notebook-quick-seeds": lambda: quick_seeds("quick"),
    "notebook-quick-numbers": lambda: run_in_full("quick-numbers"),
    "notebook-quick-numbers-seeds": lambda: quick_seeds("quick-numbers"),
    "notebook-quick-narrow": lambda: run_in_full("quick-narrow"),
    "notebook-quick-narrow-seeds": lambda: quick_seeds("quick-narrow"),
    "notebook-two-cores": two_cores,
    "notebook-gsm8k": lambda: run_in_full("gsm8k-small"),
    "notebook-reference": reference_on_a_cpu,
    "notebook-leak": leak,
    "notebook-lambda-words": lambda: lam("words"),
    "notebook-lambda-gsm8k": lambda: lam("gsm8k"),
    "notebook-collapse": collapse,
    "notebook-similar-words": lambda: similar("words"),
    "notebook-similar-gsm8k": lambda: similar("gsm8k"),
    "notebook-space": space,
    "notebook-scratch": scratch,
    "notebook-train-speed": train_speed,
    "notebook-scaling": scaling,
    "notebook-jepa-overhead": jepa_overhead,
    "notebook-cross-entropy": cross_entropy,
    "notebook-eval-speed": eval_speed,
}
