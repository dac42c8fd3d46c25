"""Losses of the soft tokens alone: which words has the target, and, to say a text back, in which order?

They need no language model. Zhao et al. (2017, arXiv 1703.10960) brought a bag-of-words loss in against decoders that
learn to do without their latent.

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
        """Prefix (B, P, …), target tokens (B, T) -> (), in nats, summed over texts and their distinct words."""
        with torch.autocast(prefix.device.type, enabled=False):
            soft_tokens = prefix[..., : self.directions.size(1)].float()  # without what moves keys and values
            cosine = F.normalize(soft_tokens, dim=-1) @ self.directions.T  # (B, P, W)
            logits = SHARPNESS * cosine + self.log_frequency
            log_likelihood = logits.log_softmax(-1).logsumexp(1) - math.log(prefix.size(1))  # (B, W)
            return -(self.multi_hot(tokens) * log_likelihood).sum()


class WordsInOrder:
    """`loss(prefix, tokens)`: soft token p is to be token p of the target, its EOS among them.

    -log likelihood by the cosine with its embedding, among the tokens of the batch, those most like each of them, and
    N_OTHERS more, not the same ones in every process; and DISTANCE · (1 - cosine). Without the like ones "temple" does
    for "cathedral". Without the distance a soft token is nearest to its word, and yet too far from it for the language
    model to read.
    """

    N_OTHERS, N_ALIKE, DISTANCE = 500, 5, 2.0
    SHARPNESS = 30.0  # embeddings of unlike words have cosines of 0.2 and more

    @torch.no_grad()
    def __init__(self, targets: list[list[int]], lm: nn.Module):
        """`targets`: token ids of the training targets, whose distinct tokens are the others."""
        embedding = lm.get_input_embeddings().weight.detach()
        self.words = torch.tensor(sorted({i for ids in targets for i in ids}), device=embedding.device)  # (W,)
        self.directions = F.normalize(embedding.float(), dim=-1)  # (V, E)
        self.alike = torch.zeros(len(embedding), self.N_ALIKE + 1, dtype=torch.long, device=embedding.device)
        for words in self.words.split(1024):  # each is the most like itself
            cosine = self.directions[words] @ self.directions.T
            self.alike[words] = cosine.topk(self.N_ALIKE + 1).indices

    def __call__(self, prefix: Tensor, tokens: Tensor) -> Tensor:
        """Prefix (B, P, …), target tokens (B, T) from BOS on -> (), in nats, summed over the first P tokens."""
        target = tokens[:, 1 : 1 + prefix.size(1)]
        others = self.words[torch.randint(len(self.words), (self.N_OTHERS,), device=self.words.device)]
        given = target[target >= 0]
        candidates = torch.unique(torch.cat((given, self.alike[given].flatten(), others)))  # sorted, (C,)
        with torch.autocast(prefix.device.type, enabled=False):
            soft_tokens = prefix[:, : target.size(1), : self.directions.size(1)][target >= 0].float()  # (N, E)
            cosine = F.normalize(soft_tokens, dim=-1) @ self.directions[candidates].T  # (N, C)
        found = torch.searchsorted(candidates, given)  # (N,)
        distance = 1 - cosine.gather(1, found[:, None])
        return F.cross_entropy(self.SHARPNESS * cosine, found, reduction="sum") + self.DISTANCE * distance.sum()
