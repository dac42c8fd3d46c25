"""Every hyperparameter of JEPA-Reasoner: what the shared loop reads, and what only Reasoner and Talker have.

python -m reasoner.train --help-all          all options and presets
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from common.options import LoopConfig, Preset, UserError, internal, opt

PHASES = ("pretrain", "sst", "talker")
BASELINES = ("coupled", "coupled-talker", "coconut")
QUESTIONS = ("gsm8k", "mwp", "wordproblems")  # data sets whose prompts are questions, their answers numbers
DATA = (
    "dataset",
    "reasoning",
    "fold",
    "difficulty",
    "leaves",
    "depth",
    "labels",
    "levels",
)  # of the test split
EXPERIMENTS = ("tree", "cfg", "containment", "talker", "trajectory", "fewshot", "dial", "posterior", "clue")


@dataclass
class ReasonerConfig(LoopConfig):
    """JEPA-Reasoner. The defaults are the 42M configuration reported for the tree search (arXiv 2512.19171)."""

    # the loop's, with this system's own reasons
    run: str = opt("out/reasoner", "folder of the run, with a folder for each phase inside", group="run")
    epochs: int = opt(10, "passes over the training set in pretraining", low=1, group="schedule")
    batch_size: int = opt(256, "examples per optimiser step, over processes and micro-batches", low=1)
    weight_decay: float = opt(0.01, "AdamW decay of weight matrices and embeddings; examples are unlimited", low=0.0)

    phase: str = opt(
        "all", "all three in order, or one; one starts from the phase before it", ("all", *PHASES), group="phases"
    )
    init: str = opt("", "folder of the earlier phase's checkpoint; none: that phase's in --run", path=True)
    model: str = opt(
        "decoupled",
        "decoupled, in phases; or a baseline, as many steps in one",
        ("decoupled", *BASELINES),
    )

    dataset: str = opt(
        "tree", "what is reasoned about", ("tree", "clue", "routes", "cfg", *QUESTIONS, "text"), group="data"
    )
    data_dir: str = opt(
        "",
        "gsm8k: DIR/train.jsonl and DIR/test.jsonl; mwp: DIR/mawps/fold0 … and DIR/asdiv-a/fold0 …; "
        "text: DIR/*.txt or *.jsonl; none: the Hub",
        path=True,
    )
    fold: int = opt(0, "mwp (MAWPS and ASDiv-A): which of the five published folds is tested", low=0, below=5)
    n_train: int = opt(400_000, "generated data: training examples; text: passages read", low=1)
    difficulty: int = opt(3, "wordproblems: 3 has two steps, 6 three; all in common/word_problems.py", low=1, below=7)
    leaves: int = opt(
        8, "tree, clue: most leaves; a tree has 2 to this many, and 2 * leaves - 1 nodes; routes: of a layer", low=2
    )
    depth: int = opt(3, "tree, clue: longest route, in edges; 2 ** depth leaves at most; routes, too", low=1)
    labels: int = opt(64, "tree, clue, routes: node labels are drawn from as many", low=3)
    levels: int = opt(4, "cfg: levels of the grammar above its terminals; 3 have 1,872 strings, 4 billions", (3, 4))
    reasoning: str = opt(
        "solution",
        "questions: the chain is the worked solution, its equations, its program over the question's numbers, or its "
        "equations with one latent each (steps)",
        ("solution", "equations", "program", "steps"),
    )
    tokenizer: str = opt("bpe:4096", "questions, text: gpt2 (tiktoken), or bpe:N or words:N of the training split")
    block_size: int = opt(256, "longest row in tokens, prompt and chain", low=8)

    n_layer: int = opt(18, "Transformer blocks of the Reasoner", low=1, below=1000, group="model")
    n_head: int = opt(16, "attention heads", low=1)
    n_embd: int = opt(384, "width C of the residual stream and of the latents", low=2)
    n_hidden: int = opt(1536, "width of the gated feed-forward layers", low=1)
    dropout: float = opt(0.0, "on embeddings and residual branches", low=0.0, below=1.0)
    norm: str = opt(
        "hybrid", "of the hidden states after pretraining: hybrid (RMS, then L2), rms, or l2", ("hybrid", "rms", "l2")
    )
    talker: str = opt(
        "mono",
        "mono: all tokens in one pass; dual: encoder, and a decoder that goes token by token",
        ("mono", "dual"),
    )
    talker_layer: int = opt(
        4, "Transformer blocks of the Talker (dual: of its encoder and of its decoder)", low=1, below=1000
    )
    thoughts: int = opt(3, "coconut: continuous thoughts between the prompt and the answer", low=0)

    pretrain_on: str = opt(
        "all", "next-token loss on all positions, or on the chain's", ("all", "chain"), group="pretraining"
    )

    k: float = opt(4.0, "scale of the loss k * (1 - cos)", low=0.0, group="self-supervised training")
    ema_decay: float = opt(0.98, "decay of the target embedding", low=0.0, below=1.0)
    sst_loss: str = opt(
        "cosine", "to the embedding of the next token; or hard: cross-entropy over all embeddings", ("cosine", "hard")
    )
    contrast: float = opt(0.0, "weight of a cross-entropy over all embeddings, added to the cosine loss", low=0.0)
    rollout: int = opt(0, "further passes over the model's own latents, with loss, after the teacher-forced one", low=0)
    sst_sampling: bool = opt(False, "these passes have own latents at random positions only, a fraction drawn per row")
    sst_noise: float = opt(
        0.0, "Gaussian noise on the chain's inputs, its norm drawn per row from 0 to this (baselines, too)", low=0.0
    )
    sharpen: float = opt(
        0.0, "temperature at which a latent is fed back as a mixture of embeddings (0: as it is)", low=0.0
    )
    sst_epochs: int = opt(1, "passes over the training set in self-supervised training", low=1)
    sst_lr: float = opt(3e-4, "peak learning rate of self-supervised training", low=0.0)

    talker_epochs: int = opt(1, "passes over the training set of the Talker", low=1, group="Talker")
    talker_lr: float = opt(1e-3, "peak learning rate of the Talker", low=0.0)

    max_chain: int = opt(0, "longest chain in latents (0: the longest of the training set)", low=0, group="evaluation")
    n_eval: int = opt(1000, "test examples of generated data", low=1)

    # filled in by training
    vocab_size: int = internal(0)
    system: str = internal("reasoner")
    init_sha: str = internal("")  # of the weights that a phase started from
    trained: str = internal("")  # the phase that this checkpoint ends

    RESUMABLE: ClassVar[frozenset] = LoopConfig.RESUMABLE | {"phase", "sst_epochs", "talker_epochs"}
    COMMON: ClassVar[frozenset] = LoopConfig.COMMON | {"dataset", "model", "phase"}

    def __post_init__(self):
        super().__post_init__()
        if self.sst_sampling and not self.rollout:
            raise UserError("--sst-sampling: own latents are inputs in further passes only; give --rollout, too")
        if self.contrast and self.sst_loss == "hard":
            raise UserError("--contrast is added to the cosine loss; --sst-loss hard has none")
        if self.of_steps and self.sharpen:
            raise UserError(
                "--reasoning steps: a latent is near no token's embedding; give --sharpen 0 --sst-loss cosine"
            )
        if self.of_steps and (self.model != "decoupled" or self.talker == "dual" or self.rollout or self.sst_noise):
            raise UserError(
                "--reasoning steps: its chain is its own; leave out --model, --talker, --rollout, --sst-noise"
            )
        if self.model != "decoupled" and (self.sharpen or self.contrast):
            raise UserError(f"--model {self.model} has no chain of latents; give --sharpen 0 and leave --contrast out")

    @property
    def computes(self) -> bool:
        """Are chains programs, computed after they are generated?"""
        return self.dataset in QUESTIONS and self.reasoning == "program"

    @property
    def of_steps(self) -> bool:
        """Does a latent stand for a step, and not for a token?"""
        return self.dataset in QUESTIONS and self.reasoning == "steps"

    @property
    def n_thoughts(self) -> int:
        """Thought positions between prompt and chain: only coconut has any."""
        return self.thoughts if self.model == "coconut" else 0


@dataclass
class EvalConfig:
    """What `reasoner.evaluate` reads."""

    run: str = opt("out/reasoner-quick", "folder of the trained run, with its phases inside")
    what: str = opt("tree", "the experiment", EXPERIMENTS)
    baseline: tuple = opt((), "folders of further runs, measured alike")
    ask: str = opt("", "no experiment: follow one prompt in the terminal; - reads one a line from standard input")
    data_dir: str = opt("", "gsm8k: DIR/train.jsonl and DIR/test.jsonl; none: what the run was trained on")
    sharpen: float = opt(-1.0, "feed latents back with this --sharpen (-1: as trained, 0: as they are)", low=-1.0)
    limit: int = opt(0, "use the first N examples only (0: all)", low=0)
    batch_size: int = opt(256, "examples at once; fewer where gradients or solved examples take memory", low=1)
    seed: int = opt(0, "seed of noise and of controls", low=0)
    device: str = opt("auto", "auto, cpu, cuda, cuda:N or mps; auto takes the best one present")

    def path(self, name: str) -> Path:
        """RUN/tree.json, with `-sharpen-X` and `-first-N` where they are given: the whole result must stay."""
        given = f"-sharpen-{self.sharpen:g}" * (self.sharpen >= 0) + f"-first-{self.limit}" * bool(self.limit)
        stem, dot, end = name.rpartition(".")
        return Path(self.run) / f"{stem}{given}{dot}{end}"


# --------------------------------------------------------------------------------------------- presets

SMALL = dict(n_head=4, n_embd=128, n_hidden=352)  # what two CPU cores train in minutes
TREES = dict(
    n_train=90_000,
    leaves=5,
    depth=4,
    labels=12,
    block_size=64,
    n_layer=6,
    **SMALL,
    talker_layer=1,
    batch_size=32,
    epochs=1,
    lr=2e-3,
    sst_lr=2e-3,
    pretrain_on="chain",
)
DECIDED = dict(sst_loss="hard", sharpen=0.01)  # where a chain must choose between tokens; baselines need --sharpen 0

PRESETS = {
    "quick": Preset(
        "2 CPU cores, 9 min: tree search, up to 9 nodes; 99.4% of unseen trees",
        dict(run="out/reasoner-quick", **TREES),
    ),
    "clue": Preset(
        "1 CPU core, 11 min: trees whose goal arrives in the chain",
        dict(run="out/reasoner-clue", dataset="clue", n_eval=3000, **TREES),
    ),
    "routes": Preset(
        "1 CPU core, 10 min: graphs with several routes to the goal, 1M parameters",
        dict(
            run="out/reasoner-routes",
            dataset="routes",
            n_eval=2000,
            n_train=60_000,
            leaves=3,
            depth=3,
            labels=16,
            block_size=48,
            n_layer=4,
            **SMALL,
            talker_layer=1,
            batch_size=32,
            epochs=2,
            lr=2e-3,
            sst_lr=2e-3,
            pretrain_on="chain",
        ),
    ),
    "tree-42m": Preset(
        "one GPU, 1 h (estimate): tree search, 42M parameters; the paper has 99.87%",
        dict(run="out/reasoner-tree-42m", leaves=16, depth=4, labels=128),
    ),
    "cfg-small": Preset(
        "2 CPU cores, 19 min on one of them: derivations of CFG strings, 1M parameters",
        dict(
            run="out/reasoner-cfg",
            dataset="cfg",
            n_train=40_000,
            block_size=128,
            n_layer=4,
            **SMALL,
            talker_layer=1,
            batch_size=64,
            epochs=2,
            lr=1e-3,
            sst_lr=1e-3,
            sst_noise=0.8,  # without it Gaussian noise on what is fed back costs 17 points
            pretrain_on="chain",
        ),
    ),
    "gsm8k-small": Preset(
        "2 CPU cores, 30 min on one of them: GSM8K, equations as the chain, 2M parameters",
        dict(
            run="out/reasoner-gsm8k",
            dataset="gsm8k",
            reasoning="equations",
            tokenizer="bpe:2048",
            block_size=512,
            n_layer=6,
            **SMALL,
            dropout=0.1,
            talker_layer=2,
            batch_size=32,
            epochs=6,
            sst_epochs=4,  # with the pretraining as many steps as a baseline's, and the Talker's on top
            **DECIDED,
            talker_epochs=2,
            lr=2e-3,
            sst_lr=2e-3,
            weight_decay=0.1,
        ),
    ),
    "mwp": Preset(
        "1 CPU core, 4 min: MAWPS and ASDiv-A with --data-dir DIR, programs as the chain",
        dict(
            run="out/reasoner-mwp",
            dataset="mwp",
            reasoning="program",
            tokenizer="words:3",
            block_size=256,
            n_layer=4,
            **SMALL,
            dropout=0.2,
            talker_layer=1,
            batch_size=32,
            epochs=7,
            sst_epochs=5,
            **DECIDED,
            talker_epochs=2,
            lr=2e-3,
            sst_lr=2e-3,
            weight_decay=0.1,
        ),
    ),
    "problems": Preset(
        "1 CPU core, 7 min: generated word problems of two steps, equations as the chain",
        dict(
            run="out/reasoner-problems",
            dataset="wordproblems",
            reasoning="equations",
            tokenizer="words:3",
            n_train=10_000,
            block_size=128,
            n_layer=4,
            **SMALL,
            talker_layer=1,
            batch_size=32,
            epochs=2,
            sst_epochs=2,
            **DECIDED,
            lr=2e-3,
            sst_lr=2e-3,
            pretrain_on="chain",
        ),
    ),
    # 694M + 198M as the paper states; widths and depths are ours, found by counting, and so is the number of passages,
    # some 10 billion tokens and 20 GB on disk.
    "0.9b": Preset(
        "several large GPUs (never run here): C4, WikiText, maths; the paper's 0.9B",
        dict(
            run="out/reasoner-0.9b",
            dataset="text",
            tokenizer="gpt2",
            n_train=20_000_000,
            block_size=1024,
            n_layer=33,
            n_head=20,
            n_embd=1280,
            n_hidden=3264,
            talker_layer=7,
            talker="mono",
            batch_size=512,
            epochs=1,
        ),
    ),
}
