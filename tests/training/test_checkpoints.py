"""Checkpoints that were changed by others, and files of others beside them."""

import errno
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mtplug.cli import average, inspect, train
from mtplug.errors import UserError
from mtplug.training import checkpoints as ckpt
from mtplug.translator import load
from tests import tiny

SETTINGS = ("training.max_updates=4", "checkpoint.every_updates=2", "data.test=null")
STEP = "step-00000004"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    tiny.write_corpus(folder)
    return tiny.train(folder, "run", *SETTINGS)


@pytest.fixture
def run(made, tmp_path):
    for file in ("run.yaml", "train.xx", "train.en", "valid.xx", "valid.en"):
        shutil.copy(made.parent / file, tmp_path / file)
    return shutil.copytree(made, tmp_path / "run", symlinks=True)


def resumed(run, updates=6):
    return train.main(
        tiny.arguments(run.parent, "run", *SETTINGS, f"training.max_updates={updates}")
    )


def said(capsys, status, wanted=2):
    error = capsys.readouterr().err
    assert status == wanted and error.count("\n") >= 1 and "Traceback" not in error, error
    return error.splitlines()[-1]


def change(file, how):
    tensors = load_file(file)
    how(tensors)
    save_file(tensors, file)


@pytest.mark.parametrize("linked", [False, True])
def test_only_what_an_interrupted_writing_leaves_is_removed_on_resume(run, linked):
    """Every hidden file of the folder went, which may lead to anything."""
    folder = run / "checkpoints"
    if linked:
        folder = folder.rename(run.parent / "elsewhere")
        (run / "checkpoints").symlink_to(folder)
    (folder / ".git").mkdir()
    for name in (".bashrc", ".git/config", ".nfs0001"):
        (folder / name).write_text("mine")
    mine = run.parent / "mine"
    mine.mkdir()
    (mine / "file").write_text("mine")
    (folder / ".step-00000005.partial").mkdir()
    (folder / ".step-00000006.partial").symlink_to(mine)
    (folder / ".step-00000001.removed").mkdir()
    (folder / ".best.partial").symlink_to("step-00000005")
    ckpt.Checkpoints(run / "checkpoints").clean()
    hidden = {p.name for p in folder.glob(".*")}
    assert hidden == {".git", ".bashrc", ".nfs0001"}
    assert (folder / ".git/config").read_text() == (mine / "file").read_text() == "mine"


def test_of_two_that_write_one_name_at_once_each_is_whole(tmp_path, monkeypatch):
    """Two `mtplug-average`: one removed what the other was writing, or took half of its files."""
    checkpoints, save, seen = ckpt.Checkpoints(tmp_path), ckpt.save_tensors, []

    def write(number):
        monkeypatch.setattr("os.getpid", lambda: number)
        path = checkpoints.save("averaged", {"w": torch.tensor([number])}, {"update": number})
        seen.append((ckpt.read_weights(path)["w"].item(), ckpt.read_state(path)["update"]))

    def interrupted(*given):
        save(*given)
        monkeypatch.setattr(ckpt, "save_tensors", save)
        write(2)

    monkeypatch.setattr(ckpt, "save_tensors", interrupted)
    write(1)
    assert seen == [(2, 2), (1, 1)] and [p.name for p in tmp_path.iterdir()] == ["averaged"]


@pytest.mark.parametrize(("how", "told"), [
    (lambda t: t["decoder.0.ffn.norm.bias"].fill_(torch.nan), "decoder.0.ffn.norm.bias has values that are NaN"),
    (lambda t: t["decoder.0.ffn.norm.bias"][1].fill_(torch.inf), "decoder.0.ffn.norm.bias has values that are NaN"),
])  # fmt: skip
def test_weights_that_are_not_finite_are_refused_by_all(run, capsys, how, told):
    file = run / "checkpoints" / STEP / "model.safetensors"
    change(file, how)
    with pytest.raises(UserError, match=told):
        load(run, STEP)
    assert told in said(capsys, average.main([str(run), STEP, "--name", "mean"]))
    assert told in said(capsys, resumed(run))
    line = tiny.arguments(run.parent, "other", *SETTINGS, f"training.init_from={file}")
    assert told in said(capsys, train.main(line))


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64, torch.bool])
def test_weights_of_another_kind_of_numbers_are_refused(run, capsys, dtype):
    file, name = run / "checkpoints" / STEP / "model.safetensors", "decoder.0.ffn.norm.bias"
    change(file, lambda t: t.update({name: t[name].to(dtype)}))
    told = f"{name} is of type {dtype}, the architecture wants torch.float32"
    with pytest.raises(UserError, match=told):
        load(run, STEP)
    line = tiny.arguments(run.parent, "other", *SETTINGS, f"training.init_from={file}")
    assert told in said(capsys, train.main(line))


def test_halves_whose_sum_is_none_are_finite(run):
    """4,096 times 32 is more than the largest fp16, 65,504."""
    file, name = run / "checkpoints" / STEP / "model.safetensors", "decoder.0.ffn.norm.bias"
    change(file, lambda t: t.update({name: torch.full_like(t[name], 4096).half()}))
    assert load(run, STEP).model.state_dict()[name].unique().tolist() == [4096]


def test_a_mean_of_complex_weights_keeps_both_parts(tmp_path):
    for name, value in (("a", 1 + 2j), ("b", 3 - 4j)):
        (tmp_path / name).mkdir()
        save_file({"w": torch.tensor([value])}, tmp_path / name / "model.safetensors")
    mean = ckpt.average([tmp_path / "a", tmp_path / "b"])
    assert mean["w"].dtype == torch.complex64 and mean["w"].tolist() == [2 - 1j]


@pytest.mark.parametrize("name", ["", ".hidden", "a/b"])
def test_a_name_that_is_none_is_refused(run, capsys, name):
    """The empty one is the folder of all checkpoints, which was called damaged, and to be removed."""
    message = said(capsys, average.main([str(run), STEP, "--name", name]))
    assert "no name of a checkpoint" in message and "remove" not in message


def test_a_folder_of_the_name_is_there_already(run, capsys):
    (run / "checkpoints" / "mine").mkdir()
    assert "is there already: give" in said(
        capsys, average.main([str(run), STEP, "--name", "mine"])
    )


def test_only_what_a_run_can_do_without_is_advised_to_be_removed(run, capsys):
    other = run.parent / "other"
    shutil.copytree(run / "checkpoints" / STEP, other)
    for folder in (other, run / "checkpoints" / STEP):
        (folder / "state.json").write_text("{")
    best = run / "checkpoints" / "best"
    best.unlink()
    best.symlink_to(other)
    with pytest.raises(UserError, match="is damaged") as raised:
        load(run, "best")
    assert "remove" not in str(raised.value)
    with pytest.raises(UserError, match=f"or remove {run}/checkpoints/{STEP} to go on without it"):
        load(run, "last")


@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_bytes(b"")])
def test_what_training_is_told_of_a_damaged_checkpoint_it_can_do(run, capsys, damage):
    """It was told to use --checkpoint, which it does not have, and nothing at all of a file that is missing."""
    damage(run / "checkpoints" / STEP / "training.safetensors")
    message = said(capsys, resumed(run))
    assert message.endswith(f"or remove {run}/checkpoints/{STEP} to go on without it")
    assert "to translate: --checkpoint" in message
    shutil.rmtree(run / "checkpoints" / STEP)
    assert resumed(run) == 0


def test_a_checkpoint_is_found_without_its_zeros(run):
    """Help calls it step-N, and step-4 was none."""
    found = ckpt.Checkpoints(run / "checkpoints")
    assert found.find("step-4") == found.find(STEP)
    with pytest.raises(UserError, match="no checkpoint 'step-3'"):
        found.find("step-3")


def test_a_state_that_may_not_be_read_is_not_damaged(run, capsys, monkeypatch):
    read = Path.read_text

    def denied(self, *args, **settings):
        if self.name == "state.json":
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return read(self, *args, **settings)

    monkeypatch.setattr(Path, "read_text", denied)
    message = said(capsys, inspect.main([str(run / "checkpoints" / STEP)]))
    assert message.endswith("state.json: Permission denied")


def test_a_missing_file_is_missing(run, capsys):
    (run / "checkpoints" / STEP / "state.json").unlink()
    message = said(capsys, average.main([str(run), STEP, "--name", "mean"]))
    assert "No such file" in message and "remove" not in message


@pytest.mark.parametrize(("changed", "told"), [
    ({"version": [1]}, "version or update is no whole number"),
    ({"version": "1"}, "version or update is no whole number"),
    ({"update": None}, "version or update is no whole number"),
    ({"update": ...}, "it has no update"),
    ({"optimizer": ...}, "it has no optimizer"),
    ({"seconds": "long"}, "seconds is 'long'"),
    ({"best": [3]}, "best is [3]"),  # went on as if it were a score
    ({"without_better": None}, "without_better is None"),
    ({"data": [1, 2]}, "data is [1, 2]"),
    ({"data": {"epoch": 1}}, "KeyError: 'sample_offset'"),
    ({"data": {"epoch": 1, "sample_offset": 2.5}}, "TypeError: sample_offset is 2.5"),
    ({"optimizer": {"param_groups": [3], "values": {}}}, "TypeError: 'int' object is not"),
    ({"optimizer": {"param_groups": [], "values": {}}}, "ValueError: loaded state dict has a different number"),
    ({"window": {"parts": {"nll": "x"}}}, "TypeError: nll is 'x'"),
])  # fmt: skip
def test_a_state_changed_by_hand_is_told(run, capsys, changed, told):
    file = run / "checkpoints" / STEP / "state.json"
    state = json.loads(file.read_text()) | changed
    file.write_text(json.dumps({k: v for k, v in state.items() if v is not ...}))
    assert f"{STEP}/state.json is damaged ({told}" in said(capsys, resumed(run))
    if changed.keys() <= {"version", "update"}:  # which is all that is read of it but to go on
        assert told in said(capsys, average.main([str(run), STEP, "--name", "mean"]))
        assert told in said(capsys, inspect.main([str(run)]))


def test_a_link_that_leads_to_itself_is_told(run, capsys):
    best = run / "checkpoints" / "best"
    best.unlink()
    best.symlink_to("best")
    with pytest.raises(UserError, match="no checkpoint 'best'"):
        load(run, "best")
    assert "no checkpoint 'best'" in said(capsys, inspect.main([str(run), "--tensors"]))
    assert inspect.main([str(run)]) == 0


def test_a_mean_of_other_kinds_of_numbers_is_refused(run, capsys):
    other = shutil.copytree(run / "checkpoints" / STEP, run / "checkpoints" / "mine")
    name = "decoder.0.ffn.norm.bias"
    change(other / "model.safetensors", lambda t: t.update({name: t[name].to(torch.int8)}))
    for names in ([STEP, "mine"], ["mine", STEP]):
        message = said(capsys, average.main([str(run), *names, "--name", "mean"]))
        assert "holds another model than" in message
