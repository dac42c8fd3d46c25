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
                name,
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
        if calculates:
            cells += [
                number(row["equations"], ".1p"),
                number(row["chain"], ".1f"),
                number(1000 * row["seconds"], ".1f"),
            ]
        shown = (number(exposure[key], ".1p") for key in ("teacher_forced", "free_running")) if exposure else ()
        rows.append([*cells, " / ".join(shown)])
    header = ["", "answers correct", "by seed", "minus coupled, paired"]
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

    def with_hard(variant: str, fed_back: str) -> list[str]:
        return [of_chain(gsm8k, x, fed_back, OWN) for x in (first, variant)]

    noise_control = with_ci(TRAINED_WITH_NOISE, "runs.out/cfg-coupled.latent.4.token_accuracy", ".1p")
    whole = f"{equations}, all questions"
    rows = [
        ["sharpened at evaluation, τ = 0.01", equations, of_chain(gsm8k, first), of_chain(gsm8k, first, "0.01")],
        ["", noisy, of_chain(cfg, quiet), of_chain(cfg, quiet, "0.01")],
        ["noise in training", noisy, of_chain(cfg, quiet), of_chain(cfg, first)],
        ["", equations, of_chain(gsm8k, first), of_chain(gsm8k, "noise")],
        ["", f"{answers}, one fold", of_task("mwp 0", jepa), of_task("mwp 0", f"{jepa}, noise")],
        ["contrast of weight 1", equations, of_chain(gsm8k, first), of_chain(gsm8k, "contrast 1")],
        ["", f"{answers}, one fold", of_task("mwp 0", jepa), of_task("mwp 0", f"{jepa}, contrast")],
        ["second pass over own latents", equations, of_chain(gsm8k, first), of_chain(gsm8k, "sharpened rollout")],
        ["… at random positions, hard targets", equations, *with_hard("sampled rollout", "latent")],
        ["", f"{answers}, one fold", *(of_task("mwp 0", f"{hard}{x}", OWN) for x in ("", ", own latents"))],
        ["noise, hard targets, τ = 0.01", equations, *with_hard("noise", "0.01")],
        ["Reasoner trained in as many steps", answers, of_task(MWP, jepa), of_task(MWP, MORE)],
        ["", "two steps: answers", of_task("problems 0", jepa), of_task("problems 0", MORE)],
        ["… with hard targets", answers, of_task(MWP, MORE), of_task(MWP, hard)],
        ["", "two steps: answers", of_task("problems 0", MORE), of_task("problems 0", hard)],
        ["… and sharpened, τ = 0.01", answers, of_task(MWP, hard), of_task(MWP, f"{hard}, sharpened, τ = 0.01")],
        ["", "two steps: answers, three seeds", *(of_task(SEEDS, f"{hard}{x}") for x in ("", ", sharpened, τ = 0.01"))],
        [
            "both, Reasoner in as many steps",
            whole,
            of_gsm8k("by the nearest embedding", GSM8K),
            of_gsm8k("by the nearest embedding", HARD),
        ],
        ["one latent a step", "two steps: answers", of_task("problems 0", jepa), of_task("problems 0", STEPS)],
    ]
    controls = [
        tokens(gsm8k, first),
        tokens(cfg, quiet),
        f"{coupled}, the same noise {noise_control}",
        tokens(gsm8k, "noise"),
        f"{coupled} {of_task('mwp 0', 'coupled')}",
        tokens(gsm8k, "contrast 1"),
        f"tokens fed back {of_task('mwp 0', f'{jepa}, contrast, tokens fed back')}",
        tokens(gsm8k, "sharpened rollout"),
        tokens(gsm8k, "sampled rollout", OWN),
        f"tokens fed back {of_task('mwp 0', f'{hard}, own latents, tokens fed back', OWN)}",
        tokens(gsm8k, "noise", OWN),
        f"tokens fed back {of_task('mwp 0 1 2', f'{MORE}, tokens fed back')}",
        f"tokens fed back {of_task('problems 0', f'{MORE}, tokens fed back')}",
        *(f"tokens fed back {of_task(x, f'{hard}, tokens fed back')}" for x in (MWP, "problems 0", MWP, SEEDS)),
        f"tokens fed back {of_gsm8k('tokens fed back', HARD)}",
        f"{coupled} {of_task('problems 0', 'coupled')}",
    ]
    rows = [[*row, control] for row, control in zip(rows, controls, strict=True)]
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
