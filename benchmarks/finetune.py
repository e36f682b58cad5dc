"""Does it pay? One base, every PEFT method and full fine-tuning on another domain; BLEU on both.

    python benchmarks/finetune.py --folder runs/bench-finetune            # run again, it goes on
    python benchmarks/finetune.py --folder runs/bench-finetune --report   # only the table of what is there

A base is trained on one domain (Multi30k's captions, LibreOffice's help, or both with the catalogues that
configs/demo_corpus.py fetches) and adapted to Home Assistant's interface strings: by full fine-tuning, by that with
what keeps the old domain (replay, elastic weight consolidation) and by PEFT. For each method the first seed tries all rates, each a multiple of the method's own default; the best one on
the development strings is then run with the other seeds. Each training runs in a process of its own, of which time
and peak memory are taken without those of translating.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from string import Template
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "configs"))  # demo_corpus

LONGER = ["training.max_updates=$longer", "validation.every_updates=$longer"]
METHODS: dict[str, tuple[list[str], float]] = {
    "full": ([], 3e-4),
    "lora": (["peft={name: lora, rank: $rank}"], 0),
    "houlsby": (["peft={name: adapter, style: houlsby, bottleneck: $narrow}"], 0),
    "pfeiffer": (["peft={name: adapter, style: pfeiffer, bottleneck: $wide}"], 0),
    "parallel": (["peft={name: adapter, style: parallel, bottleneck: $wide, scale: 4}"], 0),
    "bapna": (["peft={name: adapter, style: bapna, bottleneck: $wide}"], 0),
    "bitfit": (["peft={name: bitfit}"], 0),
    "ia3": (["peft={name: ia3}"], 0),
    "select norm": (["peft={name: select, targets: [norm]}"], 1e-3),
    "prefix": (["peft={name: prefix_tuning, length: 10}"], 0),
    "prompt": (["peft={name: prompt_tuning, length: 20}"], 0),
    "full, replay": (["data.train=[$replay]"], 3e-4),
    "full, replay, ewc 1": (
        ["data.train=[$replay]", "criterion={name: ewc, fisher: $fisher, weight: 1}"],
        3e-4,
    ),
    "full, ewc 1": (["criterion={name: ewc, fisher: $fisher, weight: 1}"], 3e-4),
    "full, ewc 10": (["criterion={name: ewc, fisher: $fisher, weight: 10}"], 3e-4),
    "dora": (["peft={name: lora, rank: $rank, dora: true}"], 0),
    "rslora": (["peft={name: lora, rank: $rank, rslora: true}"], 0),
    "lora+": (["peft={name: lora, rank: $rank, lora_plus: 8}"], 0),
    "lora_xs": (["peft={name: lora_xs, share: 0.029}"], 0),
    "lora, longer": (["peft={name: lora, rank: $rank}", *LONGER], 0),
    "full, longer": (LONGER, 3e-4),
    "lora + table": (["peft={name: lora, rank: $less, targets: [self, cross, ffn, embedding]}"], 0),
}
"""Settings, and the rate to start from where it is not the default of the method. $rank, $less, $narrow and $wide come
from --rank, $replay is the new corpus with a tenth of the old one, $longer four times --updates, $fisher what
mtplug-fisher wrote."""

OLD = {
    "captions": ("multi30k/train", "multi30k/val", "multi30k/test_2016_flickr"),
    "help": tuple(f"libreoffice-help-en-de/{part}" for part in ("train", "dev", "test")),
}
"""Domains that a base may come from: files to train, validate and test on. A base of `general` has seen both, and the
catalogues of other programs than Home Assistant."""


def arguments() -> argparse.Namespace:
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    made.add_argument("--folder", type=Path, default=Path("runs/bench-finetune"))
    made.add_argument("--data", type=Path, default=Path("../shared/data"))
    made.add_argument(
        "--old", choices=[*OLD, "general"], default="captions", help="the base's domain"
    )
    made.add_argument("--report", action="store_true", help="train nothing, print what is there")
    made.add_argument(
        "--methods", nargs="*", default=list(METHODS), help="of: " + ", ".join(METHODS)
    )
    made.add_argument(
        "--rates", type=float, nargs="*", default=[1 / 3, 1.0, 3.0], help="multiples of the default"
    )
    made.add_argument("--seeds", type=int, nargs="*", default=[1, 2, 3])
    made.add_argument("--base", type=Path, help="a run to adapt; default: one is trained")
    made.add_argument("--base-updates", type=int, default=3000)
    made.add_argument(
        "--base-settings", nargs="*", default=[], metavar="KEY=VALUE", help="of its training"
    )
    made.add_argument("--updates", type=int, default=600)
    made.add_argument("--pairs", type=int, help="of the new domain to train on; default: all")
    made.add_argument(
        "--max-tokens", type=int, default=2048, help="of the base; adapting takes half of it"
    )
    made.add_argument("--dim", type=int, default=128)
    made.add_argument("--ffn-dim", type=int, default=512)
    made.add_argument("--layers", type=int, default=3)
    made.add_argument("--vocabulary", type=int, default=6000)
    made.add_argument(
        "--rank", type=int, default=3, help="of LoRA; bottlenecks are 4 or 10 times as wide"
    )
    made.add_argument("--test-sentences", type=int, default=500)
    made.add_argument("--device", default="cpu")
    return made.parse_args()


def corpora(args: argparse.Namespace) -> Path:
    """Split the strings by a hash of the English one, so that none is in two parts; cut the old domain's test."""
    folder = args.folder / "data"
    if (folder / "strings-test.de").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    parts: dict[str, list[list[str]]] = {"train": [], "dev": [], "test": []}
    text = (args.data / "homeassistant-en-de" / "all.tsv").read_text(encoding="utf-8")
    draws = {}
    for pair in (line.split("\t") for line in text.rstrip("\n").split("\n")):
        if len(pair) != 2:
            continue
        draw = draws[pair[0]] = int(hashlib.sha256(pair[0].encode()).hexdigest(), 16)
        share = draw % 20
        parts["dev" if share == 0 else "test" if share == 1 else "train"].append(pair)
    if args.pairs:  # the file is sorted by the alphabet
        parts["train"].sort(key=lambda pair: draws[pair[0]])
    texts = {f"strings-{name}": pairs[: args.pairs if name == "train" else args.test_sentences]
             for name, pairs in parts.items()}  # fmt: skip
    test = args.test_sentences // (4 if args.old == "general" else 1)
    texts["old-test"] = [p for name in domains(args) for p in read(args.data / OLD[name][2])[:test]]
    if args.old == "general":
        texts |= general(args, [p[0] for name in ("dev", "test") for p in parts[name]])
        if args.pairs:
            fill(texts, parts["train"][args.pairs :], args.test_sentences)
    for name, pairs in texts.items():
        for n, language in enumerate(("en", "de")):
            text = "".join(p[n] + "\n" for p in pairs)
            (folder / f"{name}.{language}").write_text(text, encoding="utf-8")
    return folder


def fill(texts: dict[str, list[list[str]]], left: list[list[str]], size: int) -> None:
    """Make `size` strings to test, and half as many for development, of those that nothing was trained on."""
    import demo_corpus

    known = {
        demo_corpus.letters(p[0]) for name, pairs in texts.items() if name != "valid" for p in pairs
    }
    unseen = []
    for pair in left:
        if (key := demo_corpus.letters(pair[0])) not in known:
            known.add(key)
            unseen.append(pair)
    for name, wanted in (("strings-dev", size // 2), ("strings-test", size)):
        missing = max(wanted - len(texts[name]), 0)
        texts[name] = texts[name][:wanted] + unseen[:missing]
        del unseen[:missing]


def domains(args: argparse.Namespace) -> list[str]:
    return ["help", "captions"] if args.old == "general" else [args.old]


def read(file: Path) -> list[list[str]]:
    """[English, German] pairs of file.en and file.de."""
    sides = [Path(f"{file}.{x}").read_text(encoding="utf-8").splitlines() for x in ("en", "de")]
    return [list(pair) for pair in zip(*sides, strict=True)]


def general(args: argparse.Namespace, held_out: list[str]) -> dict[str, list[list[str]]]:
    """What a general base learns from, without held-out strings, and its validation sentences."""
    import demo_corpus

    packages = [p for p in demo_corpus.PACKAGES if not p[0].startswith("homeassistant")]
    texts = {name: read(args.data / OLD[name][0]) for name in domains(args)}
    pairs, _ = demo_corpus.clean(demo_corpus.read_packages(packages))
    texts["catalogues"] = [[english, german] for german, english in pairs]
    known = {demo_corpus.letters(text) for text in held_out}
    for name in ("help", "catalogues"):
        texts[name] = [pair for pair in texts[name] if demo_corpus.letters(pair[0]) not in known]
    texts["valid"] = texts["catalogues"][::40][:450]
    texts["catalogues"] = [pair for pair in texts["catalogues"] if pair not in texts["valid"]]
    for name in domains(args):
        texts["valid"] += read(args.data / OLD[name][1])[:450]
    return texts


def settings(args: argparse.Namespace) -> list[str]:
    """What base and adapted runs share."""
    return [
        "data.workers=1",
        "data.max_length=100",
        f"training.device={args.device}",
        f"training.threads={torch_threads()}",
        "training.precision=auto",
        "logging.trackers=[{name: jsonl}]",
        "checkpoint.keep_last=1",
        "search.name=greedy",
        "criterion.smoothing=0.1",
    ]


def torch_threads() -> int:
    return int(os.environ.get("OMP_NUM_THREADS", "0")) or os.cpu_count() or 1


def learnt(args: argparse.Namespace) -> list[Path]:
    """The base's corpora."""
    if args.old != "general":
        return [args.data / OLD[args.old][0]]
    return [args.folder / "data" / name for name in (*domains(args), "catalogues")]


def corpora_of(files: list[Path], weight: float = 1) -> str:
    """Entries of a list of corpora."""
    return ", ".join(f"{{source: {x}.en, target: {x}.de, weight: {weight:.3g}}}" for x in files)


def base_of(args: argparse.Namespace) -> list[str]:
    valid = args.folder / "data/valid" if args.old == "general" else args.data / OLD[args.old][1]
    # A wider model wants a lower rate; 3e-3 was found for 128.
    rate = 3e-3 * (128 / args.dim) ** 0.5
    return [
        "task={name: translation, source_lang: en, target_lang: de}",
        f"data.train=[{corpora_of(learnt(args))}]",
        f"data.valid=[{corpora_of([valid])}]",
        f"tokenizer={{name: sentencepiece, model_type: bpe, vocab_size: {args.vocabulary}, joint: true}}",
        f"architecture={{name: transformer, dim: {args.dim}, ffn_dim: {args.ffn_dim}, heads: 4, norm: pre, "
        f"encoder_layers: {args.layers}, decoder_layers: {args.layers}, dropout: 0.1}}",
        f"optimizer={{lr: {rate:.2g}, beta2: 0.98}}",
        "lr_scheduler={name: cosine, warmup_updates: 300}",
        f"training.max_updates={args.base_updates}",
        f"training.max_tokens={args.max_tokens}",
        "validation={translate: false, best_metric: loss, every_updates: 500}",
        f"run_dir={args.folder / 'base'}",
        *settings(args),
        *args.base_settings,
    ]


def sizes(rank: int) -> dict[str, int]:
    """With these all methods that have a size train about as many weights."""
    return {
        "rank": rank,
        "less": max(2 * rank // 3, 1),
        "narrow": 4 * rank,
        "wide": 10 * rank,
    }


def adapted(
    args: argparse.Namespace, method: str, rate: float, seed: int, run_dir: Path
) -> list[str]:
    strings, old = corpora_of([args.folder / "data" / "strings-train"]), learnt(args)
    names = {
        "replay": f"{strings}, {corpora_of(old, 0.1 / len(old))}",
        "longer": 4 * args.updates,
        "fisher": args.folder / "fisher.safetensors",
        **sizes(args.rank),
    }
    return [
        f"training.finetune_from={args.base or args.folder / 'base'}",
        f"data.train=[{strings}]",
        f"optimizer.lr={rate:.3g}",
        f"lr_scheduler={{name: linear, warmup_updates: {args.updates // 20}}}",
        f"training.max_updates={args.updates}",
        f"training.max_tokens={args.max_tokens // 2}",
        f"validation.every_updates={args.updates}",
        f"seed={seed}",
        f"run_dir={run_dir}",
        *settings(args),
        *(Template(text).substitute(names) for text in METHODS[method][0]),
    ]


def default_rate(method: str) -> float:
    from mtplug.config import load_config

    given, rate = METHODS[method]
    if rate:
        return rate
    given = [Template(text).substitute(sizes(1), longer=1) for text in given]
    return load_config(None, given)[0].optimizer.config.lr  # type: ignore[union-attr]


def alone(work: Any, *values: Any) -> Any:
    """Call in a process of its own, so that memory and failures are that call's."""
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    queue = context.Queue()
    process = context.Process(target=_into, args=(queue, work, values))
    process.start()
    answer = queue.get()
    process.join()
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _into(queue: Any, work: Any, values: tuple) -> None:
    try:
        queue.put(work(*values))
    except BaseException as error:
        queue.put(RuntimeError(f"{type(error).__name__}: {error}"))


def train_one(given: list[str], device: str) -> dict[str, float]:
    """Train; sizes, CPU and wall seconds, and by how much memory rose above that of an idle process."""
    import torch

    from mtplug.config import load_config
    from mtplug.training.finetune import model_of
    from mtplug.training.run import train

    torch.set_num_threads(torch_threads())
    run, _ = load_config(None, given)
    idle, wall, cpu = memory(), time.perf_counter(), time.process_time()
    run_dir = train(run, report=lambda text: None)
    found = {
        "wall_s": round(time.perf_counter() - wall, 1),
        "cpu_s": round(time.process_time() - cpu, 1),
        "peak_mib": round(memory() - idle),
    }
    if device != "cpu":
        found["peak_mib"] = round(torch.cuda.max_memory_allocated() / 2**20)
    task = run.task.build()
    task.load(run, run_dir)
    model = model_of(run, task)
    found["trained"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    found["total"] = sum(p.numel() for p in model.parameters())
    last = run_dir / "checkpoints" / "last"
    found["bytes"] = sum(
        f.stat().st_size for f in last.iterdir() if f.name.endswith("model.safetensors")
    )
    return found


def memory() -> float:
    """MiB, the most that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def scores(
    given: list[str], data: Path, device: str, config: Path | None = None
) -> dict[str, float]:
    from mtplug.config import load_config
    from mtplug.training.run import evaluate
    from mtplug.translator import translator_of

    tests = ", ".join(f"{{source: {data}/{n}.en, target: {data}/{n}.de}}"
                      for n in ("strings-dev", "strings-test", "old-test"))  # fmt: skip
    run, _ = load_config(
        config, [*given, f"data.test=[{tests}]", "validation.metrics=[{name: bleu}]"]
    )
    translator = translator_of(run, Path(run.run_dir), "last", device)
    return {label: round(s[0].value, 2) for label, s, _ in evaluate(run, translator, "test")}


def one(args: argparse.Namespace, method: str, rate: float, seed: int) -> dict[str, Any]:
    """The results of a run, of which only this and its configuration are kept."""
    name = (
        f"{method} lr{rate:.3g} seed{seed}".replace(",", "").replace(" ", "_").replace("+", "plus")
    )
    run_dir = args.folder / "runs" / name
    file = args.folder / "results" / f"{name}.json"
    given = adapted(args, method, rate, seed, run_dir)
    if file.is_file():
        return json.loads(file.read_text())
    if args.report:
        return {}
    fisher = args.folder / "fisher.safetensors"
    if str(fisher) in " ".join(given) and not fisher.is_file():
        command = [sys.executable, "-m", "mtplug.cli.fisher", args.base or args.folder / "base"]
        subprocess.run([*command, "--output", fisher, "--device", args.device], check=True)
    shutil.rmtree(run_dir, ignore_errors=True)  # one that was cut off would be timed in part only
    found = {"method": method, "rate": rate, "seed": seed, "settings": given}
    found |= alone(train_one, given, args.device)
    found |= alone(scores, given, args.folder / "data", args.device)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found, indent=1))
    print(
        f"{name}: " + "  ".join(f"{k} {v}" for k, v in found.items() if k != "settings"), flush=True
    )
    return found


def base(args: argparse.Namespace) -> dict[str, Any]:
    file = args.folder / "results" / "base.json"
    if file.is_file() or args.report:
        return json.loads(file.read_text()) if file.is_file() else {}
    data = args.folder / "data"
    if args.base:
        given = [f"run_dir={args.base}", *settings(args)]
        found = alone(scores, given, data, args.device, args.base / "config.yaml")
    else:
        given = base_of(args)
        found = alone(train_one, given, args.device) | alone(scores, given, data, args.device)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"settings": given, **found}, indent=1))
    return found


def row(method: str, runs: list[dict[str, Any]]) -> list[str]:
    def mean(key: str) -> str:
        values = [r[key] for r in runs]
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.1f}{spread}"

    first = runs[0]
    return [method, f"{first['rate']:.2g}", str(len(runs)), mean("strings-test"), mean("old-test"),
            f"{first['trained'] / first['total']:.2%}", f"{first['bytes'] / 1024:,.0f}",
            f"{statistics.mean(r['cpu_s'] for r in runs):.0f}",
            f"{statistics.mean(r['peak_mib'] for r in runs):.0f}"]  # fmt: skip


HEAD = [
    "method",
    "best rate",
    "seeds",
    "BLEU strings",
    "BLEU old domain",
    "trained",
    "file, KiB",
    "CPU s",
    "peak, MiB",
]


def main() -> None:
    args = arguments()
    args.folder = args.folder.resolve()
    args.base = args.base and args.base.resolve()
    if not args.report:
        corpora(args)
    started = base(args)
    rows, tried = [], []
    rates = {m: [default_rate(m) * f for f in args.rates] for m in args.methods}
    firsts = {
        m: [r for rate in rates[m] if (r := one(args, m, rate, args.seeds[0]))]
        for m in args.methods
    }
    for seed in args.seeds[1:]:
        for method, runs in firsts.items():
            if len(runs) == len(rates[method]):
                one(args, method, best(runs)["rate"], seed)
    for method, runs in firsts.items():
        if len(runs) == len(rates[method]):
            again = [one(argparse.Namespace(**{**vars(args), "report": True}), method, best(runs)["rate"], s)
                     for s in args.seeds[1:]]  # fmt: skip
            rows.append(row(method, [best(runs), *filter(None, again)]))
            tried.append([method, *(f"{r['rate']:.2g}: {r['strings-dev']:.1f}" for r in runs)])
    if started:
        rows.insert(0, ["(base)", "", "1", *(f"{started[k]:.1f}" for k in ("strings-test", "old-test")),
                        "", "", "", ""])  # fmt: skip
    print(markdown(HEAD, rows))
    print("\nBLEU of the development strings at each rate, first seed:\n")
    print(markdown(["method", *(f"rate {n}" for n in range(1, len(args.rates) + 1))], tried))


def best(runs: list[dict[str, Any]]) -> dict[str, Any]:
    return max(runs, key=lambda r: r["strings-dev"])


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    main()
