"""What the experiments measure, on models whose every score is known by hand."""

import random
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import matplotlib.pyplot as plt
import pytest
import torch
import torch.nn.functional as F
from helpers import call
from reasoner_tiny import TINY, perfect_reasoner, tiny_config, tiny_model, trained_run

from common.checkpoint import read_json
from common.options import UserError, parse
from reasoner import evaluate, train
from reasoner.baselines import Coupled
from reasoner.config import PRESETS, EvalConfig, ReasonerConfig
from reasoner.data import make_tokenizer
from reasoner.experiments import cfg, containment, dial, fewshot, talker, trajectory, tree
from reasoner.experiments.measures import chain_accuracy, exposure_gap, in_order
from reasoner.model import Reasoner, ReasonerTalker, Talker
from reasoner.tasks import Example, derivations, trees
from results import collect, reasoner_chain
from results import reasoner_ablations as ablations

# --------------------------------------------------------------------------------------------- measures


def test_answers_are_given_back_in_the_order_they_were_asked_for():
    """Prompts are sorted by length on the way."""
    examples = trees("test", 40, tiny_config())
    gold = {x.prompt: x.chain for x in examples}
    model = SimpleNamespace(config=tiny_config(), answer=lambda prompts, **noise: [gold[p] for p in prompts])
    accuracy, _, generated = chain_accuracy(model, examples, 8)
    assert accuracy == 1 and generated == [x.chain for x in examples] and len({len(x.prompt) for x in examples}) > 3
    gold[examples[7].prompt] = "0"
    assert chain_accuracy(model, examples, 8)[0] == 39 / 40


def test_the_exposure_gap_of_a_perfect_chain_is_what_the_true_inputs_lose_and_an_ended_chain_has_no_tokens():
    examples = trees("test", 16, tiny_config())
    reasoner, latents = perfect_reasoner(examples)
    at = {x.prompt: i for i, x in enumerate(examples)}
    t = reasoner.tokenizer

    def chain(x, length, R, *how):
        """The perfect chain of the prompt that these embeddings spell."""
        ids = [reasoner.nearest(row[:n]).tolist() for row, n in zip(x, length.tolist(), strict=True)]
        rows = [latents[at[t.decode(row)]] for row in ids]
        return torch.stack([F.pad(row, (0, 0, 0, R - len(row))) for row in rows])

    reasoner.chain = chain
    found = exposure_gap(reasoner, examples, 5)
    assert found["free_running"] == found["free_running_in_order"] == 1.0 > found["another_in_order"]
    reasoner.chain = lambda x, length, R, *how: torch.zeros(len(x), R, 32)
    found = exposure_gap(reasoner, examples, 5)
    assert found["free_running"] == found["free_running_in_order"] == 0.0


def test_a_token_too_many_moves_all_places_behind_it_but_not_their_order():
    assert in_order([9, 1, 2, 3], [1, 2, 3]) == 3 and in_order([3, 2, 1], [1, 2, 3]) == 1
    assert in_order([1, 9, 3], [1, 2, 3]) == 2 and in_order([], [1]) == in_order([1], []) == 0


# ------------------------------------------------------------------------------------------------- tree


def test_a_mixture_is_taken_apart_again():
    torch.manual_seed(0)
    a, b = F.normalize(torch.randn(2, 5, 32), dim=-1)
    alpha, beta, residual = tree.mixture(0.7 * a + 0.2 * b, a, b)
    assert torch.allclose(alpha, torch.full((5,), 0.7), atol=1e-4) and residual.max() < 1e-4
    assert torch.allclose(beta, torch.full((5,), 0.2), atol=1e-4)


def test_latents_are_taken_apart_where_the_chain_is_correct():
    """Small trees have no node beside route and siblings: they are counted, not chosen from."""
    examples = trees("test", 40, tiny_config())
    reasoner, latents = perfect_reasoner(examples)
    found = tree.mixed_latents(reasoner, examples, latents)
    assert found["step_accuracy"] == 1.0 and found["without_other_node"] > 0
    assert found["cases"] + found["without_other_node"] == sum(len(x.chain.split()) - 1 for x in examples)
    assert found["sibling"]["alpha"] == pytest.approx(1, abs=1e-4) and found["sibling"]["residual"] < 1e-3
    assert abs(found["beta_difference"]["mean"]) < 1e-4 and found["sibling"]["mixed"] == 0

    mixed, embedding = [r.clone() for r in latents], tree.unit_embeddings(reasoner)
    for example, r in zip(examples, mixed, strict=True):
        for t, word in enumerate(example.sibling[1:], 1):
            r[t] += 0.3 * embedding[reasoner.tokenizer.id_of[word]]
    found = tree.mixed_latents(reasoner, examples, mixed)
    assert found["beta_difference"]["mean"] > 0.2 and found["sibling"]["mixed"] == 1 > found[tree.CONTROL]["mixed"]
    assert tree.mixed_latents(reasoner, examples, [r.flip(0) for r in latents]) is None


@pytest.fixture
def drawn(monkeypatch):
    """What an experiment draws, kept open instead of written: a list of (figure, axes)."""
    kept = []

    @contextmanager
    def figure(path, rows=1, columns=1, size=(7, 4), **options):
        kept.append(plt.subplots(rows, columns, figsize=size, **options))
        yield kept[-1]

    for module in (tree, cfg):
        monkeypatch.setattr(module, "figure", figure)
    yield kept
    plt.close("all")


def test_the_drawn_chain_of_perfect_latents_goes_through_the_nodes_of_its_route(drawn):
    for example in trees("test", 6, tiny_config()):
        reasoner, latents = perfect_reasoner([example])
        tree.draw_chain(reasoner, example, latents[0], "chain.png")
        _, axes = drawn[-1]
        dots = {c.get_label(): c.get_offsets() for c in axes.collections}
        steps = axes.lines[0].get_xydata()
        assert steps == pytest.approx(dots["nodes of the route"], abs=1e-4)
        assert len(dots["siblings of the route"]) == len(steps) - 1


# -------------------------------------------------------------------------------------------------- cfg


def noise_models(examples):
    """One that is correct exactly where nothing is noisy, one that always gives the first example's answer."""
    gold = {x.prompt: x.chain for x in examples}

    def fragile(prompts, noise=0.0, generator=None):
        return ["" if noise else gold.get(p, "") for p in prompts]

    def deaf(prompts, noise=0.0, generator=None):
        return [examples[0].chain] * len(prompts)

    return {"fragile": SimpleNamespace(answer=fragile), "deaf": SimpleNamespace(answer=deaf)}


def test_noise_is_scored_by_position_and_paired(tmp_path):
    examples = derivations("test", 60, tiny_config(dataset="cfg", levels=3))
    result = cfg.measure(noise_models(examples), examples, EvalConfig(run=str(tmp_path)))
    constant = sum(cfg.token_accuracy(x.chain, examples[0].chain) for x in examples) / 60
    for kind in cfg.KINDS:
        fragile, deaf = (result[name][kind] for name in ("fragile", "deaf"))
        assert fragile[0]["token_accuracy"]["mean"] == fragile[0]["exact"] == 1 and fragile[-1]["exact"] < 0.2
        for a, b in zip(fragile, deaf, strict=True):
            assert a["token_accuracy"]["mean"] == pytest.approx(a["exact"]) == a["normalised"]["mean"]
            assert b["exact"] == 1 / 60 and b["normalised"]["mean"] == 1
            assert b["less_the_first_run"]["mean"] == pytest.approx(constant - a["exact"])
    assert (tmp_path / "noise.png").is_file()


def test_no_curve_of_the_noise_figure_hides_the_first_runs(drawn, tmp_path):
    """Curves that coincide once hid the system's own, which was drawn first."""
    examples = derivations("test", 12, tiny_config(dataset="cfg", levels=3))
    cfg.measure(noise_models(examples), examples, EvalConfig(run=str(tmp_path)))
    for axes in drawn[-1][1].flat:
        lines = {line.get_label(): line for line in axes.lines}
        first, other = lines["fragile"], lines["deaf"]
        assert first.get_zorder() > other.get_zorder() and first.get_linewidth() < other.get_linewidth()
        assert first.get_marker() != other.get_marker() and first.get_color() != other.get_color()
        assert axes.get_legend() is None  # it stands below, where no curve is


# ------------------------------------------------------------------------------------------ containment


@pytest.mark.parametrize("sharpen", [0.0, 0.1])
def test_no_token_can_touch_the_chain_while_where_tokens_are_read_they_do(sharpen):
    """Chain tokens stand in the row, behind the prompt. A cache that let them through would show here."""
    reasoner = tiny_model(Reasoner, trained="sst", sharpen=sharpen)
    pair = ReasonerTalker(reasoner, tiny_model(Talker, seed=1, trained="talker"))
    examples = trees("test", 16, tiny_config())
    assert len({len(x.prompt) for x in examples}) > 1
    kinds = () if sharpen else ("coupled", "coupled-talker", "coconut")
    models = {"pair": pair} | {kind: tiny_model(Coupled, model=kind, thoughts=2) for kind in kinds}
    found = containment.measure(models, examples, EvalConfig())
    assert found["pair"]["gradient"] == 0.0 and found["pair"]["largest_change"] == 0.0
    assert found["pair"]["teacher_forced"] > 1e-3
    assert all(found[kind]["gradient"] > 1e-3 for kind in kinds)
    later = sum(range(1, 1 + 8))  # at most
    assert all(0 < row["later_tokens"] <= later * len(examples) for row in found.values())


def test_a_question_without_a_chain_is_not_intervened_in():
    examples, model = trees("test", 4, tiny_config()), tiny_model(Coupled, model="coupled")
    found = [
        containment.measure({"run": model}, x, EvalConfig()) for x in (examples, [*examples, Example("1 2 :", "")])
    ]
    assert found[0]["run"]["examples"] == found[1]["run"]["examples"] == 4


@pytest.mark.parametrize("heals,kept", [(True, 1.0), (False, 0.0)])
def test_a_wrong_token_is_counted_in_what_comes_after_it(heals, kept):
    """A model that knows every chain by heart and after a wrong token goes on correctly, or wrongly for good."""
    examples, t = trees("test", 12, tiny_config()), make_tokenizer(tiny_config(), ())
    gold = {x.prompt: t.encode([x.chain])[0] for x in examples}

    def generate(prompts, intervene=None):
        chains = [list(gold[p]) for p in prompts]
        for step in range(max(map(len, chains)) if intervene else 0):
            now = torch.tensor([c[step] if step < len(c) else t.eos for c in chains])
            for chain, before, after in zip(chains, now.tolist(), intervene(step, now).tolist(), strict=True):
                if before != after and step < len(chain):
                    chain[step:] = [after, *(chain[step + 1 :] if heals else [t.pad] * 9)]
        return chains

    model = SimpleNamespace(tokenizer=t, generate=generate)
    accuracy, undisturbed, n = containment.error_spread(model, examples, random.Random(0))
    assert undisturbed == [1.0] * 12 and accuracy == [kept] * 12
    assert n == sum(len(g) * (len(g) + 1) // 2 for g in gold.values())


# ----------------------------------------------------------------------------------------------- talker


def test_what_a_talker_is_fed_decides_what_is_counted():
    """A Talker that reads each latent by the nearest embedding: it gives another's route, and continues nothing."""
    examples = sorted(trees("test", 12, tiny_config(leaves=2)), key=lambda x: len(x.prompt))  # the order of batches
    reasoner, latents = perfect_reasoner(examples)
    at = {x.prompt: i for i, x in enumerate(examples)}
    reasoner.rollout = lambda prompts: torch.stack([latents[at[p]] for p in prompts])
    t = reasoner.tokenizer

    def speak(latents):
        return [t.text([i for i in row if i < t.n_text]) for row in reasoner.nearest(latents).tolist()]

    model = ReasonerTalker(reasoner, SimpleNamespace(config=reasoner.config, speak=speak))
    found = talker.measure({"pair": model}, examples, EvalConfig())["pair"]
    assert found["own"]["share"] == found["nearest"]["share"] == found["other_says_other"]["share"] == 1
    assert found["own_valid"]["share"] == 1 and found["gauss_right"]["share"] < 0.2
    pairs = list(zip(examples, examples[1:] + examples[:1], strict=True))
    assert found["other_says_own"]["share"] == sum(a.chain == b.chain for a, b in pairs) / 12
    assert found["first"]["share"] == sum(a.chain.split()[1] == b.chain.split()[1] for a, b in pairs) / 12


# ------------------------------------------------------------------------------------ trajectory, few-shot


def test_equations_survive_a_tokenizer_that_takes_their_spaces_away():
    parse_equations, chain = trajectory.parse_equations, "90-40=50, 100-50=50, 50+1000=1050 #### 1050"
    t = make_tokenizer(tiny_config(dataset="gsm8k", tokenizer="bpe:400"), [Example("q", chain)] * 20)
    assert parse_equations(t.decode(t.encode([chain])[0])) == parse_equations(chain)
    assert parse_equations(chain.replace(", ", ",")) == [("90-40", 50), ("100-50", 50), ("50+1000", 1050)]
    assert parse_equations("2*3=6,6+1=7, 10+24 = 34.5 #### 34.5") == [("2*3", 6), ("6+1", 7), ("10+24", 34.5)]


def test_a_trajectory_is_taken_apart_step_by_step():
    """Two problems: in one the second step is wrong and carried on, the other is correct; each score by hand."""
    examples = [Example("q", "2+3=5, 5*2=10, 10-1=9 #### 9"), Example("p", "4*6=24, 24/3=8 #### 8")]
    generated = {"q": "2+3=5, 5*2=11, 11-1=10 #### 10", "p": "4*6=24, 24/3=8 #### 8"}
    model = SimpleNamespace(
        config=tiny_config(dataset="gsm8k", tokenizer="bpe:340"),
        answer=lambda prompts, **noise: [generated[p] for p in prompts],
    )
    row = trajectory.measure({"run": model}, examples, EvalConfig())["run"]
    assert row["steps"] == row["steps_wanted"] == 2.5 and row["exact_match"] == 0.5
    assert row["results_found"]["mean"] == pytest.approx((2 / 3 + 1) / 2)  # 5 and, by accident, 10
    assert row["another_problems"]["mean"] == 0
    assert row["right_from_the_start"]["mean"] == pytest.approx((1 / 3 + 1) / 2)
    assert row["arithmetic"]["mean"] == 4 / 5 and row["follows"]["mean"] == 1
    assert row["after_a_right_step"] | {"ci95": 0} == {"mean": 1 / 2, "ci95": 0, "n": 2}
    assert row["after_a_wrong_step"] | {"ci95": 0} == {"mean": 0, "ci95": 0, "n": 1}
    with pytest.raises(UserError, match="two test problems or more, and equations"):
        trajectory.measure({"run": model}, [Example("q", "so 4 #### 4"), Example("p", "so 5 #### 5")], EvalConfig())


def test_every_question_is_asked_behind_examples_of_its_own(monkeypatch):
    shown = [Example(f"How many is {i}?", f"{i} #### {i}") for i in range(50)]
    examples = [Example(f"What is {i}?", f"{i} #### {i}") for i in range(6)]
    asked = {}

    def answer(prompts, **noise):
        asked.setdefault(prompts[0].count("####"), []).extend(prompts)
        numbers = [p.rpartition("is ")[2].rstrip("?") for p in prompts]
        return [f"0 #### {number}\n\nWhat? #### 7" for number in numbers]  # it goes on by itself

    monkeypatch.setattr(fewshot, "load_examples", lambda split, config: shown)
    config = tiny_config(dataset="gsm8k", tokenizer="bpe:340")
    model = SimpleNamespace(config=config, tokenizer=make_tokenizer(config, shown), answer=answer)
    row = fewshot.measure({"run": model}, examples, EvalConfig())["run"]
    assert [row[str(n)]["exact_match"] for n in fewshot.SHOTS] == [1, 1, 1, 1]
    assert [row[str(n)]["longer_than_any_row"] for n in (0, 1)] == [0, 1] and row["8"]["less_none"]["mean"] == 0
    for n in fewshot.SHOTS:
        assert {p.rpartition("\n\n")[2] for p in asked[n]} == {x.prompt for x in examples}
        drawn = [p.split("\n\n")[:-1] for p in asked[n]]
        assert all(len(set(d)) == n and set(d) <= {x.prompt + x.chain for x in shown} for d in drawn)
        assert n == 0 or len({tuple(d) for d in drawn}) > 1


# ----------------------------------------------------------------------------------------- the commands


@pytest.mark.parametrize("what", ["tree", "containment", "talker", "dial"])
def test_every_experiment_on_trees_writes_its_json(what):
    run = trained_run().run
    call(evaluate, "--run", run, "--what", what, "--device", "cpu")
    found = read_json(run / f"{what}.json")
    assert found["examples"] == 12 and str(run) in found["runs"]


@pytest.fixture(scope="module")
def coupled_13(tmp_path_factory):
    """A baseline trained on trees of other labels."""
    run = tmp_path_factory.mktemp("coupled")
    call(train, *TINY, "--model", "coupled", "--max-steps", "1", "--run", run, "--labels", "13")
    return run


@pytest.mark.parametrize(
    "words,message",
    [
        ("--what cfg --run RUN", "was trained on tree"),
        ("--what tree --run RUN --baseline OTHER", "labels = 13"),
        ("--what talker --run OTHER", "a baseline has no Talker"),
        ("--what dial --run RUN --sharpen 0.1", "leave --sharpen out"),
        ("--what fewshot --run RUN", "cannot read questions"),
        ("--what tree --run RUN --data-dir RUN", "--dataset tree is generated and reads no folder"),
    ],
)
def test_runs_that_cannot_be_measured_are_refused(words, message, coupled_13):
    words = words.replace("RUN", str(trained_run().run)).replace("OTHER", str(coupled_13)).split()
    done = call(evaluate, *words, check=False)
    assert done.returncode == 1 and message in done.stderr


def test_noise_on_strings_is_measured_with_baselines_and_controls(tmp_path):
    options = [*TINY, "--dataset", "cfg", "--levels", "3", "--epochs", "1"]
    call(train, *options, "--run", tmp_path / "r")
    call(train, *options, "--model", "coupled", "--run", tmp_path / "c")
    call(evaluate, "--run", tmp_path / "r", "--what", "cfg", "--baseline", tmp_path / "c", "--limit", "6")
    assert (tmp_path / "r" / "noise-first-6.png").is_file() and not (tmp_path / "r" / "cfg.json").exists()
    collect.copy_results(tmp_path / "r", tmp_path / "kept")
    assert read_json(tmp_path / "kept" / "cfg.json")["examples"] == 6 and (tmp_path / "kept" / "noise.png").is_file()
    found = read_json(tmp_path / "r" / "cfg-first-6.json")["runs"]
    controls = [f"{tmp_path / 'r'}, {name}" for name in ("by the nearest embedding", "tokens fed back")]
    assert list(found) == [str(tmp_path / "r"), str(tmp_path / "c"), *controls]
    assert all(list(rows) == ["drop", "replace", "insert", "latent"] for rows in found.values())


def test_experiments_on_real_questions_run(gsm8k, tmp_path):
    """The first questions of GSM8K are enough."""
    for name, n in (("train.jsonl", 60), ("test.jsonl", 4)):
        lines = (gsm8k / name).read_text(encoding="utf-8").splitlines()[:n]
        (tmp_path / name).write_text("\n".join(lines), encoding="utf-8")
    options = "--dataset gsm8k --reasoning equations --tokenizer bpe:512 --epochs 1 --max-steps 1 --max-chain 8"
    run = tmp_path / "run"
    call(train, *TINY, *options.split(), "--data-dir", tmp_path, "--run", run)
    for what in ("fewshot", "trajectory", "dial"):
        call(evaluate, "--run", run, "--what", what)
    assert list(read_json(run / "fewshot.json")["runs"][str(run)]) == ["0", "1", "5", "8"]
    row = read_json(run / "trajectory.json")["runs"][str(run)]
    assert row["n"] == 4 and row["steps_wanted"] > 1
    rows = read_json(run / "dial.json")["runs"][str(run)]
    assert [[x["noise"] for x in found] for found in rows.values()] == [[0.0, 0.6]] * len(dial.SETTINGS)
    assert all("equations_nearest" in x and "talker" in x for found in rows.values() for x in found)


def test_every_ablation_is_a_command_and_one_of_each_phase_is_trained_and_measured(tmp_path, monkeypatch):
    for options in (*ablations.SST.values(), *ablations.TALKER.values()):
        parse(ReasonerConfig, PRESETS, "", ["--preset", "quick", *options.split()])
    monkeypatch.setattr(ablations, "SST", {"L2 only": ablations.SST["L2 only"]})
    monkeypatch.setattr(ablations, "TALKER", {"dual": ablations.TALKER["dual, 1 + 1 blocks"]})
    monkeypatch.setattr(ablations, "train_once", lambda summary, module, words, threads: call(train, *words))
    monkeypatch.setattr(ablations, "ThreadPoolExecutor", lambda jobs: nullcontext(SimpleNamespace(map=map)))
    where = ["--run", trained_run().run, "--out", tmp_path / "runs", "--json", tmp_path / "a.json"]
    ablations.main([*map(str, where), "--options", " ".join(TINY)])
    found = read_json(tmp_path / "a.json")
    assert 0 <= found["sst"]["L2 only"]["route_accuracy"] <= 1 and found["talker"]["dual"]["n_params"] > 0


def test_every_variant_of_the_chain_is_a_command_and_two_are_trained_and_compared(tmp_path, monkeypatch):
    for options in reasoner_chain.VARIANTS.values():
        parse(ReasonerConfig, PRESETS, "", ["--preset", "gsm8k-small", "--sst-loss", "cosine", *options.split()])
    monkeypatch.setattr(reasoner_chain, "train_once", lambda summary, module, words, threads: call(train, *words))
    where = ["--preset", "quick", "--run", trained_run().run, "--out", tmp_path / "runs", "--json", tmp_path / "a.json"]
    variants, noise = ["as the preset", "noise, contrast 1"], ["--noise", "0", "0.6"]
    reasoner_chain.main(
        [*map(str, where), "--options", " ".join(TINY), *noise, "--fed-back", "all", "--variants", *variants]
    )
    found = read_json(tmp_path / "a.json")["quick"]["variants"]
    assert list(found) == variants and all(set(dial.SETTINGS) < set(row) for row in found.values())
    assert found["as the preset"]["latent"][0]["less_the_first"]["mean"] == 0
    assert (tmp_path / "dial-quick-noise-contrast-1.png").is_file()
    assert [row["noise"] for row in found["noise, contrast 1"]["tokens"]] == [0, 0.6]
