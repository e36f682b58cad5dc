"""What the first-party plugins do to translations, on real data: python benchmarks/plugins.py [SECTION …].

Sections: base, knn, terminology, distill, rdrop, align, omission, wandb, hf_peft. Each trains what it needs below --folder, or goes on
with it, and leaves its numbers in FOLDER/SECTION.json; what is there already is not measured again. The plugins
must be installed (pip install ./plugins/mtplug-*). Results: benchmarks/results/plugins.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import runpy
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mtplug
from mtplug.config.build import component_from_overrides
from mtplug.peft import files
from mtplug.training.checkpoints import read_tensors

CONFIG = Path(__file__).with_name("plugins.yaml")
# Else `import peft` of a plugin would find the benchmark beside this one.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != CONFIG.resolve().parent]
WANDB_TESTS = Path(__file__).parents[1] / "plugins/mtplug-wandb/tests/test_tracker.py"


@dataclass
class Bench:
    """Where runs lie, and how large they are."""

    folder: Path
    data: Path
    updates: int
    sentences: int

    def train(self, name: str, *settings: str, command: str = "train") -> Path:
        """The run of that name, trained or gone on with."""
        run = self.folder / name
        here = (f"run_dir={run}", f"data.root={self.data}", f"training.max_updates={self.updates}")
        line = [sys.executable, "-m", f"mtplug.cli.{command}", str(CONFIG), *here, *settings]
        subprocess.run(line, check=True)
        return run

    def base(self) -> Path:
        return self.train("base")

    def test(self) -> list[tuple[str, str]]:
        """Multi30k's test set of 2016."""
        folder = self.data / "multi30k"
        sides = [(folder / f"test_2016_flickr.{x}").read_text().splitlines() for x in ("en", "de")]
        return list(zip(*sides, strict=True))

    def interface(self) -> dict[str, list[tuple[str, str]]]:
        """Home Assistant's interface strings; what is held out has no source in common with train."""
        lines = (self.data / "homeassistant-en-de" / "all.tsv").read_text().splitlines()
        pairs = [(cells[0], cells[1]) for line in lines if len(cells := line.split("\t")) > 1]
        train = [p for i, p in enumerate(pairs) if i % 10 > 1]
        seen = {source.casefold() for source, _ in train}
        parts = {"train": train}
        for part, name in enumerate(("dev", "test")):
            held = [
                p for i, p in enumerate(pairs) if i % 10 == part and p[0].casefold() not in seen
            ]
            parts[name] = list(dict(held).items())[: self.sentences]
        return parts

    def written(self, part: str, pairs: list[tuple[str, str]]) -> str:
        """The setting of a corpus of those pairs."""
        folder = (self.folder / "interface").resolve()
        folder.mkdir(exist_ok=True)
        for side, name in enumerate(("en", "de")):
            text = "".join(" ".join(p[side].split()) + "\n" for p in pairs)
            (folder / f"{part}.{name}").write_text(text)
        return f"{{source: {folder}/{part}.en, target: {folder}/{part}.de}}"


def scores(
    hypotheses: list[str], pairs: list[tuple[str, str]], language: str = "de"
) -> dict[str, Any]:
    """BLEU, chrF2++ and the ratio of lengths, with signatures."""
    found: dict[str, Any] = {}
    for name in ("bleu", "chrf", "length_ratio"):
        metric = component_from_overrides("metrics", name, []).build(language)
        score = metric.score(hypotheses, [[reference for _, reference in pairs]])
        found |= {name: round(score.value, 3), f"{name}_signature": score.signature}
    return found


def translated(run: Path, pairs: list[tuple[str, str]], *settings: str) -> list[str]:
    translator = mtplug.load(run, device="cpu", overrides=settings)
    return translator.translate([source for source, _ in pairs])


def base(bench: Bench) -> Iterable[dict[str, Any]]:
    run, test = bench.base(), bench.test()
    yield {"system": "cross-entropy", **scores(translated(run, test), test)}


def knn(bench: Bench) -> Iterable[dict[str, Any]]:
    """Captions as the training data, interface strings as the new domain."""
    run, parts = bench.base(), bench.interface()
    corpus = f"data.train={bench.written('train', parts['train'])}"
    store = bench.folder / "interface" / "datastore"
    if not store.is_dir():
        command = [sys.executable, "-m", "mtplug_knn", str(run), str(store), corpus]
        subprocess.run(command, check=True)
    yield {"system": "base", "pairs": len(parts["test"]),
           **scores(translated(run, parts["test"]), parts["test"])}  # fmt: skip
    best: tuple[float, list[str]] = (-1.0, [])
    for weight, temperature in ((0.5, 10), (0.8, 10)):
        settings = ["search.name=knn", f"search.datastore={store}", "search.neighbours=16",
                    f"search.knn_weight={weight}", f"search.temperature={temperature}"]  # fmt: skip
        found = scores(translated(run, parts["dev"], *settings), parts["dev"])
        yield {"system": f"dev: knn weight {weight}, temperature {temperature}", **found}
        best = max(best, (found["bleu"], settings))
    chosen = " ".join(s.removeprefix("search.") for s in best[1][3:])
    yield {"system": f"knn ({chosen})", "pairs": len(parts["test"]),
           **scores(translated(run, parts["test"], *best[1]), parts["test"])}  # fmt: skip


def terminology(bench: Bench) -> Iterable[dict[str, Any]]:
    """Trained with tags around some terms; at the test the same terms, whose targets the reference holds."""
    from mtplug_terminology.glossary import Glossary, extract, tagged

    from mtplug.search.wishes import WordPattern

    base, test = bench.base(), bench.test()
    sides = [
        (bench.data / "multi30k" / f"train.{x}").read_text().splitlines() for x in ("en", "de")
    ]
    file = bench.folder / "glossary.tsv"
    if not file.is_file():
        found = extract(zip(*sides, strict=True))
        file.write_text("".join(f"{s}\t{' | '.join(forms)}\n" for s, forms in found.items()))
    corpus = (f"data.train=[{{name: glossary, source: multi30k/train.en, target: multi30k/train.de, "
              f"glossary: {file.resolve()}}}]")  # fmt: skip
    run = bench.train("terminology", "task.name=terminology", corpus,
                      "tokenizer.user_symbols=[<term>, </term>, <target>]")  # fmt: skip
    # What the reference has for a term is due: for all terms, then for those of which it has another form
    # or word than the glossary's first, which a model without tags can only guess.
    glossary = Glossary.read(file)
    found = [(pair, glossary.found(*pair)) for pair in test]
    rarer = [(pair, [t for t in terms if t.target != t.forms[0]]) for pair, terms in found]
    for which, chosen in (("all terms", found), ("not the usual form", rarer)):
        held = [(pair, terms[:3]) for pair, terms in chosen if terms]  # as many as in training
        pairs = [pair for pair, _ in held]
        for system, run_dir, tags in (("base", base, False), ("tagged training, no tags", run, False),
                                      ("tagged training, tags", run, True)):  # fmt: skip
            texts = [tagged(s, terms) if tags else s for (s, _), terms in held]
            hypotheses = mtplug.load(run_dir, device="cpu").translate(texts)
            right = [WordPattern(t.target).search(h) is not None
                     for h, (_, terms) in zip(hypotheses, held, strict=True) for t in terms]  # fmt: skip
            yield {"system": f"{which}: {system}", "sentences": len(held), "terms": len(right),
                   "terminology_accuracy": round(100 * sum(right) / len(right), 2),
                   **scores(hypotheses, pairs)}  # fmt: skip


SMALL = ("architecture.dim=64", "architecture.ffn_dim=128", "architecture.encoder_layers=1",
         "architecture.decoder_layers=1")  # fmt: skip
"""A student of the base run."""


def distill(bench: Bench) -> Iterable[dict[str, Any]]:
    """A small model from the references, and from the base run's distributions and translations."""
    teacher, test = bench.base(), bench.test()
    made = (bench.folder / "distilled").resolve()
    if not (made / "target").is_file():
        command = [sys.executable, "-m", "mtplug_distill", str(teacher), str(made), "search.beam=5"]
        subprocess.run(command, check=True)
    word = ("criterion.name=distillation", f"criterion.teacher={teacher.resolve()}")
    sequence = (f"data.train={{source: {made}/source, target: {made}/target}}",
                f"tokenizer.model={teacher.resolve()}")  # fmt: skip
    students = {"student": (), "student, word-level": word, "student, sequence-level": sequence,
                "student, both": (*word, *sequence)}  # fmt: skip
    for system, settings in students.items():
        run = bench.train(system.replace(", ", "-"), *SMALL, *settings)
        yield {"system": system, **scores(translated(run, test), test)}


def rdrop(bench: Bench) -> Iterable[dict[str, Any]]:
    run, test = bench.train("rdrop", "criterion.name=rdrop"), bench.test()
    yield {"system": "rdrop", **scores(translated(run, test), test)}


def align(bench: Bench) -> Iterable[dict[str, Any]]:
    """From scratch, and a few updates more of the base; links of words against those made by hand."""
    base, test, gold = bench.base(), bench.test(), _gold()
    criterion = "criterion={name: guided_alignment, weight: %s}"
    more = (f"training.finetune_from={base.resolve()}", f"training.max_updates={bench.updates // 10}",
            "lr_scheduler={name: cosine, warmup_updates: 20}", "optimizer.lr=1e-3")  # fmt: skip
    for system, run in (
        ("cross-entropy", base),
        ("guided, weight 0.05", bench.train("align", criterion % 0.05)),
        ("guided, weight 0.2", bench.train("align-more", criterion % 0.2)),
        ("cross-entropy, then guided", bench.train("align-later", *more, criterion % 0.2)),
    ):
        rows = [test[n] for n in gold]
        found = mtplug.load(run, device="cpu").score(*zip(*rows, strict=True), attention=True)
        links = [set(translation.word_alignment) for translation in found]
        yield {"system": system, "alignment_error_rate": round(_error_rate(links, gold.values()), 3),
               **scores(translated(run, test), test)}  # fmt: skip


Links = set[tuple[int, ...]]


def _gold() -> dict[int, tuple[Links, Links]]:
    """For sentences of the test set those links of words that are sure, and those that are possible."""
    found = {}
    for line in CONFIG.with_name("alignments_multi30k.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        number, *links = line.split()
        sure, possible = (
            {tuple(map(int, link.rstrip("?").split("-"))) for link in chosen}
            for chosen in ([link for link in links if not link.endswith("?")], links)
        )
        found[int(number)] = sure, possible
    return found


def _error_rate(found: list[Links], gold: Iterable[tuple[Links, Links]]) -> float:
    """AER (Och and Ney 2003), 0 to 1."""
    right = made = 0
    for links, (sure, possible) in zip(found, gold, strict=True):
        right += len(links & sure) + len(links & possible)
        made += len(links) + len(sure)
    return 1 - right / made


def omission(bench: Bench) -> Iterable[dict[str, Any]]:
    """From scratch, and (as the paper) a few updates more of the base, against as many without the margin."""
    base, test = bench.base(), bench.test()
    more = (f"training.finetune_from={base.resolve()}", f"training.max_updates={bench.updates // 4}",
            "lr_scheduler={name: cosine, warmup_updates: 50}", "optimizer.lr=1e-3")  # fmt: skip
    for system, run in (
        ("base", base),
        ("omission from scratch", bench.train("omission", "criterion.name=omission")),
        ("base, cross-entropy goes on", bench.train("more", *more)),
        ("base, omission goes on", bench.train("more-omission", *more, "criterion.name=omission")),
        ("base, omission goes on, weight 10, margin 3",
         bench.train("more-omission10", *more, "criterion={name: omission, weight: 10, margin: 3}")),
    ):  # fmt: skip
        yield {"system": system, "whole_preferred": _whole_preferred(run, test),
               **scores(translated(run, test), test)}  # fmt: skip


def _whole_preferred(run: Path, pairs: list[tuple[str, str]]) -> float:
    """Per cent of references that are more probable than themselves without one word, drawn once."""
    draw, kept = random.Random(1), [p for p in pairs if len(p[1].split()) > 1]
    shortened = []
    for _, reference in kept:
        words = reference.split()
        del words[draw.randrange(len(words))]
        shortened.append(" ".join(words))
    translator, sources = mtplug.load(run, device="cpu"), [source for source, _ in kept]
    whole = translator.score(sources, [reference for _, reference in kept])
    short = translator.score(sources, shortened)
    wins = [sum(w.token_scores) > sum(s.token_scores) for w, s in zip(whole, short, strict=True)]
    return round(100 * sum(wins) / len(wins), 2)


def wandb(bench: Bench) -> Iterable[dict[str, Any]]:
    """What an entry of every update costs, offline, and whether what would be sent is what metrics.jsonl has.

    Runs of one update and of many, with and without the tracker, take turns; the difference of the two
    lengths is what updates cost, without what a start costs.
    """
    small = (*SMALL, "training.max_tokens=256", "training.log_every=1", "data.test=[]",
             "validation.max_sentences=20")  # fmt: skip
    lengths, rounds = (1, bench.updates // 10 + 1), 5
    ready = bench.train("wandb-ready", *small, command="preprocess")
    systems = {
        "jsonl": "[{name: jsonl}]",
        "jsonl, wandb": "[{name: jsonl}, {name: wandb, mode: offline}]",
    }
    spent: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for _ in range(rounds):
        for system, trackers in systems.items():
            for updates in lengths:
                name = f"wandb-{system[7:]}-{updates}"
                shutil.rmtree(bench.folder / name, ignore_errors=True)
                shutil.copytree(ready, bench.folder / name)
                with spending(spent.setdefault((system, updates), [])):
                    run = bench.train(name, *small, f"logging.trackers={trackers}",
                                      f"training.max_updates={updates}")  # fmt: skip
    for system in systems:
        start, whole = ([cpu for cpu, _ in spent[system, n]] for n in lengths)
        each = [(b - a) / (lengths[1] - lengths[0]) for a, b in zip(start, whole, strict=True)]
        yield {"system": system, "rounds": rounds, "updates": lengths[1],
               "start_cpu_s": statistics.median(start), "start_cpu_s_all": start,
               "start_wall_s": statistics.median(wall for _, wall in spent[system, 1]),
               "update_cpu_ms": 1000 * statistics.median(each), "update_cpu_ms_all": [1000 * e for e in each]}  # fmt: skip
    ((_, _, history, _),) = runpy.run_path(str(WANDB_TESTS))["sent"](run)
    told = {"train": 0, "validation": 0}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        event = json.loads(line)
        if (kind := event["event"]) in told:
            (entry,) = [
                h for h in history if h["update"] == event["update"] and f"{kind}/epoch" in h
            ]
            sent = {k.partition("/")[2]: v for k, v in entry.items() if k.startswith(f"{kind}/")}
            known = {**event, **event.get("scores", {})}
            assert sent == {k: known[k] for k in sent} and {"loss", "epoch"} <= sent.keys(), entry
            told[kind] += len(sent)
    yield {"system": "sent as in metrics.jsonl", **told, "file_bytes": sum(
        f.stat().st_size for f in run.glob("wandb/offline-run-*/*.wandb"))}  # fmt: skip


def hf_peft(bench: Bench) -> Iterable[dict[str, Any]]:
    """LoRA by peft and by mtplug: the same base, maps, rank, scale, rate and seed, on the new domain."""
    base, parts = bench.base(), bench.interface()
    test = parts["test"]
    yield {"system": "base", **scores(translated(base, test), test)}
    updates = bench.updates // 10
    given = (f"training.finetune_from={base.resolve()}", f"data.train={bench.written('train', parts['train'])}",
             f"data.valid={bench.written('dev', parts['dev'])}", "data.test=[]", "optimizer.lr=1e-2", "training.max_tokens=1024",
             f"training.max_updates={updates}", f"validation.every_updates={updates}",
             "validation.translate=false")  # fmt: skip
    methods = {
        "lora of mtplug": "{name: lora, rank: 16, alpha: 32}",
        "lora of peft": "{name: hf_peft, type: LORA, options: {r: 16, lora_alpha: 32}}",
    }
    for system, method in methods.items():
        spent: list[tuple[float, float]] = []
        with spending(spent):
            run = bench.train(system.replace(" ", "-"), *given, f"peft={method}")
        file = run / "checkpoints" / "last" / files.WEIGHTS
        yield {"system": system, "updates": updates, "cpu_s": spent[0][0],
               "parameters": sum(t.numel() for t in read_tensors(file).values()),
               "file_bytes": file.stat().st_size, **scores(translated(run, test), test)}  # fmt: skip


@contextlib.contextmanager
def spending(into: list[tuple[float, float]]) -> Iterator[None]:
    """Adds CPU seconds of the child processes that ended meanwhile, and seconds that passed."""
    before, began = os.times(), time.perf_counter()
    yield
    after = os.times()
    cpu = (
        after.children_user + after.children_system - before.children_user - before.children_system
    )
    into.append((cpu, time.perf_counter() - began))


SECTIONS: dict[str, Callable[[Bench], Iterable[dict[str, Any]]]] = {
    "base": base,
    "knn": knn,
    "terminology": terminology,
    "distill": distill,
    "rdrop": rdrop,
    "align": align,
    "omission": omission,
    "wandb": wandb,
    "hf_peft": hf_peft,
}


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    made.add_argument("sections", nargs="*", default=list(SECTIONS), metavar="SECTION")
    made.add_argument(
        "--folder", type=Path, default=Path("runs/plugins"), help="for runs and numbers"
    )
    made.add_argument(
        "--data", type=Path, default=Path("../shared/data"), help="multi30k and others"
    )
    made.add_argument("--updates", type=int, default=800, help="of each training")
    made.add_argument(
        "--sentences", type=int, default=300, help="of a held-out part of the new domain"
    )
    args = made.parse_args()
    bench = Bench(args.folder, args.data, args.updates, args.sentences)
    bench.folder.mkdir(parents=True, exist_ok=True)
    for name in args.sections:
        file = bench.folder / f"{name}.json"
        if not file.is_file():
            rows = list(SECTIONS[name](bench))
            file.write_text(json.dumps(rows, indent=1))
        for row in json.loads(file.read_text()):
            shown = {k: v for k, v in row.items() if not k.endswith("_signature")}
            print(f"{name}: {json.dumps(shown, ensure_ascii=False)}", flush=True)


if __name__ == "__main__":
    main()
