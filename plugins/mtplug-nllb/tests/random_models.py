"""Small random models in the files that the published ones have."""

import io
import json

import sentencepiece
import torch

from mtplug import testing

TEXTS = ["ka lo mi", "ti", "zu", "ka ka ti mi lo"]
TARGETS = ["one two three four", "ten", "six", "two two nine four"]
NLLB_CODES = ["ace_Latn", "deu_Latn", "eng_Latn", "zho_Hans"]
CODES = {
    "nllb": ("eng_Latn", "deu_Latn"),
    "m2m100": ("__en__", "__de__"),
    "mbart50": ("en_XX", "de_DE"),
}


def original(kind, transformers, folder):
    """A random model with a tokenizer, in the files that the published ones have; both opened by transformers."""
    folder.mkdir()
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text for pair in testing.pairs(300, seed=1) for text in pair]),
        model_writer=written, vocab_size=40, model_type="unigram" if kind == "mbart50" else "bpe",
        minloglevel=2, num_threads=1,
    )  # fmt: skip
    subwords = folder / "sentencepiece.bpe.model"
    subwords.write_bytes(written.getvalue())
    if kind == "nllb":
        listed = {"additional_special_tokens": NLLB_CODES, "mask_token": "<mask>"}
        (folder / "special_tokens_map.json").write_text(json.dumps(listed))
        tokenizer = transformers.NllbTokenizer.from_pretrained(
            folder, src_lang="eng_Latn", tgt_lang="deu_Latn", extra_special_tokens=NLLB_CODES
        )
        tokenizer.save_pretrained(folder)
    elif kind == "mbart50":
        tokenizer = transformers.MBart50Tokenizer.from_pretrained(
            folder, src_lang="en_XX", tgt_lang="de_DE"
        )
        tokenizer.save_pretrained(folder)
    else:
        model = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
        own = [model.id_to_piece(i) for i in range(3, model.get_piece_size())]
        ids = {piece: i for i, piece in enumerate(["<s>", "<pad>", "</s>", "<unk>", *own])}
        (folder / "vocab.json").write_text(json.dumps(ids))
        tokenizer = transformers.M2M100Tokenizer(
            str(folder / "vocab.json"), str(subwords), src_lang="en", tgt_lang="de"
        )
    sizes = {
        "vocab_size": 160, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 64,
        "scale_embedding": True, "decoder_start_token_id": 2,
    }  # fmt: skip
    torch.manual_seed(5)
    if kind == "mbart50":
        config = transformers.MBartConfig(activation_function="gelu", **sizes)
        model = transformers.MBartForConditionalGeneration(config).eval()
    else:
        model = transformers.M2M100ForConditionalGeneration(
            transformers.M2M100Config(**sizes)
        ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
        model.get_input_embeddings().weight[1] = 0
    model.save_pretrained(folder)
    return model, tokenizer


def their_ids(ours, ids):
    """Our ids as the original numbers them."""
    count = len(ours.task.source_tokenizer)
    order = [1, 2, 3, *range(4, count), 0]
    return [order[i] for i in ids]
