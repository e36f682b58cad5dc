"""Several directions in one run: the numbers are those of `transformers` with the languages of each sentence."""

import io
import json
import sys

import pytest
import torch
from mtplug_nllb.tokenizer import NllbTokenizer
from random_models import TARGETS, TEXTS, their_ids

import mtplug
from mtplug import testing
from mtplug.cli import evaluate, export, peft, train, translate
from mtplug.data.tokenizers import EOS
from mtplug.training.trackers import read_events

TAGS = "task.language_tags=true"
SHORT = {"max_ratio": 0, "max_extra": 4, "min_length": 3}  # a random model seldom ends a text
LANGUAGES = {
    "nllb": ("eng_Latn", "deu_Latn", "zho_Hans", "ace_Latn"),
    "m2m100": ("__en__", "__de__", "__fr__", "__sw__"),
    "mbart50": ("en_XX", "de_DE", "fr_XX", "sw_KE"),
}
only_nllb = pytest.mark.parametrize("made", ["nllb"], indirect=True)


def directions(kind):
    """A (source, target) for each of the texts; all differ, and the first two texts have the same source."""
    a, b, c, d = LANGUAGES[kind]
    return [(a, b), (a, c), (b, a), (d, c)]


def tagged(kind):
    pairs = zip(directions(kind), TEXTS, strict=True)
    return [f"<2{target}:{source}> {text}" for (source, target), text in pairs]


def by_transformers(made):
    """(input ids, labels) of each text, as its tokenizer gives them with src_lang and tgt_lang set."""
    kind, _, _, tokenizer, _ = made
    before, rows = (tokenizer.src_lang, tokenizer.tgt_lang), []
    for both, text, target in zip(directions(kind), TEXTS, TARGETS, strict=True):
        own = [c.strip("_") if kind == "m2m100" else c for c in both]
        tokenizer.src_lang, tokenizer.tgt_lang = own
        found = tokenizer(text, text_target=target)
        rows.append((found["input_ids"], found["labels"]))
    tokenizer.src_lang, tokenizer.tgt_lang = before
    return rows


def padded(rows):
    """(B, L) ids and the mask of what is none of transformers' padding."""
    ids = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(row) for row in rows], batch_first=True, padding_value=1
    )
    return ids, (ids != 1).long()


def log_probabilities(model, rows):
    """Of the labels of each row but the code."""
    (sources, mask), (labels, _) = (padded([row[side] for row in rows]) for side in (0, 1))
    start = torch.full((len(rows), 1), 2)
    with torch.no_grad():
        logits = model(
            input_ids=sources, attention_mask=mask,
            decoder_input_ids=torch.cat([start, labels[:, :-1]], 1),
        ).logits  # fmt: skip
    truth = logits.log_softmax(-1)
    return [
        [truth[b, t, i].item() for t, i in enumerate(row[1]) if t] for b, row in enumerate(rows)
    ]


def test_a_batch_of_several_directions_has_the_numbers_of_the_original(made):
    kind, _, model, _, run = made
    ours = mtplug.load(run, device="cpu", overrides=[TAGS])
    rows = by_transformers(made)
    texts = tagged(kind)
    ids = ours.task.source_tokenizer.ids
    for own, (theirs, _), (_, target) in zip(
        ours.encoded(texts), rows, directions(kind), strict=True
    ):
        assert own[0] == ids[target] and [*their_ids(ours, own[1:]), 2] == theirs
    for scored, wanted in zip(
        ours.score(texts, TARGETS), log_probabilities(model, rows), strict=True
    ):
        assert scored.token_scores == pytest.approx(wanted, abs=1e-4)
    sources, mask = padded([source for source, _ in rows])
    start = torch.tensor([[2, labels[0]] for _, labels in rows])
    found = model.generate(
        input_ids=sources, attention_mask=mask, decoder_input_ids=start, num_beams=1, do_sample=False,
        max_new_tokens=11, bad_words_ids=[[1]], forced_bos_token_id=None, forced_eos_token_id=None,
    )  # fmt: skip
    written = ours.nbest(texts, beam=1, max_ratio=0, max_extra=11)
    assert len({tuple(best.parts[0]) for (best,) in written}) > 1
    for theirs, (best,) in zip(found.tolist(), written, strict=True):
        known = [i for i in theirs[2:] if i not in (1, 2)]
        assert known[: len(best.parts[0])] == their_ids(ours, best.parts[0])


def test_a_direction_alone_is_the_run_with_its_codes(made):
    """Translations, scores, attention of each word: as if the direction were the only one."""
    kind, *_, run = made
    ours = mtplug.load(run, device="cpu", overrides=[TAGS])
    how = {"beam": 3, "nbest": 2, "max_ratio": 0, "max_extra": 9, "attention": True}
    together = ours.nbest(tagged(kind), **how)
    for (source, target), text, row in zip(directions(kind), TEXTS, together, strict=True):
        codes = [f"tokenizer.source_code={source}", f"tokenizer.target_code={target}"]
        alone = mtplug.load(run, device="cpu", overrides=codes)
        for one, own in zip(row, alone.nbest([text], **how)[0], strict=True):
            assert (one.parts, one.text) == (own.parts, own.text)
            assert one.token_scores == pytest.approx(own.token_scores, abs=1e-5)
            assert one.source_tokens == [target, *own.source_tokens]
            assert not one.attention[:, 0].any() and one.attention[:, 1:] == pytest.approx(
                own.attention, abs=1e-5
            )
            assert one.word_alignment == own.word_alignment


@only_nllb
def test_what_a_text_does_not_say_is_what_the_run_learnt_or_the_task_says(made):
    *_, run = made
    ours = mtplug.load(run, device="cpu", overrides=[TAGS])
    address = ours.task.address
    assert address("ka") == "<2deu_Latn:eng_Latn> ka"  # the imported direction: eng and deu
    assert address("<2ace_Latn>  ka", "zho_Hans") == "<2ace_Latn:eng_Latn> ka"
    assert address("<2ace> ka", source_lang="deu") == "<2ace_Latn:deu_Latn> ka"
    assert address("<25> ka") == "<2deu_Latn:eng_Latn> <25> ka"
    assert address(" ") == " " and ours.encoded(["", "<2deu_Latn:eng_Latn>"]) == [[], []]
    assert ours.task.bare(address("ka <2de>")) == "ka <2de>"
    assert ours.translate(["", "ka"], **SHORT)[0] == ""
    with pytest.raises(mtplug.UserError, match="nothing says the source's language; give --source"):
        address("ka", "eng_Latn")
    ours.source_lang, ours.target_lang = "zho_Hans", "ace_Latn"
    assert ours.address("ka") == "<2ace_Latn:zho_Hans> ka"


@only_nllb
def test_an_empty_source_and_a_prompt_in_front_are_no_codes(made):
    """A row of `</s>` alone has no code to take off; rows that a prompt adds stand before the code."""
    *_, run = made
    model = mtplug.load(run, device="cpu", overrides=[TAGS]).model
    size, pad = model.size, 0
    source = torch.tensor([[size, size + 1, 9, 8, 7, EOS], [size, size + 1, EOS, pad, pad, pad],
                           [size, size + 1, 6, 5, EOS, pad]])  # fmt: skip
    tokens, lengths, codes, places = model._without_code(source, torch.tensor([6, 3, 5]))
    assert tokens.tolist() == [[size, size + 1, 8, 7, EOS], [size, size + 1, EOS, pad, pad],
                               [size, size + 1, 5, EOS, pad]]  # fmt: skip
    assert (lengths.tolist(), codes.tolist()) == ([5, 3, 4], [[9], [EOS], [6]])
    assert source.gather(1, places).equal(tokens)
    only = model(torch.tensor([[EOS]]), torch.tensor([1]), torch.tensor([[EOS, 5]]))
    among = model(
        torch.tensor([[EOS, pad, pad], [9, 8, EOS]]), torch.tensor([1, 3]), torch.tensor([[EOS, 5]] * 2)
    )  # fmt: skip
    assert only.isfinite().all() and torch.allclose(only[0], among[0], atol=1e-5)


def corpora(there, *ways):
    """Settings of corpora, one for each (source, target), of which the texts are a made-up language and its translation."""
    there.mkdir(exist_ok=True)
    for side, name in enumerate(("xx", "en")):
        text = "".join(f"{pair[side]}\n" for pair in testing.pairs(60, seed=3))
        (there / f"t.{name}").write_text(text)
    files = ["{source: t.xx, target: t.en", "{source: t.en, target: t.xx"]
    entries = [
        f"{files[n % 2]}, source_lang: {source}, target_lang: {target}}}"
        for n, (source, target) in enumerate(ways)
    ]
    listed = f"[{', '.join(entries)}]"
    return [f"data.train={listed}", f"data.valid={listed}"]


def tune(base, there, ways, *settings, updates=8):
    return testing.finetune(
        base, there, testing.pairs(60, seed=3), TAGS, *corpora(there, *ways), "data.max_length=32",
        "optimizer.lr=0.003", *settings, updates=updates,
    )  # fmt: skip


BOTH = [("eng_Latn", "ace_Latn"), ("ace_Latn", "eng_Latn")]


@pytest.fixture(scope="module")
def several(made, tmp_path_factory):
    """A run that learnt two directions, and its losses."""
    kind, *_, base = made
    a, _, _, d = LANGUAGES[kind]
    there = tmp_path_factory.mktemp("several")
    short = (
        f"{group}.{key}={value}"
        for group in ("search", "validation.search")
        for key, value in SHORT.items()
    )
    return tune(base, there, [(a, d), (d, a)], "validation.translate=true", *short)


def test_two_directions_are_learnt_and_written_back(made, several, transformers, tmp_path):
    kind, folder, model, _, _ = made
    run, losses = several
    assert losses[-1] < losses[0]
    a, _, _, d = LANGUAGES[kind]
    validations = [e for e in read_events(run / "metrics.jsonl") if e["event"] == "validation"]
    assert list(validations[-1]["corpora"]) == [f"t.{a}-{d}", f"t.{d}-{a}"]
    stores = [json.loads((run / f"data/train-{n}/store.json").read_text()) for n in (0, 1)]
    assert f'"direction": ["{d}", "{a}"]' in json.dumps(stores[0])
    assert f'"direction": ["{a}", "{d}"]' in json.dumps(stores[1])
    assert export.main([str(run), "--format", "nllb", f"like={folder}", "--output", str(tmp_path / "out"), "--debug"]) == 0  # fmt: skip
    again = type(model).from_pretrained(tmp_path / "out").eval()
    rows = by_transformers(made)
    ours = mtplug.load(run, device="cpu")
    for scored, wanted in zip(
        ours.score(tagged(kind), TARGETS), log_probabilities(again, rows), strict=True
    ):
        assert scored.token_scores == pytest.approx(wanted, abs=1e-4)


@only_nllb
def test_each_corpus_is_scored_in_its_language(several, tmp_path, capsys):
    run, _ = several
    ours = mtplug.load(run, device="cpu")
    arguments = [str(run), "--split", "valid", "--output", str(tmp_path), "--debug"]
    assert evaluate.main(arguments) == 0
    said = capsys.readouterr().out
    for side, (source, target) in enumerate(BOTH):
        assert f"t.{source}-{target}: 60 sentences" in said
        texts = [pair[side] for pair in testing.pairs(60, seed=3)]
        ours.source_lang, ours.target_lang = source, target
        found = (tmp_path / f"t.{source}-{target}.txt").read_text().splitlines()
        assert found == ours.translate(texts)


def translated(monkeypatch, capsys, text, *arguments):
    """(status, lines, what was said)"""
    stdin = io.TextIOWrapper(io.BytesIO(text.encode()))
    monkeypatch.setattr(sys, "stdin", stdin)
    status = translate.main([*map(str, arguments), "--device", "cpu"])
    told = capsys.readouterr()
    return status, told.out.split("\n"), told.err


@only_nllb
def test_a_line_or_the_command_says_the_direction(several, monkeypatch, capsys, tmp_path):
    """Told by scores: what so small a model writes depends little on what it reads."""
    run, _ = several
    ours = mtplug.load(run, device="cpu")
    ours.target_lang, scores = "ace_Latn", []
    for ours.source_lang in ("eng_Latn", "zho_Hans"):
        scores.append(pytest.approx(ours.score(["ka lo"], ["one two"])[0].score, abs=1e-5))
    wanted, other = scores
    assert wanted.expected != other
    (tmp_path / "given").write_text("one two\n")
    score = [run, "--score", tmp_path / "given"]
    # The source that the run learnt for a target need not be said.
    for given in (["--target-lang", "ace_Latn"], ["--target-lang", "ace", "--source-lang", "eng"]):
        status, found, _ = translated(monkeypatch, capsys, "ka lo\n", *score, *given)
        assert (status, float(found[0])) == (0, wanted)
    (tmp_path / "given").write_text("one two\n" * 4)
    lines = (
        "<2ace_Latn> ka lo\n<2ace_Latn:zho_Hans> ka lo\n<2fra_Latn> ka\n<2ace_Latn:eng_Lat> ka\n"
    )
    status, found, said = translated(monkeypatch, capsys, lines, *score)
    assert (status, *map(float, found[:2])) == (2, wanted, other)
    assert found[2:] == ["", "", ""]
    assert said.startswith("2 lines (3, 4): not translated; line 3: the run has no language tag")
    assert "<2fra_Latn>: fra_Latn is no language code of this model" in said
    entry = json.dumps({"source": "<2ace_Latn:zho_Hans> ka lo"})
    shown = ["--input-format", "jsonl", "--format", "jsonl"]
    status, found, _ = translated(monkeypatch, capsys, entry + "\n", run, *shown)
    answer = json.loads(found[0])
    assert status == 0 and answer["text"] == ours.translate(["ka lo"])[0]
    assert answer["source_tokens"][:2] == ["ace_Latn", "zho_Hans"]


@only_nllb
@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--target-lang", "ace_Lat"], "target language ace_Lat is no language code of this model; did you mean 'ace_Latn'?"),
        (["--target-lang", "ace", "--source-lang", "en_Latn"], "source language en_Latn is no language code of this model; did you mean 'eng_Latn'?"),
        ([], "target language deu is not among ace_Latn, eng_Latn, which this run writes: give --target-lang"),
    ],
)  # fmt: skip
def test_a_language_that_there_is_not_is_one_line(several, monkeypatch, capsys, given, said):
    status, _, told = translated(monkeypatch, capsys, "ka\n", several[0], *given)
    assert status == 2 and said in told and len(told.splitlines()) == 1


@only_nllb
def test_a_run_of_one_direction_is_not_told_what_it_reads(made, monkeypatch, capsys):
    given = (made[-1], "--source-lang", "eng")
    status, _, told = translated(monkeypatch, capsys, "ka\n", *given)
    assert status == 2 and "this run's model is not told which language it reads" in told
    assert len(told.splitlines()) == 1


@only_nllb
def test_corpora_in_languages_that_there_are_not_are_refused_before_any_work(made, tmp_path, capsys):  # fmt: skip
    *_, base = made
    line = [f"training.finetune_from={base}", f"data.root={tmp_path}", f"run_dir={tmp_path / 'run'}"]  # fmt: skip
    (tmp_path / "empty.yaml").write_text("seed: 1\n")
    for ways, more, said in (
        ([("eng_Latn", "fra_Latn")], [TAGS], "data.train.0.target_lang: fra_Latn is no language code of this model"),
        ([("eng_Latn", "ace_Latn"), ("ac_Latn", "eng_Latn")], [TAGS], "data.train.1.source_lang: ac_Latn is no language code of this model; did you mean 'ace_Latn'?"),
        (BOTH, [], "2 target languages (ace_Latn, eng_Latn); set task.language_tags=true"),
        ([("eng_Latn", "deu_Latn"), ("ace_Latn", "deu_Latn")], [], "corpora have 2 source languages (ace_Latn, eng_Latn); set task.language_tags=true, so that the model is told which one it reads"),
        (BOTH, [TAGS, "data.test=[{source: t.xx, target: t.en, target_lang: chinese}]"], "data.test.0.target_lang: chinese is no language code"),
        ([("''", "ace_Latn")], [TAGS, "task.source_lang=''"], "data.train.0.source_lang: it is missing, and so is task.source_lang"),
    ):  # fmt: skip
        assert train.main([str(tmp_path / "empty.yaml"), *line, *corpora(tmp_path, *ways), *more]) == 2  # fmt: skip
        told = capsys.readouterr().err
        assert said in told and len(told.splitlines()) == 1, told
        assert not (tmp_path / "run").exists()


@only_nllb
def test_adapters_of_several_directions(made, tmp_path, monkeypatch, capsys):
    *_, base = made
    plain = mtplug.load(base, device="cpu", overrides=[TAGS])
    for name, settings in (("lora", ()), ("prompt_tuning", ("peft.length=3",))):
        there = tmp_path / name
        run, losses = tune(base, there, BOTH, f"peft.name={name}", *settings, "optimizer.lr=0.02")
        assert losses[-1] < losses[0]
        ours = mtplug.load(run, device="cpu")
        assert ours.score(tagged("nllb"), TARGETS)[0].score != plain.score(tagged("nllb"), TARGETS)[0].score  # fmt: skip
        for row in ours.nbest(tagged("nllb"), attention=True, max_ratio=0, max_extra=5):
            assert row[0].attention[:, 1:].all() and not row[0].attention[:, 0].any()
        # On the base it is asked in the same way, and refused where the base is told one direction only.
        switched = mtplug.load(base, device="cpu", adapters={"x": run}, overrides=[TAGS])
        how = {"beam": 2, "max_ratio": 0, "max_extra": 5}
        wanted = ours.translate(tagged("nllb"), **how)
        assert switched.translate(tagged("nllb"), adapters="x", **how) == wanted
        with pytest.raises(mtplug.UserError, match=r"was trained with task.language_tags=true, and .*"
                           "has task.language_tags=false"):  # fmt: skip
            mtplug.load(base, device="cpu", adapters={"x": run})
        if name == "lora":
            merged = tmp_path / "merged"
            assert peft.main(["merge", str(run), "--output", str(merged), "--debug"]) == 0
            assert mtplug.load(merged, device="cpu").translate(tagged("nllb"), **how) == wanted
            again, _ = tune(merged, tmp_path / "again", BOTH[:1], updates=2)
            assert mtplug.load(again, device="cpu").address("ka").startswith("<2ace_Latn:eng_Latn>")
            assert not list(tmp_path.rglob("tags.json"))


@only_nllb
def test_runs_of_one_direction_and_of_several_do_not_decode_together(made, several):
    *_, base = made
    with pytest.raises(mtplug.UserError, match="other language codes stand in front of its texts"):
        mtplug.load(several[0], device="cpu", ensemble=base)


@only_nllb
def test_without_a_store_and_with_cut_texts_it_is_the_same(made, tmp_path):
    """Each piece of a text that is split begins with both codes."""
    *_, base = made
    where = [("data.store=false",), ()]
    losses = [tune(base, tmp_path / str(n), BOTH, *more)[1] for n, more in enumerate(where)]
    assert losses[0] == losses[1]
    ours = mtplug.load(
        base, device="cpu", overrides=[TAGS, "data.on_long=split", "data.max_length=8"]
    )
    (pieces,) = ours._pieces(
        [
            ours.address(
                "ka lo mi ti zu " * 6,
            )
        ]
    )
    assert len(pieces) > 2
    ids = ours.task.source_tokenizer.ids
    assert {tuple(p[:2]) for p in pieces} == {(ids["deu_Latn"], ids["eng_Latn"])}
    assert all(len(p) <= 8 for p in pieces)


def test_a_language_alone_stands_for_its_only_code(made):
    kind, *_, run = made
    tokenizer = mtplug.load(run, device="cpu").task.source_tokenizer
    assert isinstance(tokenizer, NllbTokenizer)
    for name, code in {
        "nllb": {"eng": "eng_Latn", "zh": "zho_Hans", "zho": "zho_Hans"},
        "m2m100": {"en": "__en__", "zh": "__zh__"},
        "mbart50": {"en": "en_XX", "zh": "zh_CN"},
    }[kind].items():
        assert tokenizer.language(name) == tokenizer.language(code) == code
    for wrong in ("", "Latn", "eng_latn", "<mask>"):
        with pytest.raises(mtplug.UserError, match="is no language code of this model"):
            tokenizer.language(wrong)
