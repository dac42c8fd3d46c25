"""Memory a GPU needs for a model of a given size: arithmetic, not measurement. `python -m bench.memory_table`

P trained and F frozen parameters, of which R outside the blocks; L blocks of B parameters, width C, hidden width H; n
tokens a GPU at once; W processes. Bytes, under bf16 autocast with weights, gradients and AdamW's two moments in fp32:

    alone     16 P + 4 F + 2 P                    2 P: the copies in bf16 that autocast keeps until they are used again
    DDP       20 P + 4 F + 2 P                    4 P: the buckets in which gradients are exchanged
    sharded   (16 P + 4 F) / W + 2 P + 8 R + 16 B     R whole with its gradient, two blocks whole with theirs
    plus      n L (24 C + 8 H)                    activations, counted tensor by tensor; without the loss's logits
"""

from dataclasses import dataclass, replace

import torch

from config import Config
from model import NanoJEPA
from reasoner.config import PRESETS, ReasonerConfig
from reasoner.model import Reasoner

TOKENS = 4096  # a GPU at once, over all passes of a step
VOCAB = 50_261  # GPT-2's, and four of nanoJEPA's own


@dataclass(frozen=True)
class Size:
    """Counts of a model, as in the formulas above."""

    name: str
    trained: int
    frozen: int
    block: int
    layers: int
    width: int
    hidden: int

    def gib(self, way: str, world: int = 8) -> float:
        """GiB a GPU under "alone", "DDP" or "sharded", without activations."""
        if way == "sharded":
            outside = self.trained + self.frozen - self.layers * self.block
            own, more = (16 * self.trained + 4 * self.frozen) / world, 8 * outside + 16 * self.block
        else:
            own, more = {"alone": 16, "DDP": 20}[way] * self.trained + 4 * self.frozen, 0
        return (own + 2 * self.trained + more) / 2**30

    def activations(self, tokens: int = TOKENS) -> float:
        """GiB that the blocks keep for the backward pass."""
        return tokens * self.layers * (24 * self.width + 8 * self.hidden) / 2**30


def measure(name: str, model: torch.nn.Module) -> Size:
    """A model, without memory -> its counts."""
    blocks, frozen = model.trunk.blocks, sum(p.numel() for p in model.parameters() if not p.requires_grad)
    shape = len(blocks), model.config.n_embd, blocks[0].down.in_features
    return Size(name, model.n_params(), frozen, sum(p.numel() for p in blocks[0].parameters()), *shape)


def sizes() -> list[Size]:
    """nanoJEPA's reference configuration, the Reasoner of --preset 0.9b, and nanoJEPA deeper and wider."""
    nano, large = Config(vocab_size=VOCAB), replace(ReasonerConfig(), **PRESETS["0.9b"].values, vocab_size=VOCAB)
    with torch.device("meta"):
        found = [measure("nanoJEPA, the reference", NanoJEPA(nano))]
        for n_layer, n_embd, n_head in ((24, 1024, 16), (24, 2048, 16), (32, 4096, 32)):
            config = replace(nano, n_layer=n_layer, n_embd=n_embd, n_head=n_head)
            name = f"`--n-layer {n_layer} --n-embd {n_embd} --n-head {n_head}`"
            found.append(measure(name, NanoJEPA(config)))
        found.append(measure("Reasoner, `--preset 0.9b`", Reasoner(large)))
    return sorted(found, key=lambda size: size.trained)


def rows() -> list[list[str]]:
    """A row a size: name, parameters, GiB alone, under DDP, sharded over 8, of activations."""
    return [
        [
            size.name,
            f"{size.trained / 1e6:,.0f}M",
            *(f"{size.gib(way):.1f}" for way in ("alone", "DDP", "sharded")),
            f"{size.activations():.1f}",
        ]
        for size in sizes()
    ]


def main(argv: list[str] | None = None) -> None:
    for row in rows():
        print(f"{row[0]:<46}", *(f"{cell:>9}" for cell in row[1:]))


if __name__ == "__main__":
    main()
