"""A frozen encoder's hidden states on disk, over epochs and runs: a text is encoded once.

One file a split, out/latent-cache/<hash>.npy: the hidden states of all its tokens, one text after the other, fp16 and
memory-mapped. The name is a hash of the encoder and of all token ids, so that another encoder, split or truncation is
another file.

Shapes: N texts, L tokens of a text, H encoder width.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from common.options import UserError
from latent_stack.backbones import Backbones, Row

CACHE = Path("out/latent-cache")
GIB = 2**30


class CachedHiddenStates:
    """`cached[i]` -> hidden states (L, H) of text i, fp32."""

    def __init__(self, flat: np.ndarray, offsets: np.ndarray):
        """Hidden states (sum of L, H) fp16; text i is rows offsets[i] … offsets[i + 1]."""
        self.flat, self.offsets = flat, offsets

    def __getitem__(self, i: int) -> Tensor:
        return torch.from_numpy(np.array(self.flat[self.offsets[i] : self.offsets[i + 1]])).float()


def cached_hidden_states(
    backbones: Backbones, rows: list[Row], encoder_hash: str, folder: str | Path = CACHE, label: str = "texts"
) -> CachedHiddenStates:
    """Rows of N texts -> their hidden states, from the cache or computed and written there.

    A UserError where the disk is too small or a value too large for fp16, and where a file is damaged.
    """
    key = hashlib.sha256(json.dumps([encoder_hash, [row.encoder for row in rows]]).encode()).hexdigest()[:24]
    path = Path(folder) / f"{key}.npy"
    offsets = np.concatenate([[0], np.cumsum([len(row.encoder) for row in rows])])
    shape = (int(offsets[-1]), backbones.encoder_dim)
    if not path.is_file():
        _write(path, shape, offsets, backbones, rows, label)
    return CachedHiddenStates(_read(path, shape), offsets)


def _check_room(folder: Path, shape: tuple[int, int]) -> None:
    """A memory-mapped file on a full disk kills the process instead of raising."""
    size, free = 2 * shape[0] * shape[1] / GIB, shutil.disk_usage(folder).free / GIB
    if size > 0.9 * free:
        raise UserError(
            f"the encoder's hidden states need {size:.1f} GiB in {folder}, where {free:.1f} GiB are free; "
            "--no-cache does without them, --n-train takes fewer pairs"
        )
    if size > 1:
        print(f"the encoder's hidden states take {size:.1f} GiB in {folder}; --no-cache does without them")


def _write(path: Path, shape: tuple[int, int], offsets: np.ndarray, backbones, rows: list[Row], label: str) -> None:
    """Encode all texts into a file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _check_room(path.parent, shape)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        flat = np.lib.format.open_memmap(temporary, "w+", np.float16, shape)
        _encode(flat, offsets, backbones, rows, label)
        flat.flush()
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"could not write {path} ({error.strerror}); --no-cache does without it") from None
    finally:
        temporary.unlink(missing_ok=True)


def _encode(
    flat: np.ndarray, offsets: np.ndarray, backbones, rows: list[Row], label: str, batch_size: int = 32
) -> None:
    """Fill `flat` (sum of L, H), texts of like length together."""
    order = np.argsort([len(row.encoder) for row in rows], kind="stable")
    for begin in tqdm(range(0, len(order), batch_size), desc=f"encoding {label}", unit="batch"):
        index = order[begin : begin + batch_size]
        inputs = backbones.pad([rows[i] for i in index])
        hidden = backbones.hidden_states(inputs).half().cpu()  # (B, L, H)
        if not hidden[inputs.attention_mask].isfinite().all():
            raise UserError("the encoder's hidden states are too large for the cache's half precision; give --no-cache")
        for states, i in zip(hidden, index, strict=True):
            flat[offsets[i] : offsets[i + 1]] = states[: len(rows[i].encoder)].numpy()


def _read(path: Path, shape: tuple[int, int], rows: int = 2**16) -> np.ndarray:
    """The memory-mapped file (sum of L, H), read through once, `rows` at a time; a UserError if it is damaged."""
    try:
        flat = np.load(path, mmap_mode="r")
        intact = flat.shape == shape and flat.dtype == np.float16
    except (OSError, ValueError, EOFError):
        intact = False
    if not intact or not all(np.isfinite(flat[i : i + rows]).all() for i in range(0, len(flat), rows)):
        raise UserError(f"{path} is damaged; delete it, and the encoder's hidden states are computed again")
    return flat
