"""A made-up language pair that a tiny model learns in seconds, and a configuration for it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

LEXICON = {
    "ka": "one", "lo": "two", "mi": "three", "nu": "four", "pe": "five", "ra": "six",
    "so": "seven", "ti": "eight", "vu": "nine", "we": "ten",
}  # fmt: skip

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


def pairs(count: int, seed: int) -> list[tuple[str, str]]:
    """Sentences of 2 to 6 words and their word-by-word translations."""
    rng = random.Random(seed)
    sentences = [rng.choices(list(LEXICON), k=rng.randint(2, 6)) for _ in range(count)]
    return [(" ".join(s), " ".join(LEXICON[w] for w in s)) for s in sentences]


def write_corpus(folder: Path) -> Path:
    """Write train, valid and test of the languages xx and en, and run.yaml, which trains on them.

    Returns:
        The configuration's file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (split, count) in enumerate({"train": 400, "valid": 20, "test": 20}.items()):
        for side, language in enumerate(("xx", "en")):
            lines = "".join(pair[side] + "\n" for pair in pairs(count, seed))
            (folder / f"{split}.{language}").write_text(lines, encoding="utf-8")
    (folder / "run.yaml").write_text(CONFIG)
    return folder / "run.yaml"


def train(folder: Path, *settings: str, updates: int = 4, name: str = "run") -> Path:
    """Train a tiny Transformer on the made-up corpus, in this process.

    Args:
        folder: the corpus is written here unless it has a run.yaml, and the run below it.
        settings: `key=value`, as on the command line of `mtplug-train`; a setting replaces what the
            run would have otherwise.
        updates: optimizer steps; the model validates half way and at the end.
        name: the run's folder.

    Returns:
        The run's folder. Called again, the run resumes.

    Raises:
        UserError: as `mtplug-train`.
    """
    from mtplug.config import load_config
    from mtplug.training.run import train as train_run

    config = folder / "run.yaml"
    if not config.is_file():
        write_corpus(folder)
    here = (f"run_dir={folder / name}", f"data.root={folder}", f"training.max_updates={updates}",
            f"validation.every_updates={max(updates // 2, 1)}")  # fmt: skip
    run, _ = load_config(config, [*here, *settings])
    return train_run(run, report=lambda text: None)


def finetune(
    base: Path, folder: Path, texts: Sequence[tuple[str, str]], *settings: str, updates: int = 10
) -> tuple[Path, list[float]]:
    """Fine-tune a run on pairs of texts, in this process.

    Args:
        base: the run to begin with, such as one that an importer wrote.
        folder: the texts are written here, and the run below it.
        texts: sources and targets.
        settings: `key=value`, as on the command line of `mtplug-train`.
        updates: optimizer steps.

    Returns:
        The run's folder; its loss for these texts half way and at the end, in nats per token.

    Raises:
        UserError: as `mtplug-train`.
    """
    from mtplug.config import load_config
    from mtplug.training.run import train as train_run
    from mtplug.training.trackers import read_events

    folder.mkdir(parents=True, exist_ok=True)
    for side, name in enumerate(("source", "target")):
        lines = "".join(f"{pair[side]}\n" for pair in texts)
        (folder / f"train.{name}").write_text(lines, encoding="utf-8")
    corpus = "{source: train.source, target: train.target}"
    (folder / "run.yaml").write_text(
        f"data: {{train: {corpus}, valid: {corpus}, workers: 1}}\n"
        f"training: {{max_updates: {updates}, max_tokens: 400, threads: 1}}\n"
        f"validation: {{every_updates: {updates // 2}, translate: false, best_metric: loss}}\n"
        "lr_scheduler: {warmup_updates: 1}\n"
        "logging: {trackers: [{name: jsonl}]}\n"
    )
    here = (f"training.finetune_from={base}", f"data.root={folder}", f"run_dir={folder / 'run'}")
    run, _ = load_config(folder / "run.yaml", [*here, *settings])
    made = train_run(run, report=lambda text: None)
    events = read_events(made / "metrics.jsonl")
    return made, [e["scores"]["loss"] for e in events if e["event"] == "validation"]
