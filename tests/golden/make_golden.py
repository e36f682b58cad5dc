"""Make the golden run of the present checkpoint format, once, when the format is new.

python -m tests.golden.make_golden v1
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import mtplug
from tests import tiny

SIZES = ("architecture.dim=16", "architecture.ffn_dim=16", "architecture.encoder_layers=1",
         "architecture.decoder_layers=1")  # fmt: skip


def main(version: str) -> None:
    target = Path(__file__).with_name(version)
    if target.exists():
        sys.exit(f"{target} is there; a golden run is never made again")
    with tempfile.TemporaryDirectory() as folder:
        tiny.write_corpus(Path(folder))
        run = tiny.train(
            Path(folder), "run", *SIZES, "training.max_updates=400", "optimizer.lr=1e-2",
            "validation.every_updates=400", "data.test=null",
        )  # fmt: skip
        for part in ("config.yaml", "tokenizer", "checkpoints"):
            source = run / part
            if source.is_dir():
                shutil.copytree(source, target / part, symlinks=True)
            else:
                target.mkdir(exist_ok=True)
                shutil.copy(source, target / part)
        (target / "checkpoints" / "step-00000400" / "training.safetensors").unlink()
    config = (target / "config.yaml").read_text().replace(folder, "elsewhere")
    (target / "config.yaml").write_text(config)
    sentences = [source for source, _ in tiny.pairs(5, seed=9)]
    found = mtplug.load(target).translate(sentences)
    (target / "translations.json").write_text(
        json.dumps(dict(zip(sentences, found, strict=True)), indent=1)
    )


if __name__ == "__main__":
    main(sys.argv[1])
