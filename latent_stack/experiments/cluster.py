"""k-means on ideas; each centroid generated as text, beside the typical words of its cluster's targets.

ROUGE-L of a centroid's text, averaged over targets: those of its own cluster, and those of the next (control). The
paired difference is over texts: a target given its own cluster's centroid against that of the cluster before.

Shapes: N texts, D idea, k clusters.
"""

import re
from collections import Counter

import numpy as np
import torch

from common.stats import bootstrap_mean, paired_difference, signed
from latent_stack.config import EvalConfig
from latent_stack.experiments.measures import rouge_of
from latent_stack.model import LatentStack
from latent_stack.pairs import Pair


def word_sets(pairs: list[Pair]) -> list[set[str]]:
    """The words of four letters or more of each target."""
    return [set(re.findall(r"[a-z]{4,}", p.target.lower())) for p in pairs]


def typical_words(words: list[set[str]], members: np.ndarray, n: int) -> list[str]:
    """Word sets of N texts, a cluster's texts -> its n most typical words.

    Typical: p(w | cluster) log(p(w | cluster) / p(w)) is large.
    """
    inside = Counter(word for i in members for word in words[i])
    total = Counter(word for found in words for word in found)

    def weight(word):
        p_inside, p = inside[word] / len(members), total[word] / len(words)
        return inside[word] * np.log(p_inside / p)

    return sorted(inside, key=lambda word: (-weight(word), word))[:n]


@torch.no_grad()
def cluster_ideas(model: LatentStack, pairs: list[Pair], config: EvalConfig, most: int | None = None):
    """-> ideas z_out (N, D) as an array, and a k-means of at most `most` clusters fitted to them."""
    from sklearn.cluster import KMeans

    z = model.think(model.encode([p.input for p in pairs])).float().cpu().numpy()
    k = min(config.clusters, len(pairs) - 1, most or len(pairs))
    return z, KMeans(k, n_init=10, random_state=config.seed).fit(z)


def centroid_scores(centroids: list[str], labels: np.ndarray, references: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """k texts, clusters (N,), N references -> ROUGE-L to the text of the own cluster (N,), of the one before (N,)."""
    k = len(centroids)
    own = rouge_of([centroids[c] for c in labels], references)["rougeL"]
    other = rouge_of([centroids[(c - 1) % k] for c in labels], references)["rougeL"]
    return own, other


def run(model: LatentStack, pairs: list[Pair], config: EvalConfig) -> dict:
    from sklearn.metrics import silhouette_score

    z, kmeans = cluster_ideas(model, pairs, config)
    labels, k, words = kmeans.labels_, kmeans.n_clusters, word_sets(pairs)
    centroids = model.generate(torch.from_numpy(kmeans.cluster_centers_).to(model.device))
    own, other = centroid_scores(centroids, labels, [p.target for p in pairs])

    rows = []
    for c in range(k):
        members = np.flatnonzero(labels == c)
        rows.append(
            {
                "size": len(members),
                "centroid": centroids[c],
                "typical": typical_words(words, members, 6),
                "rougeL": float(own[members].mean()),
                "rougeL_next": float(other[labels == (c + 1) % k].mean()),
            }
        )
    result = {
        "clusters": rows,
        "silhouette": float(silhouette_score(z, labels)),
        "rougeL": bootstrap_mean(own, config.seed),
        "rougeL_next": bootstrap_mean(other, config.seed),
        "own_less_next": paired_difference(own, other, config.seed),
    }
    _print(result)
    return result


def _print(result: dict) -> None:
    for row in result["clusters"]:
        print(
            f"\n{row['size']:>4} texts, typical words: {', '.join(row['typical'])}\n"
            f"     its centroid, generated: {row['centroid']}".rstrip()
            + f"\n     ROUGE-L to its targets {row['rougeL']:.4f}, to the next cluster's {row['rougeL_next']:.4f}"
        )
    print(f"\nsilhouette {result['silhouette']:.3f} (-1 to 1; 0: clusters that touch)")
    print(
        f"ROUGE-L of the matched cluster's centroid {result['rougeL']['mean']:.4f}, of a mismatched one (control) "
        f"{result['rougeL_next']['mean']:.4f}; paired difference {signed(result['own_less_next'])}"
    )
