"""The decoder-only Transformer against torch's encoder with a causal mask."""

import pytest
import torch
from torch import nn

from mtplug.criteria import LabelSmoothedCrossEntropy, LabelSmoothedCrossEntropyConfig
from mtplug.data.batching import collate, concatenate
from tests.architectures.models import batch, build
from tests.architectures.test_transformer import copy_attention

SIZES = ("dim=16", "ffn_dim=24", "heads=4", "layers=2")


@torch.no_grad()
def torchs_own(model):
    c = model.config
    layer = nn.TransformerEncoderLayer(
        c.dim, c.heads, c.ffn_dim, 0.0, "relu", batch_first=True, norm_first=c.norm == "pre"
    )
    norm = nn.LayerNorm(c.dim) if c.norm == "pre" else None
    peer = nn.TransformerEncoder(layer, c.layers, norm, enable_nested_tensor=False).double()
    if norm is not None:
        peer.norm.load_state_dict(model.norm.state_dict())
    for theirs, ours in zip(peer.layers, model.layers, strict=True):
        copy_attention(theirs.self_attn, ours.attention.body)
        theirs.norm1.load_state_dict(ours.attention.norm.state_dict())
        theirs.norm2.load_state_dict(ours.ffn.norm.state_dict())
        theirs.linear1.load_state_dict(ours.ffn.body.inner.state_dict())
        theirs.linear2.load_state_dict(ours.ffn.body.outer.state_dict())
    return peer


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_equals_torchs_causal_encoder_with_the_same_weights(norm):
    model, b = build("transformer_lm", *SIZES, f"norm={norm}"), batch()
    ours = model(b.source_tokens, b.source_lengths, b.prev_output_tokens)
    x = model.embed(model.embedding, model.position, b.prev_output_tokens)
    mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=torch.float64)
    theirs = torchs_own(model)(x, mask=mask, is_causal=True)
    real = b.target_tokens != 0
    torch.testing.assert_close(ours[real], theirs[real], rtol=1e-9, atol=1e-9)


def test_the_source_is_not_looked_at():
    model, b = build("transformer_lm", *SIZES), batch()
    one = model(b.source_tokens, b.source_lengths, b.prev_output_tokens)
    empty = torch.ones_like(b.source_tokens[:, :1])
    assert torch.equal(model(empty, empty[:, 0], b.prev_output_tokens), one)


def test_a_packed_batch_has_the_loss_and_gradients_of_a_padded_one():
    model = build("transformer_lm", *SIZES, "position.name=rope")
    criterion = LabelSmoothedCrossEntropy(LabelSmoothedCrossEntropyConfig(0.1), None)
    pairs = [([], [7, 8, 9]), ([], [12, 13, 14, 15, 16]), ([], [21])]
    results = []
    for make in (collate, concatenate):
        model.zero_grad()
        loss = criterion(model, make(pairs, torch.arange(3).numpy()))
        loss.sum.backward()
        results.append(
            (loss.sum.detach(), {n: p.grad.clone() for n, p in model.named_parameters()})
        )
    torch.testing.assert_close(*results)


def test_tied_and_untied_output():
    tied, untied = (
        build("transformer_lm", *SIZES, f"tie_embeddings={v}") for v in ("true", "false")
    )
    assert tied.output.weight is tied.embedding.weight
    assert untied.output.weight is not untied.embedding.weight


@pytest.mark.parametrize("head_dim", [0, 10])
def test_modern_layers_are_those_of_llama(head_dim):
    """RMSNorm, SwiGLU, RoPE, heads that share keys or have a size of their own, against transformers' model with the same
    weights."""
    llama = pytest.importorskip("transformers").models.llama
    settings = (
        "norm=pre",
        "norm_type=rms",
        "activation=swiglu",
        "position.name=rope",
        "kv_heads=2",
        f"head_dim={head_dim}",
    )
    model, b = build("transformer_lm", *SIZES, *settings), batch()
    c = model.config
    theirs = llama.LlamaModel(
        llama.LlamaConfig(
            vocab_size=30,
            hidden_size=c.dim,
            intermediate_size=c.ffn_dim,
            num_hidden_layers=c.layers,
            num_attention_heads=c.heads,
            num_key_value_heads=c.kv_heads,
            head_dim=head_dim or c.dim // c.heads,
            hidden_act="silu",
            rms_norm_eps=1e-6,
            rope_theta=10000.0,
            attn_implementation="eager",
        )
    ).double()
    names = {
        "self_attn.q_proj": "attention.body.q",
        "self_attn.k_proj": "attention.body.k",
        "self_attn.v_proj": "attention.body.v",
        "self_attn.o_proj": "attention.body.out",
        "mlp.gate_proj": "ffn.body.gate",
        "mlp.up_proj": "ffn.body.inner",
        "mlp.down_proj": "ffn.body.outer",
        "input_layernorm": "attention.norm",
        "post_attention_layernorm": "ffn.norm",
    }
    with torch.no_grad():
        for their_layer, our_layer in zip(theirs.layers, model.layers, strict=True):
            for their_name, our_name in names.items():
                ours = our_layer.get_submodule(our_name)
                their_layer.get_submodule(their_name).weight.copy_(ours.weight)
                if getattr(ours, "bias", None) is not None:
                    ours.bias.zero_()  # Llama has none
        theirs.norm.weight.copy_(model.norm.weight)
        theirs.embed_tokens.weight.copy_(model.embedding.weight * c.dim**0.5)
        expected = theirs(b.prev_output_tokens).last_hidden_state
        found = model(b.source_tokens, b.source_lengths, b.prev_output_tokens)
    real = b.target_tokens != 0
    # Angles of transformers are float32.
    torch.testing.assert_close(found[real], expected[real], rtol=1e-5, atol=1e-5)
