"""Prompts and chains: what the Reasoner is asked, and the tokens whose latents it must think one after another.

    tree    prompt  "5 9 ; 5 2 ; 9 7 ; 9 1 ; 2 4 ; 2 8 ; root 5 goal 7 :"     edges shuffled, parent before child
            chain   "5 9 7"                                                   the route from the root to the goal
    cfg     prompt  "a c b b a :"                                             a string of the grammar below
            chain   "S1 A2 B1"                                                its derivation, leftmost first
    gsm8k   prompt  the question            chain   the worked solution, or its equations
    text    prompt  nothing                 chain   the passage itself

    one row  p1 p2 … pn c1 c2 … cR [EOS] (padding)        the chain's latents are predicted at pn, c1, … cR

Shapes: B rows, T tokens a row, R chain tokens with [EOS], N examples.
"""

import json
import random
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby, islice
from pathlib import Path

import numpy as np
import torch

import data as questions
from config import Config, UserError, atomic
from data import answer_text, epoch_order, load_splits, train_tokenizer

MOST_READ = 100_000  # examples that a BPE is trained on
SHARE = {"train": 0.8, "val": 0.1, "test": 0.1}  # of all possible trees and strings


@dataclass(frozen=True)
class Item:
    """`sibling` (tree only): the chain's tokens, each replaced by its sibling in the tree ("" for the root)."""

    prompt: str
    chain: str
    sibling: tuple = ()


def split_of(text):
    """The one split that a tree or string may appear in, whatever the seed: splits are disjoint by construction."""
    u = random.Random(text).random()
    return "train" if u < SHARE["train"] else "val" if u < SHARE["train"] + SHARE["val"] else "test"


def distinct(draw, split, n, seed):
    """n different items of a split; draw(rng) -> (name of the instance, Item). Only train depends on the seed."""
    rng, found, misses = random.Random(f"{split} {seed if split == 'train' else 'fixed'}"), {}, 0
    while len(found) < n:
        name, item = draw(rng)
        if split_of(name) == split and item.prompt not in found:
            found[item.prompt], misses = item, 0
        elif (misses := misses + 1) > 10_000:
            raise UserError(f"there are hardly more than {len(found)} different {split} examples of this difficulty; "
                            "ask for fewer, or make it harder")  # fmt: skip
    return list(found.values())


# ------------------------------------------------------------------------------------------------ trees


def trees(split, n, config):
    """Random labelled binary trees, every inner node with two children: from the root, which way to the goal, a leaf?

    A tree has 2 to `leaves` leaves, all numbers drawn alike often; of the small ones there are so few that a large
    training set soon has them all and goes on with larger ones. It grows by splitting a random leaf above `depth`.
    Labels are drawn without replacement. Which child is right can only be known from the goal's end: the model has to
    search. A labelled tree, whatever the order of its edges and the goal, belongs to one split.
    """
    nodes = 2 * config.leaves - 1
    if config.leaves > 2**config.depth:
        raise UserError(f"--leaves {config.leaves} do not fit --depth {config.depth}: at most {2**config.depth}")
    if nodes > config.labels:
        raise UserError(f"--labels {config.labels}: a tree of {config.leaves} leaves has {nodes} nodes to label")

    def draw(rng):
        label = rng.sample(range(config.labels), 2 * rng.randint(2, config.leaves) - 1)
        parent, depth, leaves, edges = {}, {label[0]: 0}, [label[0]], []
        for left, right in zip(label[1::2], label[2::2], strict=True):
            node = rng.choice([x for x in leaves if depth[x] < config.depth])
            leaves.remove(node)
            leaves += [left, right]
            edges += [(node, left), (node, right)]
            parent |= {left: (node, right), right: (node, left)}
            depth |= {left: depth[node] + 1, right: depth[node] + 1}
        goal = rng.choice(leaves)
        name = str(sorted(edges))
        rng.shuffle(edges)
        route, siblings = [goal], []
        while route[0] in parent:
            node, sibling = parent[route[0]]
            route, siblings = [node, *route], [str(sibling), *siblings]
        prompt = f"{' '.join(f'{a} {b} ;' for a, b in edges)} root {label[0]} goal {goal} :"
        return name, Item(prompt, " ".join(map(str, route)), ("", *siblings))

    return distinct(draw, split, n, config.seed)


# -------------------------------------------------------------------------------------------- a grammar

# Two rules a symbol, none the beginning of the other; a level uses the one below it, the lowest the terminals.
TERMINALS = "abc"
RULES = {
    "S": ("A B", "B C A"),
    "A": ("D E", "E F D"), "B": ("E D F", "F E"), "C": ("F D", "D F E"),
    "D": ("G I", "H G I"), "E": ("I H G", "G H"), "F": ("H I", "I G H"),
    "G": ("a b", "b c a"), "H": ("b a c", "c b"), "I": ("c a", "a c b"),
}  # fmt: skip
LEVELS = ("S", "ABC", "DEF", "GHI")


def grammar(levels):
    """Levels above the terminals, 3 or 4 -> the rules in use: {symbol: (right sides, tuples of symbols)}.

    With three levels D, E, F have the right sides of G, H, I.
    """
    used = LEVELS[:levels]
    lowest = dict(zip(used[-1], LEVELS[-1], strict=True))
    return {x: tuple(tuple(RULES[lowest.get(x, x)][i].split()) for i in (0, 1)) for level in used for x in level}


def derivations(split, n, config):
    """Strings of the grammar above; the chain is the derivation: the rule of every symbol, leftmost first."""
    rules = grammar(config.levels)

    def draw(rng):
        string, chain, stack = [], [], ["S"]
        while stack:
            symbol = stack.pop()
            if symbol not in rules:
                string.append(symbol)
                continue
            i = rng.randrange(2)
            chain.append(f"{symbol}{i + 1}")
            stack += reversed(rules[symbol][i])
        text = " ".join(string)
        return text, Item(f"{text} :", " ".join(chain))

    return distinct(draw, split, n, config.seed)


def derived(chain, levels):
    """A derivation as text -> the string it derives, or None if it is none."""
    rules, stack, string = grammar(levels), ["S"], []
    for word in chain.split():
        while stack and stack[-1] not in rules:
            string.append(stack.pop())
        if not stack or word not in (f"{stack[-1]}1", f"{stack[-1]}2"):
            return None
        stack += reversed(rules[stack.pop()][int(word[-1]) - 1])
    return None if any(x in rules for x in stack) else " ".join([*string, *reversed(stack)])


def noisy(prompt, kind, rate, rng, words):
    """A prompt with token noise: each token before the final ":" is dropped, replaced by another, or followed by one.

    kind: drop, replace or insert; rate: probability per token; words: what random tokens are drawn from.
    """
    kept = []
    for token in prompt.split()[:-1]:
        hit = rng.random() < rate
        if not (hit and kind == "drop"):
            kept.append(rng.choice([w for w in words if w != token]) if hit and kind == "replace" else token)
        if hit and kind == "insert":
            kept.append(rng.choice(words))
    return " ".join([*kept, ":"])


# ------------------------------------------------------------------------------------------ GSM8K, text


def solutions(split, config):
    """GSM8K with its solutions as the chain; validation is the same 500 training questions as everywhere."""
    base = Config(dataset="gsm8k", data_dir=config.data_dir)
    return [Item(e.question, answer_text(e, config.reasoning)) for e in load_splits(base)[split]]


HUB = (  # id, configuration, column, share of the passages
    ("allenai/c4", "en", "text", 0.6),
    ("Salesforce/wikitext", "wikitext-103-raw-v1", "text", 0.2),
    ("open-web-math/open-web-math", None, "text", 0.2),
)


@dataclass(frozen=True)
class Passages:
    """Plain text of one split, read anew whenever it is gone through: a large corpus is never in memory.

    DIR/*.txt (passages between empty lines) and DIR/*.jsonl ("text"); or C4, WikiText and maths, streamed from the Hub.
    A passage belongs to one split by its own text, so that a passage that comes twice cannot be in two.
    """

    split: str
    n: int  # passages at most
    seed: int
    files: tuple = ()  # (path, bytes, time of the last change); none: the Hub
    made_of: tuple = (HUB, tuple(SHARE.items()))  # by all of this `datasets` knows passages that it has encoded before

    def __iter__(self):
        rows = (text for path, *_ in self.files for text in _passages_of(Path(path))) if self.files else _streamed(self)
        found = -1
        for found, text in enumerate(islice((t for t in rows if split_of(t) == self.split), self.n)):  # noqa: B007
            yield Item("", text)
        if found < 0:
            source = Path(self.files[0][0]).parent if self.files else "the Hub"
            raise UserError(f"{source}: too few passages; none falls into the {self.split} split")


def passages(split, config):
    """Config -> Passages of its folder or of the Hub."""
    paths = sorted(p for p in Path(config.data_dir).glob("*") if p.suffix in (".txt", ".jsonl"))
    if config.data_dir and not paths:
        raise UserError(f"{config.data_dir}: holds no .txt and no .jsonl file")
    files = tuple((str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in paths) if config.data_dir else ()
    return Passages(split, config.n_train if split == "train" else config.n_eval, config.seed, files)


def _passages_of(path):
    if path.suffix == ".jsonl":
        for number, row in questions.parse_lines(path):
            if not isinstance(row, dict) or not isinstance(row.get("text"), str):
                raise UserError(f'{path}:{number}: wants one {{"text": …}} a line')
            yield row["text"]
        return
    try:
        with open(path, encoding="utf-8") as file:
            for empty, lines in groupby(file, key=lambda line: not line.strip()):
                if not empty:
                    yield "".join(lines).strip()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason})") from None


def _streamed(passages):
    from datasets import interleave_datasets, load_dataset

    try:
        parts = [load_dataset(name, part, split="train", streaming=True).select_columns(column)
                 for name, part, column, _ in HUB]  # fmt: skip
        mixed = interleave_datasets(parts, [share for *_, share in HUB], seed=passages.seed,
                                    stopping_strategy="all_exhausted_without_replacement")  # fmt: skip
        yield from (row["text"] for row in mixed if row["text"].strip())
    except UserError:
        raise
    except Exception as error:  # the libraries below `datasets` raise a dozen types when the Hub is out of reach
        names = ", ".join(name for name, *_ in HUB)
        raise UserError(f"could not stream {names} from the Hub ({type(error).__name__}). Without a network: "
                        "--data-dir DIR with .txt or .jsonl files") from error  # fmt: skip


def load_items(split, config):
    """Config -> list of Item of one split; text: Passages."""
    if config.dataset in ("tree", "cfg"):
        n = config.n_train if split == "train" else config.n_eval
        return (trees if config.dataset == "tree" else derivations)(split, n, config)
    return (solutions if config.dataset == "gsm8k" else passages)(split, config)


# -------------------------------------------------------------------------------------------- tokenizer


class Words(questions.Tokenizer):
    """One token a word, words being what a tree or a string consists of."""

    def __init__(self, words):
        self.words, self.id_of = list(words), {w: i for i, w in enumerate(words)}
        super().__init__(len(self.words))

    def encode(self, texts):
        """list of str -> list of lists of ids; a UserError names a word that is none."""
        try:
            return [[self.id_of[w] for w in text.split()] for text in texts]
        except KeyError as error:
            raise UserError(f"{error.args[0]!r} is not a word of this model; its words are "
                            f"{' '.join(self.words[:4])} … {' '.join(self.words[-4:])}") from None  # fmt: skip

    def text(self, ids):
        return " ".join(self.words[i] for i in ids)

    def pieces(self, ids):
        return [self.words[i] if i < self.n_text else questions.SPECIAL[min(i - self.n_text, 3)] for i in ids]

    def save(self, folder):
        with atomic(Path(folder) / "tokenizer.json") as path:
            path.write_text(json.dumps({"words": self.words}), encoding="utf-8")


def make_tokenizer(config, items):
    """The data's tokenizer: one word a token for trees and strings, a trained BPE or GPT-2's for text."""
    if config.dataset == "tree":
        return Words([*map(str, range(config.labels)), ";", "root", "goal", ":"])
    if config.dataset == "cfg":
        return Words([*TERMINALS, *(f"{x}{i}" for x in grammar(config.levels) for i in (1, 2)), ":"])
    return train_tokenizer(config.tokenizer, (questions.Example(x.prompt, x.chain) for x in islice(items, MOST_READ)))


def load_tokenizer(config, folder):
    """The tokenizer of the checkpoint in `folder`."""
    if config.dataset in ("gsm8k", "text"):
        return questions.load_tokenizer(config.tokenizer, folder)
    path = Path(folder) / "tokenizer.json"
    try:
        return Words(json.loads(path.read_text(encoding="utf-8"))["words"])
    except (OSError, json.JSONDecodeError, KeyError) as error:
        raise UserError(f"{path}: not the list of words this checkpoint was trained with ({error})") from None


# ---------------------------------------------------------------------------------------------- batches


@dataclass
class Batch:
    """B rows of prompt, chain and [EOS]. Indices are int64; `*_at` index flat positions of `tokens`.

    tokens             (B, T)
    start              (B,)    length of the prompt, so that the chain's first token stands in this column
    length             (B,)    length of the row
    chain_at, chain_ids (K,)   positions that predict a chain token or [EOS], and that token
    all_at, all_ids    (K',)   positions that predict any next token, and that token; a thought's place is no target
    chain              (B, R)  the chain's tokens with [EOS], -1 behind it
    slot_at            (K,)    where in `chain`, flat, the tokens of `chain_ids` stand
    prompt             int     length of the longest prompt, thoughts left out
    share              floats  chain tokens, all tokens of the whole optimiser step: what summed losses are divided by
    latents            (B, R, C) or None: the Reasoner's, where a Talker is trained
    """

    tokens: torch.Tensor
    start: torch.Tensor
    length: torch.Tensor
    chain_at: torch.Tensor
    chain_ids: torch.Tensor
    all_at: torch.Tensor
    all_ids: torch.Tensor
    chain: torch.Tensor
    slot_at: torch.Tensor
    prompt: int
    share: dict
    latents: torch.Tensor | None = None

    @property
    def n_tokens(self):
        """Real tokens: all but padding."""
        return int(self.length.sum())

    def to(self, device):
        return replace(
            self, **{k: v.to(device, non_blocking=True) for k, v in vars(self).items() if torch.is_tensor(v)}
        )


class Encoded:
    """A split as arrays of token ids. `slots` places for continuous thoughts stand between prompt and chain."""

    def __init__(self, items, tokenizer, block_size, where="data", slots=0):
        """Examples that do not fit `block_size` are left out, counted and told."""
        prompts, chains = (tokenizer.encode([getattr(x, name) for x in items]) for name in ("prompt", "chain"))
        rows = [([*(p or [tokenizer.ans]), *[tokenizer.pred] * slots], [*c, tokenizer.eos])
                for p, c in zip(prompts, chains, strict=True)]  # fmt: skip
        fits = [len(p) + len(c) <= block_size for p, c in rows]
        if not all(fits):
            longest = max(len(p) + len(c) for p, c in rows)
            print(f"{where}: left out {fits.count(False)} of {len(fits)} examples longer than --block-size "
                  f"{block_size} tokens (the longest needs {longest})")  # fmt: skip
        if not any(fits):
            raise UserError(f"{where}: no example fits --block-size {block_size}")
        self.items = [x for x, ok in zip(items, fits, strict=True) if ok]
        rows = [row for row, ok in zip(rows, fits, strict=True) if ok]
        self.tokenizer, self.slots = tokenizer, slots
        self.n, self.r = np.array([len(p) for p, _ in rows]), np.array([len(c) for _, c in rows])
        self.length = self.n + self.r
        self.start = np.concatenate([[0], np.cumsum(self.length)[:-1]])
        self.tokens = np.fromiter((i for p, c in rows for i in (*p, *c)), np.int64)

    def __len__(self):
        return len(self.n)

    def rows(self, index):
        """Token ids of examples `index`, an array each."""
        return (self.tokens[self.start[i] : self.start[i] + self.length[i]] for i in index)

    def totals(self, index):
        """What summed losses over these examples are divided by to be means."""
        return {"chain": float(self.r[index].sum()), "all": float((self.length[index] - 1 - self.slots).sum())}

    def batch(self, index, share=None):
        """Examples `index` (B,) -> Batch."""
        n, r, length = self.n[index], self.r[index], self.length[index]
        B, T, R = len(index), int(length.max()), int(r.max())
        tokens = np.full((B, T), self.tokenizer.pad)
        column = np.arange(T)
        for row, ids in zip(tokens, self.rows(index), strict=True):
            row[: len(ids)] = ids
        of_chain = (column >= n[:, None] - 1) & (column < length[:, None] - 1)
        thought = (column >= n[:, None] - 1 - self.slots) & (column < n[:, None] - 1)  # predicts a thought's place
        chain_at, all_at = np.flatnonzero(of_chain), np.flatnonzero((column < length[:, None] - 1) & ~thought)
        chain = np.full((B, R), -1)
        chain[np.arange(R) < r[:, None]] = tokens.ravel()[chain_at + 1]
        arrays = dict(tokens=tokens, start=n, length=length, chain_at=chain_at, chain_ids=tokens.ravel()[chain_at + 1],
                      all_at=all_at, all_ids=tokens.ravel()[all_at + 1], chain=chain,
                      slot_at=np.flatnonzero(chain >= 0))  # fmt: skip
        tensors = {k: torch.from_numpy(v) for k, v in arrays.items()}
        return Batch(**tensors, prompt=int(n.max()) - self.slots, share=share or self.totals(index))


class EncodedPassages(Encoded):
    """Passages as token ids in an Arrow file, memory-mapped: encoded as they stream in, never in memory whole.

    `datasets` keeps the file in its cache, where later phases, baselines, other processes and resumed runs find it.
    """

    def __init__(self, passages, tokenizer, block_size, where="data", slots=0):
        """Passages are cut off at `block_size`, counted and told."""
        from datasets import Dataset, Features, List, Value
        from datasets.exceptions import DatasetGenerationError

        ids = Value("uint16" if tokenizer.n_vocab <= 1 << 16 else "int32")
        try:
            stored = Dataset.from_generator(
                encoded,
                features=Features({"tokens": List(ids), "length": Value("int32"), "cut": Value("bool")}),
                gen_kwargs={"passages": passages, "tokenizer": tokenizer, "block_size": block_size, "slots": slots},
            ).with_format("numpy")
        except DatasetGenerationError as error:
            if isinstance(error.__cause__, UserError):
                raise error.__cause__ from None
            raise
        self.stored, self.tokenizer, self.slots = stored, tokenizer, slots
        self.length = stored["length"][:].astype(np.int64)
        self.n = np.full(len(stored), 1 + slots)
        self.r = self.length - self.n
        print(f"{where}: {len(stored):,} passages, {self.length.sum():,} tokens; {stored['cut'][:].sum():,} passages "
              f"cut off at --block-size {block_size}")  # fmt: skip

    def rows(self, index):
        return self.stored[index]["tokens"]


def encoded(passages, tokenizer, block_size, slots):
    """Passages -> for each a dict of its row's tokens, their number, and whether it was cut off."""
    items, begin = iter(passages), [tokenizer.ans, *[tokenizer.pred] * slots]
    room = block_size - len(begin) - 1
    while some := [x.chain for x in islice(items, 1000)]:
        for ids in tokenizer.encode(some):
            row = [*begin, *ids[:room], tokenizer.eos]
            yield {"tokens": row, "length": len(row), "cut": len(ids) > room}


def make_batches(data, config, rank=0, world=1, after=lambda batch: batch):
    """-> (steps per epoch, batches): `batches(epoch, k)` yields this process's micro-batches, each given to `after`."""
    order = lru_cache(maxsize=1)(lambda epoch: epoch_order(data.length, config.batch_size, config.seed, epoch))

    def batches(epoch, k):
        index, parts = order(epoch)[k], world * config.grad_accum
        share = data.totals(index)
        for i in range(config.grad_accum):
            yield after(data.batch(index[rank * config.grad_accum + i :: parts], share))

    return len(order(0)), batches


def ordered_batches(data, batch_size):
    """Every example once, like lengths together -> Batches whose summed losses are the means over the split."""
    order = np.argsort(data.length, kind="stable")
    for i in range(0, len(order), batch_size):
        yield data.batch(order[i : i + batch_size], data.totals(slice(None)))
