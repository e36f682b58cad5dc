"""Models in Sockeye's files, with weights from a formula, so that Sockeye itself could say what they compute.

`python originals.py` (with sockeye 3.1.34) wrote expected.json: log-probabilities of targets and greedy translations.
The tests write the same folders.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch

SOURCES = ["ka lo mi", "ti ka", "zu strange mi ka lo"]
TARGETS = ["one two", "two ten six nine", "six"]
WORDS = {"source": ["ka", "lo", "mi", "ti", "zu"], "target": ["one", "two", "ten", "six", "nine"]}
DIM, FFN, HEADS = 16, 24, 2
SYMBOLS = ["<pad>", "<unk>", "<s>", "</s>"]
KINDS = {
    "pre": {"preprocess": "n", "postprocess": "dr", "tying": "src_trg_softmax", "act": "relu"},
    "post": {"preprocess": "", "postprocess": "drn", "tying": "trg_softmax", "act": "gelu"},
    "glu": {"preprocess": "n", "postprocess": "dr", "tying": "none", "act": "swish1", "glu": True, "positions": "learned"},
}  # fmt: skip
STACK = """!TransformerConfig
  act_type: {act}
  attention_heads: {heads}
  block_prepended_cross_attention: false
  decoder_type: transformer
  depth_key_value: {dim}
  dropout_act: 0.1
  dropout_attention: 0.1
  dropout_prepost: 0.1
  feed_forward_num_hidden: {ffn}
  max_seq_len_source: 20
  max_seq_len_target: 21
  model_size: {dim}
  num_layers: 2
  positional_embedding_type: {positions}
  postprocess_sequence: '{postprocess}'
  preprocess_sequence: '{preprocess}'
  use_glu: {glu}
  use_lhuc: false
"""


def vocabulary(kind, side):
    """By id."""
    shared = KINDS[kind]["tying"] == "src_trg_softmax"
    return [*SYMBOLS, *(WORDS["source"] + WORDS["target"] if shared else WORDS[side])]


def config(kind):
    settings = {"positions": "fixed", "glu": False, **KINDS[kind]}
    stack = STACK.format(heads=HEADS, dim=DIM, ffn=FFN, **{k: str(v).lower() if v is False or v is True else v
                                                          for k, v in settings.items()})  # fmt: skip
    counts = {side: len(vocabulary(kind, side)) for side in WORDS}
    embeddings = "".join(
        f"config_embed_{side}: !EmbeddingConfig\n  allow_sparse_grad: false\n  dropout: 0.0\n  factor_configs: null\n"
        f"  num_embed: {DIM}\n  num_factors: 1\n  vocab_size: {count}\n"
        for side, count in counts.items()
    )
    return (
        "!ModelConfig\nconfig_data: !DataConfig\n  data_statistics: null\n  eop_id: -1\n  max_seq_len_source: 20\n"
        "  max_seq_len_target: 21\n  num_source_factors: 1\n  num_target_factors: 1\n"
        f"config_decoder: {stack}{embeddings}config_encoder: {stack}config_length_task: null\ndtype: float32\nlhuc: false\n"
        "neural_vocab_selection: null\nneural_vocab_selection_block_loss: false\n"
        f"vocab_source_size: {counts['source']}\nvocab_target_size: {counts['target']}\nweight_tying_type: {settings['tying']}\n"
    )


def waves(name, *shape, scale=0.5):
    count = torch.Size(shape).numel()
    numbers = torch.arange(count, dtype=torch.float64) * 1.7 + sum(map(ord, name)) * 0.37
    return (torch.sin(numbers * (1 + torch.arange(count) % 7)) * scale).float().reshape(shape)


def weights(kind):
    """By Sockeye's names; keys and values of each head in turn, as it saves them."""
    settings, found = KINDS[kind], {}

    def norm(name):
        found[f"{name}.layer_norm.weight"] = 1 + waves(name, DIM, scale=0.3)
        found[f"{name}.layer_norm.bias"] = waves(f"{name}b", DIM, scale=0.2)

    def linear(name, size, inner, bias=True):
        found[f"{name}.weight"] = waves(name, size, inner)
        if bias:
            found[f"{name}.bias"] = waves(f"{name}b", size, scale=0.2)

    at = "pre" if settings["preprocess"] else "post"
    for side in WORDS:
        found[f"embedding_{side}.embedding.weight"] = waves(side, len(vocabulary(kind, side)), DIM)
    if settings["tying"] == "src_trg_softmax":
        found["embedding_target.embedding.weight"] = found["embedding_source.embedding.weight"]
    for stack, bodies in (
        ("encoder", ["self_attention"]),
        ("decoder", ["autoregr_layer", "enc_attention"]),
    ):
        count = 20 if stack == "encoder" else 21
        positions = waves(f"{stack}p", count, DIM)
        if settings.get("positions") != "learned":
            angles = torch.arange(count)[:, None] / 10000 ** (torch.arange(0, DIM, 2) / DIM)
            positions = torch.cat([angles.sin(), angles.cos()], 1)
        found[f"{stack}.pos_embedding.weight"] = positions
        for n in range(2):
            here = f"{stack}.layers.{n}"
            for body in bodies:
                norm(f"{here}.{at}_{body}")
                sizes = (
                    {"ff_q": DIM, "ff_kv": 2 * DIM}
                    if body == "enc_attention"
                    else {"ff_in": 3 * DIM}
                )
                for name, size in {**sizes, "ff_out": DIM}.items():
                    linear(f"{here}.{body}.{name}", size, DIM, bias=False)
            norm(f"{here}.{at}_ff")
            linear(f"{here}.ff.ff1", FFN, DIM)
            linear(f"{here}.ff.ff2", DIM, FFN)
            if settings.get("glu"):
                linear(f"{here}.ff.linear", FFN, DIM)
        if at == "pre":
            norm(f"{stack}.final_process")
    count = len(vocabulary(kind, "target"))
    linear("output_layer", count, DIM)
    if settings["tying"] != "none":
        found["output_layer.weight"] = found["embedding_target.embedding.weight"]
    return found


def write(kind, folder):
    """A model folder of a kind."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config").write_text(config(kind))
    (folder / "version").write_text("3.1.34")
    for side, name in (("source", "src"), ("target", "trg")):
        ids = {symbol: n for n, symbol in enumerate(vocabulary(kind, side))}
        (folder / f"vocab.{name}.0.json").write_text(json.dumps(ids))
    torch.save(weights(kind), folder / "params.best")


def expected(kind, folder):
    """What Sockeye finds, with a greedy search of our own over its logits, of 8 tokens at most."""
    from sockeye.model import load_model

    write(kind, folder)
    model, (source_ids, *_), (target_ids, *_) = load_model(str(folder), device=torch.device("cpu"))
    model.eval()
    names = {n: symbol for symbol, n in target_ids.items()}
    rows = []
    for source, target in zip(SOURCES, TARGETS, strict=True):
        given = torch.tensor([[*(source_ids.get(w, 1) for w in source.split()), 3]])[:, :, None]
        length = torch.tensor([[given.shape[1], 0]])

        def logits(ids, given=given, length=length):
            with torch.no_grad():
                prefix = torch.tensor([[2, *ids]])
                out = model(given, length, prefix[:, :, None], torch.tensor([prefix.shape[1]]))
            return out["logits"][0].log_softmax(-1)

        wanted = [target_ids[w] for w in target.split()]
        scores = logits(wanted).gather(1, torch.tensor([*wanted, 3])[:, None])[:, 0].tolist()
        greedy = []
        while len(greedy) < 8 and (not greedy or greedy[-1] != 3):
            last = logits(greedy)[-1]
            last[0] = -float("inf")
            greedy.append(int(last.argmax()))
        rows.append({"scores": [round(s, 5) for s in scores], "greedy": [names[i] for i in greedy]})
    return rows


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        rows = {kind: expected(kind, Path(made) / kind) for kind in KINDS}
    text = json.dumps(rows, separators=(",", ":")).replace('},{"', '},\n{"')
    Path(__file__).with_name("expected.json").write_text(text + "\n")
    print(text, file=sys.stderr)
