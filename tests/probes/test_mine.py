import pytest
import torch

from lightning_sft.cli.mine_probes import main
from lightning_sft.errors import UserError
from lightning_sft.probes import encode_probes, load_probes
from lightning_sft.probes import mine as mining
from lightning_sft.probes.mine import mine_probes, read_texts
from lightning_sft.probes.wordnet import are_synonyms, find_wordnet
from tests.probes.tokenizers import word_tokenizer
from tests.toys import toy_model

WORDS = ["glad", "happy", "gladly", "house", "very"]


@pytest.fixture
def planted():
    """A model that after "I am" gives " happy" a logit of 8 and " glad" one of 7, and whose rows for both are close."""
    tokenizer = word_tokenizer(WORDS)
    model = toy_model(vocab_size=len(tokenizer) + 3, tie_word_embeddings=False)
    glad, happy = (tokenizer(f" {w}").input_ids[0] for w in ("glad", "happy"))
    ids = torch.tensor([tokenizer("I am glad").input_ids])
    with torch.no_grad():
        hidden = model.model(ids).last_hidden_state[0, -2]
        model.lm_head.weight.mul_(0.01)
        model.lm_head.weight[happy] = 8 * hidden / hidden.square().sum()
        model.lm_head.weight[glad] = 7 * hidden / hidden.square().sum()
        rows = model.get_input_embeddings().weight
        rows[happy] = rows[glad] + 0.3 * rows[happy]
    return model, tokenizer


@pytest.fixture
def wordnet(tmp_path):
    """A database of one synset, in WordNet's file format."""
    for part in ("noun", "verb", "adv"):
        (tmp_path / f"data.{part}").write_text("  1 licence\n")
    line = "00000042 00 a 03 glad 0 happy(p) 0 joyful 0 000 | feeling joy  \n00000077 00 s 01 angry 0 000 | cross  \n"
    (tmp_path / "data.adj").write_text("  1 licence\n" + line)
    return tmp_path


def test_a_planted_preference_is_found_with_its_figures(planted):
    model, tokenizer = planted
    modes = [m.training for m in model.modules()]
    found = mine_probes(model, tokenizer, ["I am glad.", "So they said that I am glad!"], min_overlap=0.3)
    mined = next(m for m in found if m.probe.context == "I am")
    assert (mined.probe.correct, mined.probe.competitor) == ("glad", "happy")
    assert mined.margin == pytest.approx(1.0, abs=1e-4)
    assert mined.p_competitor / mined.p_correct == pytest.approx(2.71828, rel=1e-3)
    assert mined.wordnet is None
    rows = model.get_input_embeddings().weight
    ids = encode_probes([mined.probe], tokenizer)
    cosine = torch.cosine_similarity(rows[ids.correct], rows[ids.competitor]).item()
    assert mined.overlap == pytest.approx(cosine, abs=1e-6)
    assert [m.training for m in model.modules()] == modes


def test_unlike_rows_unlikely_words_and_strangers_to_wordnet_are_left_out(planted, wordnet):
    model, tokenizer = planted
    texts = ["I am glad."]
    assert mine_probes(model, tokenizer, texts, min_overlap=0.3, wordnet=wordnet)[0].wordnet is True
    assert not mine_probes(model, tokenizer, texts, min_overlap=0.999)
    assert not mine_probes(model, tokenizer, texts, min_overlap=0.3, min_probability=0.9)
    (wordnet / "data.adj").write_text("00000042 00 a 01 glad 0 000 | x\n00000043 00 a 01 happy 0 000 | x\n")
    mining.are_synonyms.__globals__["_senses"].cache_clear()
    assert not mine_probes(model, tokenizer, texts, min_overlap=0.3, wordnet=wordnet)


def test_a_pair_counts_as_often_as_asked_and_the_worst_come_first(planted):
    model, tokenizer = planted
    texts = ["I am glad.", "I am glad.", "I am glad."]
    assert len(mine_probes(model, tokenizer, texts, min_overlap=0.3)) == 1
    found = mine_probes(model, tokenizer, texts, min_overlap=0.3, per_pair=2)
    assert len(found) == 2
    assert found[0].margin >= found[1].margin
    assert len(mine_probes(model, tokenizer, texts, min_overlap=0.3, per_pair=3, top=1)) == 1


def test_forms_of_one_word_are_no_synonyms():
    assert mining._same_stem("house", "Houses")
    assert mining._same_stem("begin", "beginning")
    assert mining._same_stem("study", "studies")
    assert not mining._same_stem("begin", "start")
    assert not mining._same_stem("house", "home")


def test_wordnet_files_are_read_with_base_forms(wordnet):
    assert are_synonyms("Glad", "happier", wordnet) is False  # "happier" would need a list of exceptions
    assert are_synonyms("glad", "happy", wordnet)
    assert are_synonyms("glad", "joyful", wordnet)
    assert not are_synonyms("glad", "angry", wordnet)
    assert not are_synonyms("glad", "glad", wordnet)
    with pytest.raises(UserError, match="no file data"):
        are_synonyms("a", "b", wordnet / "nowhere")


def test_wordnet_is_found_where_it_is_said_to_be(wordnet, monkeypatch):
    monkeypatch.setattr("lightning_sft.probes.wordnet.PLACES", ())
    assert find_wordnet() is None
    monkeypatch.setenv("WNSEARCHDIR", str(wordnet))
    assert find_wordnet() == wordnet


def test_texts_come_from_paragraphs_and_from_rows(tmp_path):
    (tmp_path / "a.txt").write_text("one\nline\n\n\ntwo\n")
    assert list(read_texts(tmp_path / "a.txt")) == ["one line", "two"]
    messages = '[{"role": "user", "content": "hi"}, {"role": "x", "content": "yo"}]'
    (tmp_path / "a.jsonl").write_text(f'{{"messages": {messages}}}\n\n')
    assert list(read_texts(tmp_path / "a.jsonl")) == ["hi\nyo"]
    for name, text, message in (("b.jsonl", "{", "line 1 is no JSON"), ("b.csv", "", "Allowed: .txt, .jsonl")):
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=message):
            list(read_texts(tmp_path / name))
    with pytest.raises(UserError, match="no data file"):
        list(read_texts(tmp_path / "c.txt"))


def test_the_verb_writes_a_file_that_probes_are_loaded_from(planted, tmp_path, capsys):
    model, tokenizer = planted
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text("I am glad.")
    where = ["--model", str(tmp_path / "model"), "--data", str(tmp_path / "text.txt"), "--wordnet", "none"]
    main([*where, "--output", str(tmp_path / "probes.yaml"), "--min_overlap", "0.3"])
    probes = load_probes(tmp_path / "probes.yaml")
    assert [(p.context, p.correct, p.competitor) for p in probes] == [("I am", "glad", "happy")]
    assert "glad (" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"lower --min.overlap"):
        main([*where, "--output", str(tmp_path / "none.yaml"), "--min_overlap", "1"])
