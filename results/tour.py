# ---
# jupyter:
#   jupytext:
#     cell_markers: '"""'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
"""
# A tour of nanoJEPA

A language model predicts the next *word*. A JEPA, a joint-embedding predictive architecture, predicts a *latent*: from
one view of a thing it predicts the vector that the network itself makes of another view. Here the first view is a
question in words, the second its answer. The model reads the question, predicts the latent of an answer that it cannot
see, and only then puts that latent into words.

This notebook trains such a model, looks at what it predicts, and then breaks it, to show how such a model can look
excellent and know nothing. You need to have seen PyTorch once. A laptop's CPU is enough: all of it takes six minutes of
one idle core. (The outputs below came from a busy one.)

Run the cells from top to bottom. The first one fetches the code if it is not here, in Colab say.
"""

# %%
import importlib.util
import os
import subprocess
import sys
import warnings
from pathlib import Path

ADDRESS = "ADDRESS-OF-THIS-REPOSITORY"  # a placeholder: put the address of your copy here before you run this elsewhere

warnings.filterwarnings("ignore", "IProgress|FigureCanvasAgg")  # no progress widgets, no window: none needed
sys.path.insert(0, "")  # import from the folder that this notebook works in
for folder in ("..", "nanojepa"):  # opened in results/, or fetched before
    if Path(folder, "model.py").exists():
        os.chdir(folder)
if importlib.util.find_spec("model") is None:
    subprocess.run(["git", "clone", ADDRESS, "nanojepa"], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "./nanojepa"], check=True)
    os.chdir("nanojepa")
    importlib.invalidate_caches()

# %%
import json
from dataclasses import replace

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.colors import ListedColormap
from sklearn.manifold import TSNE

import train
from common.plots import BLUE, GREEN, ORANGE, STYLE
from common.word_problems import word_problems
from data import TokenizedDataset
from model import NanoJEPA, jepa_mask

plt.rcParams.update(STYLE | {"figure.dpi": 80, "figure.constrained_layout.use": True})

# %% [markdown]
"""
## 1. What is predicted from what

The questions are generated word problems: sums, differences and small products. The test questions use pairs of numbers
that no training question uses, so remembering does not help. Here is one, and its two views:
"""

# %%
test_examples = word_problems("test", 1000, world="narrow")
example = test_examples[3]
print("view A, the question:", example.question)
print("view B, the answer:  ", example.answer)

# %% [markdown]
"""
One small Transformer reads both views, side by side in one sequence. Two positions matter:

```
question  [PRED]  |  [ANS]  answer  [EOS]
            ↓                         ↓
        ẑ = h[PRED]               z = h[EOS]        loss = 1 − cos(ẑ, z)
```

**z** is the latent of the answer, **ẑ** the prediction of it. The `|` is a wall: no attention crosses it, so that ẑ is
made of the question alone, and z of the answer alone.

What keeps the network from making all latents equal, which would also give cosine 1? A second, short pass has to
*decode* each answer from its own z. It never sees ẑ: what the question has to do with the answer is learned by the
cosine alone.

## 2. Train

This is `python train.py` with a preset, four layers, and a small world of twenty names and fifteen things. It prints
the first training example token by token: what each token must predict, and which tokens it sees. At the end it
measures 1,000 test questions. Watch two cosines: `cos` is to the latent of the question's own answer, `other` to
another answer's, the control. Without the second the first says nothing.
"""

# %%
N_TRAIN = int(os.environ.get("TOUR_N_TRAIN", 48_000))  # fewer questions train sooner, and answer worse
OPTIONS = f"--preset quick-numbers --world narrow --n-layer 4 --n-train {N_TRAIN} --overwrite".split()

train.main([*OPTIONS, "--run", "out/tour"])
# %matplotlib inline

# %% [markdown]
"""
The last lines say in words what was learned, each figure beside its control.

## 3. The mask of this example

The wall is an attention mask, computed by `jepa_mask` in `model.py`. A row is a token, the columns are what it may look
at. `[PRED]` sees the whole question, in blue, and nothing of the answer: that would be orange.
"""

# %%
model = NanoJEPA.from_pretrained("out/tour")
batch = TokenizedDataset([example], model.tokenizer, model.config).batch([0])
pieces = model.tokenizer.pieces(batch.tokens[0].tolist())
pred, ans = pieces.index("[PRED]"), pieces.index("[ANS]")


def draw_mask(mask: str) -> None:
    sees = jepa_mask(batch.segment, mask)[0, 0].int()  # (T, T), 1 where a token may attend
    sees[pred, :ans] *= 2  # [PRED] sees the question
    sees[pred, ans:] *= 3  # [PRED] sees the answer
    _, axes = plt.subplots(figsize=(5.5, 5.5))
    axes.imshow(sees, ListedColormap(["#f4f4f4", "#c4c4c4", BLUE, ORANGE]), vmin=0, vmax=3)
    axes.set_xticks(range(len(pieces)), pieces, rotation=90, fontsize=8)
    axes.set_yticks(range(len(pieces)), pieces, fontsize=8)
    axes.grid(visible=False)
    axes.axhline(ans - 0.5, color="black")
    axes.axvline(ans - 0.5, color="black")
    axes.set(title=f"mask {mask}: who attends to whom", xlabel="… attends to this one", ylabel="this token …")
    plt.show()


draw_mask("jepa")

# %% [markdown]
"""
Does the wall hold? Change the answer in view B, and see whether ẑ moves. It must not, by not even one bit:
"""

# %%
changed = replace(example, answer=example.answer[::-1])


@torch.no_grad()
def how_far_z_hat_moves(model: NanoJEPA) -> float:
    """The largest change of ẑ when another answer stands in view B."""
    rows = TokenizedDataset([example, changed], model.tokenizer, model.config).batch([0, 1])
    h = model.hidden_states(rows.tokens, rows.segment, rows.position_ids)  # (2, T, C)
    z_hat, moved = h.flatten(0, 1)[rows.pred_at]
    return (z_hat - moved).abs().max().item()


print(f"answer {example.answer} becomes {changed.answer}, and ẑ moves by {how_far_z_hat_moves(model):g}")

# %% [markdown]
"""
## 4. Look at ẑ

`predict` gives ẑ from a question, `encode` gives z from an answer. Which of the numbers from 0 to 99 is ẑ nearest to?
Beside the cosines stands their control, the mean over all of them.
"""

# %%
answers = [str(n) for n in range(100)]
z = F.normalize(model.encode(answers), dim=-1)  # (100, C)
z_hat = F.normalize(model.predict([example.question]), dim=-1)  # (1, C)
cosines = (z @ z_hat.T)[:, 0]  # (100,)

print(example.question, "\n")
for k in cosines.topk(5).indices:
    print(f"  answer {answers[k]:>2}   cosine {cosines[k]:.3f}")
print(f"  all {len(answers)}, mean  {cosines.mean():.3f}   (the control)\n")
print("decoded from ẑ:", model.decode(z_hat)[0], "  correct:", example.answer)

# %%
_, axes = plt.subplots(figsize=(7, 3))
axes.bar(range(100), cosines, color=[GREEN if answer == example.answer else BLUE for answer in answers])
axes.axhline(cosines.mean(), color=ORANGE, linestyle="--", label="mean (control)")
axes.set(title=f"ẑ points at one answer (green: the correct one, {example.answer})", xlabel="answer", ylabel="cosine")
axes.legend()
plt.show()

# %% [markdown]
"""
Ask your own. The model knows sums, differences and products with 2 and 3, numbers to 99, and a few names and things.
It knows nothing else, and answers all the same.
"""

# %%
question = "Rosa has 27 books. Sam gives Rosa 15 more books. How many books does Rosa have?"
print(question, model.answer([question])[0])

# %% [markdown]
"""
## 5. A map of the answers

The other high bars above are no accident. On the left, the latents of all answers of two digits, each written as its
number: t-SNE puts latents side by side that have a high cosine (its axes mean nothing). On the right, the cosine of
every answer to every other: blocks are numbers with the same tens, stripes are numbers with the same ones.
"""

# %%
two_digits = z[10:]
flat = TSNE(perplexity=10, metric="cosine", init="pca", random_state=0).fit_transform(two_digits.numpy())  # (90, 2)
similarity = two_digits @ two_digits.T  # (90, 90)

_, (left, right) = plt.subplots(1, 2, figsize=(11, 5.2))
left.scatter(*flat.T, c=[n // 10 for n in range(10, 100)], cmap="tab10", s=12)
for answer, place in zip(answers[10:], flat, strict=True):
    left.annotate(answer, place, fontsize=9)
left.set(title="Answer latents: a colour is a tens digit", xticks=[], yticks=[])
image = right.imshow(similarity, extent=(10, 100, 100, 10))
right.grid(visible=False)
right.set(title="Cosine between answer latents", xlabel="answer", ylabel="answer")
plt.colorbar(image, ax=right)
plt.show()

number = torch.arange(10, 100)
tens, ones = ((x[:, None] == x[None, :]) for x in (number // 10, number % 10))
for label, pairs in (("the same tens", tens & ~ones), ("the same ones", ones & ~tens), ("neither", ~tens & ~ones)):
    print(f"mean cosine of two answers with {label:<14} {similarity[pairs].mean():.2f}")

# %% [markdown]
"""
A latent holds its number as it is written, tens and ones apart: 39 and 40 are no neighbours. Nobody asked for that. It
is what can be decoded into digits and, by the cosine alone, predicted from a question.
"""

# %% [markdown]
"""
## 6. Break the mask

Now the same training without the wall: `--mask none` lets every token see every other one, so `[PRED]` can look at the
answer that it is asked to predict. The mistake is a real one: the first public implementation of this idea built its
mask, never used it, and published a cosine of 0.9475.
"""

# %%
train.main([*OPTIONS, "--mask", "none", "--run", "out/tour-leak"])
# %matplotlib inline
draw_mask("none")
leak = NanoJEPA.from_pretrained("out/tour-leak")
print(f"answer {example.answer} becomes {changed.answer}, and ẑ moves by {how_far_z_hat_moves(leak):g}")

# %% [markdown]
"""
In training the cosine is better than before. But at test time there is no answer to look at, and the answers are wrong:
"""

# %%
BARS = (
    ("val_cos_own", "cosine in training, to the own answer", BLUE),
    ("val_cos_other", "to another answer (control)", ORANGE),
    ("exact_match", "test questions answered correctly", GREEN),
)
found = [json.loads(Path(run, "summary.json").read_text(encoding="utf-8")) for run in ("out/tour", "out/tour-leak")]

_, axes = plt.subplots(figsize=(7, 3.5))
for i, (key, label, colour) in enumerate(BARS):
    at = [k + 0.25 * (i - 1) for k in range(2)]
    axes.bar_label(axes.bar(at, [x[key] for x in found], 0.23, color=colour, label=label), fmt="%.3f")
axes.set_xticks(range(2), ["mask jepa: the answer is hidden", "mask none: the answer is in sight"])
axes.set(title="A high cosine is no proof of a correct answer", ylim=(0, 1.5))
axes.legend(loc="upper right")
plt.show()

# %% [markdown]
"""
So: measure what the model does when the answer is not there, beside a control, and test the mask instead of trusting it
(`tests/test_mask.py` does, bit for bit).

## 7. What to try next

The first three go into `OPTIONS` above, then run the cells again; the others are for a terminal, behind `python
train.py`, whose `--help-all` lists all options.

| try | to see |
|---|---|
| `--jepa-weight 0` | no cosine loss: every answer can be decoded from its z, and ẑ points nowhere |
| `--target grad --decode-weight 0 --regulariser none` | collapse: all latents are one, and both cosines are 1 |
| `--world wide --n-layer 6 --n-train 80000` | a hundred names, and invented ones: the whole `quick-numbers` preset |
| `--preset quick` | the answer view holds a program, `α-β`, for any numbers |
| `--mask causal --jepa-weight 0 --decode-weight 0` | an ordinary language model of the same size |
| `--dataset pairs --data-dir DIR` | two texts of your own, [step by step](../CONTRIBUTING.md#train-on-two-texts) |

Then read `model.py`, the whole method in 300 lines, and the [README](../README.md) for what is not solved yet.
"""
