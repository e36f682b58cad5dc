"""fairseq's Transformer, its loss and its optimizer."""

import json
from pathlib import Path
from types import SimpleNamespace

import fairseq_of_today  # noqa: F401  (before fairseq)
import torch
from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterion
from fairseq.data import Dictionary
from fairseq.models.transformer import TransformerConfig, TransformerModelBase
from fairseq.optim.adam import FairseqAdam, FairseqAdamConfig
from fairseq.sequence_generator import SequenceGenerator
from omegaconf import OmegaConf
from safetensors.torch import load_file
from worker import both_precisions, pairs


def build(settings):
    dictionary = Dictionary()
    for i in range(settings["vocabulary"] - len(dictionary)):
        dictionary.add_symbol(f"t{i}")
    config = TransformerConfig()
    config.dropout = settings["dropout"]
    config.attention_dropout = settings["attention_dropout"]
    config.share_all_embeddings = True
    config.decoder.input_dim = config.decoder.output_dim = settings["dim"]
    for side in (config.encoder, config.decoder):
        side.embed_dim, side.ffn_embed_dim = settings["dim"], settings["ffn_dim"]
        side.layers, side.attention_heads = settings["layers"], settings["heads"]
    task = SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary)
    return TransformerModelBase.build_model(config, task), task


def train(settings):
    model, task = build(settings)
    dictionary = task.target_dictionary
    source, target = pairs(settings, dictionary.eos())
    sample = {
        "net_input": {
            "src_tokens": source,
            "src_lengths": torch.full((len(source),), source.shape[1]),
            "prev_output_tokens": target.roll(1, 1),  # the end of a sentence comes first
        },
        "target": target,
        "ntokens": target.numel(),
    }
    criterion = LabelSmoothedCrossEntropyCriterion(task, sentence_avg=False, label_smoothing=0.1)

    def loss():
        found, size, _ = criterion(model, sample)
        return found / size

    settings = OmegaConf.create({**vars(FairseqAdamConfig()), "lr": [1e-4], "tpu": False})
    return model, FairseqAdam(settings, list(model.parameters())), loss


def translate(settings):
    model, task = build(settings)
    models, dictionary = both_precisions(model), task.target_dictionary

    def search(source, beam, precision):
        ends = settings["length"] - 1  # it counts without the end of sentence
        generator = SequenceGenerator(
            [models[precision]], dictionary, beam_size=beam, max_len_b=ends, min_len=ends
        )
        lengths = torch.full((len(source),), source.shape[1])
        found = generator.generate(
            [models[precision]], {"net_input": {"src_tokens": source, "src_lengths": lengths}}
        )
        return [len(hypotheses[0]["tokens"]) for hypotheses in found]

    return dictionary.eos(), search


def translate_run(settings):
    """With the weights of a folder in Marian's format, whose names are fairseq's."""
    folder = Path(settings["weights"])
    marian = json.loads((folder / "config.json").read_text())
    sizes = {
        "vocabulary": marian["vocab_size"] + 1, "dim": marian["d_model"], "layers": marian["encoder_layers"],
        "ffn_dim": marian["encoder_ffn_dim"], "heads": marian["encoder_attention_heads"],
        "dropout": 0.0, "attention_dropout": 0.0,
    }  # fmt: skip
    if marian["decoder_layers"] != sizes["layers"]:
        raise ValueError("encoder and decoder of one depth only")
    model, task = build(sizes)
    tensors = load_file(folder / "model.safetensors")
    # Padding, end and unknown have ids 0, 1 and 2 in a run of ours; here <s> stands before them, which is never wanted.
    table = tensors.pop("model.shared.weight")
    table = torch.cat([table[:1], table])
    assert not tensors.pop("final_logits_bias").any()
    named = {name.removeprefix("model."): value for name, value in tensors.items()}
    for name in ("encoder.embed_tokens", "decoder.embed_tokens", "decoder.output_projection"):
        named[f"{name}.weight"] = table
    missing, extra = model.load_state_dict(named, strict=False)
    left = [name for name in missing if not name.endswith(("version", "_float_tensor"))]
    if left or extra:
        raise ValueError(f"weights do not fit: {[*left, *extra][:3]}")
    pad = task.target_dictionary.pad()
    for side in (model.encoder, model.decoder):
        # Marian's frequencies; fairseq's differ. Position 0 has the row after that of padding.
        half = sizes["dim"] // 2
        angle = torch.arange(1024)[:, None] * 10000 ** (-torch.arange(half) / half)
        rows = torch.cat([angle.sin(), angle.cos()], 1)
        side.embed_positions.weights = torch.cat([torch.zeros(pad + 1, 2 * half), rows])
    models = both_precisions(model)

    def search(source, beam, precision):
        generator = SequenceGenerator(
            [models[precision]], task.target_dictionary, beam_size=beam, max_len_b=200
        )
        lengths = torch.tensor([len(ids) for ids in source])
        tokens = torch.full((len(source), int(lengths.max())), pad)
        for row, ids in zip(tokens, source, strict=True):
            row[: len(ids)] = torch.tensor(ids) + 1
        found = generator.generate(
            [models[precision]], {"net_input": {"src_tokens": tokens, "src_lengths": lengths}}
        )
        return [(hypotheses[0]["tokens"] - 1).tolist() for hypotheses in found]

    return search
