"""A fine-tuning run from its base to its files and back."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import mtplug
from mtplug import testing
from mtplug.cli import average, evaluate, inspect, train
from mtplug.errors import UserError
from mtplug.peft import files
from mtplug.training import checkpoints as ckpt
from mtplug.training import run as whole_run
from mtplug.training.finetune import base_checkpoint

TEXTS = ["ka lo mi", "we so ti ra", "nu"]
METHODS = {
    "lora": "{name: lora, rank: 2, targets: [embedding, self, ffn.in]}",
    "dora": "{name: lora, dora: true, dropout: 0.1}",
    "lora_xs": "{name: lora_xs, share: 0.2}",
    "bitfit": "bitfit",
    "select": "{name: select, targets: [norm, embedding]}",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A trained base; its folder has the corpora too."""
    folder = tmp_path_factory.mktemp("peft")
    return testing.train(folder, updates=60, name="base")


def finetune(base, method, name, *settings, updates=4):
    peft = f"peft={METHODS.get(method, method)}"
    here = f"training.finetune_from={base}"
    return testing.train(
        base.parent, here, peft, "optimizer.lr=1e-2", *settings, updates=updates, name=name
    )


@pytest.fixture(scope="module")
def runs(base):
    return {m: finetune(base, m, m) for m in METHODS}


def state(run):
    model = mtplug.load(run).model
    return dict(model.state_dict())


@pytest.mark.parametrize("method", METHODS)
def test_only_the_adapter_is_saved_and_the_base_stays_as_it_was(base, runs, method):
    folder = runs[method] / "checkpoints" / "last"
    there = {f.name for f in folder.iterdir()}
    assert there == {
        "adapter_model.safetensors", "adapter_config.json", "training.safetensors", "state.json",
    }  # fmt: skip
    trained = {files.bare(n.removeprefix(files.PREFIX)) for n in load_file(folder / files.WEIGHTS)}
    old, new = state(base), state(runs[method])
    for name, tensor in old.items():
        if name not in trained and name not in ("output.weight", "decoder_embedding.weight"):
            assert torch.equal(new[name], tensor), name
    changed = [n for n, t in new.items() if n not in old or not torch.equal(old[n], t)]
    assert changed


@pytest.mark.parametrize("method", METHODS)
def test_resumed_runs_end_with_the_same_bits(base, runs, method):
    parts = finetune(base, method, f"{method}-parts", "validation.every_updates=2", updates=2)
    finetune(base, method, f"{method}-parts", "validation.every_updates=2", updates=4)
    for file in (files.WEIGHTS, "training.safetensors"):
        whole, again = (load_file(r / "checkpoints" / "last" / file) for r in (runs[method], parts))
        assert whole.keys() == again.keys()
        for name in whole:
            assert torch.equal(whole[name], again[name]), name


@pytest.mark.parametrize(
    "settings",
    [
        ["training.ema_decay=0.9", "peft.lora_plus=4", "optimizer.name=adamw"],
        ["optimizer.name=schedule_free", "lr_scheduler.name=constant"],
    ],
)
def test_averaged_weights_and_rates_apart_resume_too(base, settings):
    every = ["validation.every_updates=2", *settings]
    whole = finetune(base, "{name: lora, rank: 2}", f"whole-{settings[0]}", *every, updates=4)
    parts = finetune(base, "{name: lora, rank: 2}", f"parts-{settings[0]}", *every, updates=2)
    finetune(base, "{name: lora, rank: 2}", f"parts-{settings[0]}", *every, updates=4)
    for file in (files.WEIGHTS, "training.safetensors"):
        a, b = (load_file(r / "checkpoints" / "last" / file) for r in (whole, parts))
        assert a.keys() == b.keys()
        for name in a:
            assert torch.equal(a[name], b[name]), name
    raw = [
        n
        for n in load_file(whole / "checkpoints/last/training.safetensors")
        if n.startswith("raw.")
    ]
    assert raw and all(".peft." in n for n in raw)  # nothing of the base is in there


@pytest.mark.parametrize("method", METHODS)
def test_translate_evaluate_inspect_and_average_work_on_an_adapter(base, runs, method, capsys):
    run = runs[method]
    assert mtplug.load(run).translate(TEXTS) != mtplug.load(base).translate([""] * 3)
    if method != "lora":
        return
    for main, *args in (
        (evaluate.main, run),
        (average.main, run, "--last", "2"),
        (inspect.main, run / "checkpoints" / "averaged"),
    ):
        assert main([str(a) for a in args]) == 0
    shown = capsys.readouterr().out
    assert "lora" in shown and str(base) in shown
    parts = [ckpt.read_weights(p) for p in ckpt.Checkpoints(run / "checkpoints").steps()]
    averaged = ckpt.read_weights(run / "checkpoints" / "averaged")
    for name, tensor in averaged.items():
        torch.testing.assert_close(tensor, sum(p[name] for p in parts) / 2)
    shutil.rmtree(run / "checkpoints" / "averaged")


def test_tokenizer_architecture_and_weights_are_the_bases(base, runs):
    config = mtplug.config.load_resolved(runs["lora"] / "config.yaml")
    assert config.architecture.config.dim == 32 and config.tokenizer.config.vocab_size == 23
    assert (runs["lora"] / "tokenizer" / "tokenizer.json").read_text() == (
        base / "tokenizer" / "tokenizer.json"
    ).read_text()
    start = finetune(base, "bitfit", "still", "optimizer.lr=0", updates=1)
    new = state(start)
    for name, tensor in state(base).items():
        assert torch.equal(new[name], tensor), name


def test_of_a_base_the_best_checkpoint_is_taken_unless_another_is_named(base, tmp_path):
    copy = tmp_path / "base"
    shutil.copytree(base, copy, symlinks=True)
    step = ckpt.Checkpoints(copy / "checkpoints").steps()[-1]
    assert base_checkpoint(str(copy)) == (copy, "best")
    assert base_checkpoint(str(step)) == (copy, step.name)
    (copy / "checkpoints/best").unlink()
    assert base_checkpoint(str(copy)) == (copy, "last")


def test_all_weights_can_be_fine_tuned_and_then_need_no_base(base):
    full = testing.train(
        base.parent, f"training.finetune_from={base / 'checkpoints/last'}", updates=2, name="full"
    )
    away = full.with_name("moved-base")
    base.rename(away)
    try:
        assert mtplug.load(full).translate(TEXTS)
        with pytest.raises(UserError, match=r"training.finetune_from: .*base is no run"):
            finetune(base, "bitfit", "none")
    finally:
        away.rename(base)


def test_another_base_is_refused(base, runs, tmp_path):
    other = testing.train(base.parent, "seed=2", updates=2, name="other")
    with pytest.raises(UserError, match=r"was made on another base than .*other: fingerprint"):
        mtplug.load(runs["lora"], overrides=[f"training.finetune_from={other}"])
    moved = tmp_path / "elsewhere"
    shutil.copytree(base, moved)
    there = mtplug.load(runs["lora"], overrides=[f"training.finetune_from={moved}"])
    assert there.translate(TEXTS) == mtplug.load(runs["lora"]).translate(TEXTS)


@pytest.mark.parametrize(("change", "said"), [
    (lambda t: t.pop(min(t)), "missing: "),
    (lambda t: t.update({"base_model.model.more": torch.ones(1)}), "not in the model: more"),
    (lambda t: t.update({"more": torch.ones(1)}), "'more' does not begin with"),
    (lambda t: t.update({min(t): torch.ones(2, 3, 4)}), "shape"),
    (lambda t: t["base_model.model.output.lora_A.weight"].add_(1), "output and encoder_embedding share one table"),
])  # fmt: skip
def test_an_adapter_file_with_other_keys_is_refused(runs, tmp_path, change, said):
    run = tmp_path / "copy"
    shutil.copytree(runs["lora"], run, symlinks=True)
    file = run / "checkpoints" / "last" / files.WEIGHTS
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    with pytest.raises(UserError, match=said):
        mtplug.load(run, "last")


def test_adapter_files_are_described_in_the_words_of_hugging_face(base, runs):
    described = json.loads((runs["lora"] / "checkpoints/last/adapter_config.json").read_text())
    assert (
        described["peft_type"] == "LORA" and described["r"] == 2 and described["lora_alpha"] == 16
    )
    assert {"encoder_embedding", "output"} < set(described["target_modules"])
    assert described["base_model_name_or_path"] == str(base)
    method = files.method_of({k: v for k, v in described.items() if k != "mtplug"}, base)
    assert method.name == "lora" and method.config.rank == 2


def test_a_tokenizer_or_architecture_of_ones_own_is_refused(base):
    with pytest.raises(UserError, match="leave the group out"):
        finetune(base, "bitfit", "wrong", "tokenizer.vocab_size=20")


def test_the_methods_own_learning_rate_is_the_default(base):
    load = mtplug.config.load_config
    here = [f"training.finetune_from={base}"]
    run, origins = load(None, [*here, "peft.name=lora"])
    assert run.optimizer.config.lr == 1e-3 and origins["optimizer.lr"].endswith("peft.name=lora")
    assert load(None, [*here, "peft.name=lora", "optimizer.lr=3e-4"])[0].optimizer.config.lr == 3e-4


def test_a_run_on_top_of_an_adapter_keeps_it(base, runs):
    stacked = finetune(
        runs["lora"],
        "{name: lora, rank: 1, targets: [self.q]}",
        "stacked",
        "optimizer.lr=0",
        updates=1,
    )
    assert mtplug.load(stacked).translate(TEXTS) == mtplug.load(runs["lora"]).translate(TEXTS)
    kept = load_file(stacked / "checkpoints" / "last" / files.WEIGHTS)
    assert len(kept) == 2 * 4 and all(".self" not in n for n in kept)
    with pytest.raises(UserError, match="mtplug-peft merge"):
        testing.train(base.parent, f"training.finetune_from={runs['lora']}", updates=1, name="all")


def test_fingerprint_tells_shapes_names_types_and_bits_apart():
    tensors = [
        {"a": torch.zeros(2, 3)}, {"a": torch.zeros(3, 2)}, {"b": torch.zeros(2, 3)},
        {"a": torch.zeros(2, 3, dtype=torch.int32)}, {"a": -torch.zeros(2, 3)},
    ]  # fmt: skip
    assert len({files.fingerprint(t) for t in tensors}) == len(tensors)
    strided = torch.arange(6.0).reshape(3, 2).T
    assert files.fingerprint({"a": strided}) == files.fingerprint({"a": strided.contiguous()})


def test_a_refused_resume_leaves_the_run_as_it_was(base, runs):
    """config.yaml had the wrong base by then, and nothing could load the adapter any more."""
    other = testing.train(base.parent, "seed=2", updates=2, name="wrong-base")
    before = {f: f.read_bytes() for f in runs["lora"].iterdir() if f.is_file()}
    with pytest.raises(UserError, match=f"was made on another base than {other}: fingerprint"):
        finetune(base, "lora", "lora", f"training.finetune_from={other}")
    assert {f: f.read_bytes() for f in runs["lora"].iterdir() if f.is_file()} == before
    assert mtplug.load(runs["lora"]).translate(TEXTS)


@pytest.mark.parametrize(("setting", "said"), [
    ("tokenizer.vocab_size=20", "leave the group out"),
    ("training.init_from=nowhere", "training.finetune_from sets the weights already"),
    ("architecture.name=lstm", "architecture.name=lstm: the base BASE is a transformer; leave it out"),
])  # fmt: skip
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_what_a_base_decides_is_refused_before_anything_is_written(
    base, capsys, setting, said, dry
):
    line = [base.parent / "run.yaml", f"data.root={base.parent}", "run_dir=never", "peft=lora"]
    line += [f"training.finetune_from={base}", setting, *dry]
    assert train.main([str(a) for a in line]) == 2
    error = capsys.readouterr().err
    assert said.replace("BASE", str(base)) in error and error.count("\n") == 1
    assert not Path("never").exists()


def test_dry_run_refuses_to_go_on_from_an_adapter_of_another_base(base, runs, capsys):
    other = testing.train(base.parent, "seed=2", updates=2, name="dry-base")
    line = [runs["lora"] / "config.yaml", f"training.finetune_from={other}", "--dry-run"]
    assert train.main([str(a) for a in line]) == 2
    assert "was made on another base" in capsys.readouterr().err


def test_a_forgotten_method_is_told_and_not_the_rate_that_it_brings(base, runs, capsys):
    text = (runs["bitfit"] / "config.yaml").read_text()
    plain = mtplug.config.load_config(runs["bitfit"] / "config.yaml", ["peft=null"])[0]
    with pytest.raises(
        UserError, match=r"begun with peft.name=bitfit, which is not set now; set it"
    ):
        whole_run.train(plain, lambda text: None)
    assert (runs["bitfit"] / "config.yaml").read_text() == text


def test_an_architecture_that_does_not_fit_the_base_is_told_before_anything_is_written(base):
    """Tokenizer and store were made first."""
    folder = base.parent
    with pytest.raises(UserError, match=r"has shape .*the architecture wants"):
        testing.train(
            folder,
            f"training.finetune_from={base}",
            "peft.name=lora",
            "architecture.ffn_dim=24",
            name="no",
        )
    assert not (folder / "no").exists()


@pytest.mark.parametrize("steps", [1, 2])
def test_a_base_that_is_made_of_itself_is_told(base, runs, tmp_path, steps):
    """Loading it did not end."""
    made = [shutil.copytree(runs["lora"], tmp_path / f"{n}", symlinks=True) for n in range(steps)]
    for n, folder in enumerate(made):
        config = folder / "config.yaml"
        text = config.read_text().replace(str(base), str(made[(n + 1) % steps]))
        config.write_text(text)
    with pytest.raises(UserError, match="is its own base"):
        mtplug.load(made[0])


def test_an_adapter_s_description_changed_by_hand_is_told(runs, tmp_path):
    copy = shutil.copytree(runs["lora"], tmp_path / "copy", symlinks=True)
    file = copy / "checkpoints" / "last" / files.CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | {"mtplug": "x"}))
    with pytest.raises(UserError, match="mtplug is no mapping"):
        mtplug.load(copy, "last")


def test_an_adapter_that_is_not_finite_is_refused(runs, tmp_path):
    copy = shutil.copytree(runs["lora"], tmp_path / "copy", symlinks=True)
    file = copy / "checkpoints" / "last" / files.WEIGHTS
    tensors = load_file(file)
    name = min(tensors)
    tensors[name].view(-1)[0] = torch.nan
    save_file(tensors, file)
    with pytest.raises(UserError, match="values that are NaN"):
        files.read(file.parent)
    with pytest.raises(UserError, match="values that are NaN"):
        mtplug.load(copy, "last")
