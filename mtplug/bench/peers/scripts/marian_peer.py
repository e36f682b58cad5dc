"""Hugging Face's Marian model, with the label smoothing and the optimizer of its Trainer."""

import torch
from transformers import MarianConfig, MarianMTModel
from transformers.trainer_pt_utils import LabelSmoother
from worker import both_precisions, pairs

PAD, EOS = 1, 2


def build(settings):
    return MarianMTModel(
        MarianConfig(
            vocab_size=settings["vocabulary"], d_model=settings["dim"],
            encoder_layers=settings["layers"], decoder_layers=settings["layers"],
            encoder_attention_heads=settings["heads"], decoder_attention_heads=settings["heads"],
            encoder_ffn_dim=settings["ffn_dim"], decoder_ffn_dim=settings["ffn_dim"],
            activation_function="relu", dropout=settings["dropout"],
            attention_dropout=settings["attention_dropout"], activation_dropout=0.0,
            scale_embedding=True, pad_token_id=PAD, eos_token_id=EOS, decoder_start_token_id=PAD,
            forced_eos_token_id=EOS,
        )
    )  # fmt: skip


def train(settings):
    model = build(settings)
    source, target = pairs(settings, EOS)
    smoothed = LabelSmoother(epsilon=0.1)

    def loss():
        shifted = model.prepare_decoder_input_ids_from_labels(target)
        out = model(
            input_ids=source, attention_mask=torch.ones_like(source), decoder_input_ids=shifted
        )
        return smoothed(out, target)

    # `adamw_torch_fused`, the Trainer's default
    return model, torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True), loss


def translate(settings):
    models, length = both_precisions(build(settings)), settings["length"]

    def search(source, beam, precision):
        out = models[precision].generate(
            input_ids=source, attention_mask=torch.ones_like(source), num_beams=beam,
            do_sample=False, min_new_tokens=length, max_new_tokens=length,
        )  # fmt: skip
        return (out[:, 1:] != PAD).sum(1).tolist()

    return EOS, search


def translate_run(settings):
    """With the weights and the settings of search of a folder in Marian's format."""
    models = both_precisions(
        MarianMTModel.from_pretrained(settings["weights"], dtype=torch.float32)
    )

    def search(source, beam, precision):
        model = models[precision]
        pad, end = model.config.pad_token_id, model.config.eos_token_id
        longest = max(map(len, source))
        tokens = torch.tensor([ids + [pad] * (longest - len(ids)) for ids in source])
        out = model.generate(
            input_ids=tokens, attention_mask=(tokens != pad).long(), num_beams=beam, do_sample=False
        )
        return [[t for t in row if t not in (pad, end)] + [end] for row in out[:, 1:].tolist()]

    return search
