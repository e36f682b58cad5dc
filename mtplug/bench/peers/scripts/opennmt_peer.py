"""OpenNMT-py's Transformer, its loss and its optimizer."""
# ruff: noqa: E402

import sys
import types

import torch

# Imported by transforms of text, which have no part here.
for name in ("spacy", "fasttext"):
    sys.modules[name] = types.ModuleType(name)

import onmt.opts
import pyonmttok
from onmt.model_builder import build_model
from onmt.translate import GNMTGlobalScorer, Translator
from onmt.utils.loss import LossCompute
from onmt.utils.optimizers import Optimizer
from onmt.utils.parse import ArgumentParser
from worker import both_precisions, pairs


def build(settings):
    special = ["<unk>", "<blank>", "<s>", "</s>"]
    tokens = [f"t{i}" for i in range(settings["vocabulary"] - len(special))]
    vocabulary = pyonmttok.build_vocab_from_tokens(tokens, special_tokens=special)
    vocabularies = {
        "src": vocabulary,
        "tgt": vocabulary,
        "data_task": "seq2seq",
        "decoder_start_token": "<s>",
    }
    parser = ArgumentParser()
    onmt.opts.train_opts(parser)
    # It asks for names of files, which nothing here opens.
    options = parser.parse_args(["-data", "none", "-src_vocab", "none"])
    vars(options).update(
        encoder_type="transformer", decoder_type="transformer", layers=settings["layers"],
        hidden_size=settings["dim"], word_vec_size=settings["dim"], heads=settings["heads"],
        transformer_ff=settings["ffn_dim"], position_encoding=True, share_embeddings=True,
        share_decoder_embeddings=True, add_qkvbias=True, add_ffnbias=True, param_init=0.0, param_init_glorot=True,
        dropout=[settings["dropout"]], attention_dropout=[settings["attention_dropout"]],
        label_smoothing=0.1, optim="adam", learning_rate=1e-4, decay_method="none", max_grad_norm=0,
    )  # fmt: skip
    ArgumentParser.update_model_opts(options)
    ArgumentParser.validate_model_opts(options)
    return build_model(options, options, vocabularies, None, -1), options, vocabularies


def train(settings):
    model, options, vocabularies = build(settings)
    vocabulary = vocabularies["tgt"]
    source, target = pairs(settings, vocabulary["</s>"])
    start = torch.full((len(target), 1), vocabulary["<s>"])
    batch = {
        "src": source[..., None],
        "srclen": torch.full((len(source),), source.shape[1]),
        "tgt": torch.cat([start, target], 1)[..., None],
    }
    criterion = LossCompute.from_opts(options, model, vocabulary)

    def loss():
        out, attention = model(batch["src"], batch["tgt"], batch["srclen"])
        return criterion(batch, out, attention)[0] / target.numel()

    return model, Optimizer.from_opt(model, options), loss


def translate(settings):
    model, _, vocabularies = build(settings)
    models, length = both_precisions(model), settings["length"]

    def search(source, beam, precision):
        translator = Translator(
            models[precision], vocabularies, min_length=length, max_length=length, max_length_ratio=0,
            beam_size=beam, random_sampling_topk=int(beam == 1),
            global_scorer=GNMTGlobalScorer(0.0, 0.0, "avg", "none"),
        )  # fmt: skip
        lengths = torch.full((len(source),), source.shape[1])
        found = translator.translate_batch({"src": source[..., None], "srclen": lengths}, False)
        return [len(hypotheses[0]) for hypotheses in found["predictions"]]

    return vocabularies["tgt"]["</s>"], search
