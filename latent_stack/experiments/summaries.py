"""ROUGE of what is generated from a text's idea, beside its controls.

    own        from the matched idea
    shuffled   from a mismatched one, another text's: what the model knows of the data but not of this text (control)
    zero       from a prefix of zeros, by the language model without its LoRA (control)
    words      from the text's first words themselves in place of the soft tokens that ideas make of them (control)
    lead3      the first three lines, of a single line the first three sentences
    full_text  by the language model itself, prompted with the text

Recall of names and other words, and for paraphrases BLEU and METEOR, stand beside ROUGE.
"""

import torch

from common.stats import bootstrap_mean, paired_difference, signed
from latent_stack.config import EvalConfig
from latent_stack.experiments.baselines import lead3, prompted
from latent_stack.experiments.measures import bleu_and_meteor, derangement, lower_case_words, recall_of, rouge_of
from latent_stack.model import LatentStack
from latent_stack.pairs import Pair

SYSTEMS = {
    "own": "matched idea",
    "shuffled": "mismatched idea (control)",
    "zero": "prefix of zeros (control)",
    "words": "its words themselves (control)",
    "lead3": "first three lines or sentences",
    "full_text": "full text, zero-shot",
}
ROUGE = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}
RECALL = {"recall_names": "recall of names", "recall_words": "recall of other words"}
PAIRED = {"rougeL": "ROUGE-L", **RECALL}
COMPARED = ("shuffled", "words", "lead3")  # with "own", over the same texts
PARAPHRASES = ("paraphrase", "pairs")  # data sets where BLEU and METEOR are meant


def generate_all(model: LatentStack, inputs: list[str], systems, seed: int = 0) -> dict[str, list[str]]:
    """N inputs -> {system: N texts} for "own", "shuffled" and those of `systems`."""
    texts = {"own": model.rewrite(inputs)}
    texts["shuffled"] = [texts["own"][i] for i in derangement(len(inputs), seed)]
    if "zero" in systems:
        zeros = torch.zeros(1, model.config.prefix_len, model.config.decoder_dim, device=model.device)
        texts["zero"] = model.generate_from_prefix(zeros, lora=False) * len(inputs)
    if "words" in systems:
        texts["words"] = model.generate_from_prefix(model.words_as_prefix(inputs))
    if "lead3" in systems:
        texts["lead3"] = [lead3(text) for text in inputs]
    if "full_text" in systems:
        texts["full_text"] = prompted(model, inputs)
    return texts


@torch.no_grad()
def summaries(model: LatentStack, pairs: list[Pair], systems=tuple(SYSTEMS), seed: int = 0) -> tuple[dict, list[dict]]:
    """-> ({system: {measure: {"mean", "ci95"}}, "own_less_shuffled": paired differences, …}, rows with the texts).

    `systems`: those of SYSTEMS that are measured, "own" and "shuffled" among them.
    """
    inputs, references = [p.input for p in pairs], [p.target for p in pairs]
    texts = generate_all(model, inputs, systems, seed)
    lower_case = lower_case_words(references + inputs)

    result, scores = {"n": len(pairs)}, {}
    for name in systems:
        recall = recall_of(texts[name], references, lower_case)
        scores[name] = rouge_of(texts[name], references)
        scores[name] |= {f"recall_{kind}": values for kind, values in recall.items() if len(values)}
        result[name] = {measure: bootstrap_mean(values, seed) for measure, values in scores[name].items()}
        if model.config.dataset in PARAPHRASES:
            result[name] |= bleu_and_meteor(texts[name], references, seed)
    for other in (name for name in COMPARED if name in scores):
        result[f"own_less_{other}"] = {
            measure: paired_difference(scores["own"][measure], scores[other][measure], seed)
            for measure in PAIRED
            if measure in scores["own"]
        }
    result["distinct"] = len(set(texts["own"]))  # 1: the same text whatever the idea
    rows = [
        {"input": p.input, "target": p.target, **{name: found[i] for name, found in texts.items()}}
        for i, p in enumerate(pairs)
    ]
    return result, rows


def _print_table(result: dict, headings: dict[str, str]) -> None:
    """{measure: heading} -> a table, a system a line, of the measures that were taken."""
    headings = {measure: heading for measure, heading in headings.items() if measure in result["own"]}
    if not headings:
        return
    print("\n" + f"{'':<32}" + "".join(f"{heading:<28}" for heading in headings.values()).rstrip())
    for name, label in ((name, label) for name, label in SYSTEMS.items() if name in result):
        cells = ""
        for measure in headings:
            mean, (low, high) = result[name][measure]["mean"], result[name][measure]["ci95"]
            cells += f"{f'{mean:.4f} ({low:.4f} to {high:.4f})':<28}"
        print(f"{label:<32}{cells.rstrip()}")


def _print(result: dict, rows: list[dict]) -> None:
    print(f"\n{result['n']} texts; means with 95% intervals")
    _print_table(result, ROUGE)
    _print_table(result, {"bleu": "BLEU", "meteor_no_synonyms": "METEOR without synonyms"})
    _print_table(result, RECALL)
    for other in COMPARED:
        if f"own_less_{other}" in result:
            print(f"\nmatched idea against {SYSTEMS[other]}, paired difference with 95% interval")
            for measure, difference in result[f"own_less_{other}"].items():
                print(f"  {PAIRED[measure]:<30}{signed(difference)}")
    print(f"{result['distinct']} distinct texts are generated from {result['n']} ideas")
    for row in rows[:3]:
        print()
        for label, key in (("reference", "target"), ("matched", "own"), ("mismatched", "shuffled")):
            print(f"  {label:<12}{row[key]}".rstrip())


def run(model: LatentStack, pairs: list[Pair], config: EvalConfig) -> dict:
    systems = [name for name in SYSTEMS if name != "words" or model.has_queries]
    result, rows = summaries(model, pairs, systems, config.seed)
    _print(result, rows)
    return result | {"examples": rows[:20]}
