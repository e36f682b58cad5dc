"""python -m mtplug_knn: makes a datastore of a run and a corpus."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mtplug.cli import common

if TYPE_CHECKING:
    from mtplug.translator import Translator

EPILOG = """\
examples:
  python -m mtplug_knn runs/general medical 'data.train={source: medical.en, target: medical.de}'
  mtplug-translate runs/general search.name=knn search.datastore=medical < in.en"""


def main(argv: list[str] | None = None) -> int:
    made = common.parser(
        "python -m mtplug_knn",
        "Make a datastore of a trained run and a corpus: the run's own training data, or what "
        "data.train=… says.",
        EPILOG,
    )
    made.add_argument("run", type=Path, help="the run's folder")
    made.add_argument("folder", type=Path, help="of the datastore, which must not be there yet")
    made.add_argument("overrides", nargs="*", metavar="key=value", help="such as data.train={…}")
    made.add_argument("--checkpoint", default="best", help="best, last, averaged or step-N")
    made.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    made.add_argument(
        "--index", default="Flat",
        help="in the words of faiss.index_factory: Flat is exact; IVF1024,PQ64 for millions of tokens",
    )  # fmt: skip
    return common.run(made, body, argv)


def body(args: argparse.Namespace) -> int:
    common.configure(args)
    import torch

    from mtplug.translator import load_run, translator_of
    from mtplug_knn.datastore import fingerprint, write

    run = load_run(args.run, args.overrides)
    translator = translator_of(run, args.run, args.checkpoint, args.device)
    task = translator.task
    pairs = _encoded(translator, task.units(run, "train", task.pairs(run, "train")))
    size = sum(len(target) + 1 for _, target in pairs)
    blocks = states(translator, pairs)
    first = next(blocks)
    meta = {
        "fingerprint": fingerprint(translator.model),
        "fingerprint_bf16": fingerprint(translator.model, torch.bfloat16),  # of --precision bf16
        "run": str(args.run),
        "checkpoint": args.checkpoint,
        "corpora": translator.task.checksums(run),
        "pairs": len(pairs),
    }

    def whole() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        yield first
        yield from blocks

    told = [0.0]

    def report(text: str) -> None:
        told[0] += 1
        if told[0] % 20 == 0:
            print(text, file=sys.stderr)

    write(args.folder, whole(), size, first[0].shape[1], meta, args.index, report)
    print(f"{args.folder}: {size:,} target tokens of {len(pairs):,} pairs; translate with  "
          f"mtplug-translate {args.run} search.name=knn search.datastore={args.folder}")  # fmt: skip
    return 0


def _encoded(
    translator: Translator, pairs: list[tuple[str, str]]
) -> list[tuple[list[int], list[int]]]:
    """Ids of the pairs that have two sides, each side cut to `max_length`."""
    limit, task = translator.max_length, translator.task
    sources = task.source_tokenizer.encode([source for source, _ in pairs])
    targets = task.target_tokenizer.encode([target for _, target in pairs])
    return [(s[:limit], t[:limit]) for s, t in zip(sources, targets, strict=True) if s and t]


def states(
    translator: Translator, pairs: list[tuple[list[int], list[int]]]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each batch the states (n, C) and the tokens written there (n,), `</s>` among them."""
    import torch

    from mtplug.data.batching import collate, token_batches

    model = translator.model.eval()
    device = next(model.parameters()).device
    source, target = (np.array([len(p[side]) for p in pairs], np.int64) for side in (0, 1))
    order = np.lexsort((source, target))
    for ids in token_batches(order, source, target, translator.batch_tokens):
        batch = collate([pairs[i] for i in ids], ids).to(device)
        with torch.inference_mode():
            features = model(*batch.inputs)
        real = batch.target_tokens != 0  # 0 is padding
        yield features[real].float().cpu().numpy(), batch.target_tokens[real].cpu().numpy()


if __name__ == "__main__":
    sys.exit(main())
