"""What can be had without the stack: the first lines of a text, and the language model prompted with all of it."""

import re

from tqdm import tqdm

from latent_stack.model import LatentStack

INSTRUCTIONS = {
    "paraphrase": "Say the following in other words.",
    "pairs": "Say the following in other words.",
    "qa": "Answer the question from the text, as briefly as you can.",
}
SUMMARIZE = "Summarize the following in one or two sentences."


def lead3(text: str) -> str:
    """The first three lines of a text, such as a dialogue's utterances; of a single line the first three sentences."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    parts = lines if len(lines) > 1 else re.split(r"(?<=[.!?])\s+", text)
    return " ".join(parts[:3])


def _fitting(model: LatentStack, texts: list[str]) -> list[str]:
    """The texts, the longest truncated so that instruction and answer have room; how many is printed."""
    tokenizer = model.backbones.lm_tokenizer
    room = model.backbones.window - model.config.max_new_tokens - 100  # for the instruction
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    n_long = sum(len(row) > room for row in ids)
    if n_long:
        print(f"full text: {n_long} of {len(texts)} texts truncated at {room} tokens, the language model's room")
    return [tokenizer.decode(row[:room]) if len(row) > room else text for row, text in zip(ids, texts, strict=True)]


def _prompts(model: LatentStack, texts: list[str]) -> list[str]:
    """Instruction and text, in the chat format of a language model that has one."""
    tokenizer = model.backbones.lm_tokenizer
    instruction = INSTRUCTIONS.get(model.config.dataset, SUMMARIZE)
    if not tokenizer.chat_template:
        return [f"{text}\n\n{instruction}\n" for text in texts]
    chats = [[{"role": "user", "content": f"{instruction}\n\n{text}"}] for text in texts]
    return [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]


def prompted(model: LatentStack, texts: list[str], batch_size: int = 16) -> list[str]:
    """N texts -> N texts: the language model itself, without LoRA, reads the whole text and an instruction."""
    backbones = model.backbones
    tokenizer = backbones.lm_tokenizer
    prompts = _prompts(model, _fitting(model, texts))
    order, found = sorted(range(len(prompts)), key=lambda i: len(prompts[i])), {}
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]

    saved = tokenizer.padding_side, tokenizer.pad_token_id
    tokenizer.padding_side, tokenizer.pad_token_id = "left", backbones.eos
    try:
        with backbones.generating_lm(lora=False) as lm:
            for index in tqdm(batches, desc="full text", unit="batch", disable=len(order) < 50):
                inputs = tokenizer(
                    [prompts[i] for i in index],
                    return_tensors="pt",
                    padding=True,
                    add_special_tokens=not tokenizer.chat_template,
                )
                inputs = {name: inputs[name].to(model.device) for name in ("input_ids", "attention_mask")}
                found |= dict(zip(index, backbones.generate(lm, model.config.max_new_tokens, **inputs), strict=True))
    finally:
        tokenizer.padding_side, tokenizer.pad_token_id = saved
    return [found[i] for i in range(len(prompts))]
