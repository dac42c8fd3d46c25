"""What makes a chain of latents decide: the tables of `reasoner_chain.json` and `reasoner_tasks.json`."""

from collections.abc import Callable

from results.table_definitions.reasoner import GSM8K, HARD, MORE, MWP, SEEDS, STEPS, TASKS, TRAINED_WITH_NOISE, points
from results.tables import get, number, table, with_ci

CHAIN, OWN = "reasoner_chain.json", "reasoner_own_latents.json"
FED_BACK = ("latent", "0.01", "tokens")


def chain(preset: str) -> str:
    """Self-supervised training varied, and what is fed back: chain tokens in place, equations that hold; in %."""
    equations = {"latent": "latents", "0.06": "τ = 0.06", "0.01": "τ = 0.01", "tokens": "tokens (control)"}
    rows = []
    for name in get(CHAIN, f"{preset}.variants"):
        keys = f"{preset}.variants.`{name}`"
        rows.append(
            [
                name.replace("as the preset", "cosine, latents as they are"),
                number(get(CHAIN, f"{keys}.teacher_forced"), ".1p"),
                with_ci(CHAIN, f"{keys}.latent.0.token_accuracy", ".1p"),
                points(CHAIN, f"{keys}.latent.0.less_the_first"),
                *(with_ci(CHAIN, f"{keys}.`{fed_back}`.0.equations_nearest", ".1p") for fed_back in equations),
            ]
        )
    first, *others = (
        f"equations that hold: {shown}" if i == 0 else shown for i, shown in enumerate(equations.values())
    )
    header = [
        "training",
        "tokens in place: true inputs",
        "latents fed back",
        "minus the first row, paired",
        first,
        *others,
    ]
    return table(header, rows)


def word_problems(part: str, file: str = TASKS) -> str:
    """Answers to word problems, over all seeds. Of chains of equations what they hold and cost."""
    models, rows = get(file, f"{part}.models"), []
    calculates = "equations" in next(iter(models.values()))
    for name, row in models.items():
        if "blocks" in name:  # in a table of their own
            continue
        keys = f"{part}.models.`{name}`"
        exposure = row.get("exposure")
        cells = [name, with_ci(file, f"{keys}.accuracy", ".1p"), " / ".join(number(x, ".1p") for x in row["by_seed"])]
        cells.append(points(file, f"{keys}.less_the_coupled"))
        if len(row["by_seed"]) > 1:
            less = zip(row["by_seed"], models["coupled"]["by_seed"], strict=True)
            cells.append(" / ".join(number(a - b, "+.1p") for a, b in less) if name != "coupled" else "")
        if calculates:
            cells += [
                number(row["equations"], ".1p"),
                number(row["chain"], ".1f"),
                number(1000 * row["seconds"], ".1f"),
            ]
        shown = (number(exposure[key], ".1p") for key in ("teacher_forced", "free_running")) if exposure else ()
        rows.append([*cells, " / ".join(shown)])
    header = ["", "answers correct", "by seed", "minus coupled, paired"]
    header += ["minus coupled, by seed"] if len(models["coupled"]["by_seed"]) > 1 else []
    header += ["equations that hold", "latents or tokens a chain", "ms an answer"] if calculates else []
    return table([*header, "tokens in place, true inputs / free"], rows)


def own_latents() -> str:
    """The smaller run on GSM8K with hard targets: chain tokens in their places and in order, equations that hold."""
    rows, part = [], "gsm8k-small.variants"
    for name, latents in get(OWN, part).items():
        label = "hard targets" if name == "as the preset" else f"… and {name}"
        sharp = latents["sharpened, τ = 0.01"]
        found = ((latents, "teacher_forced"), (latents, "free_running"), (sharp, "free_running"))
        found = (*found, (latents, "tokens_fed_back"))
        cells = [" / ".join(number(x[f"{key}{how}"], ".1p") for x, key in found) for how in ("", "_in_order")]
        cells.append(" / ".join(number(x["another_in_order"], ".1p") for x in (latents, sharp)))
        equations = (with_ci(OWN, f"{part}.`{name}`.`{how}`.0.equations_nearest", ".1p") for how in FED_BACK)
        rows.append([label, *cells, *equations])
    header = ["training", "tokens in place: true inputs / latents / τ = 0.01 / tokens fed back", "tokens in order"]
    header += ["another chain's, latents / τ = 0.01 (control)", "equations that hold: latents", "τ = 0.01"]
    return table([*header, "tokens (control)"], rows)


def sizes() -> str:
    """Five blocks, divided between Reasoner and Talker: answers by the Talker and without it, in %."""
    rows = []
    for task, part in (("MAWPS and ASDiv-A, fold 0", "mwp 0"), ("generated problems", "problems 0")):
        for n in (4, 3, 2, 1):
            name = MORE if n == 4 else f"{MORE}, {n} + {5 - n} blocks"
            if name not in get(TASKS, f"{part}.models"):
                continue
            keys, exposure = f"{part}.models.`{name}`", get(TASKS, f"{part}.models.`{name}`.exposure")
            rows.append(
                [
                    task,
                    f"{n} + {5 - n}",
                    *(of_task(part, f"{name}{how}") for how in ("", ", by the nearest embedding", ", tokens fed back")),
                    points(TASKS, f"{keys}.less_the_coupled"),
                    " / ".join(number(exposure[key], ".1p") for key in ("teacher_forced", "free_running")),
                ]
            )
    header = ["", "blocks, Reasoner + Talker", "answers by the Talker", "by the nearest embedding", "tokens fed back"]
    return table([*header, "minus coupled, paired", "tokens in place, true inputs / free"], rows)


def of_chain(preset: str, variant: str, fed_back: str = "latent", file: str = CHAIN) -> str:
    """GSM8K: equations that hold; the grammar: chain tokens in their places at noise of 0.6."""
    measure = "0.equations_nearest" if preset == "gsm8k-small" else "1.token_accuracy"
    return with_ci(file, f"{preset}.variants.`{variant}`.`{fed_back}`.{measure}", ".1p")


def of_task(part: str, model: str, file: str = TASKS) -> str:
    """Answers that are correct."""
    return with_ci(file, f"{part}.models.`{model}`.accuracy", ".1p")


def of_gsm8k(how: str, file: str) -> str:
    """Equations that hold, of the run at full size: before hard targets, or with them."""
    run = file.partition("/")[0]
    return with_ci(file, f"runs.out/{run}, {how}.arithmetic", ".1p")


def brought() -> str:
    """What each change brought, in %: without it, with it, and the control."""
    gsm8k, cfg, first, quiet, jepa = "gsm8k-small", "cfg-small", "as the preset", "without noise", "JEPA-Reasoner"
    equations, noisy, answers = (
        "GSM8K: equations that hold",
        "grammar, noise of 0.6: tokens",
        "MAWPS and ASDiv-A: answers",
    )
    coupled, hard = "coupled Transformer", f"{MORE}, hard targets"

    def tokens(preset: str, variant: str, file: str = CHAIN) -> str:
        return f"tokens fed back {of_chain(preset, variant, 'tokens', file)}"

    def fed(part: str, model: str, file: str = TASKS) -> str:
        return f"tokens fed back {of_task(part, f'{model}, tokens fed back', file)}"

    def on_gsm8k(variant: str, fed_back: str = "latent", file: str = CHAIN) -> list[str]:
        """Without and with, each fed back like this, and the control."""
        return [*(of_chain(gsm8k, x, fed_back, file) for x in (first, variant)), tokens(gsm8k, variant, file)]

    def on_task(part: str, one: str, other: str, file: str = TASKS) -> list[str]:
        return [of_task(part, x, file) for x in (one, other)]

    sharp = f"{hard}, sharpened, τ = 0.01"
    noise_control = with_ci(TRAINED_WITH_NOISE, "runs.out/cfg-coupled.latent.4.token_accuracy", ".1p")
    of_all = [of_gsm8k("by the nearest embedding", file) for file in (GSM8K, HARD)]
    one_fold, steps, fold = f"{answers}, one fold", "two steps: answers", "mwp 0"
    settled = [of_chain(cfg, quiet), of_chain(cfg, quiet, "0.01"), tokens(cfg, quiet)]
    noise = [of_chain(cfg, quiet), of_chain(cfg, first), f"{coupled}, the same noise {noise_control}"]
    by_coupled = {part: f"{coupled} {of_task(part, 'coupled')}" for part in (fold, "problems 0")}
    rows = [
        [
            "sharpened at evaluation, τ = 0.01",
            equations,
            *(of_chain(gsm8k, first, x) for x in FED_BACK[:2]),
            tokens(gsm8k, first),
        ],
        ["", noisy, *settled],
        ["noise in training", noisy, *noise],
        ["", equations, *on_gsm8k("noise")],
        ["", one_fold, *on_task(fold, jepa, f"{jepa}, noise"), by_coupled[fold]],
        ["contrast of weight 1", equations, *on_gsm8k("contrast 1")],
        ["", one_fold, *on_task(fold, jepa, f"{jepa}, contrast"), fed(fold, f"{jepa}, contrast")],
        ["second pass over own latents, sharpened at τ = 0.06", equations, *on_gsm8k("sharpened rollout", "0.06")],
        ["… at random positions, hard targets", equations, *on_gsm8k("sampled rollout", "latent", OWN)],
        ["", one_fold, *on_task(fold, hard, f"{hard}, own latents", OWN), fed(fold, f"{hard}, own latents", OWN)],
        ["noise, hard targets, τ = 0.01", equations, *on_gsm8k("noise", "0.01", OWN)],
        ["Reasoner trained in as many steps", answers, *on_task(MWP, jepa, MORE), fed(MWP, MORE)],
        ["", steps, *on_task("problems 0", jepa, MORE), fed("problems 0", MORE)],
        ["… with hard targets", answers, *on_task(MWP, MORE, hard), fed(MWP, hard)],
        ["", steps, *on_task("problems 0", MORE, hard), fed("problems 0", hard)],
        ["… and sharpened, τ = 0.01", answers, *on_task(MWP, hard, sharp), fed(MWP, hard)],
        ["", f"{steps}, three seeds", *on_task(SEEDS, hard, sharp), fed(SEEDS, hard)],
        [
            "both, Reasoner in as many steps",
            f"{equations}, all questions",
            *of_all,
            f"tokens fed back {of_gsm8k('tokens fed back', HARD)}",
        ],
        ["one latent a step", steps, *on_task("problems 0", jepa, STEPS), by_coupled["problems 0"]],
    ]
    return table(["change", "measured on", "without", "with", "control"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "reasoner-chain": lambda: chain("gsm8k-small"),
    "reasoner-brought": brought,
    "reasoner-mwp": lambda: word_problems(MWP),
    "reasoner-mwp-one": lambda: word_problems("mwp 0"),
    "reasoner-sizes": sizes,
    "reasoner-problems": lambda: word_problems("problems 0"),
    "reasoner-own-mwp": lambda: word_problems("mwp 0", OWN),
    "reasoner-own-gsm8k": own_latents,
    "reasoner-problems-seeds": lambda: word_problems("problems 0 1 2"),
}
