"""Frozen parameters keep every bit, for as long as the schedule says."""

import pytest
import torch
from safetensors.torch import load_file

from mtplug.config.schema import FreezeConfig
from mtplug.errors import UserError
from mtplug.plugins import host
from mtplug.testing.material import MeanWords
from mtplug.training.freezing import Freezing
from tests import tiny

FAST = ("validation.translate=false", "validation.best_metric=loss", "checkpoint.keep_last=9",
        "validation.every_updates=2", "architecture.dropout=0.1", "data.test=null")  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("freezing")
    tiny.write_corpus(made)
    return made


def weights(run, update):
    return load_file(run / f"checkpoints/step-{update:08d}/model.safetensors")


def changed(before, after):
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


SCHEDULE = (
    "training.freeze=[{parameters: 'encoder.*', until: 2}, {parameters: decoder_norm.*},"
    " {parameters: 'decoder.0.* decoder.1.ffn.*', since: 3, until: 4}]"
)


def test_schedule_freezes_and_thaws(folder):
    run = tiny.train(folder, "run", SCHEDULE, "training.max_updates=6", *FAST)
    two, four, six = (weights(run, n) for n in (2, 4, 6))
    start = tiny.trainer(folder, f"run_dir={folder / 'start'}", f"data.root={folder}", *FAST)
    zero = {n: p.detach() for n, p in start.model.named_parameters()}
    first = {n for n in zero if n.startswith("encoder.")}
    last = {n for n in zero if n.startswith(("decoder.0.", "decoder.1.ffn"))}
    good = {n for n in zero if n.startswith("decoder_norm.")}
    assert changed(zero, two) == set(zero) - first - good
    assert changed(two, four) == set(zero) - last - good
    assert changed(four, six) == set(zero) - good


def test_resumed_in_the_middle_of_a_schedule(folder):
    settings = (SCHEDULE, *FAST)
    whole = tiny.train(folder, "whole", "training.max_updates=6", *settings)
    for updates in (1, 3, 6):
        parts = tiny.train(folder, "parts", f"training.max_updates={updates}", *settings)
    for name in ("model", "training"):
        files = [r / f"checkpoints/last/{name}.safetensors" for r in (whole, parts)]
        assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("name", host().names("optimizers"))
def test_no_optimizer_moves_what_is_frozen(name, folder):
    """Neither weight decay nor momentum of earlier updates nor an average of the weights."""
    if name == "schedule_free":
        pytest.importorskip("schedulefree")
    decay = "optimizer.weight_decay=0.1"
    fields = host().component("optimizers", name).config.__dataclass_fields__
    ema = [] if name == "schedule_free" else ["training.ema_decay=0.5"]
    run = tiny.train(
        folder, name, f"optimizer.name={name}", *([decay] if "weight_decay" in fields else []), *ema,
        "training.freeze={parameters: encoder_embedding.* encoder.1.*, since: 3}",
        "training.max_updates=4", *FAST, *(["training.ema_decay=0"] if not ema else []),
    )  # fmt: skip
    two, four = (
        load_file(run / f"checkpoints/step-0000000{n}/training.safetensors") for n in (2, 4)
    )
    key = "raw.encoder.1.ffn.norm.weight"
    if key in two:  # the weights that train, beside their averages
        assert torch.equal(two[key], four[key])
        assert not torch.equal(
            two["raw.encoder.0.ffn.norm.weight"], four["raw.encoder.0.ffn.norm.weight"]
        )
    else:
        moved = changed(weights(run, 2), weights(run, 4))
        assert not any(n.startswith(("encoder_embedding", "encoder.1.")) for n in moved) and moved


def test_tied_parameters_are_named(folder):
    run = tiny.trainer(
        folder, f"run_dir={folder / 'tied'}", f"data.root={folder}", "training.freeze=output.weight"
    )
    assert not run.model.encoder_embedding.weight.requires_grad
    (line,) = run.beginning
    assert "frozen too: encoder_embedding.weight, decoder_embedding.weight" in line


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([FreezeConfig("sorce.*")], r"called 'sorce.\*'; did you mean 'source.\*'"),
        ([FreezeConfig("*")], "every parameter is frozen at update 1"),
        ([FreezeConfig("source.* target.*"), FreezeConfig("rnn.* output.*", 9, 4)], "at update 4"),
    ],
)
def test_what_cannot_be_is_told(entries, message):
    with pytest.raises(UserError, match=message):
        Freezing(MeanWords(), entries)


def test_wrong_settings_are_told():
    with pytest.raises(ValueError, match="no update is from 5 until 4"):
        FreezeConfig("*", 4, 5)
    with pytest.raises(ValueError, match="'parameters' is missing"):
        FreezeConfig()
