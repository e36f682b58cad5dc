"""Language models of the made-up language, whose entropy is known, and their use beside a translator."""

import json
import math

import pytest

import mtplug
from mtplug import plugins, testing
from mtplug.cli.evaluate import main as evaluate
from mtplug.cli.translate import main as translate
from mtplug.config import load_config
from mtplug.errors import UserError
from mtplug.plugins import PluginHost
from mtplug.search.combine import ShallowFusion
from mtplug.search.wishes import Wishes

ENTROPY = (4 * math.log(10) + math.log(5)) / 5
"""Nats a token, `</s>` counted: 2 to 6 of 10 words, all equally likely."""

SETTINGS = (
    "data={train: {target: train.en}, valid: {target: valid.en}, test: {target: test.en}, workers: 1}",
    "tokenizer.vocab_size=13",
    "criterion.smoothing=0",
    "validation.best_metric=loss",
)


SMALL = "architecture={name: transformer_lm, dim: 32, ffn_dim: 64, heads: 2, layers: 2, dropout: 0, norm: pre}"


def lm(folder, *settings, architecture=SMALL, **where):
    return testing.train(
        folder, "task={name: language_modeling, target_lang: en}", *SETTINGS, f"data.root={folder}",
        architecture, *settings, **where,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("lm")


@pytest.fixture(scope="module")
def run(folder):
    return lm(folder, updates=60, name="lm")


@pytest.fixture(scope="module")
def translator(folder):
    return testing.train(folder, updates=4, name="translator")


@pytest.fixture(scope="module")
def fusable(folder, translator):
    return lm(
        folder, "tokenizer.vocab_size=23", f"task.tokenizer_from={translator}", name="fusable"
    )


def test_its_loss_comes_close_to_the_entropy_of_the_language(run, capsys):
    assert evaluate([str(run), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)["test"]
    loss = scores["loss"]["score"]
    assert ENTROPY - 0.1 < loss < ENTROPY + 0.15  # 20 sentences: below it by chance only
    assert scores["perplexity"]["score"] == pytest.approx(math.exp(loss))
    assert not list((run / "samples").glob("test-*"))


def test_perplexity_is_of_the_scores_that_translate_gives(run, folder, capsys):
    file = folder / "test.en"
    assert (
        translate([str(run), "--input", str(file), "--score", str(file), "--format", "jsonl"]) == 0
    )
    rows = [json.loads(line)["token_scores"] for line in capsys.readouterr().out.splitlines()]
    found = -sum(map(sum, rows)) / sum(map(len, rows))
    assert evaluate([str(run), "--json"]) == 0
    loss = json.loads(capsys.readouterr().out)["test"]["loss"]["score"]
    assert found == pytest.approx(loss, abs=1e-4)


@pytest.mark.parametrize("search", ["beam", "sampling"])
def test_it_continues_what_it_is_given(run, search):
    translator = mtplug.load(run, device="cpu", overrides=[f"search={{name: {search}}}"])
    beginnings = ["one two", "ten", ""]
    for beginning, text in zip(beginnings, translator.translate(beginnings), strict=True):
        assert text.startswith(beginning) and set(text.split()) <= set(
            testing.tiny.LEXICON.values()
        )
    assert translator.translate([""]) != [""]


def test_a_prefix_beside_what_is_continued_is_refused(run, tmp_path, capsys):
    """It was ignored: the text was put in its place."""
    with pytest.raises(UserError, match="this run continues its text, which is the prefix; write"):
        mtplug.load(run, device="cpu").nbest(["one"], wishes=[Wishes("two")])
    lines = [{"source": "one", "prefix": "two"}, {"source": "one", "forbidden": ["two"]}]
    file = tmp_path / "in.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert translate([str(run), "--input", str(file), "--input-format", "jsonl"]) == 2
    found = capsys.readouterr()
    assert "1 line (1)" in found.err and "which is the prefix" in found.err
    assert found.out.split("\n")[0] == "" and found.out.split("\n")[1].startswith("one")


@pytest.mark.parametrize("option", ["--alignment", "--attention-plot"])
def test_that_there_is_no_source_to_align_is_told_before_any_line(run, tmp_path, capsys, option):
    """It was told after the first lines that are translated together."""
    (tmp_path / "in").write_text("one two\n")
    asked = (option, str(tmp_path / "out.png"), "--output", str(tmp_path / "out"))
    assert translate([str(run), "--input", str(tmp_path / "in"), *asked]) == 2
    told = f"{option}: this run continues its text, which leaves no source to align"
    assert told in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_batches_have_no_source(run):
    from mtplug.translator import load_run

    config = load_run(run)
    task = config.task.build()
    task.prepare(config, run, lambda text: None)
    data = task.training_data(config)
    batch = data.batch(next(data.remaining()))
    assert batch.source_tokens.tolist() == [[1]] * len(batch)
    assert len(task.stores[0]) == 400


def test_fused_with_a_translator_it_adds_its_log_probabilities(translator, fusable, folder):
    both = mtplug.load(
        translator, device="cpu",
        overrides=[f"search.language_model={fusable}", "search.language_model_weight=0.7"],
    )  # fmt: skip
    assert isinstance(both._model(both.search), ShallowFusion)
    source, target = ["ka lo mi"], ["one two three"]
    apart = [mtplug.load(r, device="cpu").score(source, target)[0] for r in (translator, fusable)]
    expected = [t + 0.7 * o for t, o in zip(*(a.token_scores for a in apart), strict=True)]
    assert both.score(source, target)[0].token_scores == pytest.approx(expected, abs=1e-5)
    assert both.translate(source)


@pytest.mark.parametrize("joint", [True, False])
def test_it_is_fused_with_a_translator_that_has_language_tags(folder, joint):
    """It was refused for another vocabulary: it lacked the tags, which are the last ids of the other."""
    own, name = f"tokenizer={{model_type: word, vocab_size: {23 if joint else 13}, joint: {joint}}}", f"tagged-{joint}"  # fmt: skip
    tied = "architecture.tie_embeddings=decoder"
    tagged = testing.train(folder, own, tied, "task.language_tags=true", name=name)
    for updates in (2, 4):  # resumed, it finds the tags where it left them
        more = (f"task.tokenizer_from={tagged}", "validation.every_updates=2")
        made = lm(folder, own, *more, updates=updates, name=f"lm-{name}")
    both = mtplug.load(tagged, device="cpu", overrides=[f"search.language_model={made}"])
    assert isinstance(both._model(both.search), ShallowFusion) and both.translate(["ka lo"])
    alone = mtplug.load(made, device="cpu")
    assert alone.task.tags == () and alone.translate(["one two"])[0].startswith("one two")
    assert len(alone.task.target_tokenizer) == len(both.task.target_tokenizer) == 13 + 11 * joint


def test_an_encoder_decoder_is_a_language_model_too(folder):
    small = "architecture={dim: 16, ffn_dim: 16, heads: 2, encoder_layers: 1, decoder_layers: 1}"
    made = lm(folder, "training.packing=true", architecture=small, name="transformer")
    assert mtplug.load(made, device="cpu").translate(["one"])[0].startswith("one")


def test_another_vocabulary_is_refused(translator, run):
    both = mtplug.load(translator, device="cpu", overrides=[f"search.language_model={run}"])
    with pytest.raises(
        UserError, match=r"another vocabulary; tokenizer\.model=RUN trains with that of RUN"
    ):
        both.translate(["ka"])


def test_another_tokenizer_is_not_taken_over(translator, folder):
    with pytest.raises(
        UserError, match=r"tokenizer\.vocab_size: 13 here, 23 in .*they must be the same"
    ):
        lm(folder, f"task.tokenizer_from={translator}", name="no")
    with pytest.raises(UserError, match=r"task\.tokenizer_from: .* holds no tokenizer"):
        lm(folder, "task.tokenizer_from=nowhere", name="no")


def test_settings_of_a_tokenizer_that_is_taken_over_need_not_be_repeated(translator, tmp_path):
    file = tmp_path / "lm.yaml"
    file.write_text(f"task: {{name: language_modeling, tokenizer_from: {translator}}}\n")
    (given, _), (base, _) = load_config(file), load_config(translator / "config.yaml")
    assert (
        given.tokenizer.config == base.tokenizer.config and base.tokenizer.config.vocab_size == 23
    )
    assert given.architecture.name == load_config(None)[0].architecture.name
    changed, _ = load_config(file, ["tokenizer.vocab_size=9"])
    assert changed.tokenizer.config.vocab_size == 9  # which is refused when it is taken over


def test_a_setting_of_a_task_of_a_plugin_may_name_a_run_whose_tokenizer_is_taken(
    translator, tmp_path, monkeypatch
):
    plugin = tmp_path / "lender.py"
    plugin.write_text(
        "from dataclasses import dataclass\nimport mtplug\nfrom mtplug.registry import run_field\n"
        "from mtplug.tasks.translation import Translation, TranslationConfig\n"
        "@dataclass\nclass Config(TranslationConfig):\n    twin: str = run_field('tokenizer')\n"
        "@mtplug.hookimpl\ndef register_tasks(register): register('lender', Translation, Config)\n"
    )
    monkeypatch.setattr(plugins, "_current", PluginHost(files=[plugin]))
    given, _ = load_config(None, ["task.name=lender", f"task.twin={translator}"])
    assert given.tokenizer.config.vocab_size == 23


def test_a_metric_of_translations_cannot_choose_the_best(folder):
    with pytest.raises(UserError, match="'bleu' is not among what validation measures: loss"):
        lm(folder, "validation.best_metric=bleu", name="no")


def test_one_with_the_tokenizer_of_another_run_is_fine_tuned_with_its_own(fusable, folder):
    """What it had taken over was taken over again, and need not be what its base was trained with."""
    data = "data={train: {target: train.en}, valid: {target: valid.en}, workers: 1}"
    tuned = testing.train(
        folder, "task={name: language_modeling, target_lang: en, tokenizer_from: gone}", data, f"data.root={folder}",
        f"training.finetune_from={fusable}", "validation.best_metric=loss", updates=2, name="tuned",
    )  # fmt: skip
    for file in (fusable / "tokenizer").iterdir():
        assert (tuned / "tokenizer" / file.name).read_bytes() == file.read_bytes()
