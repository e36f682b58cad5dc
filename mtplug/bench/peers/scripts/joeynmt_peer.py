"""JoeyNMT's Transformer, its loss and its optimizer."""

from types import SimpleNamespace

import torch
from joeynmt.batch import Batch
from joeynmt.builders import build_optimizer
from joeynmt.model import build_model
from joeynmt.search import search as joey_search
from joeynmt.vocabulary import Vocabulary
from worker import both_precisions, pairs

PAD, BOS, EOS = 1, 2, 3


def build(settings):
    special = SimpleNamespace(
        unk_token="<unk>", pad_token="<pad>", bos_token="<s>", eos_token="</s>", sep_token=None,
        unk_id=0, pad_id=PAD, bos_id=BOS, eos_id=EOS, lang_tags=[],
    )  # fmt: skip
    vocabulary = Vocabulary([f"t{i}" for i in range(settings["vocabulary"] - 4)], special)
    side = {
        "type": "transformer",
        "num_layers": settings["layers"],
        "num_heads": settings["heads"],
        "hidden_size": settings["dim"],
        "ff_size": settings["ffn_dim"],
        "dropout": settings["dropout"],
        "embeddings": {
            "embedding_dim": settings["dim"],
            "scale": True,
            "dropout": settings["dropout"],
        },
    }
    shared = {"tied_embeddings": True, "tied_softmax": True, "initializer": "xavier_uniform"}
    made = {"encoder": dict(side), "decoder": dict(side), **shared}
    model = build_model(made, vocabulary, vocabulary)
    model.loss_function = ("crossentropy", 0.1)
    return model


def batch_of(source, target=None):
    length, rows = torch.full((len(source),), source.shape[1]), torch.arange(len(source))
    cpu = torch.device("cpu")
    return Batch(source, length, None, target, None, rows, cpu, PAD, EOS, target is not None)


def train(settings):
    model = build(settings)
    source, target = pairs(settings, EOS)
    target = torch.cat([torch.full((len(target), 1), BOS), target], 1)
    batch = batch_of(source, target)

    def loss():
        found, *_ = model(return_type="loss", **vars(batch))
        return batch.normalize(found, "tokens")

    optimizer = build_optimizer({"optimizer": "adam", "learning_rate": 1e-4}, model.parameters())
    return model, optimizer, loss


def translate(settings):
    models, length = both_precisions(build(settings)), settings["length"]

    def search(source, beam, precision):
        out, _, _ = joey_search(
            models[precision], batch_of(source), length, beam, 1.0, min_output_length=length
        )
        return (out != PAD).sum(1).tolist()

    return EOS, search
