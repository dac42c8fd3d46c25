"""Several routes: weights beside the true posterior, `reasoner-routes/posterior.json`; a goal that arrives late,
`reasoner-clue/clue.json`."""

from collections.abc import Callable

from results.tables import table, with_ci

FILE = "reasoner-routes/posterior.json"
RUNS = {
    "JEPA-Reasoner": "runs.out/reasoner-routes",
    "hard targets": "runs.out/reasoner-routes-hard",
    "coupled Transformer": "runs.out/routes-coupled",
}
CLUE = "reasoner-clue/clue.json"
CLUE_RUNS = {
    "JEPA-Reasoner": "runs.out/reasoner-clue",
    "… trained on own latents, too": "runs.out/reasoner-clue-own",
    "… on own latents, nearly tokens": "runs.out/reasoner-clue-own-tokens",
    "coupled Transformer": "runs.out/clue-coupled",
}
FED_BACK = {"latents": "latents", "sharpened": "sharpened, τ = 0.01", "tokens": "tokens (control)"}


def distances() -> str:
    """Total variation between the true posterior and what a model gives the nodes, and of the controls."""
    labels = {
        "own": "the step's own",
        "another step's": "another step's (control; of another layer's nodes, so near 1 by construction)",
        "untrained": "an untrained model's (control)",
        "most likely alone": "the most likely node alone",
        "even chances, what follows": "even chances, what follows by the edges",
        "even chances, what leads to the goal": "even chances, what leads to the goal",
    }
    rows = [
        [label, *(with_ci(FILE, f"{keys}.distance.{name}") for keys in RUNS.values())] for name, label in labels.items()
    ]
    rows.append(
        [
            "own minus the last row, paired",
            *(with_ci(FILE, f"{keys}.less_even", "+.3f") for keys in RUNS.values()),
        ]
    )
    return table(["distance of these weights to the posterior", *RUNS], rows)


def free_running() -> str:
    """Chains by themselves: routes that lead to the goal, distances to the posterior behind the nearest nodes, and to
    that over all routes."""
    rows = []
    for model in ("JEPA-Reasoner", "hard targets"):
        for fed_back in FED_BACK:
            keys = f"{RUNS[model]}.free_running.{fed_back}"
            rows.append(
                [
                    model,
                    FED_BACK[fed_back],
                    with_ci(FILE, f"{keys}.routes", ".1%"),
                    *(with_ci(FILE, f"{keys}.{name}") for name in ("behind the nearest", "over all routes")),
                    with_ci(FILE, f"{keys}.difference", "+.3f"),
                ]
            )
    coupled = f"{RUNS['coupled Transformer']}.route_accuracy"
    rows.append(["coupled Transformer", "tokens", with_ci(FILE, coupled, ".1%"), "", "", ""])
    header = ["", "fed back", "chains that are a route", "distance behind the nearest nodes", "over all routes"]
    return table([*header, "difference, paired"], rows)


def late_goal() -> str:
    """What stands behind a goal that arrives late: is it right, and where the first choice does not lead there?"""
    rows = []
    for model, keys in CLUE_RUNS.items():
        for fed_back, label in FED_BACK.items() if model != "coupled Transformer" else [("tokens", "tokens")]:
            after = f"{keys}.after.{fed_back}"
            measures = "right another_goal_given first_choice_leads_there right_behind_such right_behind_others".split()
            cells = [with_ci(CLUE, f"{after}.{measure}", ".1%") for measure in measures]
            less = with_ci(CLUE, f"{after}.less_tokens", "+.1%") if fed_back != "tokens" else ""
            rows.append([model, label, *cells, less])
    header = ["", "fed back", "right behind the goal", "goals exchanged (control)", "first choice leads to the goal"]
    return table([*header, "right where it does", "where it does not", "paired difference of right to tokens"], rows)


def before_a_late_goal() -> str:
    """Total variation of the first choice's weights to the posterior over all goals that may come."""
    labels = {"own": "own", "most likely alone": "the most likely node alone", "even chances": "even chances"}
    rows = [
        [label, *(with_ci(CLUE, f"{x}.before.{name}") for x in CLUE_RUNS.values())] for name, label in labels.items()
    ]
    rows.append(
        ["own minus even, paired", *(with_ci(CLUE, f"{x}.before.less_even", "+.3f") for x in CLUE_RUNS.values())]
    )
    return table(["distance of these weights to the posterior", *CLUE_RUNS], rows)


TABLES: dict[str, Callable[[], str]] = {
    "reasoner-routes": distances,
    "reasoner-routes-free": free_running,
    "reasoner-clue": late_goal,
    "reasoner-clue-before": before_a_late_goal,
}
