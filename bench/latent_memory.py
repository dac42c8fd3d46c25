"""Peak memory of training a latent stack of full size: does a preset fit a card of 12 GiB?

    python -m bench.latent_memory          phase1 and phase2, about 4 minutes and 11 GiB on a CPU

ModernBERT-base and GPT-2 are built from their configurations with random weights, so nothing is downloaded; every row
of the batch is as long as the preset allows. Each preset takes two optimiser steps in a process of its own. On a GPU
the peak is the allocator's, in the card's own precision. On a CPU it is that of the resident memory less what the
process held before the models were built, in fp32; what the system's allocator does not give back counts, and differs
between runs. Beside it stands an estimate for half precision: weights, their gradients, the optimiser's state, a half
copy of all weights, and half of what was kept for the backward pass.

Writes results/latent_memory_<device>.json.
"""

from dataclasses import dataclass, replace
from multiprocessing import get_context

import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from bench.measure import hardware, peak_gib, save
from common.device import Device, resolve_device
from common.optimizers import make_optimizer
from common.options import opt, parse, run_main
from latent_stack.backbones import Inputs
from latent_stack.config import PRESETS, StackConfig
from latent_stack.data import Batch
from latent_stack.losses import BagOfWords
from latent_stack.model import LatentStack

GIB = 2**30


@dataclass
class BenchConfig:
    device: str = opt("auto", "auto, cpu, cuda, cuda:N or mps; auto takes the best one present")
    precision: str = opt("auto", "auto, fp32, bf16 or fp16", ("auto", "fp32", "bf16", "fp16"))
    seed: int = opt(0, "of weights and texts", low=0)
    out: str = opt("", "file to write; by default results/latent_memory_<device>.json")


def random_backbones(size: dict | None = None) -> tuple:
    """-> ((encoder, tokenizer), (language model, tokenizer)): ModernBERT-base and GPT-2 with random weights.

    `size`: keyword arguments of both configurations, for smaller ones.
    """
    import transformers

    words = Tokenizer(models.WordLevel({"[PAD]": 0, "<bos>": 1, "<eos>": 2, "a": 3}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", bos_token="<bos>", eos_token="<eos>", model_max_length=8192
    )
    encoder = transformers.ModernBertModel(transformers.ModernBertConfig(**(size or {})))
    lm = transformers.GPT2LMHeadModel(transformers.GPT2Config(**(size or {})))
    for backbone in (encoder, lm):
        backbone.requires_grad_(False).eval()
    return (encoder, tokenizer), (lm, tokenizer)


def longest_batch(model: LatentStack, device: Device) -> Batch:
    """A batch of random ids in which every text is as long as the configuration allows."""
    config = model.config
    B, n_vocab = config.batch_size, model.backbones.lm.get_input_embeddings().weight.size(0)
    tokens = torch.randint(n_vocab, (B, config.max_target + 2))
    ids = torch.randint(4, (B, config.max_input))
    denominators = {"targets": float(tokens[:, 1:].numel())}
    inputs = Inputs(ids, torch.ones_like(ids, dtype=torch.bool), tokens)
    return Batch(inputs, tokens, denominators).to(device.device)


def train_steps(model: LatentStack, batch: Batch, device: Device, n: int = 2) -> int:
    """n optimiser steps -> the bytes that the last one kept for its backward pass, weights not counted."""
    optimizer = make_optimizer(model, model.config)
    modules = (model, *model.backbones.modules())
    weights = {p.untyped_storage().data_ptr() for module in modules for p in module.parameters()}
    kept = {}

    def keep(x):
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    for _ in range(n):
        kept.clear()
        with device.autocast(), torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            loss, _ = model(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return sum(kept.values())


def measure(config: StackConfig, size: dict | None = None) -> dict:
    """-> peak in GiB, what was held before, the parameters; on a CPU the estimate for half precision, too."""
    device = resolve_device(config.device, config.precision)
    cuda = device.device.type == "cuda"
    before = 0.0 if cuda else peak_gib()
    torch.manual_seed(config.seed)
    model = LatentStack(config, random_backbones(size)).to(device.device).train()
    batch = longest_batch(model, device)
    if config.words_weight:
        model.bag_of_words = BagOfWords(batch.tokens.tolist(), model.backbones.lm)
    activations = train_steps(model, batch, device)

    trained, frozen = model.n_params(), model.backbones.n_frozen()
    result = {
        "peak_gib": peak_gib() - before,
        "held_before_gib": before,
        "batch_size": config.batch_size,
        "input_tokens": config.max_input,
        "target_tokens": config.max_target,
        "trained": trained,
        "frozen": frozen,
        "precision": str(device.dtype) if cuda else "fp32",
    }
    if not cuda:  # fp32 weights, gradients and two moments of what is trained; weights of the rest; a half copy of all
        half = 16 * trained + 4 * frozen + 2 * (trained + frozen) + activations / 2
        result |= {"activations_gib": activations / GIB, "half_precision_estimate_gib": half / GIB}
    return result


def main(argv: list[str] | None = None) -> None:
    config, _ = parse(BenchConfig, {}, __doc__.split("\n\n")[0], argv)
    device, result = resolve_device(config.device, config.precision), {}
    options = {name: getattr(config, name) for name in ("device", "precision", "seed")}
    for name in ("phase1", "phase2"):
        measured = replace(StackConfig(**PRESETS[name].values), **options)
        with get_context("spawn").Pool(1) as pool:  # a peak is one of a whole process
            row = result[name] = pool.apply(measure, (measured,))
        estimate = row.get("half_precision_estimate_gib")
        print(
            f"{name}: {row['peak_gib']:.2f} GiB in {row['precision']}"
            f"{f' (estimate for half precision: {estimate:.2f})' if estimate else ''}, {row['batch_size']} texts of "
            f"{row['input_tokens']} tokens; {row['trained'] / 1e6:.1f}M parameters trained, "
            f"{row['frozen'] / 1e6:.0f}M frozen"
        )
    save({"hardware": hardware(device), "torch": torch.__version__, "presets": result}, config, device, "latent_memory")


if __name__ == "__main__":
    run_main(main)
