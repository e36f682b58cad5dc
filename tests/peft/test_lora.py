"""LoRA and its kin, against their formulas in float64 and against Hugging Face `peft`."""

import copy

import pytest
import torch

from mtplug import testing
from mtplug.errors import UserError
from mtplug.peft.combine import merge
from mtplug.peft.lora import Decomposed, LoRAConfig, LowRankTable
from tests.peft.material import BATCH, adapted, logits, method, transformer

KINDS = {
    "lora": ["rank=3", "alpha=7"],
    "rslora": ["rank=3", "rslora=true"],
    "dora": ["rank=3", "dora=true"],
    "table": ["rank=3", "alpha=1", "targets=[embedding, q, ffn.out]"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_keeps_the_contract(kind):
    testing.check_peft_method("lora", *KINDS[kind])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tie", ["all", "decoder", "none"])
def test_merged_equals_unmerged(kind, tie):
    model = adapted("lora", *KINDS[kind], base=[f"tie_embeddings={tie}"]).double().eval()
    before = logits(model)
    assert (before - logits(transformer().double())).abs().max() > 1e-2
    merge(model)
    torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-10)
    plain = transformer(f"tie_embeddings={tie}").double()
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(logits(plain), before, rtol=0, atol=1e-10)
    assert (model.output.weight is model.decoder_embedding.weight) == (tie != "none")


def test_the_formula_of_dora():
    """Equation 5 of Liu et al. 2024, on the weight itself."""
    model = adapted("lora", "dora=true", "targets=[decoder.1.cross.body.v]", "alpha=4").double()
    linear = model.decoder[1].cross.body.v
    change = linear.peft
    x = torch.randn(5, 16, dtype=torch.float64)
    direction = linear.weight + 4 / 8 * change.lora_B.weight @ change.lora_A.weight
    weight = change.lora_magnitude_vector[:, None] * direction / direction.norm(dim=1, keepdim=True)
    torch.testing.assert_close(linear(x), x @ weight.T + linear.bias)


def test_both_ends_of_a_tied_table_change_as_one_whichever_is_named():
    models = [adapted("lora", f"targets=[{end}]") for end in ("output", "encoder_embedding")]
    torch.testing.assert_close(logits(models[0]), logits(models[1]), rtol=0, atol=0)
    model = models[0]
    rows, features = model.encoder_embedding(torch.arange(23)), torch.eye(16)
    torch.testing.assert_close(model.project(features).T, rows)
    assert model.output_weight is None  # criteria must not fuse with the unchanged table


def test_dora_of_a_table_is_refused():
    with pytest.raises(UserError, match=r"encoder_embedding = output is a table.*DoRA"):
        method("lora", "dora=true", "targets=[embedding]").apply(transformer())


def test_a_copy_has_parameters_of_its_own():
    model = adapted("lora", "targets=[embedding, q]")
    other, before = copy.deepcopy(model), logits(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    torch.testing.assert_close(logits(other), before, rtol=0, atol=0)


def test_lora_plus_lets_b_learn_faster(tmp_path):
    run = testing.train(tmp_path, "peft={name: lora, lora_plus: 16}", "optimizer.name=sgd", updates=1,
                        name="plus")  # fmt: skip
    other = testing.train(
        tmp_path, "peft={name: lora}", "optimizer.name=sgd", updates=1, name="one"
    )
    from safetensors.torch import load_file

    a, b = (load_file(r / "checkpoints/last/model.safetensors") for r in (run, other))
    up = [n for n in a if n.endswith("lora_B.weight")]
    # B starts from zero, so that after one step of SGD it is the rate times the same gradient
    for name in up:
        torch.testing.assert_close(a[name], 16 * b[name])
    assert any(a[name].any() for name in up)
    parameters = dict(adapted("lora", *KINDS["table"], "lora_plus=16").named_parameters())
    faster = {n for n, p in parameters.items() if getattr(p, "lr_factor", 1) == 16}
    assert faster == {n for n in parameters if "lora_B" in n or "lora_embedding_B" in n}


@pytest.mark.parametrize("kind", ["lora", "dora", "table"])
def test_dropout_is_for_training_only(kind):
    # Of a table only the projecting end has dropout.
    settings = ["targets=[embedding]"] if kind == "table" else KINDS[kind]
    model = adapted("lora", *settings, "dropout=0.5")
    torch.testing.assert_close(logits(model.eval()), logits(adapted("lora", *settings).eval()))
    assert not torch.equal(logits(model.train()), logits(model.train()))
    assert len(BATCH) == 3


def test_dora_drops_the_input_of_weight_and_change_alike():
    torch.manual_seed(0)
    linear = torch.nn.Linear(6, 4).double()
    change = Decomposed(linear, LoRAConfig(rank=2, dora=True, dropout=0.5)).train()
    torch.nn.init.normal_(change.lora_B.weight)
    x = torch.randn(3, 6, dtype=torch.float64)
    torch.manual_seed(1)
    got = change.after(linear, (x,), linear(x))
    torch.manual_seed(1)
    dropped = torch.nn.functional.dropout(x, 0.5)
    changed = linear.weight + change.delta()
    gain = change.lora_magnitude_vector / changed.norm(dim=1)
    # What W makes of x goes through undropped, as in Hugging Face peft; all that training changes is dropped.
    want = linear(x) + dropped @ (gain[:, None] * changed - linear.weight).T
    torch.testing.assert_close(got, want)


def test_padding_has_no_row_in_a_tables_change():
    table = torch.nn.Embedding(5, 4, padding_idx=0)
    change = LowRankTable(table, LoRAConfig(rank=2))
    tokens = torch.tensor([[3, 0, 4, 0]])
    change.after(table, (tokens,), table(tokens)).sum().backward()
    touched = change.lora_embedding_A.grad.abs().sum(0) > 0
    assert touched.tolist() == [False, False, False, True, True]
