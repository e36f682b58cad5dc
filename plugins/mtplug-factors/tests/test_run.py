"""A language in which factors decide how a word is translated, and what commands and programs do with its model."""

import json
import random
import re

import pytest
from safetensors.torch import load_file

import mtplug
from mtplug import testing
from mtplug.cli.evaluate import main as evaluate
from mtplug.cli.translate import main as translate
from mtplug.testing.tiny import CONFIG, LEXICON

OURS = (
    "tokenizer={name: factored, factors: [number, case], inner: {model_type: word, vocab_size: 8, joint: false, target_vocab_size: 23}}",
    "architecture.name=factored_transformer", "architecture.factor_dim=4", "architecture.dropout=0",
)  # fmt: skip


def annotated(rng, length):
    """A source in which each word has a number and a case, and its translation: two, twos, TWO or TWOS."""
    source, target = [], []
    for word in rng.choices(list(LEXICON)[:5], k=length):
        number, case = rng.choice(["sg", "pl"]), rng.choice(["low", "up"])
        source.append(f"{word}￨{number}￨{case}")
        written = LEXICON[word] + ("s" if number == "pl" else "")
        target.append(written if case == "low" else written.upper())
    return " ".join(source), " ".join(target)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("factors")
    for seed, (split, count) in enumerate({"train": 600, "valid": 20, "test": 20}.items()):
        rng = random.Random(seed)
        pairs = [annotated(rng, rng.randint(2, 4)) for _ in range(count)]
        for side, language in enumerate(("xx", "en")):
            lines = "".join(pair[side] + "\n" for pair in pairs)
            (made / f"{split}.{language}").write_text(lines, encoding="utf-8")
    (made / "run.yaml").write_text(CONFIG)
    return made


@pytest.fixture(scope="module")
def run(folder):
    return testing.train(
        folder, *OURS, "lr_scheduler.name=cosine", "training.packing=true", updates=200
    )


def lines(folder, name):
    return (folder / name).read_text(encoding="utf-8").splitlines()


def test_how_factors_decide_is_learnt(folder, run):
    translator = mtplug.load(run, device="cpu")
    found = translator.translate(lines(folder, "test.xx"))
    right = sum(a == b for a, b in zip(found, lines(folder, "test.en"), strict=True))
    assert right >= 18


def command(main, run, tmp_path, text, *more):
    (tmp_path / "in").write_text(text, encoding="utf-8")
    return main([str(run), "--input", str(tmp_path / "in"), "--device", "cpu", *more])


def test_commands(folder, run, tmp_path, capsys):
    assert command(translate, run, tmp_path, "ka￨sg￨up lo￨pl￨low\n\n", "--format", "jsonl") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["text"] for row in rows] == ["ONE twos", ""]
    assert rows[0]["source_tokens"] == ["▁ka￨sg￨up", "▁lo￨pl￨low"]
    glossary = tmp_path / "glossary"
    glossary.write_text("ka lo\tfives\n")
    assert (
        command(translate, run, tmp_path, "ka￨sg￨low lo￨sg￨low\n", f"search.terminology={glossary}")
        == 0
    )
    assert "fives" in capsys.readouterr().out
    assert evaluate([str(run), "--device", "cpu"]) == 0


def test_runs_that_rerank_are_given_what_they_read(folder, run, tmp_path):
    """A reverse run was to write, and a run without factors to read, `ka￨sg￨low`, of which it scored the markup."""
    source, plain = "ka￨sg￨up lo￨pl￨low", "ka lo"
    beam = mtplug.load(run, device="cpu").nbest([source], beam=3, nbest=3)[0]
    written = [t.text for t in beam]
    bare = [re.sub("￨[a-z]+", "", line) + "\n" for line in lines(folder, "train.xx")]
    (tmp_path / "bare").write_text("".join(bare))
    files = {"forward": (tmp_path / "bare", "train.en"), "reverse": ("train.en", tmp_path / "bare")}
    words = "tokenizer={name: words, joint: false}"
    judges = [("forward", run, [source] * len(beam), written)]
    for way, (left, right) in files.items():
        corpora = [
            f"data.{split}={{source: {left}, target: {right}}}" for split in ("train", "valid")
        ]
        languages = ("xx", "en") if way == "forward" else ("en", "xx")
        other = (
            "task={{source_lang: {}, target_lang: {}}}".format(*languages),
            "data.test=null",
            "architecture.tie_embeddings=decoder",
            f"run_dir={tmp_path / way}",
        )
        sides = ([plain] * len(beam), written)
        judge = testing.train(folder, words, *corpora, *other)
        judges.append((way, judge, *(sides if way == "forward" else sides[::-1])))
    for way, judge, *given in judges:
        scores = mtplug.load(judge, device="cpu").score(*given)
        due = {t.text: t.score + s.score for t, s in zip(beam, scores, strict=True)}
        how = (
            f"search.{way}=[{judge}]",
            f"search.{way}_weight=1",
            "search.beam=3",
            "search.nbest=3",
        )
        translator = mtplug.load(run, device="cpu", overrides=["search.name=rerank", *how])
        found = {t.text: t.score for t in translator.nbest([source])[0]}
        assert found == pytest.approx(due, abs=1e-4), way


def test_lines_that_cannot_be_read_are_told_and_the_others_translated(run, tmp_path, capsys):
    good = "ka￨sg￨low lo￨pl￨up"
    text = f"{good}\nka lo\nka￨sg￨low lo\nka￨sing￨low\n{good}\n"
    assert command(translate, run, tmp_path, text) != 0
    out, err = capsys.readouterr()
    first, _, *others = out.splitlines()
    assert [first, *others] == ["one TWOS", "", "", "one TWOS"]
    assert (
        "2 lines (3, 4): not translated; line 3: 'lo' has 0 factors, tokenizer.factors names 2 "
        in err
    )
    assert "1 line (2): without factors, which all training text had (word￨number￨case)" in err
    ((plain,), (told,)) = mtplug.load(run, device="cpu").nbest([good, "ka lo"])
    assert (plain.notes, told.notes) == (
        [],
        ["without factors, which all training text had (word￨number￨case)"],
    )
    with pytest.raises(
        mtplug.UserError,
        match=r"^sentence 2: 'ka￨sing￨low': the training text has no number 'sing'; did you mean 'sg'\?$",
    ):
        mtplug.load(run, device="cpu").translate(["ka￨sg￨low", "ka￨sing￨low"])


def test_a_line_of_the_training_text_that_is_wrong_is_named(folder, tmp_path):
    texts = [f"{'ka' if n == 11_000 else 'ka￨sg￨low'} lo￨pl￨up" for n in range(12_000)]
    for name, wrong, told in (
        ("late", 11_000, r"pair 11001: 'ka' has 0 factors"), ("early", 5, "the source text is not as tokenizer.factors says in line 6: 'ka' has 0"),
    ):  # fmt: skip
        texts = [f"{'ka' if n == wrong else 'ka￨sg￨low'} lo￨pl￨up" for n in range(12_000)]
        (tmp_path / name).write_text("\n".join(texts) + "\n", encoding="utf-8")
        data = f"data.train={{source: {tmp_path / name}, target: {tmp_path / name}.en}}"
        (tmp_path / f"{name}.en").write_text("one twos\n" * len(texts))
        small = "tokenizer={name: factored, factors: [number, case], inner: {name: words}}"
        with pytest.raises(mtplug.UserError, match=rf"{name}.*: {told}"):
            testing.train(folder, small, *OURS[1:], data, name=name)


def test_model_and_tokenizer_belong_together(folder, tmp_path):
    half = f"run_dir={tmp_path / 'half'}"
    with pytest.raises(
        mtplug.UserError, match=r"^tokenizer\.name: factored: Transformer does not read"
    ):
        testing.train(folder, OURS[0], "architecture.tie_embeddings=decoder", half)
    assert not (tmp_path / "half").exists()
    with pytest.raises(mtplug.UserError, match=r"with it, take tokenizer\.name=factored"):
        testing.train(folder, "tokenizer.joint=false", *OURS[1:], half)


def test_a_run_is_fine_tuned_and_its_embeddings_adapted(folder, run, tmp_path):
    texts = list(zip(lines(folder, "valid.xx"), lines(folder, "valid.en"), strict=True))
    lora = ("peft.name=lora", "peft.targets=[encoder.embedding]", "optimizer.lr=1e-3")
    made, losses = testing.finetune(run, tmp_path, texts, *lora)
    trained = load_file(made / "checkpoints" / "last" / "adapter_model.safetensors")
    assert losses[1] < losses[0] and all("encoder_embedding.pieces" in name for name in trained)
    assert len(mtplug.load(made, device="cpu").translate(lines(folder, "test.xx")[:2])) == 2
    (made / "tokenizer" / "source.factors.json").unlink()
    with pytest.raises(
        mtplug.UserError, match=r"source\.factors\.json is missing; restore that file"
    ):
        mtplug.load(made, device="cpu")


def test_a_plain_run_can_be_the_start_and_reads_text_without_factors_alike(folder, tmp_path):
    for file in folder.glob("*.[ex][nx]"):
        text = re.sub("￨[^ \n]*", "", file.read_text(encoding="utf-8"))
        (tmp_path / file.name).write_text(text, encoding="utf-8")
    (tmp_path / "run.yaml").write_text(CONFIG)
    words = "tokenizer={model_type: word, vocab_size: 8, target_vocab_size: 23, joint: false}"
    plain = testing.train(tmp_path, words, "architecture.tie_embeddings=decoder")
    start = f"training.init_from={{path: {plain}, rename: {{encoder_embedding.pieces.: encoder_embedding.}}}}"
    given = (f"tokenizer.inner.model={plain}", "architecture.combine=sum", "optimizer.lr=1e-12")
    made = testing.train(folder, *OURS, *given, start, updates=1, name="started")
    pairs = lines(tmp_path, "test.xx"), lines(tmp_path, "test.en")
    one, other = (mtplug.load(r, device="cpu").score(*pairs) for r in (plain, made))
    for a, b in zip(one, other, strict=True):
        assert a.token_scores == pytest.approx(b.token_scores, abs=1e-5)


@pytest.mark.parametrize("tags", ["false", "true"])
def test_rows_of_another_vocabulary_and_of_other_values_are_found_by_what_they_are_for(
    folder, tmp_path, tags
):
    """They were taken by number where the sizes happened to be equal: one word's embedding for another's."""
    other = {"ka": "zu", "lo": "aa", "up": "abl"}  # which sorts before low
    for name, changed, first in (("first", {}, 0), ("second", other, 40)):
        # Of other frequencies, and so in another order.
        pairs = [lines(folder, f"train.{side}")[first : first + 40] for side in ("xx", "en")]
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.yaml").write_text(CONFIG)
        for side, texts in zip(("xx", "en"), pairs, strict=True):
            text = "".join(f"{line}\n" for line in texts)
            for old, new in changed.items() if side == "xx" else ():
                text = re.sub(rf"\b{old}\b", new, text)
            for split in ("train", "valid", "test"):
                (tmp_path / name / f"{split}.{side}").write_text(text, encoding="utf-8")
    inner = (
        "tokenizer={name: factored, factors: [number, case], inner: {name: words, vocab_size: 0}}"
    )
    still = (inner, *OURS[1:], f"task.language_tags={tags}", "optimizer.lr=1e-12")
    base = testing.train(tmp_path / "first", *still, updates=1)
    start = f"training.init_from={base}"
    made = testing.train(tmp_path / "second", *still, start, "seed=2", updates=1)
    tables = []
    for one in (base, made):
        loaded = mtplug.load(one, device="cpu")
        named = loaded.model.table_pieces(loaded.task.source_tokenizer)
        weights = dict(loaded.model.named_parameters())
        tables += [{(n, piece): weights[n][row] for n, own in named.items() for row, piece in enumerate(own)}]  # fmt: skip
    shared = tables[0].keys() & tables[1].keys()
    assert len(tables[1]) - len(shared) == 3 and len(shared) > 10
    for key in sorted(shared):
        assert tables[1][key].tolist() == pytest.approx(tables[0][key].tolist(), abs=1e-6)
