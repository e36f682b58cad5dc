"""Our Transformer against torch.nn.Transformer, and decoding step by step against all at once."""

import math

import pytest
import torch
from torch import nn

from mtplug.architectures import Model, Transformer, TransformerConfig
from mtplug.architectures.layers import AttentionConfig, EncoderLayer, FeedForward, PrefixCache
from mtplug.criteria import LabelSmoothedCrossEntropy, LabelSmoothedCrossEntropyConfig
from mtplug.data.batching import collate, concatenate
from mtplug.errors import UserError
from mtplug.nn import ancestry
from mtplug.plugins import host
from mtplug.registry import Selected
from mtplug.search.beam import BeamConfig, BeamSearch
from tests.nn.test_layers import is_xavier


class Sized:
    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size


class Task:
    def __init__(self, size=30, joint=True):
        self.source_tokenizer = Sized(size)
        self.target_tokenizer = self.source_tokenizer if joint else Sized(size + 3)


POSITIONS = [
    "sinusoidal",
    "learned",
    "t5_bias",
    "alibi",
    "shaw",
    "transformer_xl",
    "rope",
    "deberta",
]


def build(joint=True, position="sinusoidal", **settings) -> Transformer:
    component = host().component("position_encodings", position)
    sizes = {"dim": 16, "ffn_dim": 24, "heads": 4, "encoder_layers": 2, "decoder_layers": 3}
    config = TransformerConfig(
        **{**sizes, **settings}, position=Selected(component, component.config())
    )
    torch.manual_seed(3)
    return Transformer(config, Task(joint=joint))


def batch():
    pairs = [([3, 4, 5, 6], [7, 8, 9]), ([10, 11], [12, 13, 14, 15, 16]), ([20], [21])]
    return collate(pairs, torch.arange(3).numpy())


def copy_attention(theirs: nn.MultiheadAttention, ours) -> None:
    parts = [ours.q, ours.k, ours.v]
    theirs.in_proj_weight.copy_(torch.cat([p.weight for p in parts]))
    theirs.in_proj_bias.copy_(torch.cat([p.bias for p in parts]))
    theirs.out_proj.load_state_dict(ours.out.state_dict())


@torch.no_grad()
def torchs_own(model: Transformer) -> nn.Transformer:
    c = model.config
    peer = nn.Transformer(
        c.dim, c.heads, c.encoder_layers, c.decoder_layers, c.ffn_dim, 0.0, c.activation,
        batch_first=True, norm_first=c.norm == "pre",
    ).double()  # fmt: skip
    if c.norm == "post":  # torch normalises a post-norm stack once more at its end; we don't
        peer.encoder.norm = peer.decoder.norm = None
    else:
        peer.encoder.norm.load_state_dict(model.encoder_norm.state_dict())
        peer.decoder.norm.load_state_dict(model.decoder_norm.state_dict())
    for stack, layers in ((peer.encoder, model.encoder), (peer.decoder, model.decoder)):
        for theirs, ours in zip(stack.layers, layers, strict=True):
            copy_attention(theirs.self_attn, ours.attention.body)
            norms = [ours.attention.norm]
            if stack is peer.decoder:
                copy_attention(theirs.multihead_attn, ours.cross.body)
                norms.append(ours.cross.norm)
            for number, norm in enumerate([*norms, ours.ffn.norm], start=1):
                getattr(theirs, f"norm{number}").load_state_dict(norm.state_dict())
            theirs.linear1.load_state_dict(ours.ffn.body.inner.state_dict())
            theirs.linear2.load_state_dict(ours.ffn.body.outer.state_dict())
    return peer


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_equals_torchs_transformer_with_the_same_weights(norm, activation):
    model = build(norm=norm, activation=activation, dropout=0.0).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    peer, b = torchs_own(model), batch()
    ours = model(b.source_tokens, b.source_lengths, b.prev_output_tokens)
    source = model.embed(model.encoder_embedding, model.encoder_position, b.source_tokens)
    target = model.embed(model.decoder_embedding, model.decoder_position, b.prev_output_tokens)
    source, target = (x.detach().requires_grad_() for x in (source, target))
    padding = b.source_tokens == 0
    theirs = peer(
        source, target,
        tgt_mask=nn.Transformer.generate_square_subsequent_mask(target.shape[1], dtype=torch.float64),
        src_key_padding_mask=padding, memory_key_padding_mask=padding,
    )  # fmt: skip
    real = b.target_tokens != 0
    torch.testing.assert_close(ours[real], theirs[real], rtol=1e-9, atol=1e-9)
    ours[real].square().sum().backward()
    theirs[real].square().sum().backward()
    for stack, layers in ((peer.encoder, model.encoder), (peer.decoder, model.decoder)):
        for layer, own in zip(stack.layers, layers, strict=True):
            pairs = [
                (layer.linear1.weight.grad, own.ffn.body.inner.weight.grad),
                (layer.self_attn.out_proj.weight.grad, own.attention.body.out.weight.grad),
                (layer.self_attn.in_proj_weight.grad[:16], own.attention.body.q.weight.grad),
                (layer.norm1.weight.grad, own.attention.norm.weight.grad),
            ]
            for theirs_grad, ours_grad in pairs:
                torch.testing.assert_close(ours_grad, theirs_grad, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_decoding_step_by_step_equals_all_at_once(norm, position):
    model, b = build(norm=norm, position=position).double().eval(), batch()
    tokens = torch.randint(3, 30, (3, 40), generator=torch.Generator().manual_seed(1))
    tokens[:, 0] = 1
    whole = model.project(model(b.source_tokens, b.source_lengths, tokens))
    for step_of in (Transformer, Model):  # incrementally, and the base class's recomputation
        state = step_of.start(model, b.source_tokens, b.source_lengths)
        for t in range(40):
            logits = model.project(step_of.extend(model, state, tokens[:, t : t + 1]))
            torch.testing.assert_close(logits[:, 0], whole[:, t], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("step_of", [Transformer, Model, "moving"])
def test_reordering_keeps_each_hypothesis_with_its_own_past(step_of, position):
    """Incrementally as on CPUs, by the base class's recomputation, and incrementally as on GPUs."""
    model, b = build(position=position).double().eval(), batch()
    with torch.no_grad():
        moving = step_of == "moving"
        step_of = Transformer if moving else step_of
        state = step_of.start(model, b.source_tokens, b.source_lengths)
        if moving:
            state.ancestry = None
            wheres = [model.where(model.decoder_position, n) for n in range(len(model.decoder))]
            state.layers = [PrefixCache(where) for where in wheres]
        step_of.extend(model, state, torch.full((3, 1), 1))
        state.reorder(torch.tensor([0, 1, 2]), torch.tensor([[0, 0], [1, 1], [2, 2]]))
        step_of.extend(model, state, torch.tensor([[3, 4], [5, 6], [7, 8]]))
        # sentence 1 is finished; its neighbours swap or repeat hypotheses
        state.reorder(torch.tensor([0, 2]), torch.tensor([[1, 0], [5, 5]]))
        logits = model.project(step_of.extend(model, state, torch.tensor([[9, 10], [11, 12]])))
        histories = {(0, 0): [1, 4, 9], (0, 1): [1, 3, 10], (1, 0): [1, 8, 11], (1, 1): [1, 8, 12]}
        for (row, k), history in histories.items():
            sentence = [0, 2][row]
            length = int(b.source_lengths[sentence])
            alone = model(
                b.source_tokens[sentence : sentence + 1, :length],
                b.source_lengths[sentence : sentence + 1],
                torch.tensor([history]),
            )
            torch.testing.assert_close(logits[row, k], model.project(alone)[0, -1])


def normal(x):
    """Φ, of the exact GELU (Hendrycks and Gimpel 2016)."""
    return 0.5 * (1 + torch.special.erf(x / math.sqrt(2)))


def tanh_gelu(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


ACTIVATIONS = {
    "relu": lambda x: x.clamp(min=0),
    "gelu": lambda x: x * normal(x),
    "gelu_tanh": tanh_gelu,
    "swish": lambda x: x * torch.sigmoid(x),
    "geglu": lambda x: x * normal(x),
    "geglu_tanh": tanh_gelu,
    "swiglu": lambda x: x * torch.sigmoid(x),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_feed_forward_layers_are_their_formulas(activation):
    """Table 1 of Shazeer (2020): the activation is of the further map, which multiplies the first."""
    layer = FeedForward(build(activation=activation).config).double().eval()
    x = 3 * torch.randn(5, 16, dtype=torch.float64)
    inner = layer.inner(x)
    act = ACTIVATIONS[activation]
    gated = activation in ("geglu", "geglu_tanh", "swiglu")
    hidden = act(layer.gate(x)) * inner if gated else act(inner)
    torch.testing.assert_close(layer(x), layer.outer(hidden))


def test_initial_weights_are_as_large_as_is_stated():
    """Embeddings of variance 1/C, so that the scaled ones have 1; linear maps as Glorot and Bengio (2010) have them,
    queries, keys and values as one map of three times the outputs (as fairseq has it)."""
    sizes = {"dim": 64, "ffn_dim": 96, "activation": "swiglu", "tie_embeddings": "none"}
    model = build(**sizes)
    seen = set()
    for path, role in model.roles().items():
        module = model.get_submodule(path)
        kind = role.rpartition(".")[2]
        if role == "output" or kind == "embedding":
            rows = module.weight if role == "output" else module.weight[3:]
            assert rows.std().item() == pytest.approx(64**-0.5, rel=0.07), path
            if kind == "embedding":
                assert not module.weight[0].any()  # of padding
        elif isinstance(module, nn.Linear):
            gain = 1 / math.sqrt(2) if kind in ("q", "k", "v") else 1.0
            assert is_xavier(module, gain) and not module.bias.any(), path
        else:
            continue
        seen.add(kind)
    assert seen == {"output", "embedding", "q", "k", "v", "out", "in", "gate"}


def test_each_dropout_acts_where_its_setting_says():
    """A probability of 1 leaves nothing of what it is for; attention is asked for its own."""
    b = batch()
    x, change = torch.randn(2, 3, 5, 16)
    for norm in ("pre", "post"):
        model = build(norm=norm, dropout=1.0)
        one = model.encoder[0].ffn
        assert torch.equal(one.leave(x, change), x if norm == "pre" else one.norm(x))
        entered = model.embed(model.encoder_embedding, model.encoder_position, b.source_tokens)
        assert not entered.any()
    body = build(activation_dropout=1.0, dropout=0.0).encoder[0].ffn.body
    nn.init.normal_(body.outer.bias)
    assert torch.equal(body(x), body.outer.bias.expand_as(x))
    body.eval()
    assert not torch.equal(body(x), body.outer.bias.expand_as(x))

    model = build(attention_dropout=0.25, dropout=0.0)
    asked = []

    def backend(q, k, v, dropout_p, **where):
        asked.append(dropout_p)
        return q

    for module in model.modules():
        if hasattr(module, "backend"):
            module.backend = backend
    for training in (True, False):
        model.train(training)
        model(*b.inputs)
    assert asked == [0.25] * (2 + 2 * 3) + [0.0] * (2 + 2 * 3)


def test_root_mean_square_normalisation_keeps_small_numbers_of_bfloat16():
    """torch's own epsilon, 0.008 there, would outweigh their squares."""
    norm = build(norm_type="rms").encoder[0].ffn.norm.bfloat16()
    x = torch.full((1, 16), 0.01, dtype=torch.bfloat16)
    assert norm(x).mean().item() == pytest.approx(1, abs=0.02)
    assert norm.eps == 1e-6  # Llama's


def test_shown_attention_is_the_mean_of_heads_in_the_layer_before_the_last():
    """Garg et al. 2019, section 3: the fifth of six, by torch's own module with the same weights."""
    model, b = build(dropout=0.1, norm="pre").double(), batch()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.checkpoint_activations()  # while it trains, too
    entered = []
    body = model.decoder[1].cross.body
    hook = body.register_forward_pre_hook(lambda module, args: entered.append(args))
    weights = model.eval().cross_attention(*b.inputs)
    hook.remove()
    ((x, memory),) = entered
    peer = nn.MultiheadAttention(16, 4, batch_first=True).double()
    with torch.no_grad():
        copy_attention(peer, body)
        _, expected = peer(x, memory, memory, key_padding_mask=b.source_tokens == 0)
    torch.testing.assert_close(weights, expected)
    # A criterion may train it, also where layers are computed again in the backward pass.
    model.train()
    gradients = []
    for again in (True, False):
        model.keeps_activations = not again
        model.zero_grad()
        torch.manual_seed(2)
        model.cross_attention(*b.inputs).square().sum().backward()
        gradients.append(body.q.weight.grad.clone())
        assert model.keeps_activations is not again
    torch.testing.assert_close(*gradients)


def test_two_threads_may_ask_for_attention_at_once():
    """The one got the other's, or an error, since what kept it was hung onto the model that they share."""
    model, b = build().eval(), batch()
    one, other = b.inputs, [x.flip(0) for x in b.inputs]
    expected = [model.cross_attention(*inputs) for inputs in (one, other)]
    found = []

    def interrupt(*args):
        hook.remove()
        found.append(model.cross_attention(*other))

    hook = model.encoder[0].register_forward_pre_hook(interrupt)
    found.insert(0, model.cross_attention(*one))
    torch.testing.assert_close(found, expected)


def test_layers_are_computed_again_in_the_backward_pass_only_while_it_trains():
    model, b, calls = build(dropout=0.0), batch(), []
    for layer in (*model.encoder, *model.decoder):
        layer.register_forward_pre_hook(lambda module, args: calls.append(module))
    for again in (False, True):
        if again:
            model.checkpoint_activations()
        for training in (True, False):
            calls.clear()
            model.train(training)
            model(*b.inputs).sum().backward()
            assert len(calls) == 5 * (2 if again and training else 1)


def test_embeddings_are_shared_as_asked():
    every = build(tie_embeddings="all")
    assert every.encoder_embedding.weight is every.output.weight
    decoder = build(joint=False, tie_embeddings="decoder")
    assert decoder.decoder_embedding.weight is decoder.output.weight
    assert len(decoder.encoder_embedding.weight) == 30 and len(decoder.output.weight) == 33
    none = build(tie_embeddings="none")
    assert none.decoder_embedding.weight is not none.output.weight
    with pytest.raises(UserError, match=r"tokenizer\.joint=true"):
        build(joint=False, tie_embeddings="all")


@pytest.mark.parametrize("position", POSITIONS)
def test_every_parameter_gets_a_gradient(position):
    model, b = build(joint=False, tie_embeddings="none", position=position), batch()
    model.project(
        model(b.source_tokens, b.source_lengths, b.prev_output_tokens)
    ).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("position", POSITIONS)
def test_positions_tell_orders_apart(position):
    model = build(position=position, dropout=0.0).double().eval()
    source = torch.tensor([[3, 4, 5, 6, 1], [4, 3, 5, 6, 1]])
    memory, _ = model.encode(source, torch.tensor([5, 5]))
    # Without positions the encoder would give the two rows' words the same vectors.
    assert (memory[0, 2] - memory[1, 2]).abs().max() > 1e-6


@pytest.mark.parametrize(
    "position", ["t5_bias", "alibi", "shaw", "transformer_xl", "rope", "deberta"]
)
def test_relative_positions_see_distances_only(position):
    model = build(position=position, dropout=0.0).double().eval()
    layer, where = model.encoder[0].attention.body, model.where(model.encoder_position, 0)
    x = torch.randn(1, 3, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    k, v = layer.keys_values(x)
    near = layer.attend(x[:, -1:], k, v, query_offset=2, **where)
    # The same keys 5 positions further on, behind keys that are hidden from view by a block.
    other = torch.randn(1, 5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    far_k, far_v = layer.keys_values(torch.cat([other, x], 1))
    from mtplug_kernels import reference

    q = layer.split(layer.q(x[:, -1:]))
    out, lse = reference.attention(q, far_k, far_v, query_offset=7, return_lse=True, **where)
    hidden, hidden_lse = reference.attention(
        q, far_k[:, :, :5], far_v[:, :, :5], query_offset=7, return_lse=True, **where
    )
    share = (hidden_lse - lse).exp()[..., None]
    alone = (out - share * hidden) / (1 - share)
    torch.testing.assert_close(layer.out(alone.transpose(1, 2).flatten(2)), near)


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
@pytest.mark.parametrize("position", POSITIONS)
def test_a_packed_batch_has_the_loss_and_gradients_of_a_padded_one(position, backend):
    model = build(position=position, dropout=0.0, attention=AttentionConfig(backend)).double()
    criterion = LabelSmoothedCrossEntropy(LabelSmoothedCrossEntropyConfig(0.1), None)
    pairs = [([3, 4, 5, 6], [7, 8, 9]), ([10, 11], [12, 13, 14, 15, 16]), ([20], [21])]
    results = []
    for make in (collate, concatenate):
        model.zero_grad()
        loss = criterion(model, make(pairs, torch.arange(3).numpy()))
        loss.sum.backward()
        grads = {n: p.grad.clone() for n, p in model.named_parameters()}
        results.append((loss.sum.detach(), loss.count, grads))
    assert results[0][1] == results[1][1]
    torch.testing.assert_close(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][2], results[1][2])


@pytest.mark.parametrize("position", POSITIONS)
def test_padding_changes_nothing(position):
    model, b = build(position=position).double().eval(), batch()
    whole = model(b.source_tokens, b.source_lengths, b.prev_output_tokens)
    for row in range(3):
        s, t = int(b.source_lengths[row]), int(b.target_lengths[row])
        alone = model(
            b.source_tokens[row : row + 1, :s],
            b.source_lengths[row : row + 1],
            b.prev_output_tokens[row : row + 1, :t],
        )
        torch.testing.assert_close(whole[row, :t], alone[0], rtol=1e-9, atol=1e-9)


def test_every_module_with_weights_of_its_own_has_a_role():
    model = build(norm="pre", position="t5_bias")
    roles = {model.get_submodule(path): role for path, role in model.roles().items()}
    without = [
        path
        for path, m in model.named_modules()
        if [*m.parameters(recurse=False)] and m not in roles
    ]
    assert without == ["encoder_position", "decoder_position"]
    assert model.roles()["decoder.1.cross.body.v"] == "decoder.cross.v"
    assert roles[model.decoder[0].ffn.body.inner] == "decoder.ffn.in"


def test_layers_of_a_subclass_may_have_another_feed_forward_body():
    class Experts(nn.Module):
        def __init__(self, dim):
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(dim, dim) for _ in range(2))

        def forward(self, x):
            return self.experts[0](x) + self.experts[1](x)

    class WithExperts(EncoderLayer):
        def __init__(self, config, *args):
            super().__init__(config, *args)
            self.ffn.body = Experts(config.dim)

    class Mixture(Transformer):
        encoder_layer = WithExperts

    model = Mixture(build().config, Task())
    roles = model.roles()
    assert roles["encoder.0.ffn.body"] == "encoder.ffn" and "encoder.0.ffn.body.inner" not in roles
    assert roles["decoder.0.ffn.body.inner"] == "decoder.ffn.in"
    assert model(*batch().inputs).isfinite().all()


def test_depth_scaled_initialisation_divides_each_layer_by_the_root_of_its_depth():
    plain, scaled = build(), build(init="depth_scaled")
    pairs = dict(scaled.named_parameters())
    for name, weight in plain.named_parameters():
        stack, _, rest = name.partition(".")
        inside = stack in ("encoder", "decoder") and weight.dim() == 2
        depth = int(rest.split(".")[0]) + 1 if inside else 1
        torch.testing.assert_close(pairs[name], weight / depth**0.5)


@pytest.mark.parametrize("position", ["learned", "transformer_xl", "deberta"])
def test_search_is_the_same_when_columns_without_descendants_are_dropped(position, monkeypatch):
    model, b = build(position=position).double().eval(), batch()
    search = BeamSearch(BeamConfig(beam=4, nbest=4, max_ratio=4))
    monkeypatch.setattr(ancestry, "FIRST", 2)
    dropped, drop = [], ancestry.Ancestry._drop

    def watched(self):
        drop(self)
        dropped.append(self.kept is not None)

    monkeypatch.setattr(ancestry.Ancestry, "_drop", watched)
    found = search(model, b.source_tokens, b.source_lengths)
    assert any(dropped)
    monkeypatch.setattr(Transformer, "start", Model.start)  # recomputes each prefix
    monkeypatch.setattr(Transformer, "extend", Model.extend)
    for ours, theirs in zip(found, search(model, b.source_tokens, b.source_lengths), strict=True):
        assert [h.tokens for h in ours] == [h.tokens for h in theirs]
        assert [h.score for h in ours] == pytest.approx([h.score for h in theirs], abs=1e-9)


def test_a_sentence_is_searched_alone_as_among_others():
    """Its hypotheses tell themselves apart where there is no other sentence, too."""
    model, b = build().double().eval(), batch()
    search = BeamSearch(BeamConfig(beam=4, nbest=4, max_ratio=2))
    together = search(model, b.source_tokens, b.source_lengths)
    for n, length in enumerate(b.source_lengths):
        one = slice(n, n + 1)
        (alone,) = search(model, b.source_tokens[one, :length], b.source_lengths[one])
        assert [h.tokens for h in alone] == [h.tokens for h in together[n]]
        scores = [h.score for h in together[n]]
        assert [h.score for h in alone] == pytest.approx(scores, abs=1e-9)


@pytest.mark.parametrize("position", ["sinusoidal", "alibi"])
def test_hypotheses_see_keys_before_the_first_position_and_their_own_past(position, monkeypatch):
    """As prefix tuning puts them there: by columns that stay, and by computing each prefix again."""
    model, b = build(position=position).double().eval(), batch()
    front = torch.randn(2, 4, 3, 4, dtype=torch.float64)
    for layer in model.decoder:
        layer.attention.body.prefixes.append(lambda: tuple(front))
    search = BeamSearch(BeamConfig(beam=4, nbest=4, max_ratio=2))
    found = search(model, b.source_tokens, b.source_lengths)
    monkeypatch.setattr(Transformer, "start", Model.start)
    monkeypatch.setattr(Transformer, "extend", Model.extend)
    for ours, theirs in zip(found, search(model, b.source_tokens, b.source_lengths), strict=True):
        assert [h.tokens for h in ours] == [h.tokens for h in theirs]
        assert [h.score for h in ours] == pytest.approx([h.score for h in theirs], abs=1e-9)
