"""nanoJEPA: a decoder-only Transformer whose [PRED] latent predicts the latent of an answer it cannot see.

                 attends to →   question  [PRED]  answer view
    question                    causal      no        no
    [PRED]                      all       itself      NO
    answer view                 NO          no      causal

    pass 1   question [PRED] | [ANS] answer [EOS]      z_hat = h[PRED],  z = h[EOS]
    pass 2   latent answer                             the answer is decoded from one latent alone

    L_jepa  = 1 - cos(z_hat, stop_gradient(z))
    L_token = next token of the question + answer decoded from z (+ from z_hat, if asked; under --mask causal + next
              token of the answer)
    L_total = L_token + λ L_jepa

Neither [PRED] nor [EOS] carries a next-token target, so the language-model head pulls neither of them anywhere.

Shapes: B rows, T tokens a row, C width, N examples, M longest answer, K positions with a target, V vocabulary.
"""

import copy
import os
from collections.abc import Callable

import torch
import torch.nn as nn
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor

from common.batching import pad
from common.checkpoint import read_config
from common.losses import cosine, cross_entropy, sigreg_loss, vicreg_loss
from common.model_card import Card
from common.options import UserError
from common.pretrained import PretrainedMixin, load_checkpoint
from common.programs import compute, number_placeholders
from common.tokenizers import load_tokenizer
from common.transformer import Transformer, positions_of
from config import Config
from data import Batch, question_view


def jepa_mask(segment: Tensor, mask: str = "jepa") -> Tensor:
    """Who may attend to whom. segment (B, T) int, a view per value, -1 padding -> (B, 1, T, T) bool, True = may attend.

    jepa    causal, inside one's own view (segments 2k and 2k+1 are question and answer view of one example)
    causal  causal, inside one's own example: an ordinary language model, the answer sees the question
    llm-jepa  as jepa; the first view goes on with the answer, the second is the answer alone
    none    anything inside one's own example, both ways: the answer is visible to whoever predicts it
    Padding attends to itself only, so that no row of the softmax is empty.
    """
    T = segment.size(-1)
    view = segment if mask in ("jepa", "llm-jepa") else segment.div(2, rounding_mode="floor")  # -1 stays -1
    allowed = (view[:, :, None] == view[:, None, :]) & (view >= 0)[:, :, None]  # (B, T, T)
    if mask != "none":
        allowed &= torch.ones(T, T, dtype=torch.bool, device=segment.device).tril()
    return (allowed | torch.eye(T, dtype=torch.bool, device=segment.device))[:, None]


def greedy(logits: Tensor) -> Tensor:
    """logits (B, V) -> the likeliest token (B,)."""
    return logits.argmax(-1)


class NanoJEPA(
    PretrainedMixin,
    nn.Module,
    PyTorchModelHubMixin,
    library_name="nanojepa",
    license="mit",
    tags=["jepa", "latent-reasoning"],
):
    """`model(batch) -> (loss, metrics)` for training; `predict`, `encode`, `decode` and `answer` for use.

    NanoJEPA.from_pretrained("out/quick").answer(["Tom has 2 pears. He buys 3 more. How many are there?"])
    """

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        C = config.n_embd
        self.embed = nn.Embedding(config.vocab_size, C)  # also the language-model head
        self.trunk = Transformer(config.n_layer, C, config.n_head, config.dropout)
        self.prefix_proj = nn.Linear(C, C, bias=False)  # latent -> first position of the decode pass
        nn.init.normal_(self.embed.weight, std=C**-0.5)  # unit logits; 0.02 learns to decode latents far more slowly
        self.predictor = nn.Identity()
        if config.predictor == "mlp":
            self.predictor = nn.Sequential(nn.Linear(C, 2 * C), nn.SiLU(), nn.Linear(2 * C, C))
        if config.target == "ema":
            parts = ("embed", "trunk", "prefix_proj", "predictor")
            self.target = nn.ModuleDict({name: copy.deepcopy(getattr(self, name)) for name in parts})
            self.target.requires_grad_(False)
            for module in self.target.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0  # a target is what `encode` gives: no noise

    @property
    def network(self) -> nn.Module:
        """What embeds, reads, decodes and predicts: the trained modules, in eval mode their EMA if there is one."""
        return self.target if self.config.target == "ema" and not self.training else self

    # ---- training

    def hidden_states(self, tokens: Tensor, segment: Tensor, position_ids: Tensor, network=None) -> Tensor:
        """tokens, segment, position_ids (B, T) -> (B, T, C), through the model's mask."""
        network = network or self.network
        return network.trunk(network.embed(tokens), position_ids, jepa_mask(segment, self.config.mask))

    def drop_words(self, batch: Batch) -> Tensor:
        """In training: the batch's tokens (B, T), some words of the questions as unknown ones."""
        if not (self.training and self.config.word_dropout):
            return batch.tokens
        tokens, at = batch.tokens.flatten().clone(), batch.words_at
        dropped = torch.rand(len(at), device=at.device) < self.config.word_dropout
        tokens[at] = torch.where(dropped, self.tokenizer.unk, tokens[at])
        return tokens.view_as(batch.tokens)

    def latent_prefix(self, latent: Tensor) -> Tensor:
        """latent (N, C) -> (N, C), what stands in [ANS]'s place in the decode pass. Only the direction is read."""
        unit, C = F.normalize(latent.float(), dim=-1), latent.size(-1)
        if self.training and self.config.decode_noise:  # spreads the latents: neighbours must stay decodable
            unit = unit + torch.randn_like(unit) * (self.config.decode_noise * C**-0.5)
        return self.network.prefix_proj(unit * C**0.5)

    def decode_hidden_states(self, latent: Tensor, tokens: Tensor) -> Tensor:
        """latent (N, C), answer tokens (N, M) -> (N, M+1, C)."""
        x = torch.cat((self.latent_prefix(latent)[:, None], self.network.embed(tokens)), 1)
        return self.network.trunk(x, positions_of(x))

    def target_latents(self, batch: Batch, z: Tensor) -> Tensor:
        """The z of L_jepa (N, C): h[EOS] with its gradient stopped, an EMA network's h[EOS], or h[EOS] as it is."""
        if self.config.target == "grad":
            return z
        if self.config.target == "stopgrad":
            return z.detach()
        with torch.no_grad():
            if self.config.isolates:  # an answer view sees nothing else: it is encoded alone, for less work
                h = self.target.trunk(self.target.embed(batch.answer_tokens), positions_of(batch.answer_tokens))
                eos = batch.position_ids.flatten()[batch.eos_at]  # (N,) the view counts from 0
                return h[torch.arange(len(h), device=h.device), eos]
            h = self.hidden_states(batch.tokens, batch.segment, batch.position_ids, self.target)
            return h.flatten(0, 1)[batch.eos_at]

    def cross_entropy(self, hidden: Tensor, target: Tensor) -> Tensor:
        """Hidden states (K, C), next tokens (K,) -> (), summed, under the tied head."""
        return cross_entropy(hidden, self.network.embed.weight, target)

    def decode_loss(self, latent: Tensor, batch: Batch) -> Tensor:
        """latent (N, C) -> (): the answer's tokens decoded from it, summed."""
        h = self.decode_hidden_states(latent, batch.answer_tokens[:, 1:-1]).flatten(0, 1)  # (N*(M+1), C)
        return self.cross_entropy(h[batch.decode_at], batch.answer_ids)

    def regulariser_loss(self, z: Tensor, z_hat: Tensor) -> Tensor:
        """Against collapse, on both latents (N, C) -> (), in fp32: sums of squares over a batch want it."""
        loss = vicreg_loss if self.config.regulariser == "vicreg" else sigreg_loss
        with torch.autocast(z.device.type, enabled=False):
            if len(z) == 1:  # one example has no spread; the term stays part of the graph
                return 0 * z.sum()
            return loss(z.float()) + loss(z_hat.float())

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Batch -> (loss, metrics), 0-d tensors, detached in `metrics`: sums over `batch.loss_denominators`."""
        config, n = self.config, batch.loss_denominators

        h = self.hidden_states(self.drop_words(batch), batch.segment, batch.position_ids).flatten(0, 1)  # (B*T, C)
        z_hat, z = self.network.predictor(h[batch.pred_at]), h[batch.eos_at]  # (N, C)
        target = self.target_latents(batch, z)

        # L_token: the question's next tokens, and the answer decoded from its latent
        terms = {"question_loss": self.cross_entropy(h[batch.question_at], batch.question_ids) / n["question"]}
        l_token = config.question_weight * terms["question_loss"]
        if config.writes_tokens:  # an answer continues the question, as in an ordinary language model
            terms["answer_loss"] = self.cross_entropy(h[batch.answer_at], batch.answer_ids) / n["answer"]
            l_token = l_token + terms["answer_loss"]
        if config.decode_weight:
            terms["decode_loss"] = self.decode_loss(z, batch) / n["answer"]
            l_token = l_token + config.decode_weight * terms["decode_loss"]
        if config.decode_pred_weight:
            terms["decode_pred_loss"] = self.decode_loss(z_hat, batch) / n["answer"]
            l_token = l_token + config.decode_pred_weight * terms["decode_pred_loss"]

        # L_jepa, and its control: the latent of an example with another answer
        cos_own = cosine(z_hat, target)  # (N,)
        l_jepa = (1 - cos_own).sum() / n["examples"]
        with torch.no_grad():
            has_other = (batch.mismatched >= 0).float()
            cos_other = cosine(z_hat, target[batch.mismatched]) * has_other
            cos_other = cos_other.sum() / has_other.sum().clamp(min=1) * (len(z) / n["examples"])

        loss = l_token + config.jepa_weight * l_jepa
        if config.regulariser != "none":
            terms["regulariser_loss"] = self.regulariser_loss(z, z_hat) * (len(z) / n["examples"])
            loss = loss + config.regulariser_weight * terms["regulariser_loss"]

        metrics = {"loss": loss, "token_loss": l_token, "jepa_loss": l_jepa, "cos_other": cos_other}
        metrics |= {"cos_own": cos_own.sum() / n["examples"], **terms}
        return loss, {name: value.detach() for name, value in metrics.items()}

    @torch.no_grad()
    def update_target(self) -> None:
        """After an optimiser step: move the EMA target network towards the trained one."""
        if self.config.target == "ema":
            online = [p for name in self.target for p in getattr(self, name).parameters()]
            torch._foreach_lerp_(list(self.target.parameters()), online, 1 - self.config.ema_decay)

    # ---- use

    def tokenize(self, questions: list[str]) -> list[list[int]]:
        """B questions -> the ids that the model reads of each, without [PRED]."""
        return self.tokenizer.encode([question_view(q, self.config.answer_view) for q in questions])

    @property
    def pred_tokens(self) -> list[int]:
        """What stands behind a question."""
        return [self.tokenizer.pred] * self.config.n_pred

    def _padded(self, rows: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Lists of ids -> tokens and segment (B, T), padded on the right; segment 0, padding -1."""
        tokens = pad(rows, -1).to(self.device)
        return tokens.clamp(min=0), torch.where(tokens < 0, -1, 0)

    def _last_hidden(self, rows: list[list[int]]) -> Tensor:
        """Lists of ids -> the hidden state of each list's last token (B, C), each list a view of its own."""
        longest = max(map(len, rows))
        if longest > self.config.block_size:
            raise UserError(f"a text of {longest} tokens is longer than the context of {self.config.block_size}")
        tokens, segment = self._padded(rows)
        h = self.hidden_states(tokens, segment, positions_of(tokens))
        return h[torch.arange(len(rows), device=self.device), (segment >= 0).sum(1) - 1]

    @torch.no_grad()
    def predict(self, questions: list[str]) -> Tensor:
        """B questions -> z_hat (B, C), the latents of the answers the model expects."""
        rows = [[*ids, *self.pred_tokens] for ids in self.tokenize(questions)]
        return self.network.predictor(self._last_hidden(rows)).float()

    @torch.no_grad()
    def encode(self, answers: list[str]) -> Tensor:
        """B answers -> z (B, C), their latents: what `predict` aims at."""
        t = self.tokenizer
        return self._last_hidden([[t.ans, *ids, t.eos] for ids in t.encode(answers)]).float()

    @torch.no_grad()
    def decode(self, latent: Tensor, max_new_tokens: int | None = None, choose: Callable = greedy) -> list[str]:
        """latent (B, C) -> B texts of at most `max_new_tokens` tokens (without [EOS]), each by `choose(logits)`."""
        x = self.latent_prefix(latent)[:, None]  # (B, 1, C)
        return self._generate(x, torch.zeros_like(x[..., 0], dtype=torch.long), max_new_tokens, choose)

    @torch.no_grad()
    def answer(self, questions: list[str], max_new_tokens: int | None = None, choose: Callable = greedy) -> list[str]:
        """B questions -> B texts. Under --mask causal and llm-jepa the ordinary way, token by token after the question,
        each token by `choose(logits)`; a program is followed by what it computes."""
        if not self.config.writes_tokens:
            return self.computed(self.decode(self.predict(questions), max_new_tokens), questions)
        t = self.tokenizer
        tokens, segment = self._padded([[*ids, *self.pred_tokens, t.ans] for ids in self.tokenize(questions)])
        return self.computed(self._generate(self.network.embed(tokens), segment, max_new_tokens, choose), questions)

    def computed(self, texts: list[str], questions: list[str]) -> list[str]:
        """What was read out of B questions' latents -> the same; 'α+β' becomes 'α+β #### 42' under --answer-view
        program, by the numbers of its question."""
        if self.config.answer_view != "program":
            return texts
        numbers = [number_placeholders(q)[1] for q in questions]
        return [f"{text} #### {compute(text, known)}" for text, known in zip(texts, numbers, strict=True)]

    def _generate(self, x: Tensor, segment: Tensor, max_new_tokens: int | None, choose: Callable) -> list[str]:
        """Embeddings x (B, T, C), segment (B, T) with -1 for padding behind a row -> the continuation of each row.

        Keys and values are cached; the padding of shorter rows is never attended to.
        """
        B, eos = len(x), self.tokenizer.eos
        limit = max_new_tokens or self.config.max_new_tokens or self.config.block_size
        embed, trunk = self.network.embed, self.network.trunk
        cache = [[] for _ in trunk.blocks]
        valid = segment >= 0
        last = valid.sum(1) - 1  # (B,) column of each row's last token
        h = trunk(x, positions_of(x), jepa_mask(segment, "causal"), cache)
        h = h[torch.arange(B, device=x.device), last]  # (B, C)

        ids, done = [], torch.zeros(B, dtype=torch.bool, device=x.device)
        for step in range(1, limit + 1):
            token = choose(F.linear(h, embed.weight))  # (B,)
            done |= token == eos
            ids.append(token.masked_fill(done, eos))
            if done.all() or step == limit:
                break
            valid = F.pad(valid, (0, 1), value=True)
            h = trunk(embed(token)[:, None], (last + step)[:, None], valid[:, None, None, :], cache)[:, -1]
        return [self.tokenizer.decode(self.tokenizer.until_eos(row)) for row in torch.stack(ids, 1).tolist()]

    # ---- files

    def read_tokenizer(self, find):
        folder = None if self.config.tokenizer == "gpt2" else os.path.dirname(find("tokenizer.json"))
        self.tokenizer = load_tokenizer(self.config.tokenizer, folder)


def load_run(run: str, device: torch.device | str = "cpu") -> NanoJEPA:
    """The trained model of a run's folder, in eval mode; a UserError reports what is missing or differs."""
    read_config(run, Config, f"python train.py --run {run}")
    return load_checkpoint(NanoJEPA, run, device)


NanoJEPA.card = Card(
    about="A decoder-only Transformer that reads a question, predicts the latent of an answer it cannot see, and puts "
    "that latent into words.",
    figures=(
        ("exact_match", "exact match, decoded", "constant_from_train", "always the majority training answer"),
        ("exact_match", "exact match, decoded", "majority_program_exact_match", "always the majority program"),
        ("retrieval_at_1", "the nearest answer latent is the correct one", "", ""),
        ("cos_own", "cosine to the own answer's latent", "cos_other", "to another answer's"),
    ),
    limits="It answers questions like those of its training and knows nothing else; `main.py` says which these are. A "
    "high cosine is no proof of a correct answer.",
    use="from model import NanoJEPA\n\n"
    "model = NanoJEPA.from_pretrained({where!r})\n"
    'print(model.answer(["Rosa has 87 books. Sam sells 54 of the books. How many books are left?"]))',
)
