"""The model against the Transformer that it is where factors say nothing, and embeddings written out."""

import pytest
import torch
from mtplug_factors.model import FactoredEmbedding, FactoredTransformer, Layout
from mtplug_factors.tokenizer import Factored

import mtplug
from mtplug import testing
from mtplug.config import component_from_overrides
from mtplug.data.tags import Tagged
from mtplug.tasks.sized import SizedTask
from mtplug.testing import material
from mtplug.testing.material import TINY_TRANSFORMER, logits_of, random_batch
from mtplug.testing.subject import close, equal

VALUES = {"pos": ["N", "V"], "case": ["low", "title"]}  # 3 and 3 with "none"


class Few(material.Words):
    """Five pieces: their 45 ids with factors are more than those of random batches."""

    words = material.Words.words[:5]


class Task(material.WordsTask):
    def __init__(self):
        super().__init__()
        self.source_tokenizer = Factored(Few(), VALUES, False, "￨")


def build(name, task, *settings):
    torch.manual_seed(1)
    given = [*TINY_TRANSFORMER, "dropout=0", "tie_embeddings=decoder", *settings]
    return component_from_overrides("architectures", name, given).build(task).eval()


def plain_twin(model):
    """The Transformer that has the rest of a model's weights, and its pieces' embeddings."""
    sizes = SizedTask(5)
    sizes.target_tokenizer = material.Words()
    twin = build("transformer", sizes)
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("encoder_embedding.")}
    twin.load_state_dict(
        state | {"encoder_embedding.weight": model.encoder_embedding.pieces.weight}
    )
    return twin


def with_factors(batch, at):
    """A batch whose source ids are taken for those of pieces, with factors where there is no padding or `</s>`."""
    words = batch.source_tokens > 1
    batch.source_tokens = torch.where(
        words, batch.source_tokens % 3 + 2 + 5 * at, batch.source_tokens
    )
    return batch


@pytest.mark.parametrize("combine", ["sum", "concat"])
def test_contract(combine, monkeypatch):
    monkeypatch.setattr("mtplug.testing.models.WordsTask", Task)
    ours = (*TINY_TRANSFORMER, f"combine={combine}", "factor_dim=4", "tie_embeddings=decoder")
    assert (
        len(
            component_from_overrides("architectures", "factored_transformer", list(ours))
            .build(Task())
            .encoder_embedding.factors
        )
        == 2
    )
    testing.check_architecture("factored_transformer", *ours, compile=False)


def test_with_tables_of_zeros_it_is_the_transformer_of_the_pieces():
    model = build("factored_transformer", Task(), "combine=sum")
    wanted = logits_of(plain_twin(model), with_factors(random_batch(), 0))
    batch = with_factors(random_batch(), 1 + 3 * 2)
    assert (logits_of(model, batch) - wanted).abs().max() > 0.01
    for table in model.encoder_embedding.factors:
        torch.nn.init.zeros_(table.weight)
    close(logits_of(model, batch), wanted, "logits", 1e-6)


def test_text_without_factors_is_text_to_the_transformer_of_the_pieces():
    model = build("factored_transformer", Task(), "combine=sum")
    batch = with_factors(random_batch(), 0)
    equal(logits_of(model, batch), logits_of(plain_twin(model), batch), "logits")


def test_one_value_throughout_moves_all_pieces_alike():
    model = build("factored_transformer", Task(), "combine=sum")
    twin, (pos, case) = plain_twin(model), model.encoder_embedding.factors
    with torch.no_grad():
        twin.encoder_embedding.weight[2:] += pos.weight[2] + case.weight[1]
    wanted = logits_of(twin, with_factors(random_batch(), 0))
    close(logits_of(model, with_factors(random_batch(), 2 + 3 * 1)), wanted, "logits", 1e-5)


@pytest.mark.parametrize("combine", ["sum", "concat"])
def test_embeddings_are_those_written_out(combine):
    task = Task()
    task.source_tokenizer = Tagged(
        task.source_tokenizer, ["cs", "de", "en", "fr", "it", "pl"]
    )  # ids from 45
    layout = Layout.of(task.source_tokenizer)
    assert layout == Layout(5, (3, 3), 6)
    made = FactoredEmbedding(layout, 12, 0 if combine == "sum" else 3)
    p, (a, b) = made.pieces.weight, (t.weight for t in made.factors)
    assert not a[0].any() and not b[0].any()
    rows = [(4, 2, 1), (3, 0, 2), (1, 0, 0), (5, 0, 0), (10, 0, 0)]
    ids = torch.tensor([[4 + 5 * (2 + 3 * 1), 3 + 5 * (0 + 3 * 2), 1, 45, 50]])
    wanted = [
        p[i] + a[j] + b[k] if combine == "sum" else torch.cat([p[i], a[j], b[k]])
        for i, j, k in rows
    ]
    equal(made(ids)[0], torch.stack(wanted), "embeddings")
    assert made(ids).shape == (1, 5, 12)


def test_all_tables_begin_with_the_variance_that_the_transformer_has():
    made = FactoredEmbedding(Layout(4000, (3000,)), 64, 16)
    for table, width in ((made.pieces, 48), (made.factors[0], 16)):
        assert table.weight.shape[1] == width
        assert table.weight.var().item() == pytest.approx(1 / 64, rel=0.05)


def test_what_cannot_be_is_told():
    with pytest.raises(mtplug.UserError, match="2 factors of 8 leave no room for words in dim 16"):
        build("factored_transformer", Task(), "factor_dim=8")
    with pytest.raises(mtplug.UserError, match="tie_embeddings"):
        build("factored_transformer", Task(), "tie_embeddings=all")
    for task, count in (
        (SizedTask(9), 1),
        (material.WordsTask(), 0),
    ):  # without a tokenizer; without factors
        model = build("factored_transformer", task, "factor_dim=2")
        assert isinstance(model, FactoredTransformer)
        assert len(model.encoder_embedding.factors) == count
