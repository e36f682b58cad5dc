"""Two tiny models trained by fairseq 0.12.2, and what fairseq thinks of sentences: tests/golden/fairseq.

Made once, in an environment that has fairseq, subword-nmt, sentencepiece and a current torch (that of `mtplug-bench run
train --peers` with the latter two added), on the made-up corpus of `mtplug.testing` in FOLDER:

    python tests/golden/make_fairseq.py FOLDER tests/golden/fairseq
"""

import argparse
import importlib
import json
import math
import os
import shlex
import subprocess
import sys
from pathlib import Path

SIZES = shlex.split("""--encoder-embed-dim 16 --encoder-ffn-embed-dim 32 --encoder-layers 2 --encoder-attention-heads 2
--decoder-embed-dim 16 --decoder-ffn-embed-dim 32 --decoder-layers 1 --decoder-attention-heads 2 --max-source-positions 64
--max-target-positions 64""")
TRAINING = shlex.split("""--cpu --num-workers 0 --optimizer adam --lr 1e-2 --max-tokens 400 --max-update 60 --criterion
label_smoothed_cross_entropy --label-smoothing 0.1 --no-epoch-checkpoints --no-progress-bar --disable-validation""")
MODELS = {
    "codes": ["--arch", "transformer", "--share-all-embeddings"],
    "sentencepiece": shlex.split("""--arch transformer_iwslt_de_en --share-decoder-input-output-embed --encoder-normalize-before
        --decoder-normalize-before --encoder-learned-pos --decoder-learned-pos --activation-fn gelu"""),
}


def command(tool, arguments):
    """One of fairseq's commands, in this process."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "mtplug" / "bench" / "peers" / "scripts"))
    import fairseq_of_today  # noqa: F401  (before fairseq)
    import torch

    load = torch.load
    torch.load = lambda *args, **options: load(*args, **{**options, "weights_only": False})
    layers = importlib.import_module("fairseq.modules.transformer_layer")
    init = layers.TransformerEncoderLayerBase.__init__

    def without_fast_path(self, *args, **options):  # today's torch has not what it calls
        init(self, *args, **options)
        self.can_use_fastpath = self.BT_version = False

    layers.TransformerEncoderLayerBase.__init__ = without_fast_path
    sys.argv = [tool, *arguments]
    importlib.import_module(f"fairseq_cli.{tool}").cli_main()


def fairseq(*line):
    line = [sys.executable, __file__, "--run", *line]
    return subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True).stdout


def make(corpus, output, kind):
    import torch

    folder = output / kind
    folder.mkdir(parents=True)
    languages, joined = ("xx", "en"), ["--joined-dictionary"] if kind == "codes" else []
    if kind == "codes":
        from subword_nmt.apply_bpe import BPE
        from subword_nmt.learn_bpe import learn_bpe

        texts = [line for lang in languages for line in (corpus / f"train.{lang}").open()]
        with (folder / "codes").open("w") as written:
            learn_bpe(texts, written, 12)
        cut = dict.fromkeys(languages, BPE((folder / "codes").open()).process_line)
    else:
        import sentencepiece

        cut = {}
        for lang, size in (("xx", 24), ("en", 26)):
            prefix = folder / lang
            sentencepiece.SentencePieceTrainer.train(
                input=corpus / f"train.{lang}", model_prefix=prefix, vocab_size=size,
                normalization_rule_name="identity", minloglevel=2,
            )  # fmt: skip
            Path(f"{prefix}.vocab").unlink()
            model = sentencepiece.SentencePieceProcessor(model_file=f"{prefix}.model")
            cut[lang] = lambda line, model=model: " ".join(model.encode(line, out_type=str))
    work = corpus / f"work-{kind}"
    work.mkdir()
    for split in ("train", "valid"):
        for lang in languages:
            lines = [cut[lang](line.strip()) + "\n" for line in (corpus / f"{split}.{lang}").open()]
            (work / f"{split}.{lang}").write_text("".join(lines))
    data = str(work / "data")
    fairseq("preprocess", "--source-lang", "xx", "--target-lang", "en", "--trainpref", f"{work}/train",
            "--validpref", f"{work}/valid", "--destdir", data, "--workers", "1", *joined)  # fmt: skip
    fairseq("train", data, *MODELS[kind], *SIZES, *TRAINING, "--save-dir", f"{work}/made")
    told = fairseq("generate", data, "--path", f"{work}/made/checkpoint_last.pt", "--beam", "1", "--cpu",
                   "--max-len-b", "10", "--gen-subset", "valid", "--num-workers", "0", "--no-progress-bar")  # fmt: skip
    state = torch.load(work / "made" / "checkpoint_last.pt", weights_only=False)
    kept = {
        "args": None,
        "cfg": {k: state["cfg"][k] for k in ("_name", "model", "task")},
        "model": state["model"],
    }
    for settings in (
        vars(kept["cfg"]["model"]),
        kept["cfg"]["task"],
    ):  # no paths of the machine that made it
        settings |= {k: None for k, v in settings.items() if str(corpus) in str(v)}
    torch.save(kept, folder / "checkpoint_best.pt")
    for lang in languages:
        (folder / f"dict.{lang}.txt").write_text((work / "data" / f"dict.{lang}.txt").read_text())
    rows = {}
    for line in told.splitlines():
        what, dash, rest = line.partition("-")
        if dash and what in "SHP":
            number, *fields = rest.split("\t")
            rows.setdefault(int(number), {})[what] = fields[-1]
    sources = (corpus / "valid.xx").read_text().splitlines()
    expected = [
        {
            "source": sources[i],
            "pieces": rows[i]["S"].split(),
            "translation": rows[i]["H"].split(),
            # fairseq tells them in base 2.
            "scores": [float(x) * math.log(2) for x in rows[i]["P"].split()],
        }
        for i in sorted(rows)
    ]  # fmt: skip
    (folder / "expected.json").write_text(json.dumps(expected, ensure_ascii=False, indent=0))


if __name__ == "__main__":
    if sys.argv[1] == "--run":
        command(sys.argv[2], sys.argv[3:])
    else:
        parser = argparse.ArgumentParser()
        parser.add_argument("corpus", type=Path)
        parser.add_argument("output", type=Path)
        given = parser.parse_args()
        os.environ["OMP_NUM_THREADS"] = "1"
        for kind in MODELS:
            make(given.corpus, given.output, kind)
