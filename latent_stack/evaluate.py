"""What a latent stack says, beside what it would say without the idea.

    python -m latent_stack.evaluate --run out/latent-quick --what summaries       ROUGE and its controls
    python -m latent_stack.evaluate --run out/latent-quick --what interpolate     from one idea to another
    python -m latent_stack.evaluate --run out/latent-quick --what neighbours      do like texts get like ideas?
    python -m latent_stack.evaluate --run out/latent-quick --what cluster         k-means, centroids said
    python -m latent_stack.evaluate --run out/latent-quick --what map             PCA and t-SNE
    python -m latent_stack.evaluate --run out/latent-quick --what middle          trained, identity, random
    python -m latent_stack.evaluate --run out/latent-quick --text "Ana: hi! …"    a text given by hand
    cat chat.txt | python -m latent_stack.evaluate --run out/latent-quick --text -    or on stdin

Writes <what>.json, and figures, into the run's folder. Shapes: N texts, D idea.
"""

import copy
import random
import re
import sys
from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from config import UserError, atomic, opt, parse, resolve_device, run_main, write_json
from latent_stack.data import load_pairs
from latent_stack.model import Middle, Pooling, load_run

REFERENCES = ("own", "shuffled", "zero", "lead3", "full_text")


@dataclass
class EvalConfig:
    """What `latent_stack.evaluate` reads."""

    run: str = opt("out/latent-quick", "folder of the trained run")
    what: str = opt("summaries", "the experiment",
                    ("summaries", "interpolate", "neighbours", "cluster", "map", "middle"))  # fmt: skip
    text: str = opt("", "say this text instead ( - reads it from stdin)")
    data_dir: str = opt("", "folder of the data [what the run was trained on]")
    limit: int = opt(0, "use the first N test texts only, 10 or more (0: all)", low=0)
    clusters: int = opt(8, "cluster, map: number of clusters", low=2)
    seed: int = opt(0, "seed of shuffling, bootstrap, clusters and the random middle model", low=0)
    device: str = opt("auto", "auto, cpu, cuda, cuda:N or mps; auto takes the best one present")


# ---------------------------------------------------------------------------------------------- measures


@lru_cache(maxsize=1)
def rouge():
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)


def rouge_of(said, wanted):
    """Two lists of N str -> {"rouge1", "rouge2", "rougeL"}: arrays of N F1 scores."""
    found = [rouge().score(w, s) for s, w in zip(said, wanted, strict=True)]
    return {name: np.array([x[name].fmeasure for x in found]) for name in ("rouge1", "rouge2", "rougeL")}


def words_in(text):
    """Text -> set of its words of three letters or more, as written."""
    return set(re.findall(r"[^\W\d_]{3,}", text))


def lower_case_words(texts):
    """list of str -> set of the words that any of them writes small: these are no names."""
    return {w for x in texts for w in words_in(x) if w.islower()}


def recall_of(said, wanted, small):
    """Two lists of N str -> {"names", "words"}: the shares of the wanted texts' names, and of their other words of four
    letters or more, that are said; arrays of as many texts as have any. A name is a word that is not in `small`, the
    `lower_case_words` of targets and inputs: which words count does not depend on what is said."""
    kinds = {"names": lambda w: w.istitle() and w.lower() not in small, "words": lambda w: w.islower() and len(w) > 3}
    found = {}
    for kind, of_kind in kinds.items():
        pairs = [(words_in(s), {w for w in words_in(x) if of_kind(w)}) for s, x in zip(said, wanted, strict=True)]
        found[kind] = np.array([len(own & true) / len(true) for own, true in pairs if true])
    return found


def bootstrap(scores, seed=0, n=1000):
    """N scores -> mean and the 95% interval of the mean over `n` resamples of the texts."""
    rng = np.random.default_rng(seed)
    means = scores[rng.integers(0, len(scores), (n, len(scores)))].mean(1)
    return {"mean": float(scores.mean()), "ci95": np.percentile(means, [2.5, 97.5]).tolist()}


def signed(difference):
    """A difference as `bootstrap` gives it -> str, its mean and interval with their signs."""
    low, high = difference["ci95"]
    return f"{difference['mean']:+.4f} ({low:+.4f} to {high:+.4f})"


def bleu_and_meteor(said, wanted, seed=0):
    """For paraphrases: corpus BLEU (sacrebleu, 0…1) with a bootstrap interval; mean exact-and-stem METEOR with one.

    METEOR (Banerjee & Lavie 2005) without WordNet's synonyms, so that nothing has to be downloaded.
    """
    import sacrebleu
    from nltk.translate.meteor_score import single_meteor_score

    rng = np.random.default_rng(seed)
    whole = sacrebleu.corpus_bleu(said, [wanted]).score / 100
    draws = [rng.integers(0, len(said), len(said)) for _ in range(200)]
    spread = [sacrebleu.corpus_bleu([said[i] for i in d], [[wanted[i] for i in d]]).score / 100 for d in draws]

    class NoSynonyms:
        synsets = staticmethod(lambda word: [])

    words = lambda text: re.findall(r"\w+|[^\w\s]", text.lower())  # noqa: E731
    meteor = np.array([single_meteor_score(words(w), words(s), wordnet=NoSynonyms) if s else 0.0
                       for s, w in zip(said, wanted, strict=True)])  # fmt: skip
    return {"bleu": {"mean": whole, "ci95": np.percentile(spread, [2.5, 97.5]).tolist()},
            "meteor_no_synonyms": bootstrap(meteor, seed)}  # fmt: skip


def lead3(text):
    """The first three lines of a text, such as a dialogue's utterances; of a single line the first three sentences."""
    lines = [x.strip() for x in text.splitlines() if x.strip()]
    parts = lines if len(lines) > 1 else re.split(r"(?<=[.!?])\s+", text)
    return " ".join(parts[:3])


ASK = {
    "paraphrase": "Say the following in other words.",
    "pairs": "Say the following in other words.",
    "qa": "Answer the question from the text, as briefly as you can.",
}


def prompted(model, texts, batch_size=16):
    """The full-text reference: the language model itself, untrained for the task, reads the text and is asked."""
    t, config = model.decoder_tokenizer, model.config
    ask = ASK.get(config.dataset, "Summarize the following in one or two sentences.")
    room = model.window - config.max_new_tokens - 100  # for the request
    ids = [t(x, add_special_tokens=False)["input_ids"] for x in texts]
    long = sum(len(i) > room for i in ids)
    if long:
        print(f"full text: {long} of {len(texts)} texts cut off at {room} tokens, the language model's room")
        texts = [t.decode(i[:room]) if len(i) > room else x for i, x in zip(ids, texts, strict=True)]
    if t.chat_template:
        shown = [t.apply_chat_template([{"role": "user", "content": f"{ask}\n\n{x}"}], tokenize=False,
                                       add_generation_prompt=True) for x in texts]  # fmt: skip
    else:
        shown = [f"{x}\n\n{ask}\n" for x in texts]
    order = sorted(range(len(shown)), key=lambda i: len(shown[i]))
    found, before = {}, (t.padding_side, t.pad_token_id)
    t.padding_side, t.pad_token_id = "left", model.eos
    try:
        for begin in tqdm(range(0, len(order), batch_size), desc="full text", unit="batch", disable=len(order) < 50):
            index = order[begin : begin + batch_size]
            x = t([shown[i] for i in index], return_tensors="pt", padding=True, add_special_tokens=not t.chat_template)
            x = {k: v.to(model.device) for k, v in x.items() if k in ("input_ids", "attention_mask")}
            with model.speaker(adapted=False) as lm:
                ids = lm.generate(**x, **model.greedy())
            texts_of = t.batch_decode(ids[:, x["input_ids"].size(1) :], skip_special_tokens=True)
            found |= dict(zip(index, (s.strip() for s in texts_of), strict=True))
    finally:
        t.padding_side, t.pad_token_id = before
    return [found[i] for i in range(len(shown))]


# ----------------------------------------------------------------------------------------- experiments


def strangers(n, seed=0):
    """A permutation of n in which nobody keeps the own place: one random cycle."""
    order = list(range(n))
    random.Random(seed).shuffle(order)
    after = dict(zip(order, order[1:] + order[:1], strict=True))
    return [after[i] for i in range(n)]


@torch.no_grad()
def summaries(model, pairs, references=REFERENCES, seed=0):
    """ROUGE of what is said from the own idea, beside its references -> (dict of scores, list of rows with the texts).

    `references`: those of REFERENCES that are measured; "own" and "shuffled", whose paired difference is, too, always.
    shuffled   what is said from another text's idea: everything the model knows of the data but not of this text
    zero       what the language model, its LoRA off, says after a prefix of zeros
    lead3      the first three lines, of a single line the first three sentences
    full_text  the language model itself, prompted with the text
    """
    said = {"own": model.say(model.think(model.encode([p.input for p in pairs])))}
    said["shuffled"] = [said["own"][i] for i in strangers(len(pairs), seed)]
    if "lead3" in references:
        said["lead3"] = [lead3(p.input) for p in pairs]
    # what the language model says without the stack, it says without the stack's LoRA
    if "zero" in references:
        zero = torch.zeros(1, model.config.prefix_len, model.config.decoder_dim, device=model.device)
        said["zero"] = model.continued(zero, adapted=False) * len(pairs)
    if "full_text" in references:
        said["full_text"] = prompted(model, [p.input for p in pairs])
    result, wanted, scores = {"n": len(pairs)}, [p.target for p in pairs], {}
    small = lower_case_words(wanted + [p.input for p in pairs])
    for name in references:
        recall = recall_of(said[name], wanted, small).items()
        scores[name] = rouge_of(said[name], wanted) | {f"recall_{k}": v for k, v in recall if len(v)}
        result[name] = {k: bootstrap(v, seed) for k, v in scores[name].items()}
        if model.config.dataset in ("paraphrase", "pairs"):
            result[name] |= bleu_and_meteor(said[name], wanted, seed)
    paired = [k for k in ("rougeL", "recall_names", "recall_words") if k in scores["own"]]
    result["own_less_shuffled"] = {k: bootstrap(scores["own"][k] - scores["shuffled"][k], seed) for k in paired}
    result["distinct"] = len(set(said["own"]))  # 1: the same sentence for everybody
    rows = [{"input": p.input, "target": p.target, **{k: v[i] for k, v in said.items()}} for i, p in enumerate(pairs)]
    return result, rows


def run_summaries(model, pairs, config):
    result, rows = summaries(model, pairs, seed=config.seed)
    labels = {"own": "own idea", "shuffled": "another text's idea", "zero": "prefix of zeros",
              "lead3": "first three lines or sentences", "full_text": "full text, zero-shot"}  # fmt: skip
    print(f"\n{'':<32}ROUGE-1   ROUGE-2   ROUGE-L   95% interval of ROUGE-L")
    for name, label in labels.items():
        one = result[name]
        low, high = one["rougeL"]["ci95"]
        figures = "   ".join(f"{one[k]['mean']:.4f} " for k in ("rouge1", "rouge2", "rougeL"))
        print(f"{label:<32}{figures}  {low:.4f} to {high:.4f}")
    if model.config.dataset in ("paraphrase", "pairs"):
        print(f"\n{'':<32}BLEU      METEOR without synonyms")
        for name, label in labels.items():
            print(f"{label:<32}{result[name]['bleu']['mean']:.4f}    {result[name]['meteor_no_synonyms']['mean']:.4f}")
    for kind in ("recall_names", "recall_words"):
        if kind in result["own"]:
            told = ", ".join(f"{label} {result[name][kind]['mean']:.1%}" for name, label in labels.items())
            print(f"share of the wanted {kind.removeprefix('recall_')} that are said: {told}")
    print("\nown idea less another text's, paired, with 95% interval")
    for kind, label in (("rougeL", "ROUGE-L"), ("recall_names", "names said"), ("recall_words", "other words said")):
        if kind in result["own_less_shuffled"]:
            print(f"  {label:<30}{signed(result['own_less_shuffled'][kind])}")
    print(f"from {result['n']} own ideas {result['distinct']} different texts are said")
    for row in rows[:3]:
        print(f"\n  wanted    {row['target']}\n  own       {row['own']}\n  shuffled  {row['shuffled']}")
    return result | {"examples": rows[:20]}


@torch.no_grad()
def interpolate(model, pairs, config, steps=5, n=400):
    """Ideas on the way from one text's to another's, said: ROUGE-L to either target and to a third's (control), and
    the differences to the third, paired by way. At most n ways, no more than there are texts with targets of their own;
    the three texts of a way are drawn at random and differ in their targets."""
    rng, ways, scores = random.Random(config.seed), [], {"first": [], "last": [], "third": []}
    different = list({p.target: p for p in pairs}.values())
    if len(different) < 3:
        raise UserError(f"{len(different)} different targets: interpolation wants 3 or more")
    n = min(n, len(different))
    drawn = [rng.sample(different, 3) for _ in range(n)]
    z = model.think(model.encode([p.input for one, other, _ in drawn for p in (one, other)])).view(n, 2, -1)
    t = torch.linspace(0, 1, steps, device=z.device)[:, None]
    texts = model.say(((1 - t) * z[:, :1] + t * z[:, 1:]).flatten(0, 1))  # (n * steps, D)
    for i, (one, other, third) in enumerate(drawn):
        said = texts[i * steps : (i + 1) * steps]
        for name, pair in zip(scores, (one, other, third), strict=True):
            scores[name].append(rouge_of(said, [pair.target] * steps)["rougeL"])
        ways.append({"from": one.target, "to": other.target, "said": said})
    scores = {name: np.array(rows) for name, rows in scores.items()}  # (n, steps) each
    less = {name: scores[name] - scores["third"] for name in ("first", "last")}
    table, less = ({name: [bootstrap(column, config.seed) for column in rows.T] for name, rows in x.items()}
                   for x in (scores, less))  # fmt: skip
    for way in ways[:3]:
        print(f"\nfrom  {way['from']}\nto    {way['to']}")
        for k, text in enumerate(way["said"]):
            print(f"  {k / (steps - 1):.2f}  {text}")
    print(f"\nROUGE-L over {n} ways to the targets of the first, the last and a third text (control); the paired\n"
          "differences with 95% intervals\n\n"
          f"{'of the way':<12}first   last    third   {'first less third':<30}last less third")  # fmt: skip
    for k in range(steps):
        means = "  ".join(f"{table[x][k]['mean']:.4f}" for x in table)
        print(f"{k / (steps - 1):<12.2f}{means}  " + "  ".join(signed(less[x][k]) for x in less))
    return {"n": n, "rougeL": table, "rougeL_less_third": less, "ways": ways[:10]}


def overlap(texts):
    """N texts -> (N, N) share of common words, |A ∩ B| / |A ∪ B|, words of four letters or more."""
    sets = [set(re.findall(r"\w{4,}", x.lower())) for x in texts]
    return np.array([[len(a & b) / max(1, len(a | b)) for b in sets] for a in sets])


def untrained(module, seed=0):
    """A copy of a module with fresh random weights."""
    fresh = copy.deepcopy(module)
    torch.manual_seed(seed)
    for part in fresh.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    return fresh


@torch.no_grad()
def points_of(model, texts, seed=0, batch_size=32):
    """N texts -> {name: (N, D) or (N, H)}, what they are from the encoder on to z_out, on the CPU.

    z_in untrained: with a fresh random pooling and compression behind the same encoder, `origin` and `unit`.
    """
    ids, cut = model.encoder_ids(texts)
    if cut:
        print(f"{cut} of {len(texts)} texts are longer than {model.max_input} tokens; their rest is not read")
    mean = Pooling("mean", model.config.encoder_dim)
    pooling, compress = untrained(model.pooling, seed), untrained(model.compress, seed)
    found = {name: [] for name in ("encoder, mean of states", "encoder, standardised", "z_in, untrained", "z_in")}
    for i in range(0, len(ids), batch_size):
        tokens, seen = model.pad(ids[i : i + batch_size])
        hidden, seen = model.hidden(tokens, seen), seen.to(model.device)
        rows = mean(hidden, seen), (model.pooling(hidden, seen) - model.origin) / model.unit
        rows += compress((pooling(hidden, seen) - model.origin) / model.unit), model.idea(hidden, seen)
        for name, row in zip(found, rows, strict=True):
            found[name].append(row)
    found = {name: torch.cat(rows) for name, rows in found.items()}
    found["z_out"] = model.think(found["z_in"])
    return {name: x.float().cpu() for name, x in found.items()}


def rank_correlations(cosines, words, same, seed=0, n=200):
    """Cosines and shares of common words of N texts -> {(name, what): (Spearman's rho, its 95% interval)}.

    cosines, words: {name: (N, N)}; same (N, N) bool: pairs that do not count, since they are one text twice. The
    interval is over `n` resamples of the texts.
    """
    from scipy.stats import rankdata

    rng, N = np.random.default_rng(seed), len(same)
    upper, found = np.triu_indices(N, 1), {}
    for draw in [np.arange(N), *rng.integers(0, N, (n, N))]:
        i, j = (draw[x] for x in upper)
        counts = ~same[i, j]
        i, j = i[counts], j[counts]
        ranks = [{name: rankdata(x[i, j]) for name, x in xs.items()} for xs in (cosines, words)]
        for name, a in ranks[0].items():
            for what, b in ranks[1].items():
                found.setdefault((name, what), []).append(float(np.corrcoef(a, b)[0, 1]))
    return {key: (rho[0], np.nanpercentile(rho[1:], [2.5, 97.5]).tolist()) for key, rho in found.items()}


@torch.no_grad()
def neighbours(model, pairs, config):
    """Do like texts get like ideas? Rank correlation of cosines with word overlap, beside encoder, untrained stack and
    chance (the ideas dealt out to other texts); 95% bootstrap intervals over texts."""
    pairs = pairs[:400]
    texts, N = [p.input for p in pairs], len(pairs)
    words = {"input": overlap(texts), "target": overlap([p.target for p in pairs])}
    number = np.unique(texts, return_inverse=True)[1]
    same = number[:, None] == number  # a text twice, or a text that is there twice
    cosines, others = {}, strangers(N, config.seed)
    for name, z in points_of(model, texts, config.seed).items():
        z = F.normalize(z - z.mean(0), dim=-1).numpy()
        cosines[name] = z @ z.T
    own = rank_correlations(cosines, words, same, config.seed)
    shuffled = {name: x[others][:, others] for name, x in cosines.items()}
    chance = rank_correlations(shuffled, words, same, config.seed)
    result = {"n": N}
    print(f"\nrank correlation of cosines with the share of common words, {N} texts, with 95% intervals\n\n"
          f"{'':<26}{'words of':<10}{'own ideas':<28}shuffled (control)")  # fmt: skip
    for key in own:
        (rho, ci95), (control, control_ci95) = own[key], chance[key]
        result[", ".join(key)] = {"spearman": rho, "ci95": ci95, "shuffled": control, "shuffled_ci95": control_ci95}
        told = [f"{x:+.3f} ({low:+.3f} to {high:+.3f})" for x, (low, high) in (own[key], chance[key])]
        print(f"{key[0]:<26}{key[1] + 's':<10}{told[0]:<28}{told[1]}")
    near = np.where(same, -2, cosines["z_out"]).argmax(1)
    result["examples"] = [{"target": pairs[i].target, "nearest": pairs[near[i]].target} for i in range(8)]
    for row in result["examples"][:3]:
        print(f"\n  {row['target']}\n  nearest: {row['nearest']}")
    return result


def typical(words, members, n):
    """Sets of words of N texts, a cluster's texts -> its n most typical words: p(w | cluster) log (that over p(w))."""
    inside, total = (Counter(w for x in texts for w in x) for texts in ([words[i] for i in members], words))
    gain = {w: k * np.log(k / len(members) / (total[w] / len(words))) for w, k in inside.items()}
    return sorted(gain, key=lambda w: (-gain[w], w))[:n]


def clustered(model, pairs, config, most=None):
    """-> ideas z_out (N, D), an array; k-means of at most `most` clusters, fitted to them; sets of words of targets."""
    from sklearn.cluster import KMeans

    z = model.think(model.encode([p.input for p in pairs])).float().cpu().numpy()
    k = min(config.clusters, len(pairs) - 1, most or len(pairs))
    words = [set(re.findall(r"[a-z]{4,}", p.target.lower())) for p in pairs]
    return z, KMeans(k, n_init=10, random_state=config.seed).fit(z), words


@torch.no_grad()
def cluster(model, pairs, config):
    """k-means on ideas; each centroid said, beside the typical words of its texts' targets.

    ROUGE-L of what a centroid says, averaged over targets: those of its own cluster, and those of the next (control).
    The paired difference is over texts: a target given its own cluster's centroid, less given that of the one before.
    """
    from sklearn.metrics import silhouette_score

    z, found, words = clustered(model, pairs, config)
    k, wanted, labels = found.n_clusters, [p.target for p in pairs], found.labels_
    said, rows = model.say(torch.from_numpy(found.cluster_centers_).to(model.device)), []
    own, other = (rouge_of([said[(c - step) % k] for c in labels], wanted)["rougeL"] for step in (0, 1))  # (N,)
    for c in range(k):
        members = np.flatnonzero(labels == c)
        scores = {"rougeL": own[members].mean(), "rougeL_next": other[labels == (c + 1) % k].mean()}
        scores = {name: float(x) for name, x in scores.items()}
        rows.append({"size": len(members), "centroid": said[c], "typical": typical(words, members, 6), **scores})
        print(f"\n{len(members):>4} texts, typical words: {', '.join(rows[-1]['typical'])}\n"
              f"     centroid says: {said[c]}\n"
              f"     ROUGE-L to its targets {scores['rougeL']:.4f}, "
              f"to the next cluster's {scores['rougeL_next']:.4f}")  # fmt: skip
    result = {"clusters": rows, "silhouette": float(silhouette_score(z, labels)),
              "rougeL": bootstrap(own, config.seed), "rougeL_next": bootstrap(other, config.seed),
              "own_less_next": bootstrap(own - other, config.seed)}  # fmt: skip
    print(f"\nsilhouette {result['silhouette']:.3f} (-1 to 1; 0: clusters that touch)")
    print(f"ROUGE-L of the own cluster's centroid {result['rougeL']['mean']:.4f}, of another's (control) "
          f"{result['rougeL_next']['mean']:.4f}; paired difference {signed(result['own_less_next'])}")  # fmt: skip
    return result


@torch.no_grad()
def draw_map(model, pairs, config):
    """PCA and t-SNE of ideas, coloured by cluster, side by side -> map.png."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    colors = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#000000")
    z, found, words = clustered(model, pairs, config, most=len(colors))
    pca = PCA(2, random_state=config.seed).fit(z)
    share = pca.explained_variance_ratio_
    tsne = TSNE(2, random_state=config.seed, perplexity=min(30, (len(pairs) - 1) / 3), init="pca").fit_transform(z)
    figure, panels = plt.subplots(1, 2, figsize=(14, 5.5), layout="constrained")
    for axes, points in zip(panels, (pca.transform(z), tsne), strict=True):
        for c in range(found.n_clusters):
            members = np.flatnonzero(found.labels_ == c)
            name = f"{', '.join(typical(words, members, 3))} ({len(members)})"
            axes.scatter(*points[members].T, s=14, color=colors[c], alpha=0.7, label=name)
        axes.grid(alpha=0.3)
    panels[0].set(title="Ideas z_out: principal components", xlabel=f"first ({share[0]:.0%} of the variance)",
                  ylabel=f"second ({share[1]:.0%})")  # fmt: skip
    panels[1].set(title="The same ideas: t-SNE", xlabel="first dimension", ylabel="second dimension")
    names = dict(fontsize=8, title="cluster: typical words of its targets", title_fontsize=8)
    panels[1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5), **names)
    path = Path(config.run) / "map.png"
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
    plt.close(figure)
    print(f"drew {path}")
    return {"explained_variance": share.tolist(), "n": len(pairs)}


@torch.no_grad()
def middle(model, pairs, config):
    """Does the middle model matter? What is said with the trained one, with none, and with a random one."""
    wanted, z_in = [p.target for p in pairs], model.encode([p.input for p in pairs])
    torch.manual_seed(config.seed)
    if model.config.middle == "identity":
        raise UserError(f"{config.run} was trained with --middle identity: there is no middle model to compare")
    print("the expansion was trained behind this middle model: that any other breaks the text does not show that\n"
          "one is needed; for that, train a second run with --middle identity and compare the two\n")  # fmt: skip
    random_one = Middle(model.config).to(z_in.device).eval()
    result, said = {"n": len(pairs)}, {}
    for name, think in (("trained", model.middle), ("identity", lambda z: z), ("random", random_one)):
        said[name] = model.say(think(z_in))
        result[name] = {k: bootstrap(v, config.seed) for k, v in rouge_of(said[name], wanted).items()}
        result[name]["same_as_trained"] = float(
            np.mean([a == b for a, b in zip(said[name], said["trained"], strict=True)])
        )
        low, high = result[name]["rougeL"]["ci95"]
        print(f"{name:<10} middle model: ROUGE-L {result[name]['rougeL']['mean']:.4f} ({low:.4f} to {high:.4f}), "
              f"says the same as the trained one in {result[name]['same_as_trained']:.0%}")  # fmt: skip
    for i in range(min(3, len(pairs))):
        print(f"\n  wanted    {wanted[i]}" + "".join(f"\n  {k:<10}{v[i]}" for k, v in said.items()))
    rows = [{"target": w, **{k: v[i] for k, v in said.items()}} for i, w in enumerate(wanted[:10])]
    return result | {"examples": rows}


# --------------------------------------------------------------------------------------------------- main


def main():
    config, given = parse(EvalConfig, {}, __doc__.split("\n\n")[0])
    text = sys.stdin.read() if config.text == "-" else config.text
    if "text" in given and not text.strip():
        raise UserError("--text: the text is empty")
    model = load_run(config.run, resolve_device(config.device).device)
    if text:
        print(model.summarise([text])[0])
        return
    pairs = load_pairs(replace(model.config, data_dir=config.data_dir or model.config.data_dir))["test"]
    pairs = pairs[: config.limit or None]
    if len(pairs) < 10:
        raise UserError(f"{len(pairs)} test texts: this wants 10 or more")
    experiment = {"summaries": run_summaries, "interpolate": interpolate, "neighbours": neighbours,
                  "cluster": cluster, "map": draw_map, "middle": middle}[config.what]  # fmt: skip
    about = {"dataset": model.config.dataset, "data_dir": config.data_dir or model.config.data_dir}
    write_json(Path(config.run) / f"{config.what}.json", about | experiment(model, pairs, config))
    print(f"\nwrote {config.run}/{config.what}.json")


if __name__ == "__main__":
    run_main(main)
