"""Eole's Transformer, its loss and its optimizer."""

from types import SimpleNamespace

import pyonmttok
import torch
from eole.config.models import TransformerModelConfig
from eole.config.run import PredictConfig
from eole.config.training import TrainingConfig
from eole.models.model import EncoderDecoderModel
from eole.predict import Translator
from eole.predict.beam_search import GNMTGlobalScorer
from eole.utils.loss import LossCompute
from eole.utils.optimizers import Optimizer
from worker import both_precisions, pairs

SPECIAL = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}


def build(settings):
    tokens = [f"t{i}" for i in range(settings["vocabulary"] - len(SPECIAL))]
    vocabulary = pyonmttok.build_vocab_from_tokens(tokens, special_tokens=list(SPECIAL.values()))
    vocabularies = {
        "src": vocabulary, "tgt": vocabulary, "specials": SPECIAL, "decoder_start_token": "<s>",
    }  # fmt: skip
    model_config = TransformerModelConfig(
        layers=settings["layers"], hidden_size=settings["dim"], heads=settings["heads"],
        transformer_ff=settings["ffn_dim"], embeddings={"word_vec_size": settings["dim"]},
        share_embeddings=True, share_decoder_embeddings=True, add_qkvbias=True, add_ffnbias=True,
    )  # fmt: skip
    training = TrainingConfig(
        dropout=[settings["dropout"]], attention_dropout=[settings["attention_dropout"]],
        label_smoothing=0.1, optim="adam", learning_rate=1e-4, decay_method="none", max_grad_norm=0,
        compute_dtype="fp32", param_init_method="xavier_uniform", log_attention_entropy=False,
    )  # fmt: skip
    model = EncoderDecoderModel.for_training(model_config, vocabularies, training)
    return model, SimpleNamespace(model=model_config, training=training), vocabularies


def train(settings):
    model, config, vocabularies = build(settings)
    source, target = pairs(settings, vocabularies["tgt"]["</s>"])
    start = torch.full((len(target), 1), vocabularies["tgt"]["<s>"])
    batch = {
        "src": source,
        "srclen": torch.full((len(source),), source.shape[1]),
        "tgt": torch.cat([start, target], 1),
        "cid": ["corpus"] * len(source),
        "cid_line_number": list(range(len(source))),
    }
    criterion = LossCompute.from_config(config, model, vocabularies)

    def loss():
        out, attention, _ = model(batch["src"], batch["tgt"], batch["srclen"])
        return criterion(batch, out, attention)[0] / target.numel()

    return model, Optimizer.from_config(model, config), loss


def translate(settings):
    model, config, vocabularies = build(settings)
    models, length = both_precisions(model), settings["length"]

    def search(source, beam, precision):
        options = PredictConfig(
            model_path=["none"], src="none", min_length=length, max_length=length,
            max_length_ratio=0, beam_size=beam, top_k=int(beam == 1),
        )  # fmt: skip
        translator = Translator(
            models[precision], vocabularies, options, config.model, device_id=-1,
            global_scorer=GNMTGlobalScorer(0.0, 0.0, "avg", "none"),
        )  # fmt: skip
        lengths = torch.full((len(source),), source.shape[1])
        found = translator.predict_batch({"src": source, "srclen": lengths}, False)
        return [len(hypotheses[0]) for hypotheses in found["predictions"]]

    return vocabularies["tgt"]["</s>"], search
