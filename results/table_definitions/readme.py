"""The tables of the root README."""

from dataclasses import replace

from config import PRESETS, Config
from results.table_definitions.benchmarks import BENCHMARKS
from results.tables import ROOT, get, load, number, plus_minus, table, with_ci
from train import report

READ = {  # in this order
    "config.py": "nanoJEPA's options, and the presets",
    "data.py": "questions, answers, the two views; a batch, drawn token by token",
    "model.py": "the mask, the objective, `NanoJEPA`",
    "train.py": "`python train.py`: data, model, fit, report",
    "common/transformer.py": "attention, blocks, rotary positions: what all systems share",
    "common/loop.py": "`fit`: the training step, log, validation, checkpoint, resume",
    "common/checkpoint.py": "a run's folder: files that are whole or not there, one writer",
}


def percent(value: float) -> str:
    return number(value, ".1%")


def rouge(file: str, kind: str) -> str:
    return number(get(file, f"{kind}.rougeL.mean"))


def verdicts() -> str:
    """What was asked, the answer, the control."""
    quick, numbers = (load(f"{run}/seeds.json") for run in ("quick", "quick-numbers"))
    gsm8k, words = "gsm8k-small/accuracy.json", "quick-numbers/accuracy.json"
    leak, collapsed = load("leak.json")["runs"], load("collapse.json")["runs"]["neither, no decoding"]
    one, many = "latent-quick/summaries.json", "latent-ideas/summaries.json"
    nl_rx = {
        model: get("llm-jepa.json", "runs")[f"synth, 2000, {model}"]["exact_match_decoded"]
        for model in ("language model", "lambda 1")
    }
    lines = [
        [
            "Does it solve human-written word problems?",
            f"{human_written('latent')}: **behind a language model** of the same size",
            f"language model: {human_written('language model')}; bag of words: {human_written('bag of words')}",
        ],
        [
            "Can a latent learned by cosine alone carry a program?",
            f"**Yes**, on generated problems: {plus_minus(quick['exact_match'], '.1%')}, any names and numbers",
            f"majority program {percent(get('quick/accuracy.json', 'majority_program_exact_match'))}",
        ],
        [
            "Can it carry the number itself, without a program?",
            f"**Yes**, to 98: {plus_minus(numbers['exact_match'], '.1%')} of problems with unseen operands",
            f"oracle constant {percent(get(words, 'constant_best_on_test'))}",
        ],
        [
            "Does it solve GSM8K from scratch?",
            f"**No**: {with_ci(gsm8k, 'exact_match_decoded', '.1%')}; programs in the latent "
            f"{with_ci('gsm8k-programs/accuracy.json', 'exact_match_decoded', '.1%')}",
            f"oracle constant {percent(get(gsm8k, 'constant_best_on_test'))}",
        ],
        [
            "Does a high cosine mean a correct answer?",
            f"**No**: without the mask {leak['words, none']['forward_cos_own']['mean']:.3f}, and "
            f"{percent(leak['words, none']['exact_match_decoded']['mean'])} of the answers correct",
            f"with it {leak['words, jepa']['forward_cos_own']['mean']:.3f}, and "
            f"{percent(leak['words, jepa']['exact_match_decoded']['mean'])}",
        ],
        [
            "Does LLM-JEPA's loss help a small language model?",
            f"**No**: {plus_minus(nl_rx['lambda 1'], '.1%')} on NL-RX-Synth, its latents collapsed",
            f"without it {plus_minus(nl_rx['language model'], '.1%')}",
        ],
        [
            "What keeps latents from collapsing?",
            "**Decoding each answer from its own latent**, and a stopped gradient",
            f"with neither: cosine {collapsed['cos_own']['mean']:.3f} to the own answer, "
            f"{collapsed['cos_other']['mean']:.3f} to another",
        ],
        reasoner_row(),
        [
            "[Latent stack](latent_stack/README.md): does one vector hold a dialogue?",
            f"**Its topic**: ROUGE-L {rouge(one, 'own')}; 128 hold its beginning: {rouge(many, 'own')}",
            f"the first three lines {rouge(one, 'lead3')}; of the 128's dialogues {rouge(many, 'lead3')}",
        ],
        [
            "Is the code fast?",
            f"**{get('train_speed_cpu.json', 'ours_over.llm_jepa.median'):.1f} times** LLM-JEPA's loop around "
            "transformers' GPT-2, 45M parameters, CPU",
            f"{get('train_speed_cpu.json', 'ours_over.language_model.median'):.2f} times a plain language model, "
            "same network",
        ],
    ]
    return table(["asked", "answer", "control"], lines)


def human_written(model: str) -> str:
    """Answers correct on the published benchmarks."""
    found = load("benchmarks.json")
    return ", ".join(
        f"{name} {percent(found[b][model]['exact_match_decoded']['mean'])}" for b, name in BENCHMARKS.items()
    )


def reasoner_row() -> list[str]:
    """Is a chain of latents better than tokens?"""
    raw, sharpened, tokens = (percent(x) for x in (holds(how="-sharpen-0"), holds(), holds("tokens fed back")))
    return [
        "[JEPA-Reasoner](reasoner/README.md): is a chain of latents better than tokens?",
        f"**Where a goal comes late**, trained on own latents: {late_goal('own', 'latents')} reach it. Else no: on "
        f"GSM8K {raw} of its equations hold, sharpened to nearly a token {sharpened}",
        f"tokens fed back: {late_goal('own-tokens', 'tokens')} at best; on GSM8K {tokens}",
    ]


def late_goal(run: str, fed_back: str) -> str:
    """Chains that reach a goal which arrives late, behind their first choice."""
    return percent(get("reasoner-clue/clue.json", f"runs.out/reasoner-clue-{run}.after.{fed_back}.right.share"))


def holds(which: str = "by the nearest embedding", how: str = "") -> float:
    """Fraction of the equations in GSM8K chains that are true."""
    runs = load(f"reasoner-gsm8k-hard/trajectory{how}.json")["runs"]
    return runs[f"out/reasoner-gsm8k-hard, {which}"]["arithmetic"]["mean"]


def quick_output() -> str:
    """The last lines of `train.py --preset quick`, as the script itself words them."""
    config = replace(Config(), **PRESETS["quick"].values)
    return f"```\n{report(load('quick/summary.json'), config, get('quick/accuracy.json', 'n'))}\n```"


def files() -> str:
    """What to read, with line counts."""

    def lines(name):
        return len((ROOT / name).read_text(encoding="utf-8").splitlines())

    rows = [[f"[`{name}`]({name})", str(lines(name)), about] for name, about in READ.items()]
    return table(["file", "lines", ""], rows)


TABLES = {
    "verdicts": verdicts,
    "quick-output": quick_output,
    "files": files,
}
