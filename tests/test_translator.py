"""The translator as a program uses it: what it is given wrongly, and what it leaves alone."""

import json
import pickle
import random
import re
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch

import mtplug
from mtplug.cli import evaluate, translate
from mtplug.data.byte_tokenizer import Bytes
from mtplug.data.separated import Separated
from mtplug.data.tokenizers import SentencePiece, SentencePieceConfig
from mtplug.errors import UserError
from mtplug.search import BeamSearch, wishes
from mtplug.search.base import Hypothesis, Request
from mtplug.search.combine import ShallowFusion, same_vocabulary
from mtplug.search.wishes import Wishes
from mtplug.translator import Translation, Translator
from mtplug.translator.attention import source_words, target_words, word_alignment
from mtplug.translator.loading import Undrawn
from tests import tiny


@pytest.fixture(scope="module")
def translator(tiny_run):
    return mtplug.load(tiny_run)


@pytest.mark.parametrize(("settings", "said"), [
    ({"forbidden": "one"}, "forbidden: expected a list of texts, got 'one'"),
    ({"forbidden": [1]}, "forbidden: expected a list of texts"),
    ({"beam": "5"}, "beam: expected a whole number, got '5'"),
    ({"beam": 5.0}, "beam: expected a whole number"),
    ({"beam": None}, "beam: expected a whole number, got None"),
    ({"beam": True}, "beam: expected a whole number"),
    ({"length_penalty": float("nan")}, "length_penalty: expected a number, got nan"),
    ({"wishes": [Wishes()]}, "wishes: 1 for 2 texts"),
    ({"stop": "nope"}, "stop: 'nope' is none of full, first, bound"),
    ({"beem": 3}, "did you mean 'beam'"),
])  # fmt: skip
def test_settings_of_a_wrong_type_are_told(translator, settings, said):
    """Some gave wrong translations without a word: a text was taken for a list of its letters."""
    with pytest.raises(UserError, match=re.escape(said)):
        translator.nbest(["ka", "lo"], **settings)
    given = {
        "beam": np.int64(3),
        "length_penalty": np.float32(1),
        "forbidden": {"nine"},
        "stop": "first",
    }
    assert translator.translate(["ka"], **given) == translator.translate(
        ["ka"], beam=3, length_penalty=1, forbidden=["nine"], stop="first"
    )


class Fused(BeamSearch):
    """The model is fused with itself, given no source."""

    checked: ClassVar[list[str]] = []

    @staticmethod
    def check_files(config):
        Fused.checked.append(config.forbidden_file)
        BeamSearch.check_files(config)

    def searched_model(self, model, task):
        return super().searched_model(ShallowFusion(model, model, 0.5), task)


def test_given_translations_are_scored_by_the_model_that_a_strategy_searches(tiny_run):
    """They were scored without what a strategy of a plugin mixes in; only the language model was known."""
    plain, mixed = mtplug.load(tiny_run), mtplug.load(tiny_run)
    mixed.search = Fused(plain.search.config)
    texts, targets = ["ka lo", "mi"], ["one two", "three"]
    apart = zip(plain.score(texts, targets), plain.score(["", ""], targets), strict=True)
    for found, (own, alone) in zip(mixed.score(texts, targets), apart, strict=True):
        pairs = zip(own.token_scores, alone.token_scores, strict=True)
        assert found.token_scores == pytest.approx([a + 0.5 * b for a, b in pairs], abs=1e-5)
    ((best, *_),) = mixed.nbest(["ka lo"])
    (again,) = mixed.score(["ka lo"], [best.text])
    assert best.token_scores == pytest.approx(again.token_scores, abs=1e-5)


def test_what_a_strategy_makes_of_a_model_leaves_its_mode_alone(tiny_run):
    """A validation with a language model left the model that learns in evaluation mode."""
    translator, fused = mtplug.load(tiny_run), {"language_model": str(tiny_run)}
    written = translator.translate(["ka"], **fused)
    translator.model.train()
    assert translator.translate(["ka"], **fused) == written
    assert all(module.training for module in translator.model.modules())


def test_files_that_a_search_names_are_looked_for_once_before_it(tiny_run, tmp_path):
    """Only a training did so: a translator ended somewhere inside of a strategy."""
    translator = mtplug.load(tiny_run)
    translator.search = Fused(translator.search.config)
    Fused.checked.clear()
    translator.translate(["ka"])
    translator.translate(["lo"])
    translator.score(["ka"], ["one"])
    assert Fused.checked == [""]
    (tmp_path / "bad").write_text("nine\n")
    translator.translate(["lo"], forbidden_file=str(tmp_path / "bad"))
    with pytest.raises(UserError, match=r"search\.forbidden_file: nowhere: no such file"):
        translator.translate(["lo"], forbidden_file="nowhere")
    assert Fused.checked == ["", str(tmp_path / "bad"), "nowhere"]
    missing = mtplug.load(tiny_run, overrides=["search.name=rerank", "search.forward=[nowhere]"])
    for use in (missing.translate, lambda texts: missing.score(texts, texts)):
        with pytest.raises(UserError, match=r"search\.forward: nowhere is no run"):
            use(["ka"])


def test_a_strategy_that_takes_no_wishes_is_named(tiny_run):
    class Deaf(BeamSearch):
        def __call__(self, model, source_tokens, source_lengths):
            return super().__call__(model, source_tokens, source_lengths)

    translator = mtplug.load(tiny_run)
    translator.search = Deaf(translator.search.config)
    said = "search: Deaf takes no prefix, required or forbidden phrases; use search.name=beam"
    for how in ({"wishes": [Wishes(prefix="one")]}, {"forbidden": ["one"]}):
        with pytest.raises(UserError, match=said):
            translator.nbest(["ka"], **how)


def test_a_text_for_a_list_of_phrases_is_told():
    with pytest.raises(TypeError, match="required is a list of phrases, not 'one'"):
        Wishes(required="one")
    assert Wishes(required=["one", ["two", "2"]]).required == [["one"], ["two", "2"]]


def test_halves_of_characters_are_replaced(translator):
    broken, whole = translator.translate(["ka \ud800 lo", "ka � lo"])
    assert broken == whole
    assert translator.score(["ka"], ["ei\udfffght"])[0].score < 0


def test_loading_and_translating_leave_the_programs_random_numbers_alone(tiny_run):
    torch.manual_seed(3)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    made = mtplug.load(tiny_run)
    made.translate(["ka lo"])
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]


def test_what_a_program_has_set_for_its_own_tensors_does_not_reach_in(tiny_run, translator):
    texts = ["ka lo mi", "so", "vu we nu"]
    expected = [[(t.text, t.score) for t in row] for row in translator.nbest(texts, nbest=3)]

    def found(one):
        return [[(t.text, t.score) for t in row] for row in one.nbest(texts, nbest=3)]

    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert found(translator) == expected
        assert torch.is_autocast_enabled("cpu")
    with torch.device("meta"):
        assert found(mtplug.load(tiny_run, device="cpu")) == expected
        assert translator.score(["ka"], ["one"])[0].score < 0
    torch.set_default_dtype(torch.float64)
    try:
        made = mtplug.load(tiny_run)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert found(made) == expected


def test_a_translator_can_be_sent_to_another_process(tiny_run, translator):
    sent = pickle.loads(pickle.dumps(mtplug.load(tiny_run)))
    assert sent.translate(["ka lo mi"]) == translator.translate(["ka lo mi"])


@pytest.mark.parametrize("phrase", ["", "  "])
def test_phrases_without_words_are_told(translator, phrase):
    said = re.escape(f"{phrase!r} has no words; leave it out")
    for wish in ({"forbidden": [phrase]}, {"required": [phrase]}, {"required": [["one", phrase]]}):
        with pytest.raises(UserError, match=said):
            Wishes(**wish)
    with pytest.raises(UserError, match=f"search.forbidden: {said}"):
        translator.translate(["ka"], forbidden=["one", phrase])
    with pytest.raises(UserError, match="required: an entry has no form"):
        Wishes(required=[[]])
    for wrong in ({"prefix": 5}, {"forbidden": [5]}, {"required": [[None]]}):
        with pytest.raises(TypeError):
            Wishes(**wrong)
    with pytest.raises(TypeError, match="expected Wishes or None, got 'ten'"):
        translator.nbest(["ka"], wishes=["ten"])


@pytest.mark.parametrize("search", ["beam", "greedy"])
def test_a_prefix_that_ends_with_a_blank_begins_the_translation(tiny_run, search):
    translator = mtplug.load(tiny_run, overrides=[f"search={{name: {search}}}"])
    prefixes = ["", "ten ", "nine ten ", "ten", "three four five "]
    wishes = [Wishes(prefix=prefix) for prefix in prefixes]
    texts = ["ka lo", "mi nu pe", "so", "ti vu", "ra"]
    together = [row[0] for row in translator.nbest(texts, wishes=wishes)]
    for prefix, made in zip(prefixes, together, strict=True):
        assert made.text.startswith(prefix.strip()) and not made.unmet
    alone = [
        translator.nbest([text], wishes=[wish])[0][0].text
        for text, wish in zip(texts, wishes, strict=True)
    ]
    assert [made.text for made in together] == alone


def test_scored_sides_must_be_as_long(translator):
    with pytest.raises(UserError, match=r"^2 sources and 1 translations of them"):
        translator.score(["ka", "lo"], ["one"])
    (given,) = translator.score(iter(["ka"]), iter([" one\ud800"]))
    assert given.text == "one�"


def test_a_precision_that_there_is_not_is_told(tiny_run):
    with pytest.raises(UserError, match="precision: 'int8' is none of fp32, bf16, auto"):
        mtplug.load(tiny_run, precision="int8")


def test_one_run_beside_another_need_not_be_a_list(tiny_run, tmp_path):
    made = mtplug.load(tiny_run, ensemble=str(tiny_run), overrides=["data.max_length=999"])
    assert len(made.model.models) == 2 and made.max_length == 256  # of the other
    (tmp_path / "a:b").symlink_to(tiny_run)  # a folder's name, which no checkpoint follows
    assert len(mtplug.load(tiny_run, ensemble=tmp_path / "a:b").model.models) == 2


def test_runs_that_mean_other_languages_by_the_same_pieces_are_no_ensemble():
    one, other = Bytes(), Bytes()
    same_vocabulary(one, other, "run")
    other.prefixes = frozenset({5})
    with pytest.raises(UserError, match="run: other language codes"):
        same_vocabulary(one, other, "run")


def test_a_text_as_long_as_may_be_is_taken_whole(tiny_run):
    translator = mtplug.load(tiny_run, overrides=["data.on_long=error"])
    (ids,) = translator.encoded(["ka lo mi"])
    translator.max_length = len(ids)
    assert translator.translate(["ka lo mi"])[0] and translator.too_long == 0
    translator.max_length -= 1
    with pytest.raises(UserError, match=f"sentence 1 has {len(ids)} tokens"):
        translator.translate(["ka lo mi"])
    translator.on_long = "truncate"
    assert translator._pieces(["ka lo mi"]) == [[ids[:-1]]]


def test_of_terms_that_overlap_the_longest_wins(tmp_path):
    (tmp_path / "terms").write_text("lo\tten\nka\tone\nlo mi\ttwo | 2\n")
    terms = wishes.Terminology(str(tmp_path / "terms"))
    assert terms.match("Ka lo mi ka") == [["one"], ["two", "2"]]
    assert terms.match("lo mila") == [["ten"]]


@pytest.mark.parametrize(
    ("term", "source"),
    [("haus", "Das HAUS brennt"), ("Haus", "hausbau und haus"), ("σας", "ΣΑΣ"), ("ihracat", "İHRACAT arttı"),
     ("İhracat", "ihracat"), ("ısı", "ISI")],
)  # fmt: skip
def test_terms_are_found_whatever_their_case(tmp_path, term, source):
    """Turkish ones with an i were found in one case only: what looks for terms quickly told İ, ı and I apart."""
    (tmp_path / "terms").write_text(f"{term}\tx\n", encoding="utf-8")
    assert wishes.Terminology(str(tmp_path / "terms")).match(source) == [["x"]]


def test_a_word_spelled_anew_is_forbidden_in_all_spellings_so_far():
    spellings = [[4], [5, 6], [7]]  # the last is of another word

    def search(model, strategy, pieces, requests, progress):
        ids = next(ids for ids in spellings if ids not in requests[0][0].forbidden)
        return [[[Hypothesis(ids, 0.0)]]]

    speller = SimpleNamespace(spelled=lambda ids, words: [] if ids == [7] else [ids])
    stub = SimpleNamespace(_search=search, _speller=speller)
    found = [[[Hypothesis([4], 0.0)]]]
    asked = [Wishes(forbidden=["x"])]
    Translator._avoid_other_spellings(stub, None, None, [[]], asked, [[Request()]], found)
    assert found[0][0][0].tokens == [7]


def test_batches_leave_room_for_all_hypotheses(tiny_run):
    translator = mtplug.load(tiny_run)
    translator.batch_tokens = 64
    sizes = [b.source_tokens.numel() for b in translator.batches([([5, 6, 7], [])] * 9, 4)]
    assert sizes == [16, 16, 4]


def test_of_a_text_in_pieces_the_first_has_what_is_wished(tiny_run):
    translator = mtplug.load(tiny_run, overrides=["data.on_long=split", "data.max_length=4"])
    wish = Wishes(prefix="nine", required=["seven"])
    ((found,),) = translator.nbest([" ".join(["ka lo mi ka"] * 3)], wishes=[wish])
    texts = translator.task.target_tokenizer.decode(found.parts)
    assert len(texts) > 1 and not found.unmet
    assert [text.startswith("nine") and "seven" in text for text in texts] == [True] + [False] * (
        len(texts) - 1
    )


def test_of_a_text_in_pieces_those_have_a_term_whose_source_has_it(tiny_run, tmp_path):
    terms = tmp_path / "terms.tsv"
    terms.write_text("ti\tseven seven\npe so\tnine nine\n")
    translator = mtplug.load(
        tiny_run,
        overrides=["data.on_long=split", "data.max_length=4", f"search.terminology={terms}"],
    )
    # Pieces are `ka lo mi`, `ka lo ti`, `ka lo pe` and `so lo mi`; a term that is cut apart is of the first.
    ((found,),) = translator.nbest(["ka lo mi ka lo ti ka lo pe so lo mi"])
    texts = translator.task.target_tokenizer.decode(found.parts)
    assert ["seven seven" in text for text in texts] == [False, True, False, False]
    assert ["nine nine" in text for text in texts] == [True, False, False, False]
    # What a line itself requires is not known to be of a piece.
    wish = Wishes(required=["seven seven"])
    ((found,),) = translator.nbest(["ka lo mi ka lo ti ka lo pe so lo mi"], wishes=[wish])
    texts = translator.task.target_tokenizer.decode(found.parts)
    assert ["seven seven" in text for text in texts] == [True, True, False, False]


def test_of_a_text_in_pieces_there_are_as_many_translations_as_of_each_piece(translator):
    pieces = [
        [Hypothesis([5], -1.0), Hypothesis([6], -2.0)],
        [Hypothesis([7], -3.0, finished=False)],
    ]
    (whole,) = translator._readable(pieces, " ")
    assert (whole.parts, whole.score, whole.finished) == ([[5], [7]], -2.0, False)


def test_of_a_text_in_pieces_alternatives_are_of_the_first(tiny_run):
    """The second began every piece with its second token, so that what followed was wrong throughout."""
    translator = mtplug.load(
        tiny_run,
        overrides=["data.on_long=split", "data.max_length=4", "search.name=alternatives"],
    )
    text = "ka lo mi ka lo ti ka lo pe"
    (found,) = translator.nbest([text], wishes=[Wishes(prefix="two")])
    (alone,) = translator.nbest(["ka lo mi"], wishes=[Wishes(prefix="two")])
    assert len(found) == len(alone) == 5
    assert [t.parts[0] for t in found] == [t.parts[0] for t in alone]
    assert [t.score for t in found] == pytest.approx([t.score for t in alone])
    others = translator.translate(["ka lo ti", "ka lo pe"])
    decode = translator.task.target_tokenizer.decode
    assert [decode(t.parts[1:]) for t in found] == [others] * 5


def test_a_search_that_promises_no_phrases_takes_no_glossary(tiny_run, tmp_path, capsys):
    """It ended the command at the first line that had a term."""
    (tmp_path / "in").write_text("ka\n")
    line = [str(tiny_run), "--input", str(tmp_path / "in"), "search.name=diverse_beam"]
    assert translate.main([*line, "search.terminology=terms.tsv"]) == 2
    said = capsys.readouterr().err
    assert "terminology: diverse_beam cannot promise required phrases; use search.name=beam" in said


def test_a_glossary_is_read_again_only_when_it_has_changed(translator, tmp_path, monkeypatch):
    terms = tmp_path / "terms.tsv"
    terms.write_text("ka\tseven\n")
    reads = []
    real = wishes._lines
    monkeypatch.setattr(wishes, "_lines", lambda *given: reads.append(given) or real(*given))
    for _ in range(3):
        assert "seven" in translator.translate(["ka"], terminology=terms)[0].split()
    assert len(reads) == 1
    terms.write_text("ka\tnine\n# another\n")
    assert "nine" in translator.translate(["ka"], terminology=str(terms))[0].split()
    assert len(reads) == 2


def test_lines_of_json_that_are_no_text_or_number_cost_no_other(tiny_run, tmp_path, capsys):
    """Half of a character in what is handed through ended the command."""
    lines = [r'{"source": "ka", "id": "\ud800"}', r'{"source": "ka", "\udfff": 1}', '{"source": "ka", "x": NaN}',
             '{"source": "ka", "x": 1e400}', r'{"source": "ka", "adapter": "\ud800"}', '{"source": "ka"}']  # fmt: skip
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")
    line = [str(tiny_run), "--input", str(tmp_path / "in.jsonl"), "--input-format", "jsonl"]
    assert translate.main([*line, "--format", "jsonl"]) == 2
    found = [json.loads(one) for one in capsys.readouterr().out.splitlines()]
    assert [("error" in one) for one in found] == [False, False, True, True, True, False]
    assert found[0]["id"] == "\ud800" and found[1]["\udfff"] == 1
    assert "NaN is no finite number" in found[2]["error"] and "1e400" in found[3]["error"]
    assert found[0]["text"] == found[5]["text"]


def test_sources_that_were_cut_are_told_beside_the_score(tiny_run, tmp_path, capsys):
    (tmp_path / "t.xx").write_text("ka lo\n" + "ka " * 300 + "\n")
    (tmp_path / "t.en").write_text("nine\nnine\n")
    corpus = f"data.test={{source: {tmp_path}/t.xx, target: {tmp_path}/t.en}}"
    assert evaluate.main([str(tiny_run), corpus]) == 0
    assert "t: 1 of 2 sources have more than 256 tokens and were cut" in capsys.readouterr().err
    twice = "validation.metrics=[bleu, {name: bleu, lowercase: true}]"
    assert (
        evaluate.main([str(tiny_run), corpus, twice]) == 2
    )  # one of the scores was lost in --json
    assert "two of them are called bleu" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("on_long", "does"), [("truncate", "cuts"), ("split", "splits"), ("error", "refuses")]
)
def test_that_longer_sources_are_scored_whole_is_told(tiny_run, tmp_path, capsys, on_long, does):
    (tmp_path / "in").write_text("ka lo\n" + "ka " * 11 + "\n")
    (tmp_path / "given").write_text("nine\nnine\n")
    line = [str(tiny_run), "--input", str(tmp_path / "in"), "--score", str(tmp_path / "given")]
    assert translate.main([*line, "data.max_length=10", f"data.on_long={on_long}"]) == 0
    out, said = capsys.readouterr()
    told = f"1 line (2): longer than 10 tokens, which translation {does}, and scored whole"
    assert told in said
    whole = mtplug.load(tiny_run).score(["ka " * 11], ["nine"])
    assert float(out.splitlines()[1]) == pytest.approx(whole[0].score, abs=1e-5)
    assert not whole[0].notes


def test_options_that_could_do_nothing_are_refused(tiny_run, tmp_path, capsys):
    (tmp_path / "in").write_text("ka\n")
    line = [str(tiny_run), "--input", str(tmp_path / "in"), "--score", str(tmp_path / "in")]
    assert translate.main([*line, "--nbest", "3"]) == 2
    assert "--nbest: --score searches for none" in capsys.readouterr().err


@pytest.mark.parametrize(("settings", "said"), [
    (["architecture={name: transformer_lm, dim: 32}"], "transformer_lm ignores the source"),
    (["architecture={name: transformer_encoder, dim: 32}"], "transformer_encoder labels text"),
])  # fmt: skip
def test_an_architecture_of_another_task_is_refused_before_anything_is_written(
    tmp_path, capsys, settings, said
):
    from mtplug.cli.train import main

    tiny.write_corpus(tmp_path)
    text = (tmp_path / "run.yaml").read_text().split("\n")
    (tmp_path / "run.yaml").write_text(
        "\n".join(x for x in text if not x.startswith("architecture"))
    )
    assert main(tiny.arguments(tmp_path, "run", *settings)) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_characters_that_no_font_has_are_told(tmp_path):
    """matplotlib's font of last resort has a box for every character, and so was thought to have all."""
    plot = pytest.importorskip("mtplug.search.plot")
    pytest.importorskip("matplotlib")
    assert plot.fonts(frozenset("a\u0378"))[1] == ["\u0378"]  # which Unicode has not assigned


def test_blanks_that_belong_to_a_text_are_read_and_written(tmp_path):
    """U+00A0 before French marks and U+3000 in Japanese were lost on the way in and out, but not in training."""
    tiny.write_corpus(tmp_path)
    for file in [
        tmp_path / f"{name}.{side}" for name in ("train", "valid") for side in ("xx", "en")
    ]:
        lines = file.read_text(encoding="utf-8").split("\n")
        lines = [s.replace(" ", "\u00a0", 1).replace(" ", "\u3000", 1) for s in lines]
        file.write_text("\n".join(lines), encoding="utf-8")
    settings = ("tokenizer.model_type=char", "tokenizer.vocab_size=40", "data.test=null")
    run = tiny.train(
        tmp_path, "run", "training.max_updates=2", "validation.every_updates=2", *settings
    )
    translator = mtplug.load(run, checkpoint="last")
    sources, targets = (
        (tmp_path / f"valid.{side}").read_text(encoding="utf-8").split("\n")[:-1]
        for side in ("xx", "en")
    )
    scored = translator.score(sources, targets)
    told = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    loss = next(event["scores"]["loss"] for event in told if event["event"] == "validation")
    tokens = [score for s in scored for score in s.token_scores]
    assert -sum(tokens) / len(tokens) == pytest.approx(loss, rel=1e-5)
    [found] = translator.nbest(["a"], wishes=[Wishes(prefix="one\u00a0two\u3000six")])
    assert found[0].text.startswith("one\u00a0two\u3000six") and not found[0].unmet


def test_words_that_tokens_are_part_of(tmp_path):
    """Pieces of SentencePiece, of which a lone blank and a language tag write nothing."""
    from mtplug.translator import words_of

    class Pieces:
        known = ("", "<2de>", "\u2581", "\u2581un", "bes", "iegt", "\u2581war", ".")

        def decode(self, rows):
            written = ("".join(self.known[i] for i in row if i != 1) for row in rows)
            return [text.replace("\u2581", " ").strip() for text in written]

    assert words_of(Pieces(), [1, 3, 4, 5, 2, 6, 7]) == [-1, 0, 0, 0, -1, 1, 1]
    assert words_of(Pieces(), []) == []
    seen = Translation("", 0, [], [], True, attention=np.eye(7), parts=[[1, 3, 4, 5, 2, 6, 7]])
    written = target_words(Pieces(), seen.parts, True, False)
    aligned = word_alignment(seen, [0, 0, -1, 1, 2, 3, 3], written)
    assert aligned == [(0, 0), (1, 0), (3, 1)]


def test_words_of_a_text_in_pieces_are_those_of_the_whole():
    """The last word of a piece and the first of the next were one, and what each source piece begins with, words again."""
    cut = Bytes(["<bt>"])
    (bt,), first, second = cut.encode(["<bt>", "a b", "c d"])
    assert target_words(cut, [first, second], True, False) == [0, -1, 1, 2, -1, 3]
    assert target_words(cut, [first, second], False, False) == [0, -1, 1, 1, -1, 2]
    apart = Separated(cut)
    stray = [*first, apart.separator, *second]  # which is not written where there is one sentence
    assert target_words(apart, [stray, first], True, False) == [0, -1, 1, -1, 2, -1, 3, 4, -1, 5]
    task = SimpleNamespace(source_tokenizer=cut, heads=((bt,),), bare=str)
    pieces = [[bt, *cut.encode([text])[0]] for text in (" a b", " c d")]
    assert source_words(task, "<bt> a b c d", pieces) == [0, -1, 1, -1, 2, 0, -1, 3, -1, 4]
    assert source_words(task, "", []) == []


def test_words_of_a_source_are_counted_where_it_has_unknown_characters():
    """Each stood for a word of its own, and words behind it had a higher number."""
    cut = SentencePiece.train(SentencePieceConfig(vocab_size=14), ["a dog runs"] * 9, "source")
    task = SimpleNamespace(source_tokenizer=cut, heads=(), bare=str)
    text = "a d日og 日本 runs 犬 猫 runs a日 dog"
    (ids,) = cut.encode([text])
    words = source_words(task, text, [ids])
    letters = [(one.strip("▁"), n) for one, n in zip(cut.tokens(ids), words, strict=True)]
    read = ["".join(a for a, m in letters if m == n and a != "<unk>") for n in range(9)]
    assert [word for word in read if word] == ["a", "dog", "runs", "runs", "a", "dog"]
    assert (read[3], read[6], read[8]) == ("runs", "runs", "dog")


def test_initial_weights_that_are_overwritten_are_not_drawn():
    """To draw them took longer than to read those of the checkpoint."""
    before = torch.get_rng_state()
    with Undrawn():
        layers = [torch.nn.Linear(3, 2), torch.nn.Embedding(4, 3), torch.nn.LSTM(3, 2)]
        scale = torch.nn.init.normal_(tensor=torch.nn.Parameter(torch.empty(2, 2)))
        assert torch.equal(before, torch.get_rng_state())
        norm, buffer = torch.nn.LayerNorm(3), torch.empty(3).normal_()
    assert not any(p.any() for layer in layers for p in layer.parameters()) and not scale.any()
    assert norm.weight.all() and buffer.all()
