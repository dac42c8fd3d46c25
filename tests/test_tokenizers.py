"""common/tokenizers.py: GPT-2's vocabulary and the trained BPE, whose numbers are digits at their places."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

from common.options import UserError
from common.tokenizers import GPT2Tokenizer, Tokenizer, load_tokenizer, train_tokenizer
from common.word_problems import word_problems


def texts_of(split: str, level: int, n: int = 3000) -> list[str]:
    return [text for e in word_problems(split, n, level) for text in (e.question, e.answer)]


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return train_tokenizer("bpe:512", texts_of("train", 1))


@pytest.fixture
def gpt2(gpt2_cache) -> Tokenizer:
    return train_tokenizer("gpt2", [])


@pytest.fixture(params=("bpe", "gpt2"))
def tokenizer(request) -> Tokenizer:
    return request.getfixturevalue(request.param)


# ------------------------------------------------------------------------------------- both vocabularies


def test_answers_survive_the_tokenizer(tokenizer):
    rng = np.random.default_rng(0)
    answers = [str(i) for i in range(-150, 2000)] + [str(x) for x in rng.integers(-(10**7), 10**7, 500)]
    answers += [f"{x:.2f}" for x in rng.normal(0, 1000, 200)] + [".5", "-.5", "0.50", "-0", "00", "12345678"]
    assert [tokenizer.decode(ids) for ids in tokenizer.encode(answers)] == answers
    assert [tokenizer.encode([a])[0] for a in answers[::50]] == tokenizer.encode(answers)[::50]


def test_different_answers_have_different_tokens(tokenizer):
    answers = [str(i) for i in range(5000)] + ["1.0", "10", "01", "-1", "0.1", ".1"]
    assert len({tuple(ids) for ids in tokenizer.encode(answers)}) == len(set(answers))


def test_no_text_encodes_to_a_special_token(tokenizer):
    special = {tokenizer.pred, tokenizer.ans, tokenizer.eos, tokenizer.pad}
    assert len(special) == 4 and max(special) < tokenizer.n_vocab and tokenizer.n_vocab % 64 == 0
    texts = ["[PRED] [ANS][EOS] [PAD]", "<|endoftext|>", "[UNK]", "</s>", "", " ", "\n", "\x00", "Ünïcödé 数 🍐"]
    for text, ids in zip(texts, tokenizer.encode(texts), strict=True):
        assert all(0 <= i < min(special) for i in ids), text
        assert len(ids) > 1 or len(text) < 2, f"{text} is one token"
        assert bool(ids) == bool(text)


def test_a_character_that_stands_for_a_digit_inside_is_text_and_no_digit(bpe):
    """U+E017 was read as the 3 of 300; half an emoji made the library raise."""
    digits = [chr(bpe.FIRST + i) for i in range(10 * bpe.PLACES)]
    words = train_tokenizer("words:1", ["pears \ud83c \ue000 47"])
    for text in (*digits, "\ud83c", "47\ue01747"):
        assert bpe.decode(bpe.encode([text])[0]) == re.sub("[\ud83c\ue000-\ue04f]", "\ufffd", text)
        assert words.unk in words.encode([text])[0]


def test_special_tokens_stay_visible_in_decoded_text(tokenizer):
    spelled = tokenizer.encode(["[PRED]"])[0]
    assert tokenizer.decode([*spelled, tokenizer.pred, tokenizer.n_vocab - 1]) == "[PRED][PRED][PAD]"


def test_an_answer_ends_at_the_first_eos(tokenizer):
    eos = tokenizer.eos
    assert tokenizer.until_eos([5, 6, eos, 7, eos]) == [5, 6] and tokenizer.until_eos([5, 6]) == [5, 6]
    assert tokenizer.until_eos([eos]) == []


# ---------------------------------------------------------------------------------------- the trained one


def test_a_digit_is_one_token_that_shows_its_place(bpe):
    ones, tens, hundreds = (bpe.encode(texts) for texts in (["7"], ["70", "71"], ["700", "754"]))
    assert [len(ids) for ids in (*ones, *tens, *hundreds)] == [1, 2, 2, 3, 3]
    assert tens[0][0] == tens[1][0] and hundreds[0][0] == hundreds[1][0], "one digit at one place, two tokens"
    assert len({ones[0][0], tens[0][0], hundreds[0][0]}) == 3, "one token for a digit at different places"
    alone = bpe.encode(["47"])[0]
    for text in ("Tom has 47 pears.", "47 pears", "47.", "(47)", "$47"):
        ids = bpe.encode([text])[0]
        assert any(ids[i : i + 2] == alone for i in range(len(ids))), text


def test_with_spaces_kept_any_text_comes_back_as_it_was():
    texts = ["has 12 pears", "x2 = 3 .  4", "[0-9]{3,} 007", " 1 é\n"]
    for keep_spaces, back in ((True, texts), (False, [re.sub(" +(?=[0-9])", "", text) for text in texts])):
        t = train_tokenizer("bpe:400", texts, keep_spaces)
        assert [t.decode(ids) for ids in t.encode(texts)] == back


def test_common_words_are_one_token(bpe):
    assert all(len(ids) == 1 for ids in bpe.encode([" How", " many", " has", " more"]))
    questions = [e.question for e in word_problems("test", 500)]
    assert np.mean([len(ids) for ids in bpe.encode(questions)]) < 40


def test_words_are_read_in_any_case_and_the_rare_ones_as_unknown():
    t = train_tokenizer("words:2", ["Has Ana 2 pears?", "has she pears ?", "ana: α+β", "α-β"])
    assert t.pieces(t.encode(["ANA has 12 plums ?"])[0]) == ["ana", "has", "1", "2", "[UNK]", "?"]
    assert t.encode(["Ana has"]) == t.encode(["ana  has"]) and t.unk == t.encode(["plums"])[0][0]
    assert [t.decode(ids) for ids in t.encode(["α-β", "β12", "ana has  pears"])] == ["α[UNK]β", "β12", "ana has pears"]


def test_a_saved_tokenizer_gives_the_same_ids(bpe, tmp_path):
    bpe.save(tmp_path)
    again = load_tokenizer("bpe:512", tmp_path)
    texts = [*texts_of("test", 4, 100), "-1,234.5", "Zoë 7"]
    assert again.encode(texts) == bpe.encode(texts)
    assert vars(again) | {"bpe": 0} == vars(bpe) | {"bpe": 0}, "special ids or the vocabulary's size differ"


def test_training_a_tokenizer_twice_gives_the_same_ids(bpe):
    """--seed and --resume promise equal runs, which needs equal ids."""
    texts = texts_of("test", 2, 200)
    assert train_tokenizer("bpe:512", texts_of("train", 1)).encode(texts) == bpe.encode(texts)


@pytest.mark.parametrize("size", (340, 400, 512, 1024))
def test_a_trained_tokenizer_has_at_most_the_entries_asked_for(size):
    assert train_tokenizer(f"bpe:{size}", texts_of("train", 1, 500)).pad < size


# ---------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize("name", ("gpt3", "bpe", "bpe:", "bpe:big", "bpe:-5", "bpe:100", "BPE:512", "", "word:512"))
def test_a_wrong_tokenizer_name_is_refused(name):
    with pytest.raises(UserError, match=f"--tokenizer {name}: must be gpt2, bpe:N"):
        train_tokenizer(name, [])


def test_a_run_without_its_tokenizer_or_with_a_damaged_one_is_refused(tmp_path):
    with pytest.raises(UserError, match="tokenizer.json: missing.*--tokenizer bpe:512"):
        load_tokenizer("bpe:512", tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="tokenizer.json: not a tokenizer"):
        load_tokenizer("bpe:512", tmp_path)


def test_without_a_network_the_ways_around_gpt2s_vocabulary_are_named(monkeypatch):
    def refuse(*_):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("common.tokenizers.tiktoken", SimpleNamespace(get_encoding=refuse))
    with pytest.raises(UserError, match="gpt2 .*ConnectionError.*--tokenizer bpe:4096.*TIKTOKEN_CACHE_DIR"):
        GPT2Tokenizer()
