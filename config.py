"""nanoJEPA's hyperparameters: one flat dataclass, and presets.

    python train.py --help-all                   all options and presets
    python train.py --preset quick --lr 1e-3     a preset, one option changed

The defaults *are* the reference configuration: GSM8K, GPT-2's vocabulary, 45M parameters, λ = 1, 25 epochs.
"""

from dataclasses import dataclass
from typing import ClassVar

from common.options import LoopConfig, Preset, internal, opt


@dataclass
class Config(LoopConfig):
    """What training reads beside the loop's own options."""

    run: str = opt("out/nanojepa", "folder of the run: configuration, weights, logs, curves", group="run")

    dataset: str = opt("gsm8k", "questions and answers from", ("gsm8k", "wordproblems", "pairs"), group="data")
    data_dir: str = opt(
        "", "read DIR/train.jsonl, DIR/test.jsonl (and DIR/val.jsonl), not the Hub; pairs: any two texts", path=True
    )
    difficulty: int = opt(
        1, "word problems: 1 one step, 2 numbers to 999, 3 two steps, 4 distractors, 5 all", (1, 2, 3, 4, 5)
    )
    world: str = opt(
        "wide", "word problems: a hundred names and things, invented ones; or the first few", ("wide", "narrow")
    )
    n_train: int = opt(0, "training examples: the first N (0: all); word problems: N are made (0: 50,000)", low=0)
    answer_view: str = opt(
        "answer",
        "what the answer view holds: the final answer, the worked solution, or its program over the question's numbers",
        ("answer", "solution", "program"),
    )
    tokenizer: str = opt("gpt2", "gpt2 (tiktoken); of the training split: bpe:N with N entries, words:N seen N times")

    n_layer: int = opt(6, "Transformer blocks", low=1, below=1000, group="model")
    n_head: int = opt(8, "attention heads", low=1)
    n_embd: int = opt(512, "width C of the residual stream and of the latents", low=2)
    block_size: int = opt(256, "longest row in tokens; GSM8K's longest question has 213 under gpt2", low=8)
    dropout: float = opt(0.1, "on embeddings and residual branches; 7k questions overfit soon", low=0.0, below=1.0)
    word_dropout: float = opt(0.0, "rate of a question's words that training reads as unknown", low=0.0, below=1.0)
    mask: str = opt(
        "jepa",
        "jepa: isolated views; causal: the answer sees the question; llm-jepa: both at once; none: all see all",
        ("jepa", "causal", "llm-jepa", "none"),
    )

    jepa_weight: float = opt(1.0, "lambda in L_token + lambda * (1 - cos)", low=0.0, group="objective")
    question_weight: float = opt(1.0, "next-token loss on the question, part of L_token", low=0.0)
    n_pred: int = opt(1, "[PRED] tokens behind a question: the last one predicts, those before are steps to it", low=1)
    decode_weight: float = opt(1.0, "loss of decoding the answer from its own latent z, part of L_token", low=0.0)
    decode_pred_weight: float = opt(0.0, "the same from z_hat; 0: z_hat learns by L_jepa alone", low=0.0)
    decode_noise: float = opt(0.0, "norm of the Gaussian noise on a unit latent before it is decoded", low=0.0)
    target: str = opt(
        "stopgrad",
        "z in L_jepa: gradient stopped, an EMA of the network (which also answers), or grad (neither)",
        ("stopgrad", "ema", "grad"),
    )
    ema_decay: float = opt(0.99, "decay of the target network under --target ema", low=0.0, below=1.0)
    predictor: str = opt("none", "between h[PRED] and z_hat", ("none", "mlp"))
    regulariser: str = opt("none", "against collapse, on z and z_hat", ("none", "vicreg", "sigreg"))
    regulariser_weight: float = opt(1.0, "its weight in the loss", low=0.0)

    epochs: int = opt(25, "passes over the training set (0: as many as make 2,000 steps)", low=0, group="schedule")

    max_new_tokens: int = opt(
        0, "longest answer that is decoded, in tokens (0: the longest of training)", low=0, group="evaluation"
    )
    val_accuracy: bool = opt(False, "each validation also decodes its questions: val_exact_match in log.jsonl")
    final_eval: bool = opt(True, "measure the test split when training ends")

    vocab_size: int = internal(0)  # filled in by train.py: the tokenizer decides it
    system: str = internal("nanojepa")

    COMMON: ClassVar[frozenset] = LoopConfig.COMMON | {"dataset", "jepa_weight"}

    @property
    def writes_tokens(self) -> bool:
        """Does the model learn to write an answer token by token behind its question?"""
        return self.mask in ("causal", "llm-jepa")

    @property
    def isolates(self) -> bool:
        """Is there an answer view that sees nothing else?"""
        return self.mask in ("jepa", "llm-jepa")


@dataclass
class EvalConfig:
    """What the evaluation scripts read."""

    run: str = opt("out/nanojepa", "folder of the trained run; RUN/best is one too")
    data_dir: str = opt("", "read DIR/train.jsonl and DIR/test.jsonl instead of what the run was trained on")
    split: str = opt("test", "questions of", ("test", "val", "train"))
    limit: int = opt(0, "use the first N questions only (0: all)", low=0)
    batch_size: int = opt(64, "questions per forward pass", low=1)
    device: str = opt("auto", "auto, cpu, cuda, cuda:N or mps; auto takes the best one present")


# A million parameters for a laptop. Muon's learning rate is twice AdamW's here; λ = 4 and a light question loss because
# the wording is a means, what is asked is the end; words seen once or twice would be noise.
SMALL = dict(
    tokenizer="words:3",
    n_embd=96,
    n_head=4,
    optimizer="muon",
    lr=4e-3,
    weight_decay=0.3,
    target="ema",
    regulariser="vicreg",
    jepa_weight=4.0,
    decode_noise=0.5,
)
QUICK = SMALL | dict(dataset="wordproblems", epochs=1, dropout=0.0, question_weight=0.1)
# Human-written problems are few, 1,000 to 3,000: much is dropped, and every question is also a text to learn from.
BENCHMARK = SMALL | dict(answer_view="program", dropout=0.2, word_dropout=0.25, question_weight=0.3, n_pred=4)

PRESETS = {
    # The first command of a newcomer: no download, no GPU, and a demo that answers with any names and numbers.
    # Reasoning is learned through L_jepa alone.
    "quick": Preset(
        "any laptop CPU, 2 min: word problems, the program is the target; 97% correct",
        QUICK
        | dict(
            run="out/quick",
            difficulty=5,
            answer_view="program",
            n_train=24_000,
            block_size=128,
            word_dropout=0.1,
        ),
    ),
    # The answer itself is the target: the latent must carry the arithmetic.
    "quick-numbers": Preset(
        "any laptop CPU, 5 min: the number itself is the target, to 98; about 97% correct",
        QUICK | dict(run="out/quick-numbers", n_train=80_000, block_size=96, word_dropout=0.05, decode_noise=1.0),
    ),
    # Real GSM8K without a GPU. A small vocabulary because with GPT-2's half of the work would be the output layer.
    "gsm8k-small": Preset(
        "2 CPU cores, 40 min: GSM8K, 5.9M parameters; no better than a constant, 3%",
        dict(
            run="out/gsm8k-small",
            tokenizer="bpe:4096",
            n_embd=256,
            block_size=320,
            epochs=6,
            lr=1e-3,
            decode_noise=0.5,
        ),
    ),
    "mawps": Preset(
        "2 CPU cores, 4 min a fold: MAWPS with --data-dir DIR/mawps/fold0",
        BENCHMARK | dict(run="out/mawps", epochs=36),
    ),
    "asdiv": Preset(
        "2 CPU cores, 2 min a fold: ASDiv-A with --data-dir DIR/asdiv-a/fold0",
        BENCHMARK | dict(run="out/asdiv", epochs=24),
    ),
    "svamp": Preset(
        "2 CPU cores, 3 min: MAWPS and ASDiv-A, tested on SVAMP; --data-dir DIR/svamp",
        BENCHMARK | dict(run="out/svamp", epochs=16),
    ),
    # The reference configuration on small cards. Minutes are estimates from FLOPs, not measurements.
    "rtx3050": Preset(
        "RTX 3050 (4 GiB), 15 min (estimate): the defaults in two micro-batches",
        dict(run="out/rtx3050", grad_accum=2),
    ),
    "rtx3060": Preset(
        "RTX 3060 (12 GiB), 8 min (estimate): the defaults in batches of 64, lr 8e-4",
        dict(run="out/rtx3060", batch_size=64, lr=8e-4),
    ),
}
