"""A run begins with the weights of another, and says which it took."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from mtplug.architectures.base import output_of
from mtplug.architectures.vocabulary import rows_between, tables
from mtplug.config.build import component_from_overrides
from mtplug.config.schema import InitFromConfig
from mtplug.data.tokenizers import pieces_of
from mtplug.errors import UserError
from mtplug.optim.tables import is_table, mark_tables
from mtplug.testing.material import TINY_TRANSFORMER, Words, WordsTask
from mtplug.training import checkpoints as ckpt
from mtplug.training.initialise import initialise, told, weights_file
from mtplug.training.trackers import read_events
from tests import tiny

SMALL = ["dim=16", "ffn_dim=16", "heads=2", "encoder_layers=2", "decoder_layers=1"]
ONE = ("training.max_updates=1", "validation.translate=false", "validation.best_metric=loss")


def model_of(seed, *settings, task=None):
    torch.manual_seed(seed)
    chosen = component_from_overrides("architectures", "transformer", [*SMALL, *settings])
    return chosen.build(task or WordsTask())


@pytest.fixture
def base(tmp_path):
    """A checkpoint by itself."""
    (tmp_path / "base").mkdir()
    model = model_of(1)
    save_file(ckpt.weights(model), tmp_path / "base" / "model.safetensors")
    return model, str(tmp_path / "base")


def test_all_of_it(base):
    whole, path = base
    own = model_of(2)
    (record,) = initialise(own, WordsTask(), [InitFromConfig(path)])
    for name, tensor in ckpt.weights(whole).items():
        assert torch.equal(ckpt.weights(own)[name], tensor)
    assert not record["fresh"] and not record["left"]


def test_part_of_it_by_name_prefix_and_shape(base):
    whole, path = base
    settings = ("decoder_layers=2", "ffn_dim=24", "tie_embeddings=none")
    own, untouched = model_of(2, *settings), model_of(2, *settings)
    source = InitFromConfig(path, "encoder* decoder.1.*", {"decoder.1.": "decoder.0."})
    (record,) = initialise(own, WordsTask(), [source])
    theirs, before = ckpt.weights(whole), ckpt.weights(untouched)
    taken = {e["name"]: e["from"] for e in record["taken"]}
    why = {e["name"]: e["why"] for e in record["fresh"]}
    for name, tensor in ckpt.weights(own).items():
        expected = theirs[taken[name]] if name in taken else before[name]
        assert torch.equal(tensor, expected), name
    assert taken["decoder.1.cross.norm.bias"] == "decoder.0.cross.norm.bias"
    assert taken["encoder_embedding.weight"] == "encoder_embedding.weight"
    assert why["encoder.1.ffn.body.inner.weight"].endswith("has the shape (16, 16)")
    assert why["decoder.0.cross.norm.bias"] == "not asked for"
    assert set(taken) | set(why) == set(before) and not set(taken) & set(why)
    left = {e["name"] for e in record["left"]}
    assert left == set(theirs) - set(taken.values())
    lines = told([record])
    assert any("encoder.#.attention.body.q.weight (16, 16) ×2" in line for line in lines)


def test_tied_tensors_are_found_under_their_other_names(base, tmp_path):
    own = model_of(2)  # one table, which it calls encoder_embedding.weight
    table = torch.randn(len(Words()), 16)
    save_file({"output.weight": table}, tmp_path / "output.safetensors")
    (record,) = initialise(own, WordsTask(), [InitFromConfig(str(tmp_path / "output.safetensors"))])
    assert [e["from"] for e in record["taken"]] == ["output.weight"]
    assert torch.equal(own.encoder_embedding.weight, table)


def test_several_sources_the_last_wins(base, tmp_path):
    first, path = base
    second = model_of(3)
    save_file(ckpt.weights(second), tmp_path / "second.safetensors")
    own = model_of(2)
    sources = [
        InitFromConfig(path),
        InitFromConfig(str(tmp_path / "second.safetensors"), "decoder.*"),
    ]
    assert len(initialise(own, WordsTask(), sources)) == 2
    assert torch.equal(own.decoder[0].ffn.norm.weight, second.decoder[0].ffn.norm.weight)
    assert torch.equal(
        own.decoder[0].ffn.body.inner.weight, second.decoder[0].ffn.body.inner.weight
    )
    assert torch.equal(own.encoder[0].ffn.body.inner.weight, first.encoder[0].ffn.body.inner.weight)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"path": "nowhere"}, "nowhere is no run, no folder of a checkpoint and no file"),
        ({"parameters": "encodr.*"}, r"called 'encodr.\*'; did you mean 'encoder.\*'"),
        (
            {"rename": {"encode.": "x."}},
            "rename: no tensor of the model begins with 'encode.'; it has ",
        ),
        (
            {"rename": {"": "model."}},
            "nothing in .* fits the model by name and shape: it holds .*{path: .*, rename: {NAME.: OTHER.}}",
        ),
    ],
)
def test_what_cannot_be_is_told(base, source, message):
    with pytest.raises(UserError, match=message):
        initialise(model_of(2), WordsTask(), [InitFromConfig(**{"path": base[1], **source})])


def test_an_adapter_is_no_model_to_begin_with(tmp_path):
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (tmp_path / name).touch()
    with pytest.raises(
        UserError, match="holds an adapter; first make one model of it and its base"
    ):
        initialise(model_of(2), WordsTask(), [InitFromConfig(str(tmp_path))])


def test_weights_are_not_taken_without_the_adapter_that_they_had(tmp_path):
    """That of a run with a method and no base lies beside them, and was left behind."""
    lora = component_from_overrides("peft_methods", "lora", ["targets=[encoder.self.q]"]).build()
    model = lora.apply(model_of(1))
    save_file(ckpt.weights(model), tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="holds an adapter beside its weights"):
        initialise(model_of(2), WordsTask(), [InitFromConfig(str(tmp_path))])
    own = model_of(2)
    initialise(own, WordsTask(), [InitFromConfig(str(tmp_path), "decoder.*")])
    assert torch.equal(own.decoder[0].ffn.body.inner.weight, model.decoder[0].ffn.body.inner.weight)


class Pieces(Words):
    """A vocabulary of given pieces."""

    def __init__(self, *pieces):
        self.words = ["<pad>", "</s>", "<unk>", *pieces]


def test_rows_of_another_vocabulary_go_by_piece():
    base = Pieces("▁", "▁ha", "us", "ab", "b", "c")
    new = Pieces("<mask>", "us", "▁haus", "▁abc", "xyz", "b")
    rows = rows_between(pieces_of(new), pieces_of(base))
    # by hand: ▁haus = ▁ha + us; ▁abc = ▁ + ab + c; xyz cannot be spelt, <mask> is a symbol
    assert rows.sources == [[0], [1], [2], [], [5], [4, 5], [3, 6, 8], [], [7]]
    assert (rows.shared, rows.composed, rows.fresh, rows.dropped) == (5, 2, 2, 4)
    old, own = torch.randn(9, 4), torch.randn(9, 4)
    made = rows.taken(old, own)
    assert torch.equal(made[4], old[5]) and torch.equal(made[8], old[7])
    assert torch.equal(made[3], own[3]) and torch.equal(made[7], own[7])
    torch.testing.assert_close(made[6], (old[3] + old[6] + old[8]) / 3)
    assert rows_between(pieces_of(base), pieces_of(base)) is None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("init")
    tiny.write_corpus(made)
    tiny.train(made, "base", *ONE)
    return made


@pytest.mark.parametrize("tie", ["none", "decoder"])
def test_output_weights_and_bias_of_marian_are_tables(tie):
    """The bias stayed where it was when a vocabulary changed, and the weights where they are not tied."""
    settings = [*TINY_TRANSFORMER, f"tie_embeddings={tie}"]
    model = component_from_overrides("architectures", "marian", settings).build(WordsTask())
    found = tables(model, *[len(WordsTask().source_tokenizer)] * 2)
    sides = {"encoder_embedding": "source", "decoder_embedding": "target", "output": "target"}
    assert found == {**{f"{k}.weight": v for k, v in sides.items()}, "output_bias": "target"}
    mark_tables(model, output_of(model)[0])
    assert is_table(model.output.weight) and not is_table(model.output_bias)


def test_a_run_tells_and_keeps_what_it_began_with(folder, capsys):
    run = tiny.train(
        folder, "again", f"training.init_from={folder / 'base'}", *ONE, "optimizer.lr=0"
    )
    assert "tensors" in capsys.readouterr().err
    (record,) = json.loads((run / "initialisation.json").read_text())
    file = folder / "base/checkpoints/step-00000001/model.safetensors"
    assert record["file"] == str(file) and not record["fresh"] and not record["left"]
    # at rate zero the run ends as it began
    theirs, own = load_file(file), load_file(run / "checkpoints/last/model.safetensors")
    assert all(torch.equal(own[name], tensor) for name, tensor in theirs.items())


def test_a_resumed_run_does_not_begin_again(folder):
    settings = (f"training.init_from={folder / 'gone'}", "training.max_updates=4", *ONE[1:])
    (folder / "base").rename(folder / "gone")
    whole = tiny.train(folder, "whole", *settings)
    cut = ("training.max_updates=2", *ONE[1:])
    tiny.train(folder, "parts", settings[0], *cut)
    (folder / "gone").rename(folder / "base")  # its base is not needed any more
    parts = tiny.train(folder, "parts", *settings)
    last = [r / "checkpoints/last/model.safetensors" for r in (whole, parts)]
    assert last[0].read_bytes() == last[1].read_bytes()
    assert [e["update"] for e in read_events(parts / "metrics.jsonl") if e["event"] == "train"] == [
        1
    ]


def test_same_size_but_other_pieces_is_not_taken_by_number(folder):
    """A second language pair with as many pieces: every word keeps its own row."""
    (folder / "turned").mkdir()
    for split in ("train", "valid", "test"):
        for language in ("xx", "en"):
            lines = (folder / f"{split}.{language}").read_text().splitlines()
            # the rarest word becomes the most frequent: the pieces change their numbers
            text = "\n".join(f"{line} {line.split()[0]} ten we ten we" for line in lines)
            (folder / "turned" / f"{split}.{language}").write_text(text + "\n")
    run = tiny.train(
        folder, "other", f"data.root={folder / 'turned'}", f"training.init_from={folder / 'base'}",
        *ONE, "optimizer.lr=0",
    )  # fmt: skip
    (record,) = json.loads((run / "initialisation.json").read_text())
    table = next(e for e in record["taken"] if e["name"] == "encoder_embedding.weight")
    assert table["vocabulary"]["shared"] == 23 and table["vocabulary"]["dropped"] == 0
    import mtplug

    rows = {}
    for name in ("base", "other"):
        task = mtplug.load(folder / name, device="cpu").task
        pieces = task.source_tokenizer.tokens(list(range(23)))
        weights = load_file(folder / name / "checkpoints/last/model.safetensors")
        rows[name] = (pieces, dict(zip(pieces, weights["encoder_embedding.weight"], strict=True)))
    assert rows["base"][0] != rows["other"][0]
    for piece, row in rows["base"][1].items():
        assert torch.equal(rows["other"][1][piece], row)


def test_a_run_that_was_not_validated_yet_gives_its_last_weights(tmp_path):
    made = tmp_path / "run" / "checkpoints" / "step-00000001"
    made.mkdir(parents=True)
    save_file({"w": torch.ones(1)}, made / "model.safetensors")
    (made.parent / "last").symlink_to(made.name)
    assert weights_file(str(tmp_path / "run")).resolve() == made / "model.safetensors"
    other = made.with_name("step-00000000")
    other.mkdir()
    save_file({"w": torch.zeros(1)}, other / "model.safetensors")
    (made.parent / "best").symlink_to(other.name)
    assert weights_file(str(tmp_path / "run")).resolve() == other / "model.safetensors"
