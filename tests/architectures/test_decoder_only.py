"""One stack over source and target: against the language model whose row holds both."""

import pytest
import torch

import mtplug
from mtplug import testing
from mtplug.config.build import component_from_overrides
from mtplug.data.batching import collate, concatenate
from tests.architectures.models import Sized, Task, batch, build
from tests.architectures.test_transformer import POSITIONS

SIZES = ("dim=16", "ffn_dim=24", "heads=4", "layers=2")


@pytest.mark.parametrize("position", POSITIONS)
def test_it_is_the_language_model_of_source_and_target_in_one_row(position):
    settings = (*SIZES, "norm=pre", f"position.name={position}")
    model, b = build("decoder_only", *settings).eval(), batch()
    whole = build("transformer_lm", *settings).eval()
    whole.load_state_dict(model.state_dict())
    found = model(b.source_tokens, b.source_lengths, b.prev_output_tokens)
    for n in range(3):
        s, t = int(b.source_lengths[n]), int(b.target_lengths[n])
        # </s> of the source stands for that with which the decoder begins
        row = torch.cat([b.source_tokens[n, :s], b.prev_output_tokens[n, 1:t]])[None]
        expected = whole(row, torch.tensor([row.shape[1]]), row)[0, s - 1 :]
        torch.testing.assert_close(found[n, :t], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("position", POSITIONS)
def test_it_keeps_the_contract(position):
    """Of which "incremental" and "reorder" have sources of several lengths, "packed" rows of several sentences."""
    compiles = position in ("rope", "learned")
    settings = (f"position.name={position}", "kv_heads=2", "norm_type=rms", "activation=swiglu")
    testing.check_architecture("decoder_only", *SIZES, *settings, compile=compiles)


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("position", ["rope", "t5_bias", "learned"])
def test_a_long_search_whose_hypotheses_die_gives_the_logits_of_each_prefix(position, prefix):
    """Columns of the dead are dropped, those of the source and of a fine-tuned prefix stay."""
    model = build("decoder_only", *SIZES, f"position.name={position}").eval()
    if prefix:
        component_from_overrides("peft_methods", "prefix_tuning", ["length=3"]).build().apply(model)
        model.double().eval()
    b, generator = batch(), torch.Generator().manual_seed(2)
    state = model.start(b.source_tokens, b.source_lengths)
    alive = torch.arange(3)
    prefixes = b.prev_output_tokens[:, None, :1]  # (B, K, length)
    with torch.no_grad():
        for length in range(80):
            logits = model.step(state, prefixes[..., -1])
            if length % 20 == 19:
                for n, sentence in enumerate(alive.tolist()):
                    source, lengths = b.source_tokens[[sentence]], b.source_lengths[[sentence]]
                    for k in range(logits.shape[1]):
                        whole = model(source, lengths, prefixes[n, k][None])
                        torch.testing.assert_close(
                            logits[n, k], model.project(whole)[0, -1], rtol=1e-8, atol=1e-8
                        )
            kept = torch.arange(len(alive)) if length != 40 else torch.tensor([0, 2])
            width = prefixes.shape[1]
            parents = torch.randint(0, width, (len(kept), 3), generator=generator)
            state.reorder(kept, kept[:, None] * width + parents)
            old = prefixes[kept].gather(1, parents[..., None].expand(-1, -1, length + 1))
            new = torch.randint(3, 30, (len(kept), 3, 1), generator=generator)
            prefixes, alive = torch.cat([old, new], 2), alive[kept]


def test_packed_sentences_have_the_same_loss_and_gradients():
    results = []
    pairs = [([3, 4, 5, 6], [7, 8, 9]), ([10, 11], [12, 13, 14, 15, 16]), ([20], [21])]
    for collated in (collate, concatenate):
        model, b = build("decoder_only", *SIZES), collated(pairs, torch.arange(3).numpy())
        logits = model.project(model(*b.inputs)).log_softmax(-1)
        chosen = logits.gather(-1, b.target_tokens[..., None])[b.target_tokens != 0]
        chosen.sum().backward()
        results.append((chosen.detach().sum(), [p.grad for p in model.parameters()]))
    torch.testing.assert_close(*results)


def test_the_source_is_not_learnt():
    """Of a target of one token only what predicts it has a gradient: the row behind the source's last token."""
    model = build("decoder_only", *SIZES, "tie_embeddings=false")
    source = torch.tensor([[5, 6, 7, 1]])
    features = model(source, torch.tensor([4]), torch.tensor([[1]]))
    assert features.shape == (1, 1, 16)
    (-model.project(features).log_softmax(-1)[..., 9]).sum().backward()
    learnt = model.embedding.weight.grad.abs().sum(1).nonzero()[:, 0].tolist()
    assert learnt == [1, 5, 6, 7]


def test_two_vocabularies_are_refused():
    task = Task()
    task.target_tokenizer = Sized(30)
    with pytest.raises(mtplug.UserError, match=r"one vocabulary; set tokenizer\.joint=true"):
        component_from_overrides("architectures", "decoder_only", list(SIZES)).build(task)
