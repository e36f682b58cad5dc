"""JoeyNMT's Transformer, its loss and its optimizer."""

from types import SimpleNamespace

import torch
from joeynmt.batch import Batch
from joeynmt.builders import build_optimizer
from joeynmt.model import build_model
from joeynmt.vocabulary import Vocabulary
from worker import pairs

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


def train(settings):
    model = build(settings)
    source, target = pairs(settings, EOS)
    target = torch.cat([torch.full((len(target), 1), BOS), target], 1)
    length = torch.full((len(source),), source.shape[1])
    batch = Batch(
        source, length, None, target, None, torch.arange(len(source)), torch.device("cpu"), PAD, EOS
    )

    def loss():
        found, *_ = model(return_type="loss", **vars(batch))
        return batch.normalize(found, "tokens")

    optimizer = build_optimizer({"optimizer": "adam", "learning_rate": 1e-4}, model.parameters())
    return model, optimizer, loss
