"""The tables of reasoner/README.md; what makes its chain decide is in reasoner_chain.py."""

from collections.abc import Callable

from results.tables import get, interval, number, table, with_ci

TREE = "reasoner-quick/tree.json"
TALKER = "reasoner-quick/talker.json"
CONTAINMENT = {"trees": "reasoner-quick/containment.json", "GSM8K": "reasoner-gsm8k/containment.json"}
NOISE = {"1.0M": "reasoner-cfg-no-noise/cfg.json", "0.58M": "reasoner-cfg-96/cfg.json"}  # trained without it
TRAINED_WITH_NOISE = "reasoner-cfg/cfg.json"
ABLATIONS, TASKS = "reasoner_ablations.json", "reasoner_tasks.json"
GSM8K, FEWSHOT = "reasoner-gsm8k/trajectory.json", "reasoner-gsm8k/fewshot.json"
HARD, RAW, SHARP = (f"reasoner-gsm8k-hard/trajectory{how}.json" for how in ("", "-sharpen-0", "-sharpen-0.003"))
ROUTES, CLUE = "reasoner-routes/posterior.json", "reasoner-clue/clue.json"
CONSTANT = "gsm8k-small/accuracy.json"
NEAREST = "reasoner-gsm8k-hard, by the nearest embedding"
MWP, SEEDS = "mwp 0 1 2", "problems 0 1 2"
MORE, STEPS = "JEPA-Reasoner, trunk as many steps", "JEPA-Reasoner, a latent a step"


def points(file: str, keys: str, form: str = "+.1p") -> str:
    """A paired difference in percentage points with its interval; empty for the first run itself."""
    difference = get(file, keys)
    return with_ci(file, keys, form) if any(difference["ci95"]) else ""


# ------------------------------------------------------------------------------------------- first screen


def answers(part: str, model: str) -> str:
    """Rate of correct answers to word problems."""
    return number(get(TASKS, f"{part}.models.`{model}`.accuracy.mean"), ".1%")


def word_problem_verdicts() -> list[list[str]]:
    """The rows of tasks that can be learned from scratch."""
    hard = f"{MORE}, hard targets"

    def best(part: str) -> str:
        return (
            f"the Reasoner alone in as many steps, hard targets, sharpened to nearly a token: "
            f"{answers(part, f'{hard}, sharpened, τ = 0.01')}; latents as they are: {answers(part, hard)}"
        )

    def control(part: str) -> str:
        same = answers(part, f"{hard}, tokens fed back")
        return f"coupled Transformer {answers(part, 'coupled')}; a language model of the same phases {same}"

    fewer, (one, of) = "in as many steps less often", (answers("problems 0", x) for x in ("JEPA-Reasoner", "coupled"))
    programs = f"{fewer}: {answers(MWP, 'JEPA-Reasoner')}; {best(MWP)}"
    steps = f"{fewer}, one seed: {one} beside the coupled Transformer's {of}; over three seeds {best(SEEDS)}"
    return [
        ["Does it find programs of word problems, MAWPS and ASDiv-A?", programs, control(MWP)],
        ["Does it calculate two steps of a generated problem?", steps, control(SEEDS)],
        [
            "Is one latent enough for a whole step?",
            f"not here: {answers('problems 0', STEPS)} of the same problems, in nearly three times the steps "
            f"{answers('problems 0', f'{STEPS}, 8 passes')}, with "
            f"{number(get(TASKS, f'problems 0.models.`{STEPS}`.chain'), '.0f')} latents a chain",
            f"a latent a token, {number(get(TASKS, 'problems 0.models.JEPA-Reasoner.chain'), '.0f')} a chain: "
            f"{answers('problems 0', 'JEPA-Reasoner')}",
        ],
    ]


def routes_verdicts() -> list[list[str]]:
    """The rows of several routes."""

    def distance(name: str, run: str = "reasoner-routes") -> str:
        return number(get(ROUTES, f"runs.out/{run}.{name}.mean"), ".3f")

    def late(fed_back: str, run: str = "") -> str:
        keys = {"": "reasoner-clue", "coupled": "clue-coupled"}.get(run, f"reasoner-clue-{run}")
        return number(get(CLUE, f"runs.out/{keys}.after.{fed_back}.right_behind_others.share"), ".1%")

    return [
        [
            "Does a latent weigh several right routes by their chances?",
            f"roughly: total variation {distance('distance.own')} to the true posterior",
            f"even chances {distance('distance.`even chances, what leads to the goal`')}; the coupled Transformer's "
            f"softmax {distance('distance.own', 'routes-coupled')}",
        ],
        [
            "Does a chain of latents follow all of them at once?",
            f"no: total variation {distance('free_running.latents.over all routes')} to the posterior over all routes",
            f"tokens fed back {distance('free_running.tokens.over all routes')}",
        ],
        [
            "Does it keep open what it cannot know yet?",
            f"yes, trained on own latents: where a late goal excludes the first choice {late('latents', 'own')} go on "
            f"to the goal; not trained so {late('latents')}",
            f"same weights, tokens fed back {late('tokens', 'own')} and {late('tokens')}; trained on nearly tokens "
            f"{late('tokens', 'own-tokens')}; coupled {late('tokens', 'coupled')}",
        ],
    ]


def gsm8k_verdicts() -> list[list[str]]:
    """The rows of GSM8K."""

    def gsm8k(run: str, keys: str, form: str, file: str = HARD) -> str:
        return number(get(file, f"runs.out/{run}.{keys}"), form)

    return [
        [
            "Does it solve GSM8K?",
            f"no: exact match {gsm8k('reasoner-gsm8k-hard', 'exact_match', '.2%')}",
            f"best constant answer {number(get(CONSTANT, 'constant_best_on_test'), '.2%')}, "
            f"coupled {gsm8k('gsm8k-coupled', 'exact_match', '.2%', GSM8K)} "
            f"and {gsm8k('gsm8k-coupled-talker', 'exact_match', '.2%', GSM8K)}",
        ],
        [
            "Does its chain calculate?",
            f"sharpened to nearly a token: {gsm8k(NEAREST, 'arithmetic.mean', '.1%')} of its equations hold at "
            f"τ = 0.01, {gsm8k(NEAREST, 'arithmetic.mean', '.1%', SHARP)} at 0.003; latents as they are: "
            f"{gsm8k(NEAREST, 'arithmetic.mean', '.1%', RAW)}",
            f"same weights, tokens fed back {gsm8k('reasoner-gsm8k-hard, tokens fed back', 'arithmetic.mean', '.1%')}; "
            f"coupled {gsm8k('gsm8k-coupled', 'arithmetic.mean', '.1%', GSM8K)} "
            f"and {gsm8k('gsm8k-coupled-talker', 'arithmetic.mean', '.1%', GSM8K)}",
        ],
    ]


def verdicts() -> str:
    """What was asked, the answer, its control."""

    def route(run: str) -> str:
        return number(get(TREE, f"runs.out/{run}.route_accuracy"), ".2%")

    def later(model: str, what: str) -> str:
        return number(get(CONTAINMENT["trees"], f"runs.out/{model}.{what}.mean"), ".1%")

    def noisy(run: str, kind: str, index: int, file: str = NOISE["1.0M"]) -> str:
        return number(get(file, f"runs.out/{run}.{kind}.{index}.token_accuracy.mean"), ".1%")

    def words(key: str) -> str:
        return number(get(TALKER, f"runs.out/reasoner-quick.{key}.share"), ".2%")

    rows = [
        [
            "Can a wrong token reach the latent chain?",
            f"no: the gradient is exactly {get(CONTAINMENT['trees'], 'runs.out/reasoner-quick.gradient'):.0f}",
            "in the coupled models it is not 0",
        ],
        [
            "Are errors contained, then?",
            "no: after one wrong latent "
            f"{later('reasoner-quick', 'after_a_wrong_latent')} of the later tokens are correct",
            f"after one wrong token {later('reasoner-coupled', 'after_a_wrong_token')} in the coupled Transformer; "
            f"without intervention {later('reasoner-quick', 'undisturbed')}",
        ],
        [
            "Does it find routes in trees better?",
            f"no: {route('reasoner-quick')} of routes correct",
            f"coupled Transformer {route('reasoner-coupled')}, continuous thoughts {route('reasoner-coconut')}, "
            f"coupled-talker {route('reasoner-coupled-talker')} (significantly better)",
        ],
        [
            "Is it more robust to a noisy prompt?",
            f"no: {noisy('reasoner-cfg', 'replace', 3)} of tokens correct at 15% of the prompt replaced",
            f"coupled Transformer {noisy('cfg-coupled', 'replace', 3)}",
        ],
        [
            "… to Gaussian noise on what is fed back?",
            f"as robust up to 0.6, trained with it: {noisy('reasoner-cfg', 'latent', 4, TRAINED_WITH_NOISE)} at a norm "
            f"of 0.6; less at 1.0: {noisy('reasoner-cfg', 'latent', 6, TRAINED_WITH_NOISE)}",
            f"coupled Transformer, trained with it {noisy('cfg-coupled', 'latent', 4, TRAINED_WITH_NOISE)} and "
            f"{noisy('cfg-coupled', 'latent', 6, TRAINED_WITH_NOISE)}; at 0.6, trained without it, "
            f"{noisy('reasoner-cfg', 'latent', 4)} and coupled {noisy('cfg-coupled', 'latent', 4)}",
        ],
        *routes_verdicts(),
        *word_problem_verdicts(),
        *gsm8k_verdicts(),
        [
            "Does the Talker add anything?",
            f"no: {words('own')} of routes correct",
            f"the nearest embedding, without a Talker {words('nearest')}",
        ],
    ]
    return table(["asked", "answer", "control"], rows)


# -------------------------------------------------------------------------------------------------- trees


def tree() -> str:
    """Routes: the system, its two controls, the baselines."""
    names = {
        "JEPA-Reasoner: latents fed back, put into words by the Talker": "reasoner-quick",
        "its chain read by the nearest embedding, without a Talker": "reasoner-quick, by the nearest embedding",
        "the same, and that embedding fed back instead of the latent (control)": "reasoner-quick, tokens fed back",
        "coupled: an ordinary Transformer, tokens fed back": "reasoner-coupled",
        "coupled-talker: Reasoner and Talker as one, tokens fed back": "reasoner-coupled-talker",
        "coconut: three continuous thoughts, then the whole chain in tokens": "reasoner-coconut",
    }
    rows = []
    for label, run in names.items():
        keys, folder = f"runs.out/{run}", run.removeprefix("reasoner-")
        file = "reasoner-quick/summary.json" if folder.startswith("quick") else f"reasoner-quick/{folder}/summary.json"
        parameters = "" if "," in run else f"{get(file, 'n_params'):,}"
        difference = points(TREE, f"{keys}.less_the_first_run", "+.2p")
        routes = with_ci(TREE, f"{keys}.route_accuracy", ".2%")
        rows.append([label, parameters, routes, with_ci(TREE, f"{keys}.by_nodes.9", ".2%"), difference])
    return table(["", "parameters", "routes correct", "in trees of 9 nodes", "paired difference, points"], rows)


def containment() -> str:
    """One latent or token of the chain made wrong."""
    models = {
        ("trees", "JEPA-Reasoner"): "reasoner-quick",
        ("trees", "coupled"): "reasoner-coupled",
        ("trees", "coupled-talker"): "reasoner-coupled-talker",
        ("trees", "coconut"): "reasoner-coconut",
        ("GSM8K", "JEPA-Reasoner"): "reasoner-gsm8k",
        ("GSM8K", "coupled"): "gsm8k-coupled",
        ("GSM8K", "coupled-talker"): "gsm8k-coupled-talker",
    }
    rows = []
    for (data, model), run in models.items():
        file, keys = CONTAINMENT[data], f"runs.out/{run}"
        what = "latent" if model == "JEPA-Reasoner" else "token"
        rows.append(
            [
                data,
                model,
                "not 0" if get(file, f"{keys}.gradient") else "0",
                number(get(file, f"{keys}.undisturbed.mean"), ".1%"),
                f"{what}: {with_ci(file, f'{keys}.after_a_wrong_{what}', '.1%')}",
                points(file, f"{keys}.less_the_first_run"),
            ]
        )
    header = [
        "",
        "",
        "gradient to a chain token",
        "later tokens correct",
        "after one wrong",
        "paired difference, points",
    ]
    return table(header, rows)


def talker() -> str:
    """What the Talker generates from latents that are not this prompt's."""
    latents = {
        "matched": "own",
        "another prompt's: the Talker generates that prompt's route": "other_says_other",
        "another prompt's: the Talker generates this prompt's route": "other_says_own",
        "the first one matched, the rest another prompt's: it generates this prompt's route": "first",
        "Gaussian: a walk down the tree at all": "gauss_valid",
    }
    rows = [[label, with_ci(TALKER, f"runs.out/reasoner-quick.{key}", ".2%")] for label, key in latents.items()]
    return table(["latents", "correct"], rows)


# -------------------------------------------------------------------------------------------------- noise


def noise() -> str:
    """A few of the 24 settings: accuracy relative to no noise, in %, and the difference of accuracies, in points."""
    settings = [
        ("1.0M", "10% replaced", "replace", 2),
        ("1.0M", "15% dropped", "drop", 3),
        ("1.0M", "15% inserted", "insert", 3),
        ("1.0M", "Gaussian 0.6", "latent", 4),
        ("0.58M", "15% inserted", "insert", 3),
        ("0.58M", "Gaussian 0.6", "latent", 4),
    ]
    rows = []
    for size, label, kind, index in settings:
        file, end = NOISE[size], "" if size == "1.0M" else "-96"
        names = [f"reasoner-cfg{end}", f"cfg-coupled{end}", "cfg-coconut", f"reasoner-cfg{end}, tokens fed back"]
        if end:
            names.remove("cfg-coconut")
        found = [f"runs.out/{name}.{kind}.{index}" for name in names]
        cells = [with_ci(file, f"{keys}.normalised", ".1p") for keys in found]
        if end:
            cells.insert(2, "not run")
        rows.append([size, label, *cells, points(file, f"{found[1]}.less_the_first_run")])
    control = "JEPA-Reasoner, tokens fed back (control)"
    header = ["size", "noise", "JEPA-Reasoner", "coupled", "coconut", control, "coupled minus JEPA-Reasoner, points"]
    return table(header, rows)


# ---------------------------------------------------------------------------------------------- ablations


def ablations() -> str:
    """Self-supervised training, a choice of its variants."""
    rows = []
    for name in ("as the preset", "hard targets", "L2 only", "EMA 0", "rollout 1", "rollout 3"):
        row = get(ABLATIONS, f"sst.{name}")
        rows.append(
            [
                name,
                interval(row["route_accuracy"], row["ci95"], ".1%"),
                f"{row['val_cos_own']:.3f} / {row['val_cos_other']:.3f}",
                f"{row['free_running']:.1%} / {row['teacher_forced']:.1%}",
                with_ci(ABLATIONS, f"sst.{name}.mixed.beta_difference", "+.4f"),
            ]
        )
    header = [
        "self-supervised training",
        "routes correct, by the nearest embedding",
        "cos matched / mismatched",
        "token accuracy, free / true inputs",
        "weight of the sibling minus that of another node",
    ]
    return table(header, rows)


# -------------------------------------------------------------------------------------------------- GSM8K


def gsm8k(runs: dict[str, tuple[str, str]]) -> str:
    """Answers and chains on the test questions, in %; {column: (file, run)}."""
    measures = {
        "exact match": "exact_match",
        "results of the solution found": "results_found",
        "the same, in another problem's chain (control)": "another_problems",
        "steps correct before the first wrong one": "right_from_the_start",
        "equations that hold": "arithmetic",
        "answers that are the last equation's result": "follows",
        "steps correct after a correct one": "after_a_right_step",
        "steps correct after a wrong one": "after_a_wrong_step",
    }
    rows = [
        [label, *(with_ci(file, f"runs.out/{run}.{key}", ".2p") for file, run in runs.values())]
        for label, key in measures.items()
    ]
    return table(["", *runs], rows)


GSM8K_COSINE = {
    "JEPA-Reasoner": (GSM8K, "reasoner-gsm8k"),
    "its chain, nearest embedding": (GSM8K, "reasoner-gsm8k, by the nearest embedding"),
    "tokens fed back": (GSM8K, "reasoner-gsm8k, tokens fed back"),
    "coupled": (GSM8K, "gsm8k-coupled"),
    "coupled-talker": (GSM8K, "gsm8k-coupled-talker"),
}
GSM8K_HARD = {
    "latents as they are, nearest embedding": (RAW, "reasoner-gsm8k-hard, by the nearest embedding"),
    "τ = 0.01, the Talker": (HARD, "reasoner-gsm8k-hard"),
    "τ = 0.01, nearest embedding": (HARD, "reasoner-gsm8k-hard, by the nearest embedding"),
    "τ = 0.003, nearest embedding": (SHARP, "reasoner-gsm8k-hard, by the nearest embedding"),
    "tokens fed back (control)": (HARD, "reasoner-gsm8k-hard, tokens fed back"),
    "coupled": (GSM8K, "gsm8k-coupled"),
}


def fewshot() -> str:
    """Exact match with solved examples before the question, in %."""
    names = {"JEPA-Reasoner": "reasoner-gsm8k", "coupled": "gsm8k-coupled", "coupled-talker": "gsm8k-coupled-talker"}
    rows = []
    for label, run in names.items():
        cells = [with_ci(FEWSHOT, f"runs.out/{run}.{shown}", ".2p") for shown in (0, 1, 5, 8)]
        rows.append([label, *cells, points(FEWSHOT, f"runs.out/{run}.8.less_none")])
    return table(["solved examples", "0", "1", "5", "8", "8 minus 0, paired, points"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "reasoner-verdicts": verdicts,
    "reasoner-tree": tree,
    "reasoner-containment": containment,
    "reasoner-talker": talker,
    "reasoner-noise": noise,
    "reasoner-ablations": ablations,
    "reasoner-gsm8k": lambda: gsm8k(GSM8K_COSINE),
    "reasoner-gsm8k-hard": lambda: gsm8k(GSM8K_HARD),
    "reasoner-fewshot": fewshot,
}
