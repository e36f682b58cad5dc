"""Against Hugging Face `peft` on the same layers: forward, gradients, merged weights, files in both directions."""

import copy
import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from mtplug.config.build import component_from_overrides
from mtplug.errors import UserError
from mtplug.peft import files
from mtplug.peft.combine import merge
from mtplug.registry import Selected
from mtplug.training import checkpoints as ckpt
from mtplug.training.finetune import adapt
from tests.peft.material import logits, transformer

peft = pytest.importorskip("peft")

METHODS = {
    "lora": ("lora", "rank=3", "alpha=5"),
    "rslora": ("lora", "rank=4", "rslora=true"),
    "dora": ("lora", "rank=3", "dora=true"),
    "table": ("lora", "rank=3", "targets=[encoder.embedding, decoder.self.q]"),
    "ia3": ("ia3",),
}
BASE = {"table": ["tie_embeddings=none"]}


def selected(name) -> Selected:
    kind, *settings = METHODS[name]
    return component_from_overrides("peft_methods", kind, settings)


def plain(name):
    return transformer(*BASE.get(name, ())).double()


def ours(name, file=None):
    model = adapt(plain(name), selected(name), "runs/base").double()
    if file is None:
        torch.manual_seed(3)
        with torch.no_grad():
            for p in model.parameters():
                p += 0.3 * torch.randn_like(p) * p.requires_grad
    else:
        ckpt.load_weights(model, files.read(file), file)
    return model


def write(model, folder):
    folder.mkdir()
    save_file(
        files.to_file(ckpt.weights(model), model.adapter_config),
        folder / files.WEIGHTS,
        {"format": "pt"},
    )
    (folder / files.CONFIG).write_text(json.dumps(model.adapter_config))
    return folder


def theirs(name, folder, base=None):
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # of our own key in adapter_config.json, and of a model without config
        found = peft.PeftModel.from_pretrained(base or plain(name), folder, is_trainable=True)
    return found.double()


def loss(model):
    return (logits(model).log_softmax(-1)[:, :, 3] * torch.arange(1.0, 4)[:, None]).sum()


@pytest.mark.parametrize("name", METHODS)
def test_our_file_loads_there_with_the_same_outputs_and_gradients(name, tmp_path):
    mine = ours(name)
    other = theirs(name, write(mine, tmp_path / "adapter"))
    model = other.base_model.model
    torch.testing.assert_close(logits(model), logits(mine), rtol=0, atol=1e-12)
    assert (logits(mine) - logits(plain(name))).abs().max() > 1e-2
    loss(mine).backward()
    loss(model).backward()
    own = {files.bare(n): p.grad for n, p in mine.named_parameters() if p.requires_grad}
    found = {n.removeprefix("base_model.model.").replace(".default", ""): p.grad
             for n, p in other.named_parameters() if p.requires_grad}  # fmt: skip
    found = {n.replace("magnitude_vector.weight", "magnitude_vector"): g for n, g in found.items()}
    assert own.keys() == found.keys()
    for key, gradient in own.items():
        torch.testing.assert_close(gradient, found[key], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", METHODS)
def test_there_and_back_without_any_difference(name, tmp_path):
    mine = ours(name)
    written = write(mine, tmp_path / "ours")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs(name, written).save_pretrained(tmp_path / "theirs")
    a, b = (load_file(tmp_path / who / files.WEIGHTS) for who in ("ours", "theirs"))
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key
    described = files.read_config(tmp_path / "theirs")
    assert "mtplug" not in described
    method = files.method_of(described, tmp_path)
    again = adapt(plain(name), method, "runs/base").double()
    ckpt.load_weights(again, files.read(tmp_path / "theirs"), "theirs")
    assert torch.equal(logits(again), logits(mine))


@pytest.mark.parametrize("name", METHODS)
def test_merged_weights_are_theirs(name, tmp_path):
    mine = ours(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged = theirs(name, write(mine, tmp_path / "adapter")).merge_and_unload()
    own = merge(copy.deepcopy(mine)).state_dict()
    for key, tensor in merged.state_dict().items():
        torch.testing.assert_close(own[key], tensor, rtol=0, atol=1e-12)


def test_a_tied_table_has_the_same_outputs_there(tmp_path):
    """Theirs is one change for each end; the file holds ours for both of them."""
    model = adapt(transformer().double(), component_from_overrides(
        "peft_methods", "lora", ["targets=[embedding]"]), "runs/base").double()  # fmt: skip
    with torch.no_grad():
        for p in model.parameters():
            p += 0.3 * torch.randn_like(p) * p.requires_grad
    other = theirs("lora", write(model, tmp_path / "adapter"), transformer().double())
    # Our base keeps one module under two names, of which theirs replaces the first only.
    other.base_model.model.decoder_embedding = other.base_model.model.encoder_embedding
    torch.testing.assert_close(logits(other.base_model.model), logits(model), rtol=0, atol=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other.save_pretrained(tmp_path / "theirs")
    method = files.method_of(files.read_config(tmp_path / "theirs"), tmp_path)
    again = adapt(transformer().double(), method, "runs/base").double()
    ckpt.load_weights(again, files.read(tmp_path / "theirs", again), "theirs")
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("option", [
    {"bias": "all"}, {"init_lora_weights": "pissa"}, {"layers_to_transform": [0]},
    {"use_bdlora": {"nblocks": 2}}, {"rank_pattern": {"q": 3}}, {"target_modules": "q|k"},
])  # fmt: skip
def test_what_we_do_not_compute_is_refused(option, tmp_path):
    described = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 2,
        "target_modules": ["q"],
    }
    files.method_of(described, tmp_path)
    (name,) = option
    with pytest.raises(UserError, match=f"adapter_config.json: {name}[= ]"):
        files.method_of(described | option, tmp_path)
    with pytest.raises(UserError, match="no method here reads adapters of type VERA"):
        files.method_of({"peft_type": "VERA"}, tmp_path)


def test_settings_of_their_files_are_ours(tmp_path):
    lora = {"peft_type": "LORA", "r": 4, "lora_alpha": 3, "target_modules": "all-linear",
            "use_rslora": True, "lora_dropout": 0.25, "bias": None}  # fmt: skip
    found = files.method_of(lora, tmp_path).config
    assert (found.targets, found.scale, found.dropout, found.dora) == ((), 1.5, 0.25, False)
    ia3 = {
        "peft_type": "IA3",
        "target_modules": ["k", "v", "outer"],
        "feedforward_modules": ["outer"],
    }
    stretched = files.method_of(ia3, tmp_path).config
    assert (stretched.targets, stretched.feedforward) == (("k", "v"), ("outer",))
    for option in (
        {"target_modules": "k|v"},
        {"feedforward_modules": "outer"},
        {"modules_to_save": ["output"]},
        {"fan_in_fan_out": True},
    ):
        with pytest.raises(UserError, match="supported by ia3"):
            files.method_of(ia3 | option, tmp_path)
