"""Every built-in component keeps the contract of its kind: the same checks that strangers use."""

import dataclasses
import shutil

import pyarrow
import pytest
import torch
from pyarrow import parquet

from mtplug import testing
from mtplug.contracts import CONTRACTS
from mtplug.plugins import host
from mtplug.registry import KINDS, singular
from mtplug.testing.material import MeanWords, WordsTask
from mtplug.training.fisher import write
from tests.kernels import conftest  # noqa: F401  (Triton's interpreter, before triton is imported)

# Settings that make a check affordable, for components that have them.
SMALL = {
    "architectures": [
        "dim=16",
        "ffn_dim=16",
        "heads=2",
        "encoder_layers=1",
        "decoder_layers=2",
        "layers=2",
        "channels=16",
    ],
    "lr_schedulers": ["warmup_updates=10"],
    "optimizers": ["lr=0.01"],
    "tokenizers": ["vocab_size=23", "model_type=word"],
    "benchmarks": [
        "dim=8",
        "ffn_dim=8",
        "heads=2",
        "layers=1",
        "vocabulary=20",
        "sentences=2",
        "length=4",
        "rounds=1",
        "lengths=[16]",
        "sizes=[8]",
    ],
    "tasks": ["sentinels=4"],
    "search_strategies": ["beam=3", "nbest=3", "groups=3"],
}

OWN = {
    "attention": ["rows=2", "rounds=3"],
    "data": ["lines=[600]", "vocab_size=200", "pool=400"],
    "startup": ["rows=[import mtplug]"],
    "select": ["targets=['decoder.*']"],
    "ewc": ["fisher={fisher}", "weight=0.01"],
    "rerank": ["forward=[{run}]"],
    "translate_run": ["run={run}", "checkpoint=last", "input={corpus}/test.xx", "reference={corpus}/test.en",
                      "beams=[2]", "shortlist=10"],
}  # fmt: skip
"""Settings of single components; what stands in braces is a folder or file that `given` knows."""

RUN = {
    "language_modeling": ("tokenizer.vocab_size=13",),
    "classification": ("tokenizer.vocab_size=13",),
    "tagging": ("tokenizer.vocab_size=13",),
    "span_corruption": ("tokenizer.vocab_size=27",),
}
"""For tasks: what the rest of a run must be."""


@pytest.fixture(scope="module")
def catalogues(tmp_path_factory):
    """Something to read for each reader of corpora."""
    folder = tmp_path_factory.mktemp("catalogues")
    (folder / "pairs.tsv").write_text("ka\tone\nlo mi\ttwo three\n")
    (folder / "pairs.csv").write_text('xx,en\nka,one\n"lo, mi","two\nthree"\n')
    (folder / "xx.json").write_text('{"a": "ka", "b": {"c": "lo"}}')
    (folder / "en.json").write_text('{"a": "one", "b": {"c": "two"}}')
    (folder / "pairs.jsonl").write_text('{"translation": {"xx": "ka", "en": "one\\ntwo"}}\n' * 2)
    units = "".join(
        f'<trans-unit id="{i}"><source>ka</source><target>one</target></trans-unit>' for i in "12"
    )
    (folder / "pairs.xlf").write_text(
        '<xliff version="1.2"><file source-language="xx" target-language="en"><body>'
        f"{units}</body></file></xliff>"
    )
    (folder / "pairs.tmx").write_text(
        '<tmx version="1.4"><body><tu><tuv xml:lang="xx"><seg>ka\nlo</seg></tuv>'
        '<tuv xml:lang="en-GB"><seg>one two</seg></tuv></tu></body></tmx>'
    )
    (folder / "xx.po").write_text('msgid "one"\nmsgstr "ka"\n')
    rows = pyarrow.array([{"xx": "ka", "en": "one\ntwo"}] * 2)
    parquet.write_table(pyarrow.table({"translation": rows}), folder / "pairs.parquet")
    return folder


def built_in(kind):
    names = [host().component(kind, name) for name in host().names(kind)]
    return [c for c in names if host().provider(c)["distribution"] == "mtplug"]


def everything():
    apart = ("corpora", "exporters")  # which have their own test below
    return [(kind, c.name) for kind in KINDS if kind not in apart for c in built_in(kind)]


@pytest.fixture(scope="module")
def fisher_file(tmp_path_factory):
    """An old task's weights, of the model that checks of criteria have, and random information about them."""
    file = tmp_path_factory.mktemp("fisher") / "fisher.safetensors"
    model = MeanWords(seed=3)
    information = {name: torch.rand_like(p) for name, p in model.named_parameters()}
    write(file, model, information, WordsTask(), {"run": "none"})
    return file


@pytest.fixture(scope="module")
def own_run(mtplug_run, tmp_path_factory):
    """A copy of the run, since a search with a shortlist leaves a lexicon in it."""
    return shutil.copytree(mtplug_run, tmp_path_factory.mktemp("own") / "run", symlinks=True)


@pytest.fixture
def given(request):
    """What components read that is not there before a run."""
    fixtures = {"run": "own_run", "corpus": "mtplug_corpus", "fisher": "fisher_file"}

    def find(setting):
        for key, fixture in fixtures.items():
            if f"{{{key}}}" in setting:
                setting = setting.replace(f"{{{key}}}", str(request.getfixturevalue(fixture)))
        return setting

    return find


@pytest.mark.parametrize(("kind", "name"), everything())
def test_built_in_keeps_its_contract(kind, name, given):
    fields = {f.name for f in dataclasses.fields(host().component(kind, name).config)}
    settings = [s for s in SMALL.get(kind, ()) if s.partition("=")[0] in fields]
    settings += map(given, OWN.get(name, ()))
    rest = {"run": RUN[name]} if kind == "tasks" and name in RUN else {}
    if name in ("prefix_tuning", "prompt_tuning"):  # they change the result before any training
        rest = {"starts_as_model": False}
    getattr(testing, f"check_{singular(kind)}")(name, *settings, **rest)


@pytest.mark.parametrize(
    "settings",
    [
        ("norm=pre", "tie_embeddings=none", "position.name=learned", "activation=gelu"),
        ("tie_embeddings=decoder", "attention.backend=reference"),
    ],
)
def test_transformer_keeps_its_contract_in_other_forms(settings):
    small = [s for s in SMALL["architectures"] if not s.startswith(("layers", "channels"))]
    testing.check_architecture("transformer", *small, *settings, compile=False)


@pytest.mark.parametrize("model_type", ["bpe", "unigram", "char"])
def test_sentencepiece_keeps_its_contract_in_other_forms(model_type):
    size = 23 if model_type == "char" else 40
    testing.check_tokenizer("sentencepiece", f"model_type={model_type}", f"vocab_size={size}")


CORPORA = {
    "text": ("source=train.xx", "target=train.en"),
    "tsv": ("path=pairs.tsv",),
    "json_strings": ("path='{lang}.json'",),
    "gettext": ("path=xx.po",),
    "csv": ("path=pairs.csv",),
    "jsonl": ("path=pairs.jsonl",),
    "parquet": ("path=pairs.parquet",),
    "tmx": ("path=pairs.tmx",),
    "xliff": ("path=pairs.xlf",),
}


@pytest.mark.parametrize("name", [c.name for c in built_in("corpora")])
def test_reader_keeps_its_contract(name, catalogues, mtplug_corpus):
    assert name in CORPORA, "say above what this reader reads"
    root = mtplug_corpus if name == "text" else catalogues
    testing.check_corpus(name, f"root={root}", *CORPORA[name])


EXPORTERS = {"marian": ("architecture.norm=post", "tokenizer.joint=true")}
"""What a run has to be that can be exported so."""
ONLY_READ = {"fairseq", "marian_npz"}
"""Of these there is nothing to export; see tests/exporting."""


@pytest.mark.parametrize("name", sorted(ONLY_READ))
def test_importer_keeps_its_contract(name, tmp_path):
    testing.check_exporter(name, run=tmp_path)


@pytest.mark.parametrize("name", sorted({c.name for c in built_in("exporters")} - ONLY_READ))
def test_exporter_keeps_its_contract(name, tmp_path):
    rate = (
        "lr_scheduler.name=cosine",
        "logging.trackers=[{name: jsonl}]",
        "validation.best_metric=loss",
    )
    run = testing.train(tmp_path, *EXPORTERS[name], *rate, updates=100)
    testing.check_exporter(name, run=run)


def test_every_kind_has_a_contract_and_a_check():
    assert set(CONTRACTS) == set(KINDS)
    for kind in KINDS:
        assert callable(getattr(testing, f"check_{singular(kind)}"))


def test_fixtures_are_there(mtplug_run):
    import mtplug

    assert mtplug.load(mtplug_run, device="cpu").translate(["ka lo mi"]) == ["one two three"]
