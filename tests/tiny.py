"""A made-up language pair that a tiny model learns in seconds, and a configuration for it."""

import random
import subprocess
import sys
from pathlib import Path

LEXICON = {
    "ka": "one", "lo": "two", "mi": "three", "nu": "four", "pe": "five", "ra": "six",
    "so": "seven", "ti": "eight", "vu": "nine", "we": "ten",
}  # fmt: skip


def pairs(count: int, seed: int) -> list[tuple[str, str]]:
    """Sentences of 2 to 6 words and their word-by-word translations."""
    rng = random.Random(seed)
    sentences = [rng.choices(list(LEXICON), k=rng.randint(2, 6)) for _ in range(count)]
    return [(" ".join(s), " ".join(LEXICON[w] for w in s)) for s in sentences]


def write_corpus(folder: Path) -> None:
    """train, valid and test of the languages xx and en."""
    for seed, (split, count) in enumerate({"train": 400, "valid": 20, "test": 20}.items()):
        for side, language in enumerate(("xx", "en")):
            lines = "".join(pair[side] + "\n" for pair in pairs(count, seed))
            (folder / f"{split}.{language}").write_text(lines, encoding="utf-8")
    (folder / "run.yaml").write_text(CONFIG)


CONFIG = """\
task: {name: translation, source_lang: xx, target_lang: en}
data:
  train: {source: train.xx, target: train.en}
  valid: {source: valid.xx, target: valid.en}
  test: {source: test.xx, target: test.en}
  workers: 1
tokenizer: {model_type: word, vocab_size: 23}
architecture: {dim: 32, ffn_dim: 64, heads: 2, encoder_layers: 2, decoder_layers: 2, norm: pre}
optimizer: {lr: 5e-3}
lr_scheduler: {name: inverse_sqrt, warmup_updates: 20}
training: {max_updates: 60, max_tokens: 256, log_every: 5, threads: 1}
validation: {every_updates: 30}
logging: {trackers: [{name: jsonl}, {name: console}]}
"""


def arguments(folder: Path, name: str, *overrides: str) -> list[str]:
    """The command line that trains in `folder/name`."""
    return [str(folder / "run.yaml"), f"run_dir={folder / name}", f"data.root={folder}", *overrides]


def train(folder: Path, name: str, *overrides: str) -> Path:
    """Train in this process."""
    from mtplug.cli.train import main

    assert main([*arguments(folder, name, *overrides), "--debug"]) == 0
    return folder / name


def trainer(folder: Path, *overrides: str):
    """A trainer in this process that has done nothing yet."""
    import torch

    from mtplug.config import load_config
    from mtplug.training.processes import Processes
    from mtplug.training.run import prepare
    from mtplug.training.trainer import Trainer

    run, _ = load_config(folder / "run.yaml", list(overrides))
    task = prepare(run, lambda text: None)
    made = Trainer(run, Path(run.run_dir), task, Processes(0, 1, torch.device("cpu")))
    made._reset_window()
    return made


def command(module: str, *args: object, **kwargs) -> subprocess.CompletedProcess:
    """Run `python -m mtplug.cli.MODULE` and wait."""
    line = [sys.executable, "-m", f"mtplug.cli.{module}", *map(str, args)]
    return subprocess.run(line, capture_output=True, text=True, **kwargs)
