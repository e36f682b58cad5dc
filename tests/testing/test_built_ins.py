"""Every built-in component keeps the contract of its kind: the same checks that strangers use."""

import dataclasses

import pytest

from mtplug import testing
from mtplug.contracts import CONTRACTS
from mtplug.plugins import host
from mtplug.registry import KINDS, singular
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
    "attention": ["rows=2"],
    "startup": ["rows=[import mtplug]"],
    "select": ["targets=['decoder.*']"],
}
"""Settings of single components."""

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
    return folder


def built_in(kind):
    names = [host().component(kind, name) for name in host().names(kind)]
    return [c for c in names if host().provider(c)["distribution"] == "mtplug"]


def everything():
    kinds = [k for k in KINDS if k not in ("corpora", "exporters")]
    # These need what a run leaves behind: tests/search, tests/criteria and tests/bench have it.
    elsewhere = ("rerank", "ewc", "translate_run")
    return [(kind, c.name) for kind in kinds for c in built_in(kind) if c.name not in elsewhere]


@pytest.mark.parametrize(("kind", "name"), everything())
def test_built_in_keeps_its_contract(kind, name):
    fields = {f.name for f in dataclasses.fields(host().component(kind, name).config)}
    settings = [s for s in SMALL.get(kind, ()) if s.partition("=")[0] in fields]
    settings += OWN.get(name, ())
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
    "jsonl": ("path=pairs.jsonl",),
    "tmx": ("path=pairs.tmx",),
    "xliff": ("path=pairs.xlf",),
}


@pytest.mark.parametrize("name", [c.name for c in built_in("corpora")])
def test_reader_keeps_its_contract(name, catalogues, mtplug_corpus):
    assert name in CORPORA, "say above what this reader reads"
    root = mtplug_corpus if name == "text" else catalogues
    testing.check_corpus(name, f"root={root}", *CORPORA[name])


def test_every_kind_has_a_contract_and_a_check():
    assert set(CONTRACTS) == set(KINDS)
    for kind in KINDS:
        assert callable(getattr(testing, f"check_{singular(kind)}"))


def test_fixtures_are_there(mtplug_run):
    import mtplug

    assert mtplug.load(mtplug_run, device="cpu").translate(["ka lo mi"]) == ["one two three"]
