"""RMSNorm, gated feed-forward layers and shared heads of keys, in every architecture of these layers.

That they are Llama's stands in test_transformer_lm.py; that shared heads are as if repeated, in tests/nn.
"""

import pytest

from mtplug import testing
from mtplug.errors import UserError
from mtplug.testing.material import TINY_TRANSFORMER
from tests.architectures.models import build

MODERN = ("norm=pre", "norm_type=rms", "activation=swiglu", "kv_heads=1")
ENCODER = [setting for setting in TINY_TRANSFORMER if not setting.startswith("decoder")]


@pytest.mark.parametrize(
    ("name", "sizes", "position"),
    [("transformer", TINY_TRANSFORMER, "rope"), ("merged_transformer", TINY_TRANSFORMER, "deberta"),
     ("transformer_encoder", ENCODER, "shaw")],
)  # fmt: skip
def test_modern_layers_keep_the_contract(name, sizes, position):
    testing.check_architecture(name, *sizes, *MODERN, f"position.name={position}")


@pytest.mark.parametrize(
    ("name", "position"),
    [("transformer", "deberta"), ("merged_transformer", "transformer_xl"), ("shared_transformer", "t5_bias")],
)  # fmt: skip
def test_heads_of_any_size_keep_the_contract(name, position):
    testing.check_architecture(
        name, *TINY_TRANSFORMER, "heads=3", "head_dim=6", f"position.name={position}", compile=False
    )


def test_an_average_of_shared_heads_keeps_the_contract():
    # Compiled, these layers are checked above, and averages in test_merged.py.
    testing.check_architecture(
        "merged_transformer", *TINY_TRANSFORMER, *MODERN, "prefix=average", compile=False
    )


def test_what_does_not_divide_is_told():
    with pytest.raises(UserError, match="3 heads do not divide dim 16; set head_dim"):
        build("transformer", "dim=16", "heads=3")
    with pytest.raises(UserError, match="3 kv_heads do not divide 4 heads"):
        build("transformer", "dim=16", "heads=4", "kv_heads=3")


def test_roles_name_the_gate():
    roles = build(
        "transformer", "dim=16", "heads=2", "encoder_layers=1", "activation=geglu"
    ).roles()
    assert roles["encoder.0.ffn.body.gate"] == "encoder.ffn.gate"
    assert roles["decoder.5.ffn.body.gate"] == "decoder.ffn.gate"
