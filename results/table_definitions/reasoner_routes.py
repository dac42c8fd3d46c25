"""Several routes: the tables of `reasoner-routes/posterior.json`, weights beside the true posterior."""

from collections.abc import Callable

from results.tables import table, with_ci

FILE = "reasoner-routes/posterior.json"
RUNS = {
    "JEPA-Reasoner": "runs.out/reasoner-routes",
    "hard targets": "runs.out/reasoner-routes-hard",
    "coupled Transformer": "runs.out/routes-coupled",
}


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
        for fed_back in ("latents", "sharpened", "tokens"):
            keys = f"{RUNS[model]}.free_running.{fed_back}"
            rows.append(
                [
                    model,
                    {"sharpened": "sharpened, τ = 0.01", "tokens": "tokens (control)"}.get(fed_back, fed_back),
                    with_ci(FILE, f"{keys}.routes", ".1%"),
                    *(with_ci(FILE, f"{keys}.{name}") for name in ("behind the nearest", "over all routes")),
                    with_ci(FILE, f"{keys}.difference", "+.3f"),
                ]
            )
    coupled = f"{RUNS['coupled Transformer']}.route_accuracy"
    rows.append(["coupled Transformer", "tokens", with_ci(FILE, coupled, ".1%"), "", "", ""])
    header = ["", "fed back", "chains that are a route", "distance behind the nearest nodes", "over all routes"]
    return table([*header, "difference, paired"], rows)


TABLES: dict[str, Callable[[], str]] = {"reasoner-routes": distances, "reasoner-routes-free": free_running}
