"""What every method promises, on Transformers and on an architecture that tells no roles."""

import copy

import pytest
import torch
from torch import nn

from mtplug import testing
from mtplug.architectures.base import Model
from mtplug.config.build import component_from_overrides
from mtplug.criteria import LabelSmoothedCrossEntropy, LabelSmoothedCrossEntropyConfig
from mtplug.errors import UserError
from mtplug.peft.bottleneck import AdapterConfig, Bottleneck
from mtplug.peft.combine import Part, merge
from mtplug.peft.ia3 import IA3
from mtplug.peft.lora import Decomposed, LoRAConfig, LowRank, LowRankTable
from mtplug.peft.select import Select
from mtplug.testing.material import MeanWords, WordsTask, padded
from mtplug.testing.models import decodes_as_a_whole
from tests.nn.test_layers import is_xavier
from tests.peft.material import BATCH, adapted, logits, method, transformer

METHODS = {
    "houlsby": ("adapter", "style=houlsby", "bottleneck=3"),
    "pfeiffer": ("adapter", "bottleneck=3"),
    "parallel": ("adapter", "style=parallel", "bottleneck=3", "scale=4"),
    "bapna": ("adapter", "style=bapna", "bottleneck=3"),
    "prefix": ("prefix_tuning", "length=3"),
    "network": ("prefix_tuning", "length=3", "hidden=5"),
    "prompt": ("prompt_tuning", "length=3"),
    "lora_xs": ("lora_xs", "share=0.2"),
    "ia3": ("ia3",),
    "bitfit": ("bitfit",),
    "select": ("select", "targets=[norm, embedding]"),
}
CHANGES_AT_ONCE = ("prefix", "network", "prompt")


@pytest.mark.parametrize("name", METHODS)
def test_keeps_the_contract(name):
    testing.check_peft_method(*METHODS[name], starts_as_model=name not in CHANGES_AT_ONCE)


@pytest.mark.parametrize("name", [*METHODS, "lora"])
def test_keeps_the_contract_with_relative_positions_before_norm_and_tables_apart(name):
    testing.check_peft_method(
        *METHODS.get(name, ("lora", "rank=2")),
        architecture=("transformer", *testing.material.TINY_TRANSFORMER, "norm=pre", "position.name=rope",
                      "tie_embeddings=none"),
        starts_as_model=name not in CHANGES_AT_ONCE,
    )  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_more_padding_changes_nothing(name):
    model = adapted(*METHODS[name]).double().eval()
    wide = padded(BATCH)
    features = model(wide.source_tokens, wide.source_lengths, wide.prev_output_tokens)
    real = BATCH.target_tokens != 0
    narrow = logits(model)
    torch.testing.assert_close(model.project(features)[:, : narrow.shape[1]][real], narrow[real])


@pytest.mark.parametrize("name", ["lora_xs", "ia3", "bitfit", "select"])
def test_merged_equals_unmerged(name):
    model = adapted(*METHODS[name]).double().eval()
    before = logits(model)
    merge(model)
    plain = transformer().double()
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(logits(plain), before, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["pfeiffer", "prefix", "prompt"])
def test_what_no_weights_can_do_is_not_merged(name):
    with pytest.raises(UserError, match="cannot be merged"):
        merge(adapted(*METHODS[name]))


@pytest.mark.parametrize("name", METHODS)
def test_a_copy_is_a_model_of_its_own(name):
    model = adapted(*METHODS[name]).eval()
    other, before = copy.deepcopy(model), logits(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    torch.testing.assert_close(logits(other), before, rtol=0, atol=0)


LAYERS = ("encoder.0", "decoder.0", "decoder.1")
PLACES = {
    "houlsby": [f"{at}.body.out" for at in ("encoder.0.attention", "decoder.0.attention", "decoder.0.cross",
                                            "decoder.1.attention", "decoder.1.cross")]
    + [f"{layer}.ffn.body.outer" for layer in LAYERS],
    "pfeiffer": [f"{layer}.ffn.body.outer" for layer in LAYERS],
    "parallel": [f"{layer}.ffn.body" for layer in LAYERS],
    "bapna": [f"{layer}.ffn" for layer in LAYERS],
}  # fmt: skip


@pytest.mark.parametrize("style", PLACES)
def test_the_formula_of_bottlenecks_and_where_they_stand(style):
    """y + 4 · up(swish(down(h))) with h = y, x (parallel) or norm(y) (bapna), where the papers put it."""
    settings = ("adapter", f"style={style}", "bottleneck=3", "scale=4", "activation=swish")
    wide = "ffn_dim=20"  # so that what goes into a module and what comes out of a part of it differ in size
    model, base = (
        adapted(*settings, base=(wide,)).double().eval(),
        transformer(wide).double().eval(),
    )
    found = [
        name.removesuffix(".peft") for name, _ in model.named_modules() if name.endswith(".peft")
    ]
    assert sorted(found) == sorted(PLACES[style])
    for path in found:
        module, plain = model.get_submodule(path), base.get_submodule(path)
        x = torch.randn(5, next(plain.parameters()).shape[-1]).double()
        y, change = plain(x), module.peft
        h = x if style == "parallel" else y
        if style == "bapna":
            h = nn.functional.layer_norm(y, y.shape[-1:], change.norm.weight, change.norm.bias)
        inner = h @ change.down.weight.T + change.down.bias
        added = (inner * inner.sigmoid()) @ change.up.weight.T + change.up.bias
        torch.testing.assert_close(module(x), y + 4 * added)


def test_what_lies_inside_of_a_target_gets_no_second_bottleneck():
    model = adapted("adapter", "targets=[encoder.0.ffn, encoder.0.ffn.body]")
    assert [n for n, _ in model.named_modules() if n.endswith(".peft")] == ["encoder.0.ffn.peft"]


def test_a_prompt_begins_as_rows_of_ordinary_tokens():
    model = transformer()
    table = model.encoder_embedding.weight.detach().clone()
    prompt = method("prompt_tuning", "length=50").apply(model).prompts[0].prompt.detach()
    rows = (prompt[:, None] == table).all(-1)
    assert rows[:, 3:].any(1).all() and rows.any(0).sum() > 5


def test_dropout_of_a_bottleneck_is_for_training_only():
    module = adapted("adapter", "dropout=0.5").get_submodule("encoder.0.ffn.body.outer")
    x = torch.randn(5, module.in_features)
    assert not torch.equal(module(x), module(x))
    assert torch.equal(module.eval()(x), module(x))


@pytest.mark.parametrize("hidden", [0, 6])
def test_prefix_is_attention_to_further_keys(hidden):
    """The definition: softmax over the prefix's keys and the real ones together."""
    settings = ("length=3", f"hidden={hidden}", "targets=[decoder.0.cross.body]")
    model = adapted("prefix_tuning", *settings).double()
    attention = model.decoder[0].cross.body
    x, memory = torch.randn(2, 4, 16).double(), torch.randn(2, 5, 16).double()
    own = attention.peft
    if hidden:  # Li and Liang 2021, section 4.3: a network makes both of a smaller prefix
        first, second = own.network[0], own.network[2]
        both = (own.start @ first.weight.T + first.bias).tanh() @ second.weight.T + second.bias
        ours = both[:, :16], both[:, 16:]
        assert len(first.weight) == hidden
    else:
        ours = own.keys, own.values
    keys = torch.cat([ours[0].expand(2, 3, 16), attention.k(memory)], 1)
    values = torch.cat([ours[1].expand(2, 3, 16), attention.v(memory)], 1)
    q, k, v = (attention.split(y) for y in (attention.q(x), keys, values))
    truth = ((q @ k.mT) / 8**0.5).softmax(-1) @ v
    torch.testing.assert_close(
        attention(x, memory), attention.out(truth.transpose(1, 2).flatten(2))
    )


def test_a_prefix_has_the_heads_of_keys():
    model = adapted("prefix_tuning", "length=3", base=("kv_heads=1",)).double()
    attention = model.decoder[0].cross.body
    x, memory = torch.randn(2, 4, 16).double(), torch.randn(2, 5, 16).double()
    keys = torch.cat([attention.peft.keys.expand(2, 3, 8), attention.k(memory)], 1)
    values = torch.cat([attention.peft.values.expand(2, 3, 8), attention.v(memory)], 1)
    q, k, v = (attention.split(y) for y in (attention.q(x), keys, values))
    truth = ((q @ k.mT) / 8**0.5).softmax(-1) @ v  # one head of keys for both of the queries
    torch.testing.assert_close(
        attention(x, memory), attention.out(truth.transpose(1, 2).flatten(2))
    )


def test_prompt_is_further_embeddings_before_the_source():
    """Against a model whose table really has the prompt's rows, and a source that really has its tokens."""
    model = adapted("prompt_tuning", "length=3").double().eval()
    prompt = model.encoder_embedding.peft.prompt.detach()
    longer = transformer("tie_embeddings=decoder").double().eval()
    plain = transformer().double()
    state = {
        **plain.state_dict(),
        "encoder_embedding.weight": torch.cat([plain.encoder_embedding.weight, prompt]),
    }
    longer.encoder_embedding = nn.Embedding(26, 16).double()
    longer.load_state_dict(state)
    front = torch.arange(23, 26).expand(3, 3)
    features = longer(
        torch.cat([front, BATCH.source_tokens], 1),
        BATCH.source_lengths + 3,
        BATCH.prev_output_tokens,
    )
    torch.testing.assert_close(longer.project(features), logits(model))
    weights = model.cross_attention(
        BATCH.source_tokens, BATCH.source_lengths, BATCH.prev_output_tokens
    )
    assert weights.shape[2] == BATCH.source_tokens.shape[1]
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:2]).double())


@pytest.mark.parametrize(("given", "inside"), [
    (("lora", "rank=2", "targets=[output, source, target]"), 3),
    (("adapter", "style=houlsby", "targets=['*et', output]"), 2),
    (("prompt_tuning", "targets=[source]"), 1),
    (("ia3", "targets=[output]", "feedforward=[]"), 1),
    (("bitfit",), 0),
    (("select", "targets=['rnn.*_l0']"), 0),
])  # fmt: skip
def test_an_architecture_without_roles_is_adapted_by_names(given, inside):
    model = method(*given).apply(MeanWords()).eval()
    assert sum(name.endswith("peft") for name, _ in model.named_modules()) == inside
    decodes_as_a_whole(model, BATCH)
    loss = LabelSmoothedCrossEntropy(LabelSmoothedCrossEntropyConfig(0.1), None)(model, BATCH)
    loss.sum.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_a_prompt_moves_no_label(tmp_path):
    """What an encoder tells of each token stands at that token, with the prompt as context."""
    torch.manual_seed(1)
    plain = component_from_overrides(
        "architectures", "transformer_encoder", ["dim=16", "ffn_dim=24", "heads=2", "encoder_layers=2"]
    ).build(WordsTask()).double().eval()  # fmt: skip
    model = method("prompt_tuning", "length=3").apply(copy.deepcopy(plain)).eval()
    b = BATCH
    rows = model.encoder_embedding.peft.prompt
    # The prompt's rows are rows of the table, so that a source can be written that has them in front.
    ids = [(plain.encoder_embedding.weight == row).all(1).nonzero()[0] for row in rows]
    front = torch.cat(ids).expand(len(b.source_tokens), 3)
    written = plain(torch.cat([front, b.source_tokens], 1), b.source_lengths + 3, None)
    features = model(b.source_tokens, b.source_lengths, None)
    assert features.shape[:2] == b.source_tokens.shape
    torch.testing.assert_close(features, written[:, 3:])


@pytest.mark.parametrize(("given", "said"), [
    (("adapter", "dropout=2"), "dropout must be at least 0 and below 1"),
    (("prefix_tuning", "hidden=-1"), "hidden must be at least 0"),
    (("lora", "alpha=0"), "alpha must be a number other than 0"),
])  # fmt: skip
def test_settings_that_mean_nothing_are_refused(given, said):
    with pytest.raises(UserError, match=said):
        method(*given)


@pytest.mark.parametrize(("given", "said"), [
    (("prefix_tuning",), "and this MeanWords has none"),
    (("adapter",), "has no ffn.out among its roles; name"),
    (("prompt_tuning",), "has no encoder.embedding"),
    (("ia3",), "declares no roles; name"),
    (("lora", "targets=[rnn]"), "'rnn' means rnn, a GRU; this method is for Linear, Embedding"),
    (("select",), "'targets' is missing"),
])  # fmt: skip
def test_what_a_method_cannot_do_is_said(given, said):
    with pytest.raises(UserError, match=said):
        method(*given).apply(MeanWords())


LEARNED = ("position.name=learned",)


@pytest.mark.parametrize(("base", "steps", "said"), [
    ((), [("lora", "targets=[q]"), ("lora", "dora=true", "targets=[q]")], "has an adapter already; DoRA must be the first"),
    ((), [("prompt_tuning",), ("prompt_tuning",)], "the base has a prompt already"),
    (("tie_embeddings=none",), [("prompt_tuning", "targets=[embedding]")],
     "encoder_embedding and decoder_embedding: prompt_tuning takes one table"),
    ((), [("ia3", "targets=[output]")], "output shares its weight with another module"),
    ((), [("ia3", "targets=[ffn.out]")], r"decoder\.0\.ffn\.body\.outer is one of peft\.targets too; name it once"),
    ((), [("bitfit", "targets=[embedding]")], "bitfit trains biases, and what is meant has none"),
    ((), [("adapter", "targets=[encoder_position]")], "encoder_position, a Sinusoidal, holds no linear map"),
    (LEARNED, [("adapter", "targets=[encoder_position]")], "encoder_position, a Learned, holds no linear map"),
])  # fmt: skip
def test_what_does_not_go_together_is_said(base, steps, said):
    model = transformer(*base)
    for step in steps[:-1]:
        model = method(*step).apply(model)
    with pytest.raises(UserError, match=said):
        method(*steps[-1]).apply(model)


def test_dora_of_two_maps_that_share_a_weight_is_refused():
    model = transformer()
    body = model.encoder[0].attention.body
    body.k.weight = body.q.weight
    with pytest.raises(UserError, match=r"body.q = .*body.k is a table of tokens or a tied weight"):
        method("lora", "dora=true", "targets=[encoder.self.q]").apply(model)


def test_bottlenecks_of_attention_lie_on_its_output_map():
    """In search attention itself is not called; its output map is."""
    model = method("adapter", "targets=[encoder.self]").apply(transformer())
    found = [n for n, _ in model.named_modules() if n.endswith(".peft")]
    assert found == ["encoder.0.attention.body.out.peft"]


def test_new_parameters_start_as_their_papers_and_hugging_face_have_them():
    """A of LoRA uniform within 1 / √I, of a table 0; B 0, of a table N(0, 1); bottlenecks as Glorot and Bengio have it."""
    torch.manual_seed(0)
    linear, table = nn.Linear(100, 80), nn.Embedding(60, 50)
    like = LoRAConfig(rank=40)
    low = LowRank(linear, like)
    assert 0.099 < low.lora_A.weight.abs().max() <= 0.1 and not low.lora_B.weight.any()
    assert low.lora_A.weight.std().item() == pytest.approx(0.1 / 3**0.5, rel=0.05)
    rows = LowRankTable(table, like)
    assert rows.lora_embedding_B.std().item() == pytest.approx(1, rel=0.05)
    assert not rows.lora_embedding_A.any()
    torch.testing.assert_close(
        Decomposed(linear, like).lora_magnitude_vector, linear.weight.square().sum(1).sqrt()
    )
    bottleneck = Bottleneck(linear, AdapterConfig(bottleneck=64), "")
    assert is_xavier(bottleneck.down)
    assert not any(p.any() for p in (bottleneck.down.bias, *bottleneck.up.parameters()))
    prefix = (
        method("prefix_tuning", "length=50").apply(transformer()).encoder[0].attention.body.peft
    )
    for one in (prefix.keys, prefix.values):
        assert one.std().item() == pytest.approx(0.02, rel=0.1)


def test_a_sum_is_of_how_far_tensors_are_from_those_that_change_nothing():
    def part(weight, value, settings=0, name="l"):
        return Part(weight, settings, {name: torch.tensor([value])})

    _, stretched, _ = IA3.sum([part(0.5, 3.0), part(2.0, 2.0)], {})
    assert stretched["l"].item() == 1 + 0.5 * 2 + 2 * 1
    _, own, _ = Select.sum([part(0.5, 3.0), part(2.0, 2.0)], {"l": torch.tensor([1.5])})
    assert own["l"].item() == 1.5 + 0.5 * 1.5 + 2 * 0.5
    longer = Part(1.0, 0, {"l": torch.ones(2)})
    for other in (part(1.0, 1.0, settings=1), part(1.0, 1.0, name="m"), longer):
        with pytest.raises(UserError, match="different settings or tensors have no sum"):
            IA3.sum([part(1.0, 1.0), other], {})


class Torchs(Model):
    """torch's own Transformer, which uses some weights without calling the module that holds them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.table = nn.Embedding(23, 16)
        self.body = nn.Transformer(16, 2, 1, 1, 32, 0.0, batch_first=True)
        self.head = nn.Linear(16, 23)

    def forward(self, source_tokens, source_lengths, prev_output_tokens):
        def padding(tokens):
            return tokens == 0

        mask = nn.Transformer.generate_square_subsequent_mask(prev_output_tokens.shape[1]) < 0
        return self.body(
            self.table(source_tokens), self.table(prev_output_tokens), tgt_mask=mask,
            src_key_padding_mask=padding(source_tokens), memory_key_padding_mask=padding(source_tokens),
        )  # fmt: skip

    def project(self, features):
        return self.head(features)


@pytest.mark.parametrize("name", ["lora", "houlsby"])
def test_no_change_is_attached_where_a_module_is_not_called(name):
    given = METHODS.get(name, ("lora", "rank=2"))
    if name == "houlsby":
        given = (*given, "targets=['*linear2']")
    model = method(*given).apply(Torchs())
    logits(model).sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter) * parameter.requires_grad
    # torch's fast path of evaluation calls no modules; hooks must keep it away
    model.train()
    trained = logits(model)
    with torch.no_grad():
        torch.testing.assert_close(logits(model.eval()), trained)
    with pytest.raises(UserError, match="no module is called"):
        method("lora", "targets=[body.encoder.layers.0.self_attn.out_proj]").apply(Torchs())


def test_prefix_takes_padded_batches_only():
    """A prefix stands before a sentence, and packed ones have no room between them."""
    assert transformer().takes_packed
    assert not adapted("prefix_tuning", "length=3").takes_packed
