"""What the experiments measure texts with: ROUGE, recall of names, BLEU and METEOR; and the pairing of the control.

Shapes: N texts.
"""

import random
import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from common.stats import bootstrap_mean

ROUGE = ("rouge1", "rouge2", "rougeL")
BLEU_RESAMPLES = 200


def derangement(n: int, seed: int = 0) -> list[int]:
    """A permutation of n without a fixed point, one random cycle: everybody is given another's."""
    order = list(range(n))
    random.Random(seed).shuffle(order)
    following = dict(zip(order, order[1:] + order[:1], strict=True))
    return [following[i] for i in range(n)]


# ------------------------------------------------------------------------------------------------ ROUGE


@lru_cache(maxsize=1)
def _scorer():
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(ROUGE, use_stemmer=True)


def rouge_of(generated: Sequence[str], references: Sequence[str]) -> dict[str, np.ndarray]:
    """N and N texts -> {"rouge1", "rouge2", "rougeL"}: F1 scores (N,) each (Lin 2004)."""
    found = [_scorer().score(ref, text) for text, ref in zip(generated, references, strict=True)]
    return {name: np.array([scores[name].fmeasure for scores in found]) for name in ROUGE}


# ------------------------------------------------------------------------------------- names and words


def words_in(text: str) -> set[str]:
    """Its words of three letters or more, as written."""
    return set(re.findall(r"[^\W\d_]{3,}", text))


def lower_case_words(texts: Sequence[str]) -> set[str]:
    """The words that any of the texts writes in lower case: these are no names."""
    return {word for text in texts for word in words_in(text) if word.islower()}


def recall_of(generated: Sequence[str], references: Sequence[str], lower_case: set[str]) -> dict[str, np.ndarray]:
    """Of each reference's names, and of its other words of four letters or more, the fraction that is generated.

    -> {"names", "words"}: arrays over the references that have any. A name is a capitalised word that is not in
    `lower_case`, the `lower_case_words` of references and inputs: what counts does not depend on what is generated.
    """

    def is_name(word):
        return word.istitle() and word.lower() not in lower_case

    def is_word(word):
        return word.islower() and len(word) > 3

    found = {}
    for kind, counts in (("names", is_name), ("words", is_word)):
        recall = []
        for text, reference in zip(generated, references, strict=True):
            looked_for = {word for word in words_in(reference) if counts(word)}
            if looked_for:
                recall.append(len(words_in(text) & looked_for) / len(looked_for))
        found[kind] = np.array(recall)
    return found


# ------------------------------------------------------------------------------------- BLEU and METEOR


class NoSynonyms:
    """Stands in for WordNet, which would have to be downloaded."""

    @staticmethod
    def synsets(word):
        return []


def _meteor(text: str, reference: str) -> float:
    """METEOR (Banerjee & Lavie 2005) by exact words and stems."""
    from nltk.translate.meteor_score import single_meteor_score

    words, expected = (re.findall(r"\w+|[^\w\s]", x.lower()) for x in (text, reference))
    return single_meteor_score(expected, words, wordnet=NoSynonyms) if text else 0.0


def bleu_and_meteor(generated: Sequence[str], references: Sequence[str], seed: int = 0) -> dict[str, dict]:
    """For paraphrases: corpus BLEU (0…1) and mean METEOR, with bootstrap intervals over the texts."""
    import sacrebleu

    def bleu(index):
        hypotheses, expected = ([texts[i] for i in index] for texts in (generated, references))
        return sacrebleu.corpus_bleu(hypotheses, [expected]).score / 100

    N = len(generated)
    resamples = np.random.default_rng(seed).integers(0, N, (BLEU_RESAMPLES, N))
    ci95 = np.percentile([bleu(index) for index in resamples], [2.5, 97.5]).tolist()
    meteor = [_meteor(text, reference) for text, reference in zip(generated, references, strict=True)]
    return {"bleu": {"mean": bleu(range(N)), "ci95": ci95}, "meteor_no_synonyms": bootstrap_mean(meteor, seed)}
