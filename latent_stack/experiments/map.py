"""The ideas of the test split in two dimensions, PCA and t-SNE side by side, coloured by cluster -> map.png."""

from itertools import cycle
from pathlib import Path

import numpy as np

from common.plots import COLOURS, LEGEND, MARKERS, WIDTH, figure, headline
from latent_stack.config import EvalConfig
from latent_stack.experiments.cluster import cluster_ideas, typical_words, word_sets
from latent_stack.model import LatentStack
from latent_stack.pairs import Pair


def run(model: LatentStack, pairs: list[Pair], config: EvalConfig) -> dict:
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from sklearn.metrics import silhouette_score

    z, kmeans = cluster_ideas(model, pairs, config, most=len(COLOURS))
    pca = PCA(2, random_state=config.seed).fit(z)
    tsne = TSNE(2, random_state=config.seed, perplexity=min(30, (len(pairs) - 1) / 3), init="pca")
    variance = pca.explained_variance_ratio_
    shuffled = np.random.default_rng(config.seed).permutation(kmeans.labels_)
    apart, control = (float(silhouette_score(z, labels)) for labels in (kmeans.labels_, shuffled))

    path = Path(f"{config.output}.png")
    with figure(path, 1, 2, (WIDTH, 4.9)) as (fig, (left, right)):
        for axis, points in ((left, pca.transform(z)), (right, tsne.fit_transform(z))):
            scatter(axis, points, kmeans, word_sets(pairs))
        left.set(
            title="principal components",
            xlabel=f"first ({variance[0]:.0%} of the variance)",
            ylabel=f"second ({variance[1]:.0%})",
        )
        right.set(title="t-SNE", xlabel="first dimension", ylabel="second dimension")
        finding = f"Clusters of {len(pairs):,} ideas: silhouette {apart:.2f} (1: far apart)"
        headline(fig, f"{finding}, of shuffled labels {control:.2f} (control)")
        handles = left.get_legend_handles_labels()
        fig.legend(*handles, ncols=2, title="cluster: typical words of its targets (texts)", markerscale=1.6, **LEGEND)
    print(f"drew {path}")
    found = {"silhouette": apart, "silhouette_shuffled": control}
    return {"explained_variance": variance.tolist(), "n": len(pairs), **found}


def scatter(axis, points: np.ndarray, kmeans, words: list[set[str]]) -> None:
    """Points (N, 2), a colour and a marker for each cluster."""
    for c, colour, marker in zip(range(kmeans.n_clusters), cycle(COLOURS), cycle(MARKERS), strict=False):
        members = np.flatnonzero(kmeans.labels_ == c)
        label = f"{', '.join(typical_words(words, members, 3))} ({len(members)})"
        axis.scatter(*points[members].T, s=12, color=colour, marker=marker, alpha=0.7, linewidths=0, label=label)
