"""Runs in a peer's own environment, as `python worker.py SCRIPT`, and measures when it is asked to.

One JSON object a line. The first that comes is the settings, and is answered by what was built; each
later one asks for one piece of work, and is answered by the seconds it took. End of input ends the
process. A script defines `train(settings)`, which gives a `Training`, `translate(settings)`, which
gives a `Translating`, and, where the peer can take the weights of a run of ours,
`translate_run(settings)`, which gives `search(source, beam, precision)`: the ids of a translation of each of
a list of lists of ids, all with their end. This file and the scripts know torch, the standard library and the peer,
but nothing of mtplug.
"""

import contextlib
import copy
import importlib.metadata
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch


class Training(NamedTuple):
    """What `train` gives: `loss` of one batch of settings["sentences"] pairs, divided by its tokens."""

    model: torch.nn.Module
    optimizer: Any
    loss: Callable[[], torch.Tensor]


class Translating(NamedTuple):
    """What `translate` gives: `search(source, beam, precision)`, the lengths of the translations of (B, S)
    tokens, with the end of sentence. It shall make `settings["length"]` tokens of each."""

    end: int
    search: Callable[[torch.Tensor, int, str], list[int]]


def both_precisions(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The model for inference, and one whose weights are bf16."""
    return {"fp32": model.eval(), "bf16": copy.deepcopy(model).bfloat16().eval()}


def pairs(settings: dict[str, Any], end: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random source and target tokens, (sentences, length) each, that end with `end`; 0 to 9 are left
    for special tokens."""
    shape = (2, settings["sentences"], settings["length"])
    made = torch.randint(
        10, settings["vocabulary"], shape, generator=torch.Generator().manual_seed(1)
    )
    made[..., -1] = end
    return made[0], made[1]


def update(training: Training, precision: str) -> dict[str, float]:
    training.optimizer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else contextlib.nullcontext():
        loss = training.loss()
    loss.backward()
    training.optimizer.step()
    return {
        "loss": loss.item(),
        "parameters": sum(p.numel() for p in training.model.parameters() if p.grad is not None),
    }


def translate(
    made: Translating, source: torch.Tensor, settings: dict[str, Any], asked: dict[str, Any]
) -> None:
    lengths: list[int] = []
    with torch.inference_mode():
        for batch in source[: asked["sentences"]].split(settings["batch"]):
            lengths += made.search(batch, asked["beam"], asked["precision"])
    if lengths != [settings["length"]] * asked["sentences"]:
        raise ValueError(
            f"translations have lengths {sorted(set(lengths))}, not {settings['length']}"
        )


def translate_run(
    search: Callable[[list[list[int]], int, str], list[list[int]]],
    settings: dict[str, Any],
    asked: dict[str, Any],
) -> list[list[int]]:
    """The sentences of a file in batches of about one length, as each toolkit would make them."""
    source = settings["source"][: asked["sentences"]]
    order = sorted(range(len(source)), key=lambda i: -len(source[i]))
    found: list[list[int]] = [[]] * len(source)
    with torch.inference_mode():
        for start in range(0, len(order), settings["batch"]):
            ids = order[start : start + settings["batch"]]
            answers = search([source[i] for i in ids], asked["beam"], asked["precision"])
            for i, answer in zip(ids, answers, strict=True):
                found[i] = answer
    return found


def main() -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to standard error

    def reply(**found: Any) -> None:
        print(json.dumps(found), file=replies, flush=True)

    try:
        settings = json.loads(sys.stdin.readline())
        torch.set_num_threads(settings["threads"])
        torch.manual_seed(1)
        work = work_of(sys.argv[1], settings)
        version = importlib.metadata.version(settings["distribution"])
    except BaseException as error:  # SystemExit too: some parse options
        reply(error=f"{type(error).__name__}: {error}")
        raise
    reply(version=version, torch=torch.__version__)
    for line in sys.stdin:
        asked = json.loads(line)
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            result = work(asked)
        except Exception as error:
            reply(error=f"{type(error).__name__}: {error}")
            continue
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        reply(cpu=cpu, wall=wall, result=result)


def work_of(path: str, settings: dict[str, Any]) -> Callable[[dict[str, Any]], Any]:
    spec = importlib.util.spec_from_file_location("script", path)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    if settings["suite"] == "translate":
        made = Translating(*script.translate(settings))
        source, _ = pairs(settings, made.end)
        return lambda asked: translate(made, source, settings, asked)
    if settings["suite"] == "translate_run":
        if not hasattr(script, "translate_run"):
            raise ValueError("no way is known to give it the weights of a run")
        search = script.translate_run(settings)
        return lambda asked: translate_run(search, settings, asked)
    training = Training(*script.train(settings))
    training.model.train()
    return lambda asked: update(training, asked["precision"])


if __name__ == "__main__":
    # Scripts import this file as `worker`; both names must mean one module.
    sys.modules["worker"] = sys.modules["__main__"]
    main()
