"""The bag-of-words loss: which words has the target, going by the soft tokens alone?

It needs no language model. Zhao et al. (2017, arXiv 1703.10960) brought such a loss in against decoders that learn to
do without their latent.

Shapes: B texts, P soft tokens, E language-model width, T target tokens, W distinct tokens of all targets.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SHARPNESS = 12.0  # of a cosine as a logit: 1 against 0 is a factor of e^12, more than the vocabulary has words


class BagOfWords:
    """`loss(prefix, tokens)`: -log likelihood of the target's distinct tokens under the mean of P distributions.

    The logits of a soft token are its cosines with the words' embeddings, beside how common the words are.
    """

    def __init__(self, targets: list[list[int]], lm: nn.Module, special_ids: tuple = ()):
        """`targets`: token ids of the training targets; `special_ids`: those that are no words, BOS and EOS."""
        embedding = lm.get_input_embeddings().weight.detach()
        self.n_vocab, count = len(embedding), torch.zeros(len(embedding))
        for ids in targets:
            count[sorted(set(ids) - set(special_ids))] += 1
        words = count.nonzero()[:, 0]
        self.words = words.to(embedding.device)  # (W,) their ids
        self.log_frequency = (count[words] / len(targets)).log().to(embedding.device)  # (W,)
        self.directions = F.normalize(embedding[self.words].float(), dim=-1)  # (W, E)

    def multi_hot(self, tokens: Tensor) -> Tensor:
        """Target tokens (B, T), -1 where there is none -> (B, W), 1 where a target has the word."""
        found = self.log_frequency.new_zeros(len(tokens), 1 + self.n_vocab)  # column 0: no token
        return found.scatter_(1, tokens + 1, 1.0)[:, 1 + self.words]

    def __call__(self, prefix: Tensor, tokens: Tensor) -> Tensor:
        """Soft tokens (B, P, E), target tokens (B, T) -> (), in nats, summed over texts and their distinct words."""
        with torch.autocast(prefix.device.type, enabled=False):
            cosine = F.normalize(prefix.float(), dim=-1) @ self.directions.T  # (B, P, W)
            logits = SHARPNESS * cosine + self.log_frequency
            log_likelihood = logits.log_softmax(-1).logsumexp(1) - math.log(prefix.size(1))  # (B, W)
            return -(self.multi_hot(tokens) * log_likelihood).sum()
