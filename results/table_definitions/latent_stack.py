"""The tables of the latent stack, in latent_stack/README.md and results/README.md."""

from collections.abc import Callable
from functools import partial

from results.tables import get, interval, load, number, table, with_ci

QUICK, PARAPHRASE = "latent-quick/summaries.json", "latent-paraphrase/summaries.json"
IDEAS = "latent-ideas/summaries.json"
SAYBACK, THINKING = "latent-ideas/pretrain/sayback.json", "latent-ideas/pretrain/thinking.json"
OTHER_SEEDS = [f"latent-ideas-seed-{seed}/pretrain/sayback.json" for seed in (1, 2)]
SETTINGS = {
    "base": "base: LoRA on the language model, bag of words, 256-d idea, mean pooling, MLP of 2 layers",
    "no middle model": "no middle model",
    "residual middle model": "residual middle model",
    "4 layers in the middle": "MLP of 4 layers",
    "residual, 4 layers": "residual middle model of 4 layers",
    "frozen language model": "frozen language model",
    "no bag of words": "no bag-of-words loss",
    "attention pooling": "attention pooling",
    "first token and MLP": "first token and an MLP as pooling",
    "512-d idea": "512-d idea",
    "phase 2": "`phase2`: attention pooling, 512-d idea, MLP of 4 layers, LoRA on the encoder, too",
}


def kinds(third: str) -> dict[str, str]:
    """What is generated from, and the controls."""
    return {
        "own": "generated from the matched idea",
        "shuffled": "from a mismatched idea, another text's (control)",
        "zero": "from a prefix of zeros (control)",
        "lead3": f"{third}, no model",
        "full_text": "the language model, prompted with the whole text",
    }


def points(difference: dict, digits: str = "+.4f") -> str:
    """{"mean", "ci95"} of a paired difference with its signs."""
    return interval(difference["mean"], difference["ci95"], digits)


def verdicts() -> str:
    settings = load("latent_settings.json")["settings"]
    seeds = " and ".join(number(get(f, "own.exact.mean"), ".1%") for f in OTHER_SEEDS)
    nats = {name: number(run["val_loss_difference"]["mean"]) for name, run in settings.items()}
    rows = [
        [
            "Does one vector carry a dialogue's topic?",
            f"**yes**: ROUGE-L {with_ci(QUICK, 'own.rougeL')}",
            f"another text's vector {with_ci(QUICK, 'shuffled.rougeL')}",
        ],
        [
            "Its names?",
            f"**no**: {number(get(QUICK, 'own.recall_names.mean'), '.1%')} of them are generated",
            f"another text's vector {number(get(QUICK, 'shuffled.recall_names.mean'), '.1%')}",
        ],
        [
            "Do 128 ideas, one a token, hold a sentence?",
            f"**yes**: the soft tokens spell {with_ci(SAYBACK, 'soft_tokens.exact', '.1%')} exactly, "
            f"the language model says {with_ci(SAYBACK, 'own.exact', '.1%')}, with other seeds {seeds}",
            f"another text's ideas {with_ci(SAYBACK, 'shuffled.exact', '.1%')}",
        ],
        [
            "Summaries from them?",
            f"**nearer to the reference than its beginning**, with fewer names: ROUGE-L {with_ci(IDEAS, 'own.rougeL')}",
            f"the first three lines, no model: {with_ci(IDEAS, 'lead3.rougeL')}",
        ],
        [
            "Does a middle model help?",
            f"**no**: with an MLP of 2 layers the idea saves {nats['base']} nats a token, with 4 "
            f"{nats['4 layers in the middle']}, with a residual one of 4 {nats['residual, 4 layers']}",
            f"without one {nats['no middle model']}",
        ],
        [
            "And in a small world of names and things?",
            f"**yes**: ROUGE-L {number(get(PARAPHRASE, 'own.rougeL.mean'))} to another wording",
            f"another text's vector {number(get(PARAPHRASE, 'shuffled.rougeL.mean'))}",
        ],
    ]
    return table(["asked", "answer", "control"], rows)


def summaries() -> str:
    rows = []
    for kind, label in kinds("the first three lines").items():
        cells = [number(get(QUICK, f"{kind}.{name}.mean")) for name in ("rouge1", "rouge2")]
        cells += [with_ci(QUICK, f"{kind}.rougeL")]
        cells += [with_ci(QUICK, f"{kind}.recall_{name}", ".1%") for name in ("names", "words")]
        rows.append([label, *cells])
    return table(["", "ROUGE-1", "ROUGE-2", "ROUGE-L", "names generated", "other words generated"], rows)


def cross_entropies() -> str:
    files = ("latent-quick/summary.json", "latent-paraphrase/summary.json")
    rows = [
        [label, *(number(get(file, key)) for file in files)]
        for label, key in (
            ("given the matched idea", "val_loss"),
            ("given a mismatched idea (control)", "val_loss_shuffled"),
        )
    ]
    return table(["cross-entropy, validation, nats per token", "dialogues", "paraphrases"], rows)


def clusters() -> str:
    rows = [[", ".join(c["typical"]), c["centroid"]] for c in get("latent-quick/cluster.json", "clusters")]
    return table(["typical words of the cluster's summaries", "generated from its centroid"], rows)


def interpolate(run: str) -> str:
    rows = []
    found = get(f"{run}/interpolate.json", "rougeL_less_third")
    for step, (first, last) in enumerate(zip(found["first"], found["last"], strict=True)):
        rows.append([f"{step / (len(found['first']) - 1):g}", points(first), points(last)])
    return table(["of the way", "to the first text − to a third", "to the last − to a third"], rows)


def middle() -> str:
    labels = {"trained": "the trained middle model", "identity": "nothing", "random": "an untrained one"}
    rows = [[label, with_ci("latent-quick/middle.json", f"{name}.rougeL")] for name, label in labels.items()]
    return table(["between z_in and z_out", "ROUGE-L"], rows)


def paraphrases() -> str:
    rows = []
    for kind, label in kinds("the first three sentences").items():
        rows.append(
            [label, *(with_ci(PARAPHRASE, f"{kind}.{name}") for name in ("rougeL", "bleu", "meteor_no_synonyms"))]
        )
    return table(["", "ROUGE-L", "BLEU", "METEOR, without synonyms"], rows)


def settings() -> str:
    rows = []
    found = load("latent_settings.json")["settings"]
    for name, label in SETTINGS.items():
        run = found[name]
        delta = points(run["val_loss_difference_less_the_first"], "+.3f") if name != "base" else ""
        rows.append([label, number(run["val_loss"]), points(run["val_loss_difference"], "+.3f"), delta])
    header = ["trained with", "validation loss", "mismatched − matched idea, nats per token", "the same, delta to base"]
    return table(header, rows)


def settings_rouge() -> str:
    """The same settings: size, and ROUGE-L given the matched and a mismatched idea."""
    found, rows = load("latent_settings.json")["settings"], []
    for name, label in SETTINGS.items():
        run = found[name]
        matched = interval(run["rougeL"], run["rougeL_ci95"])
        mismatched = interval(run["rougeL_shuffled"], run["rougeL_shuffled_ci95"])
        rows.append([label, f"{run['n_params']:,}", matched, mismatched])
    return table(["trained with", "trained parameters", "ROUGE-L, matched idea", "mismatched (control)"], rows)


def neighbours() -> str:
    labels = {
        "encoder, mean of states": "encoder, mean of hidden states",
        "encoder, standardised": "the same, standardised by the training texts",
        "z_in, untrained": "z_in of an untrained compression (control)",
        "z_in": "z_in",
        "z_out": "z_out",
    }
    found, rows = load("latent-quick/neighbours.json"), []
    for name, label in labels.items():
        inputs, targets = (found[f"{name}, {side}"] for side in ("input", "target"))
        matched = [interval(cell["spearman"], cell["ci95"]) for cell in (inputs, targets)]
        control = [number(cell["shuffled"], "+.3f") for cell in (inputs, targets)]
        rows.append([label, *matched, *control])
    header = ["rank correlation of cosines with word overlap", "of the inputs", "of the targets"]
    return table([*header, "inputs (control)", "targets (control)"], rows)


def memory() -> str:
    rows = []
    for name, found in load("latent_memory_cpu.json")["presets"].items():
        rows.append(
            [f"`{name}`", number(found["peak_gib"], ".2f"), number(found["half_precision_estimate_gib"], ".2f")]
        )
    return table(["8 texts of 256 tokens", "peak in fp32, GiB", "half precision, estimate, GiB"], rows)


def sayback() -> str:
    measures = {
        "exact": "said back exactly",
        "recall_names": "names",
        "recall_words": "other words",
        "rougeL": "ROUGE-L",
    }
    rows = []
    for name, label in measures.items():
        digits = ".3f" if name == "rougeL" else ".1%"
        rows.append([label, *(with_ci(SAYBACK, f"{x}.{name}", digits) for x in ("own", "soft_tokens", "shuffled"))])
    return table(["", "by the language model", "by soft tokens alone", "another sentence's (control)"], rows)


def ideas_summaries() -> str:
    """Summaries from many ideas and from one; each row names the dialogues, the first of the test split."""
    measures, rows = {"rougeL": ".3f", "recall_names": ".1%", "recall_words": ".1%"}, []
    many, one, n = load("latent-ideas/summary.json"), load("latent-quick/summary.json"), get(IDEAS, "n")
    size = {x: f"{summary['n_params'] / 1e6:.1f}M" for x, summary in (("many", many), ("one", one))}
    for suffix, label in (("", "128 ideas, after saying back"), ("_shuffled", "the same, another text's (control)")):
        pairs = [(many[f"{name}{suffix}"], many[f"{name}{suffix}_ci95"]) for name in measures]
        cells = (interval(*x, digits) for x, digits in zip(pairs, measures.values(), strict=True))
        rows.append([label, f"{many['n']:,}", size["many"], *cells])
    beside = {
        "own": ("128 ideas", size["many"]),
        "words": ("the words themselves in their place (control)", size["many"]),
        "lead3": ("the first three lines, no model", ""),
        "full_text": ("the language model, prompted with the whole text", ""),
    }
    for kind, (label, parameters) in beside.items():
        cells = (with_ci(IDEAS, f"{kind}.{name}", digits) for name, digits in measures.items())
        rows.append([label, f"{n:,}", parameters, *cells])
    for kind, label in {"own": "one idea (`quick`)", "shuffled": "the same, another text's (control)"}.items():
        cells = (with_ci(QUICK, f"{kind}.{name}", digits) for name, digits in measures.items())
        rows.append([label, f"{one['n']:,}", size["one"], *cells])
    header = ["", "dialogues", "trained parameters", "ROUGE-L", "names generated", "other words generated"]
    return table(header, rows)


def ideas_ablation(kind: str) -> str:
    """The rows of one kind of both seeds: READ_OFF, by soft tokens alone, or SAID, by the language model."""
    seeds = [load(name)["variants"] for name in ("latent_ideas.json", "latent_ideas_seed_1.json")]
    names, rows = [name for name, row in seeds[0].items() if row["kind"] == kind], []
    for name in names:
        found = [seed[name] for seed in seeds if name in seed]
        blank = [""] * (len(seeds) - len(found))  # not trained with the second seed
        exact = [interval(row["exact"]["mean"], row["exact"]["ci95"], ".1%") for row in found] + blank
        less = [points(row["exact_less_the_first"], "+.1%") if rows else "" for row in found] + blank
        others = [" and ".join(number(row[x]["mean"], ".1%") for row in found) for x in ("exact_shuffled", "names")]
        rows.append([name, f"{found[0]['n_params']:,}", *exact, *less, *others])
    header = ["exact but for the case, seed 0", "seed 1", "less the first, paired, seed 0", "seed 1"]
    return table(["trained", "parameters", *header, "another's (control)", "names"], rows)


def capacity() -> str:
    found, rows = load("latent-one-idea/capacity.json"), []
    for name, row in found["capacity"].items():
        said = [interval(row[x]["mean"], row[x]["ci95"], ".0%") for x in ("at_first", "said")]
        rows.append([name, f"{row['numbers']:,}", *said, f"{row['whole'] * found['n']:.0f} of {found['n']}"])
    return table(["optimised", "numbers", "tokens said at first", "at last", "sentences said whole"], rows)


MIDDLES = {
    "identity": "nothing (control)",
    "untrained": "untrained Transformer (control)",
    "linear": "linear map",
    "mlp": "MLP of 2 layers, each idea by itself",
    "transformer": "Transformer of 2 layers",
    "deeper": "Transformer of 4 layers",
    "shuffled": "Transformer of 2 layers, another text's ideas (control)",
    "target": "the target's own ideas: the ceiling",
}


def thinking() -> str:
    tasks = [name for name, value in load(THINKING).items() if isinstance(value, dict)]
    rows = []
    for name, label in MIDDLES.items():
        exact = [with_ci(THINKING, f"{t}.{name}.soft_tokens.exact", ".0%") for t in tasks]
        said = [number(get(THINKING, f"{t}.{name}.rougeL.mean")) for t in tasks]
        rows.append([label, *(f"{a}; {b}" for a, b in zip(exact, said, strict=True))])
    return table(["exact but for the case by the soft tokens; ROUGE-L of what is said", *tasks], rows)


def thinking_dialogues() -> str:
    """From a dialogue's ideas to its summary's: what the soft tokens spell, and what the language model says."""
    file, rows = "latent-ideas-seed-1/pretrain/thinking-samsum.json", []
    for name, label in MIDDLES.items():
        found = f"samsum.{name}"
        cells = [with_ci(file, f"{found}.soft_tokens.rougeL"), with_ci(file, f"{found}.rougeL")]
        rows.append([label, *cells, with_ci(file, f"{found}.recall_names", ".1%")])
    return table(["dialogue to summary", "ROUGE-L, by the soft tokens", "by the language model", "names said"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "latent-sayback": sayback,
    "latent-ideas": ideas_summaries,
    "latent-read-off": partial(ideas_ablation, "READ_OFF"),
    "latent-said": partial(ideas_ablation, "SAID"),
    "latent-capacity": capacity,
    "latent-thinking": thinking,
    "latent-thinking-dialogues": thinking_dialogues,
    "latent-verdicts": verdicts,
    "latent-summaries": summaries,
    "latent-cross-entropy": cross_entropies,
    "latent-clusters": clusters,
    "latent-interpolate": partial(interpolate, "latent-quick"),
    "latent-ideas-interpolate": partial(interpolate, "latent-ideas-seed-2/pretrain"),
    "latent-middle": middle,
    "latent-paraphrases": paraphrases,
    "latent-settings": settings,
    "latent-settings-rouge": settings_rouge,
    "latent-neighbours": neighbours,
    "latent-memory": memory,
}
