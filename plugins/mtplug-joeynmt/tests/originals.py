"""Models in JoeyNMT's files, with weights from a formula, so that JoeyNMT itself could say what they compute.

`python originals.py` (with joeynmt 2.3.0, subword-nmt 0.3.8 and sentencepiece 0.2.0, the last that JoeyNMT runs with)
wrote expected.json: pieces, log-probabilities of targets and greedy translations. The tests write the same folders.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch
import yaml

SOURCES = ["ka lo mi", "ti ka", "Zulo mika", "lo lo tika zu mi"]
TARGETS = ["one two", "two ten six", "Tone six", "tenten one two"]
WORDS = ["ka", "lo", "mi", "ti", "zu"], ["one", "two", "ten", "six", "nine"]
DIM, FFN, VOCAB = 16, 24, ("src", "trg")
SPECIAL = ["<unk>", "<pad>", "<s>", "</s>"]
KINDS = {
    "pre": {"layer_norm": "pre", "activation": "gelu", "level": "sentencepiece", "tags": ["<xx>", "<yy>"],
            "tied_embeddings": True, "tied_softmax": True, "scale": True},
    "post": {"layer_norm": "post", "initializer": "xavier_normal", "level": "subword-nmt", "lowercase": True,
             "tied_softmax": True, "scale": True},
    "open": {"level": "word", "normalize": True, "scale": False},
    "char": {"layer_norm": "pre", "activation": "swish", "level": "char", "lowercase": True, "tied_softmax": True,
             "scale": False},
}  # fmt: skip


def varint(number):
    made = b""
    while number > 127:
        made += bytes([number & 127 | 128])
        number >>= 7
    return made + bytes([number])


def sentencepiece_model(pieces):
    """A unigram model of (text, score, type), with the defaults of sentencepiece_model.proto."""
    import struct

    made = b""
    for text, score, kind in pieces:
        body = b"\x0a" + varint(len(text.encode())) + text.encode()
        body += b"\x15" + struct.pack("<f", score) + b"\x18" + varint(kind)
        made += b"\x0a" + varint(len(body)) + body
    return made


def write_subwords(kind, folder):
    """What cuts the text of each side; the pieces of both vocabularies, of which some that it makes are missing."""
    settings = KINDS[kind]
    level = settings["level"]
    letters = sorted(set("".join(WORDS[0] + WORDS[1])) | set("TZ"))
    if level == "sentencepiece":
        whole = [f"▁{word}" for side in WORDS for word in side]
        pieces = [
            ("<unk>", 0.0, 2),
            ("<s>", 0.0, 3),
            ("</s>", 0.0, 3),
            *((t, 0.0, 4) for t in settings["tags"]),
        ]
        pieces += [(text, -2.0 - n / 10, 1) for n, text in enumerate(whole)]
        pieces += [(text, -4.0 - n / 10, 1) for n, text in enumerate(["▁", "ka", "ten", *letters])]
        (folder / "joint.model").write_bytes(sentencepiece_model(pieces))
        known = [text for text, _, _ in pieces[5:] if text not in ("▁two", "▁mi", "x")]
        return dict.fromkeys(VOCAB, known)
    if level == "subword-nmt":
        for side, merges in zip(VOCAB, (["k a</w>", "l o</w>", "t i", "ti ka</w>", "m i</w>"], ["o n", "on e</w>", "t w",
                                "tw o</w>", "t e", "te n"]), strict=True):  # fmt: skip
            (folder / f"{side}.codes").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
        return {
            "src": ["ka", "lo", "ti", "mi", "m@@", "i", "z@@", "u", "u@@", "l@@", "o", "ti@@"],
            "trg": ["on@@", "e", "tw@@", "o", "ten@@", "n", "t@@", "e@@", "s@@", "i@@", "x", "one"],
        }
    if level == "char":
        return {side: ["▁", *letters] for side in VOCAB}
    return {"src": WORDS[0] + ["tika"], "trg": WORDS[1] + ["Tone", "tenten", "?"]}


def waves(name, shape, scale):
    count = torch.Size(shape).numel()
    numbers = torch.arange(count, dtype=torch.float64) * 1.7 + sum(map(ord, name)) * 0.37
    return (torch.sin(numbers * (1 + torch.arange(count) % 7)) * scale).float().reshape(shape)


def weights(settings, counts):
    """By JoeyNMT's names."""
    found = {}

    def linear(name, size, inner=DIM):
        found[f"{name}.weight"] = waves(name, (size, inner), 0.5)
        found[f"{name}.bias"] = waves(f"{name}b", (size,), 0.2)

    def norm(name):
        found[f"{name}.weight"] = 1 + waves(name, (DIM,), 0.3)
        found[f"{name}.bias"] = waves(f"{name}b", (DIM,), 0.2)

    for side, count in counts.items():
        found[f"{side}_embed.lut.weight"] = waves(side, (count, DIM), 0.5)
    if settings.get("tied_embeddings"):
        found["trg_embed.lut.weight"] = found["src_embed.lut.weight"]
    for stack, parts in {
        "encoder": {"src_src_att": "layer_norm"},
        "decoder": {"trg_trg_att": "x_layer_norm", "src_trg_att": "dec_layer_norm"},
    }.items():
        for n in range(2):
            at = f"{stack}.layers.{n}"
            for body, own in parts.items():
                for one in ("k_layer", "v_layer", "q_layer", "output_layer"):
                    linear(f"{at}.{body}.{one}", DIM)
                norm(f"{at}.{own}")
            norm(f"{at}.feed_forward.layer_norm")
            linear(f"{at}.feed_forward.pwff_layer.0", FFN)
            linear(f"{at}.feed_forward.pwff_layer.3", DIM, FFN)
        found[f"{stack}.pe.pe"] = sinusoids(5000)
        if settings.get("layer_norm") == "pre":
            norm(f"{stack}.layer_norm")
    found["decoder.output_layer.weight"] = waves("output", (counts["trg"], DIM), 0.5)
    if settings.get("tied_softmax"):
        found["decoder.output_layer.weight"] = found["trg_embed.lut.weight"]
    return found


def sinusoids(count):
    angles = torch.arange(count)[:, None] / 10000 ** (torch.arange(0, DIM, 2) / DIM)
    return torch.stack([angles.sin(), angles.cos()], 2).reshape(1, count, DIM)


def write(kind, folder):
    """A model_dir of a kind."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = KINDS[kind]
    subwords = write_subwords(kind, folder)
    counts = {}
    for side in VOCAB:
        symbols = [*SPECIAL, *settings.get("tags", []), *subwords[side]]
        (folder / f"{side}_vocab.txt").write_text("\n".join(symbols) + "\n", encoding="utf-8")
        counts[side] = len(symbols)
    level = settings["level"]
    own = {"level": level if level in ("word", "char") else "bpe", "lowercase": settings.get("lowercase", False),
           "normalize": settings.get("normalize", False), "max_length": 50}  # fmt: skip
    sides = {}
    for side, language in zip(VOCAB, ("xx", "yy"), strict=True):
        sides[side] = {"lang": language, **own}
        if own["level"] == "bpe":
            file = {
                "sentencepiece": ("model_file", "joint.model"),
                "subword-nmt": ("codes", f"{side}.codes"),
            }[level]
            sides[side] |= {
                "tokenizer_type": level,
                "tokenizer_cfg": {file[0]: f"somewhere/{file[1]}"},
            }
    stack = {"type": "transformer", "num_layers": 2, "num_heads": 2, "hidden_size": DIM, "ff_size": FFN, "dropout": 0.1,
             "embeddings": {"embedding_dim": DIM, "scale": settings["scale"]}}  # fmt: skip
    stack |= {key: settings[key] for key in ("layer_norm", "activation") if key in settings}
    names = {"unk": "<unk>", "pad": "<pad>", "bos": "<s>", "eos": "</s>"}
    special = {f"{key}_token": token for key, token in names.items()}
    special |= {f"{key}_id": n for n, key in enumerate(names)} | {
        "lang_tags": settings.get("tags", [])
    }
    config = {
        "name": kind, "joeynmt_version": "2.3.0", "model_dir": str(folder), "use_cuda": False,
        "data": {"train": "none", "dataset_type": "plain", **sides, "special_symbols": special},
        "testing": {"beam_size": 5, "beam_alpha": 1.0, "max_output_length": 12},
        "training": {"batch_size": 10, "optimizer": "adam"},
        "model": {"initializer": settings.get("initializer", "xavier_uniform"),
                  "tied_embeddings": settings.get("tied_embeddings", False),
                  "tied_softmax": settings.get("tied_softmax", False),
                  "encoder": dict(stack), "decoder": dict(stack)},
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    state = {"model_state": weights(settings, counts), "stats_state": {"steps": 3}}
    torch.save(state, folder / "3.ckpt")


def sources(kind):
    tags = KINDS[kind].get("tags")
    return [f"{tags[n % 2]} {text}" for n, text in enumerate(SOURCES)] if tags else SOURCES


def targets(kind):
    return [f"{text} ?" for text in TARGETS] if KINDS[kind].get("normalize") else TARGETS


def expected(kind, folder):
    """What JoeyNMT finds."""
    from joeynmt.config import parse_global_args
    from joeynmt.data import BaseDataset, build_tokenizer
    from joeynmt.model import build_model
    from joeynmt.search import search
    from joeynmt.vocabulary import build_vocab

    write(kind, folder)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    for side in VOCAB:
        for key, file in config["data"][side].get("tokenizer_cfg", {}).items():
            config["data"][side]["tokenizer_cfg"] = {key: str(folder / Path(file).name)}
    args = parse_global_args({**config, "testing": {}}, mode="test")
    vocabularies = build_vocab(args.data, model_dir=folder)
    tokenizers = build_tokenizer(args.data)
    for side, vocabulary in zip(("xx", "yy"), vocabularies, strict=True):
        tokenizers[side].set_vocab(vocabulary)
    model = build_model(args.model, *vocabularies)
    model.load_state_dict(torch.load(folder / "3.ckpt")["model_state"])
    model.eval()
    encoders = {"xx": vocabularies[0].sentences_to_ids, "yy": vocabularies[1].sentences_to_ids}
    data = BaseDataset(
        "none", "xx", "yy", "test", True, {"xx": False, "yy": False}, tokenizers, encoders
    )
    texts = {"xx": sources(kind), "yy": targets(kind)}
    data.lookup_item = lambda n, side: (tokenizers[side].pre_process(texts[side][n]), None)
    rows = []
    for n in range(len(SOURCES)):
        pieces = data.get_item(n, "xx"), data.get_item(n, "yy")
        batch = data.collate_fn([(n, *pieces)], 1, 3)
        with torch.no_grad():
            scores = (
                model._encode_decode(**vars(batch))[0].log_softmax(-1)[0].gather(1, batch.trg.T)
            )
            greedy = search(model, batch, 12, 1, -1, generate_unk=True, min_output_length=1)[0]
        words = vocabularies[1].arrays_to_sentences(greedy)[0]
        text = tokenizers["yy"].post_process(list(words))
        ids = (vocabulary.lookup for vocabulary in vocabularies)
        shown = [
            [p if lookup(p) else "<unk>" for p in row]
            for lookup, row in zip(ids, pieces, strict=True)
        ]
        rows.append({"source": shown[0], "target": shown[1], "scores": [round(s, 5) for s in scores[:, 0].tolist()],
                     "greedy": words, "text": text})  # fmt: skip
    return rows


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        rows = {kind: expected(kind, Path(made) / kind) for kind in KINDS}
    text = json.dumps(rows, ensure_ascii=False, separators=(",", ":")).replace('},{"', '},\n{"')
    Path(__file__).with_name("expected.json").write_text(text + "\n", encoding="utf-8")
    print(text, file=sys.stderr)
