"""The model on canvases."""

import copy

import pytest
import torch
from mtplug_maskpredict.model import CmlmTransformer, is_shifted

import mtplug
from mtplug import testing
from mtplug.data.batching import Batch
from mtplug.search.coverage import cross_attention
from mtplug.testing.material import (
    TINY_TRANSFORMER,
    WordsTask,
    logits_of,
    padded,
    random_batch,
    rows_of,
)
from mtplug.testing.models import loads_again, recomputes
from mtplug.testing.subject import Subject, close, equal

POSITIONS = (
    "sinusoidal",
    "learned",
    "shaw",
    "t5_bias",
    "rope",
    "alibi",
    "transformer_xl",
    "deberta",
)


def build(*settings: str, seed: int = 1) -> CmlmTransformer:
    torch.manual_seed(seed)
    small = (*TINY_TRANSFORMER, "max_target_length=12")
    return Subject("architectures", "cmlm_transformer", (*small, *settings)).build(WordsTask())


def canvases(batch: Batch, mask_id: int) -> Batch:
    """The same sentences, every other token of the targets masked, as the model's input."""
    made, target = copy.copy(batch), batch.target_tokens
    hidden = (torch.arange(target.shape[1]) % 2 == 0) & (target > 1)
    made.prev_output_tokens = target.masked_fill(hidden, mask_id)
    return made


@pytest.mark.parametrize("position", POSITIONS)
def test_padding_and_the_other_sentences_change_nothing(position):
    model = build(f"position={{name: {position}}}").eval()
    batch = random_batch()
    with torch.no_grad():
        whole = canvases(batch, model.mask_id)
        logits, real = logits_of(model, whole), batch.target_tokens != 0
        wide = logits_of(model, canvases(padded(batch), model.mask_id))
        close(wide[:, : real.shape[1]][real], logits[real], "logits with more padding")
        for row in range(len(batch)):
            alone = logits_of(model, canvases(rows_of(batch, [row]), model.mask_id))[0]
            close(alone, logits[row, real[row]], "logits of a sentence alone")


@pytest.mark.parametrize("position", POSITIONS)
def test_a_position_sees_both_sides(position):
    model = build(f"position={{name: {position}}}").eval()
    source, lengths = random_batch(((4, 5),)).inputs[:2]
    m = model.mask_id
    with torch.no_grad():
        one, later, earlier = (
            model(source, lengths, torch.tensor([canvas]))[0]
            for canvas in ([4, m, 5, m, 6, 1], [4, m, 5, m, 7, 1], [8, m, 5, m, 6, 1])
        )
    assert not torch.allclose(one[1], later[1], atol=1e-5)
    assert not torch.allclose(one[3], earlier[3], atol=1e-5)


def test_backends_of_attention_agree():
    models = [build(f"attention.backend={b}").eval() for b in ("reference", "sdpa")]
    batch = canvases(random_batch(), models[0].mask_id)
    real = batch.target_tokens != 0
    with torch.no_grad():
        close(logits_of(models[0], batch)[real], logits_of(models[1], batch)[real], "logits")


@pytest.mark.parametrize("length", ["absolute", "relative"])
def test_promises_of_architectures_that_are_not_about_an_order_of_tokens(length):
    made = [build(f"length={length}", f"norm={norm}") for norm in ("post", "pre")]
    batch = canvases(random_batch(), made[0].mask_id)
    for model, norm in zip(made, ("post", "pre"), strict=True):
        recomputes(model, build(f"length={length}", f"norm={norm}"), batch)
        other = build(f"length={length}", f"norm={norm}", seed=2)
        loads_again(model.eval(), lambda other=other: other, batch)
        for path in model.roles():
            model.get_submodule(path)
        with torch.no_grad():
            features = model(*batch.inputs)
            close(model.project(features), features @ model.output_weight.T, "logits")


def test_compiling_changes_nothing():
    model = build().eval()
    batch = canvases(random_batch(), model.mask_id)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager")
    real = batch.target_tokens != 0
    with torch.no_grad():
        close(compiled(*batch.inputs)[real], model(*batch.inputs)[real], "features")


def test_lengths_are_probabilities_of_0_to_the_longest_whatever_they_are_told_from():
    batch = random_batch()
    for length, classes in (("absolute", 13), ("relative", 25)):
        model = build(f"length={length}").eval()
        assert model.length.out_features == classes
        memory, _ = model.encode(*batch.inputs[:2])
        assert model.length_logits(memory, batch.source_lengths).shape == (3, 13)
    # sentence 0 has 5 source tokens: class d + 12 is the difference d, so that 7 tokens are class 14
    model.length.weight.data.zero_()
    model.length.bias.data = torch.arange(25.0)
    found = model.length_logits(memory, batch.source_lengths)
    assert found[0].tolist() == [float(n - 5 + 12) for n in range(13)]
    assert found[1].tolist() == [float(n - 2 + 12) for n in range(13)]


def test_targets_shifted_right_are_told_from_canvases():
    batch = random_batch()
    assert is_shifted(batch.prev_output_tokens) and not is_shifted(batch.target_tokens)
    assert not is_shifted(torch.tensor([[1, 0, 0], [4, 5, 1]]))  # an empty target
    model = build().eval()
    with pytest.raises(mtplug.UserError, match=r"learns with criterion.name=cmlm"):
        model(*batch.inputs)


def test_cross_attention_is_that_of_the_whole_target():
    model, batch = build().eval(), random_batch()
    shown = model.cross_attention(*batch.inputs[:2], batch.target_tokens)
    for row, told in enumerate(
        cross_attention(model, batch)
    ):  # as searches and commands ask for it
        target, source = (n[row] for n in (batch.target_lengths, batch.source_lengths))
        equal(told, shown[row, :target, :source], "shares")
    real = batch.target_tokens != 0
    assert shown.shape == (3, 7, 6)
    close(shown.sum(-1)[real], torch.ones(int(real.sum())), "sums")


def test_architecture_keeps_its_contract():
    small = (*TINY_TRANSFORMER, "max_target_length=12")
    testing.check_architecture("cmlm_transformer", *small, criterion=("cmlm",))


def test_no_length_is_refused():
    with pytest.raises(mtplug.UserError, match="max_target_length must be at least 1"):
        build("max_target_length=0")


def test_a_prompt_that_nothing_would_learn_is_refused():
    """It is put in front of a source by `forward`, which neither criterion nor search calls."""
    method = Subject("peft_methods", "prompt_tuning", ()).build()
    with pytest.raises(mtplug.UserError, match="CmlmTransformer is learnt and searched by parts"):
        method.apply(build())
