"""The subspaces of LoRA-XS against gradients of single tokens, and what they promise."""

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mtplug import testing
from mtplug.cli import peft as cli
from mtplug.criteria import LabelSmoothedCrossEntropy, LabelSmoothedCrossEntropyConfig
from mtplug.errors import UserError
from mtplug.peft import files
from mtplug.testing.material import padded
from tests.peft.material import BATCH, method, transformer

CRITERION = LabelSmoothedCrossEntropy(LabelSmoothedCrossEntropyConfig(0.1), None)


def fitted(*settings, batches=(BATCH,), base=()):
    lora_xs = method("lora_xs", *settings)
    model = lora_xs.apply(transformer(*base).double())
    lora_xs.fit(model, batches, CRITERION)
    return model


def projector(basis):
    """Of the space that columns span: what a subspace is, whatever its basis."""
    return basis @ np.linalg.pinv(basis)


def token_gradients(path):
    """(T, O, I): the gradient of a map that is W plus a change of its own at each token."""
    model, found = transformer().double(), []

    def apart(module, args, output):
        x = args[0]
        changes = torch.zeros(*x.shape[:-1], *module.weight.shape, dtype=x.dtype)
        found.append(changes.requires_grad_())
        return output + (changes @ x[..., None]).squeeze(-1)

    model.get_submodule(path).register_forward_hook(apart)
    CRITERION(model, BATCH).sum.backward()
    return found[0].grad.flatten(0, -3).numpy()


@pytest.mark.parametrize("path", ["encoder.0.ffn.body.inner", "decoder.1.cross.body.k"])
def test_subspaces_are_the_truncated_higher_order_svd_of_the_gradients_of_tokens(path):
    change = fitted("share=0.1", f"targets=[{path}]").get_submodule(path).peft
    tensor = token_gradients(path)
    for mode, basis in ((1, change.lora_xs_U), (2, change.lora_xs_V.T)):
        unfolded = np.moveaxis(tensor, mode, 0).reshape(tensor.shape[mode], -1)
        left, values, _ = np.linalg.svd(unfolded, full_matrices=False)
        count = basis.shape[1]
        assert count == round(0.1**0.5 * len(left))
        assert values[count - 1] > 1.01 * values[count]  # else which space leads would be open
        torch.testing.assert_close(
            projector(basis.numpy()), projector(left[:, :count]), rtol=0, atol=1e-6
        )
        torch.testing.assert_close(basis.T @ basis, torch.eye(count).double(), rtol=0, atol=1e-12)


def test_rows_of_a_tied_table_are_those_with_the_greatest_gradients():
    """Each end alone: a gradient is that of a row looked up, or that of a logit times the features."""
    model = fitted("share=0.25", "targets=[embedding]")
    change = model.encoder_embedding.peft
    plain, energy, columns = transformer().double(), 0.0, 0.0
    kept = []
    for end in {plain.encoder_embedding, plain.decoder_embedding, plain.output}:
        end.register_forward_hook(
            lambda m, a, y: (
                kept.append((m, a[0], y.retain_grad() or y)) if y.requires_grad else None
            )
        )
    CRITERION(Unfused(plain), BATCH).sum.backward()
    for module, x, y in kept:
        g = y.grad.flatten(0, -2)
        if module is plain.output:
            x = x.detach().flatten(0, -2)
            left, right = g, x
        else:
            left = torch.nn.functional.one_hot(x.flatten(), 23).double()
            right = g
        per_token = torch.einsum("to,ti->toi", left, right).detach()
        energy = energy + per_token.square().sum((0, 2))
        columns = columns + torch.einsum("toi,toj->ij", per_token, per_token)
    rows = len(change.lora_xs_M)
    chosen = (change.lora_xs_row < rows).nonzero().flatten()
    assert rows == 12 and set(chosen.tolist()) == set(energy.topk(rows).indices.tolist())
    space = torch.linalg.eigh(columns).eigenvectors[:, -8:].numpy()
    torch.testing.assert_close(
        projector(change.lora_xs_V.T.numpy()), projector(space), rtol=0, atol=1e-6
    )


class Unfused(torch.nn.Module):
    """A model whose output projection is called as a module."""

    output_weight = None

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *inputs):
        return self.model(*inputs)

    def project(self, features):
        return self.model.output(features)


@pytest.mark.parametrize("base", [(), ("tie_embeddings=none",)])
def test_a_whole_share_sees_the_whole_gradient(base):
    """U and V are rotations then, and so is what M gets of W's gradient."""
    model, plain = fitted("share=1", base=base), transformer(*base).double()
    for one in (model, plain):
        CRITERION(one, BATCH).sum.backward()
    seen = 0
    for path, module in model.named_modules():
        if hasattr(module, "peft"):
            seen += 1
            torch.testing.assert_close(
                module.peft.lora_xs_M.grad.norm(), plain.get_submodule(path).weight.grad.norm()
            )
    assert seen == 3 * 6 + 2 * 4 + (3 if base else 1)


def test_padding_dropout_and_checkpointing_do_not_move_subspaces_and_the_model_stays_as_it_was():
    plain, wide = fitted("share=0.1"), fitted("share=0.1", batches=[padded(BATCH)])
    noisy = fitted("share=0.1", base=["dropout=0.5"])
    lora_xs = method("lora_xs", "share=0.1")
    thrifty = lora_xs.apply(transformer().double())
    thrifty.checkpoint_activations()
    lora_xs.fit(thrifty, [BATCH], CRITERION)
    assert noisy.training and all(p.grad is None for p in noisy.parameters())
    for other in (wide, noisy, thrifty):
        for path, module in plain.named_modules():
            if hasattr(module, "peft"):
                mine, its = module.peft.lora_xs_V, other.get_submodule(path).peft.lora_xs_V
                torch.testing.assert_close(projector(its.numpy()), projector(mine.numpy()),
                                           rtol=0, atol=1e-6)  # fmt: skip


def test_no_more_batches_are_taken_than_are_asked_for():
    taken = []

    def batches():
        for n in range(9):
            taken.append(n)
            yield copy.copy(BATCH)

    count = int((BATCH.target_tokens != 0).sum())
    fitted("share=0.1", f"tokens={2 * count}", batches=batches())
    assert taken == [0, 1]


def test_what_the_loss_does_not_depend_on_is_no_target():
    lora_xs = method("lora_xs", "targets=[encoder.0.ffn]")
    model = lora_xs.apply(transformer())
    with pytest.raises(
        UserError, match=r"the loss does not depend on encoder\.0\.ffn\.body\.inner"
    ):
        lora_xs.fit(model, [BATCH], lambda model, batch: CRITERION(Deaf(model), batch))


class Deaf(torch.nn.Module):
    """A model that does not hear its encoder."""

    output_weight = None

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *inputs):
        return self.model(*inputs).detach().requires_grad_()

    def project(self, features):
        return self.model.project(features)


@pytest.mark.parametrize("given", ["share=0", "share=1.5", "tokens=0"])
def test_settings_out_of_range_are_refused(given):
    with pytest.raises(UserError, match=given.partition("=")[0]):
        method("lora_xs", given)


def test_a_run_chooses_once_trains_only_m_and_has_sums_in_its_own_subspaces(tmp_path, capsys):
    base = testing.train(tmp_path, updates=20, name="base")
    here = (
        f"training.finetune_from={base}",
        "peft={name: lora_xs, share: 0.2}",
        "validation.every_updates=2",
    )
    run = testing.train(tmp_path, *here, updates=4, name="run")
    early, late = (load_file(run / "checkpoints" / f"step-{n:08}" / files.WEIGHTS) for n in (2, 4))
    moved = {n.rpartition(".")[2] for n in early if not torch.equal(early[n], late[n])}
    assert moved == {"lora_xs_M"}
    parts = [run / "checkpoints" / f"step-{n:08}" for n in (2, 4)]
    whole = [f"{part}={w}" for part, w in zip(parts, (0.5, 2.0), strict=True)]
    assert cli.main(["combine", *whole, "--output", str(tmp_path / "sum")]) == 0
    both = load_file(tmp_path / "sum" / files.WEIGHTS)
    for name, tensor in both.items():
        m = name.endswith("_M")
        torch.testing.assert_close(tensor, 0.5 * early[name] + 2 * late[name] if m else late[name])
    other = testing.train(tmp_path, *here, "seed=5", updates=2, name="other")
    capsys.readouterr()
    assert cli.main(["combine", f"{run}=1", f"{other}=1", "--output", str(tmp_path / "no")]) != 0
    assert "only where their subspaces are the same" in capsys.readouterr().err
