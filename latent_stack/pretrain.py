"""Say it back: text → ideas → the same text, before the task (ICAE, xRAG and 500xCompressor all begin so).

    words      soft token p is to be token p of the text, without the language model, which costs far more
    pretrain   the language model says the text: its LoRA, and what ideas move its keys and values by, learn to read
               soft tokens, which stay as they are; with neither it is the soft tokens that are trained

Either is a run of the shared loop in a folder of the run, RUN/words and RUN/pretrain, short sentences first: --resume
finds the first that is not finished. RUN/pretrain can be evaluated, and another task can begin there (--init).
"""

import random
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from common.batching import epoch_order, make_batches
from common.checkpoint import clear_run, is_started, read_config, read_weights, write_json
from common.device import Device, Distributed
from common.log import last_metrics
from common.loop import fit
from common.options import UserError
from latent_stack.config import StackConfig
from latent_stack.data import TokenizedDataset
from latent_stack.losses import WordsInOrder
from latent_stack.model import LatentStack
from latent_stack.pairs import Pair, load_pairs

STAGES = ("words", "pretrain")
N_VAL = 100  # sentences of the validation loss
WORDS_BATCH, WORDS_LR = 32, 2e-3  # of the stage without the language model, whose steps are cheap and gradients tame
CHEAP = 32  # tokens: of texts longer than that, whose steps cost their length, proportionally fewer are taken


def of_length(pairs: list[Pair], model: LatentStack, longest: int) -> list[Pair]:
    """Those whose target has 3 to `longest` tokens."""
    ids = model.backbones.lm_tokenizer([p.target for p in pairs], add_special_tokens=False)["input_ids"]
    return [p for p, row in zip(pairs, ids, strict=True) if 3 <= len(row) <= longest]


def random_words(model: LatentStack, n: int, longest: int, seed: int) -> list[Pair]:
    """n lists of words of the language model's vocabulary, all words equally often: sentences have few of them, and a
    name that no soft token ever was cannot be said back."""
    tokenizer, rng = model.backbones.lm_tokenizer, random.Random(seed)
    found = [token[1:] for token in tokenizer.get_vocab() if token[0] in "Ġ▁" and len(token) > 2]
    words, pairs, bag = sorted(word for word in found if word.isalpha() and word.isascii()), [], []
    if not words:
        raise UserError("--pretrain-random: the language model's tokenizer does not mark where a word begins")
    while len(pairs) < n:
        k = rng.randint(3, longest - 2)
        if len(bag) < k:
            bag = rng.sample(words, len(words)) + bag
        text = " ".join(bag.pop() for _ in range(k))
        pairs.append(Pair(text, text))
    return of_length(pairs, model, longest)


def stage_configs(config: StackConfig) -> list[StackConfig]:
    """The two stages as runs of their own: said back is what --dataset texts has."""
    same = dict(dataset="texts", data_dir=config.pretrain, pretrain="", n_train=0, max_target=config.pretrain_tokens)
    same |= dict(max_steps=0, eval_every=0, max_new_tokens=config.pretrain_tokens + 4)
    folders = {name: str(Path(config.run) / name) for name in STAGES}
    schedule = dict(epochs=config.pretrain_words, batch_size=WORDS_BATCH, lr=WORDS_LR)
    words = replace(config, run=folders["words"], **schedule, **same)
    return [words, replace(config, run=folders["pretrain"], epochs=1, **same)]


def staged(data: TokenizedDataset, config: StackConfig, distributed: Distributed, n_steps: int = 0):
    """As `make_batches`, the first pass short texts first; of a pass n_steps are taken, from all lengths (0: all)."""
    steps_per_epoch, batches = make_batches(data, config, distributed.rank, distributed.world)
    first = epoch_order(data.length, config.batch_size, config.seed, 0)
    length = np.array([data.length[index].mean() for index in first])
    taken = np.argsort(length, kind="stable")
    if 0 < n_steps < steps_per_epoch:
        place = np.cumsum(CHEAP / np.maximum(length[taken], CHEAP))
        even = np.linspace(place[0], place[-1], n_steps)
        taken = taken[np.unique(np.interp(even, place, np.arange(steps_per_epoch)).round().astype(int))]
    return len(taken), lambda epoch, k: batches(epoch, taken[k] if epoch == 0 else k)


def training(batches, what: str):
    """The same batches, of which `what` is trained: a Batch explains it."""
    return lambda epoch, k: (replace(batch, trains=what) for batch in batches(epoch, k))


def sentences(model: LatentStack, config: StackConfig, task: list[Pair]) -> tuple[TokenizedDataset, TokenizedDataset]:
    """What is said back: the training and validation sentences of --pretrain, and in training the beginnings of the
    task's own inputs."""
    said = stage_configs(config)[1]
    pairs = load_pairs(said)
    train = of_length(pairs["train"], model, config.pretrain_tokens)
    if config.pretrain_texts:
        train = random.Random(config.seed).sample(train, min(config.pretrain_texts, len(train)))
    val = of_length(pairs["val"], model, config.pretrain_tokens)[:N_VAL]
    if not train or not val:
        raise UserError(f"--pretrain {config.pretrain}: no sentences of 3 to {config.pretrain_tokens} tokens")
    if config.pretrain_random:
        train += random_words(model, config.pretrain_random, config.pretrain_tokens, config.seed)
    train += [Pair(p.input, p.input) for p in task]
    return tuple(TokenizedDataset(part, model.backbones, said, "sentences") for part in (train, val))


def say_back(
    model: LatentStack, config: StackConfig, data: tuple, validate, device: Device, distributed: Distributed
) -> None:
    """Train both stages on `sentences`, each from where its folder has it; `validate(model, data)` gives the losses of
    a split."""
    (train, val), (words, said) = data, stage_configs(config)
    if config.cache:
        train.cache()
        val.cache()
    model.bag_of_words = WordsInOrder(train.targets, model.backbones.lm)
    distributed.print(f"saying back {len(train):,} texts, to {config.pretrain_tokens} tokens of each")

    if not any(is_started(stage.run) for stage in (words, said)):
        if distributed.main:  # so that --resume knows what it resumes
            write_json(Path(config.run) / "config.json", asdict(config))
        if not config.init:
            model.standardise(train)
    read = "decoder" if config.lora_decoder or config.prefix_kv else "all"
    for stage, n_steps, what in ((words, 0, "soft tokens"), (said, config.pretrain_steps, read)):
        if stage is words and (is_started(said.run) or not (config.pretrain_words and config.words_weight)):
            continue
        Path(stage.run).mkdir(exist_ok=True)
        if distributed.main and not is_started(stage.run):
            clear_run(Path(stage.run))
        n_steps, batches = staged(train, stage, distributed, n_steps)
        summary = fit(
            model,
            n_steps,
            training(batches, what),
            replace(stage, resume=is_started(stage.run)),
            validate=None if stage is words else lambda model: validate(model, val),
            distributed=distributed,
            device=device,
            resume_options=f"--run {config.run} --resume",
        )
        if distributed.main:
            found = {"n_params": model.n_params(), "n_texts": len(train), **summary, **last_metrics(stage.run)}
            write_json(Path(stage.run) / "summary.json", found)
    model.bag_of_words = None


def begin_from(model: LatentStack, run: str) -> None:
    """--init: the trained weights of another run; a UserError names what differs."""
    there, here = read_config(run, StackConfig, f"python -m latent_stack.train --run {run}"), model.config
    for name in ("encoder_hash", "decoder_hash", "middle", "pooling", "ideas"):
        if getattr(there, name) != getattr(here, name):
            what = name.removesuffix("_hash")
            raise UserError(f"--init {run}: its {what} is {getattr(there, what)}, this run's {getattr(here, what)}")
    found, expected = read_weights(Path(run) / "model.safetensors", "cpu"), model.state_dict()
    for name in sorted(found.keys() | expected.keys()):
        shapes = [tuple(x[name].shape) if name in x else None for x in (found, expected)]
        if shapes[0] != shapes[1]:
            raise UserError(f"--init {run}: {name} has shape {shapes[0]}, this run's {shapes[1]}")
    model.load_state_dict(found)
