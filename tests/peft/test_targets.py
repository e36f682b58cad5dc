"""From roles, names and patterns to modules: what is matched, and what is said when nothing is."""

import pytest
from torch import nn

from mtplug.errors import UserError
from mtplug.peft.table import trained_table
from mtplug.peft.targets import matched, matched_parameters
from mtplug.testing.material import MeanWords
from tests.peft.material import method, transformer

LINEAR = (nn.Linear,)


def paths(*targets, model=None, kinds=LINEAR):
    return list(matched(model or transformer(), targets, kinds, "peft.targets"))


def test_a_role_means_modules_of_every_layer_and_a_part_of_it_those_of_every_stack():
    assert paths("decoder.cross.v") == [f"decoder.{n}.cross.body.v" for n in (0, 1)]
    assert paths("ffn.in") == [
        "encoder.0.ffn.body.inner", "decoder.0.ffn.body.inner", "decoder.1.ffn.body.inner",
    ]  # fmt: skip
    assert len(paths("q")) == 5 and len(paths("self")) == 12


def test_names_and_patterns_of_names_and_roles_mean_modules_too():
    assert paths("decoder.1.cross.body.q") == ["decoder.1.cross.body.q"]
    assert paths("decoder.1.ffn") == ["decoder.1.ffn.body.inner", "decoder.1.ffn.body.outer"]
    assert paths("*.cross.[qv]") == paths("decoder.cross.q", "decoder.cross.v")
    assert paths("encoder.*.body.out") == ["encoder.0.attention.body.out"]


def test_the_end_of_a_path_means_all_modules_of_that_name():
    assert paths("body.inner") == paths("ffn.in")


def test_an_architecture_without_roles_is_adapted_by_names():
    assert paths("output", model=MeanWords()) == ["output"]
    assert paths("s*", model=MeanWords(), kinds=(nn.Embedding,)) == ["source"]


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("decoder.cros.v", r"no module is called 'decoder.cros.v'; near: decoder.cross.v"),
        ("encoder.0.attention.body.w", "near: encoder.0.attention.body"),
        ("norm", "'norm' means encoder.0.attention.norm, a LayerNorm; this method is for Linear"),
    ],
)
def test_a_target_that_means_nothing_is_an_error_with_near_names(target, said):
    with pytest.raises(UserError, match=f"peft.targets: .*{said}"):
        paths("q", target)


def test_parameters_by_name_role_and_pattern():
    model = transformer()

    def names(*targets):
        return matched_parameters(model, targets, "peft.targets")

    assert names("norm") == {n for n, _ in model.named_parameters() if ".norm." in n}
    assert names("decoder.cross.q.bias") == {f"decoder.{n}.cross.body.q.bias" for n in (0, 1)}
    assert names("encoder.0.ffn.*.bias") == {
        f"encoder.0.ffn.{p}.bias" for p in ("body.inner", "body.outer", "norm")
    }
    assert names("output.weight") == names("decoder_embedding") == {"encoder_embedding.weight"}
    with pytest.raises(UserError, match=r"no parameter is called 'bais'; near: .*bias"):
        names("bais")


def test_table_counts_trained_and_total_parameters():
    model = method("lora", "rank=2", "targets=[q, embedding]").apply(transformer())
    lines = trained_table(model)
    rows = {line.split()[0]: line.split()[1:] for line in lines}
    # q: 16 → 16 with a bias has 272 parameters and gets 2 · (16 + 16); two decoder layers
    assert rows["decoder.*.cross.body.q"] == ["decoder.cross.q", "Linear", "2", "128", "672"]
    trained = 5 * 64 + 2 * (23 + 16)
    whole = sum(p.numel() for p in model.parameters())
    assert f"trained: {trained:,} of {whole:,} parameters ({trained / whole:.2%})" in lines[-2]
    assert lines[-1] == "  tied, adapted as one: encoder_embedding = output"
