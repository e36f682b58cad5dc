"""Checks of architectures and PEFT methods."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mtplug.architectures.base import Model
from mtplug.config.build import component_from_overrides
from mtplug.data.batching import Batch, collate_aligned, sentences
from mtplug.data.tokenizers import PAD
from mtplug.errors import UserError
from mtplug.files import finite
from mtplug.peft.files import bare
from mtplug.testing.material import (
    TINY_TRANSFORMER,
    WordsTask,
    features_of,
    logits_of,
    loss_of,
    model_of,
    packed,
    padded,
    random_batch,
    real_positions,
    rows_of,
)
from mtplug.testing.subject import Subject, close, equal, reached, require
from mtplug.training.checkpoints import load_weights, weights
from mtplug.training.finetune import adapt

LOGITS = 2e-4
"""How far logits of two ways of computing may lie apart, in float32."""


def check_architecture(
    name: str, *settings: str, compile: bool = True, criterion: tuple[str, ...] = ()
) -> None:
    """Check a model against `mtplug-plugins docs architecture`.

    Args:
        name: of the architecture.
        settings: such as `dim=16`; take a small model.
        compile: also check torch.compile, which takes some seconds.
        criterion: name and settings of one whose loss has to reach all parameters, for a model that has some
            beside those of its logits; by default any loss of the logits.

    Raises:
        ContractBroken: the first promise that is not kept.
    """
    subject = Subject("architectures", name, settings)
    task, batch = WordsTask(), random_batch()

    def build(seed: int = 1) -> Model:
        torch.manual_seed(seed)
        return subject.build(task, kind=Model)

    model = build()
    if model.aligned:  # the source's positions are the target's
        batch = collate_aligned(*(sentences(batch, "source"),) * 2, batch.ids)
        batch.target_tokens = batch.source_tokens
    if not model.autoregressive:
        batch.prev_output_tokens = batch.target_tokens
    real = real_positions(batch)
    with subject.promise("determinism"):
        again = build()
        for key, tensor in weights(model).items():
            equal(weights(again)[key], tensor, f"initial values of {key}")
        equal(
            _loss_of_seed(again, batch), _loss_of_seed(model, batch), "training losses of one seed"
        )
    with subject.promise("activations"):
        recomputes(build(), build(), batch)
    with subject.promise("gradients"):
        if criterion:
            chosen = component_from_overrides("criteria", criterion[0], criterion[1:])
            loss = chosen.build(task)
            reached(model, lambda: loss(model.train(), batch).sum)
        else:
            reached(model, lambda: loss_of(model.train(), batch))
    model.eval()
    with torch.no_grad():
        with subject.promise("shapes"):
            features = features_of(model, batch)
            require(
                features.shape[:2] == batch.prev_output_tokens.shape, "features are not (B, T, C)"
            )
            logits = model.project(features)
            wanted = (*batch.prev_output_tokens.shape, len(task.target_tokenizer))
            close(logits, torch.zeros(wanted), "logits", math.inf)
            require(bool(logits[real].isfinite().all()), "logits are not finite")
        with subject.promise("determinism"):
            equal(features_of(model, batch), features, "features of two calls in evaluation mode")
        if model.output_weight is not None:
            with subject.promise("output_weight"):
                close(features @ model.output_weight.T, logits, "logits", LOGITS)
        if model.output_map is not None:
            with subject.promise("output_weight"):
                close(F.linear(features, *model.output_map), logits, "logits", LOGITS)
        with subject.promise("padding"):
            wide = logits_of(model, padded(batch))[:, : real.shape[1]]
            close(wide[real], logits[real], "logits with and without more padding", LOGITS)
        with subject.promise("batch"):
            for row in range(len(batch)):
                one = rows_of(batch, [row])
                if not model.autoregressive:
                    one.prev_output_tokens = one.target_tokens
                alone = logits_of(model, one)[0]
                close(alone, logits[row, real[row]], "logits of a sentence alone", LOGITS)
        if model.takes_packed:
            with subject.promise("packed"):
                apart = model.project(model(*packed(batch).inputs))[0]
                close(apart, logits[real], "logits of sentences in one row and apart", LOGITS)
        with subject.promise("cross_attention"):
            _shares(model.cross_attention(*batch.inputs[:3]), batch)
        if not model.aligned and model.autoregressive:
            with subject.promise("causality"):
                later = copy.copy(batch)
                later.prev_output_tokens = batch.prev_output_tokens.clone()
                later.prev_output_tokens[:, 2:] = 3 + (later.prev_output_tokens[:, 2:] + 1) % 5
                before = logits_of(model, later)[:, :2]
                close(before, logits[:, :2], "logits before a change", LOGITS)
            with subject.promise("incremental"):
                decodes_as_a_whole(model, batch)
            with subject.promise("reorder"):
                reorders(model, batch)
        with subject.promise("save"):
            loads_again(model, lambda: build(seed=2), batch)
        with subject.promise("roles"):
            for path, role in model.roles().items():
                require(bool(re.fullmatch(r"[a-z]\w*(\.[a-z]\w*)*", role)), f"'{role}' is no role")
                model.get_submodule(path)
        if compile:
            with subject.promise("compile"):
                # aot_eager traces as the other backends do, and needs no C++ compiler.
                torch._dynamo.reset()
                compiled = torch.compile(model, backend="aot_eager")
                close(features_of(compiled, batch)[real], features[real], "features", LOGITS)


def _loss_of_seed(model: Model, batch: Batch) -> Tensor:
    """In training, with what is drawn at random."""
    torch.manual_seed(1)
    return loss_of(model.train(), batch)


def recomputes(model: Model, other: Model, batch: Batch) -> None:
    """Two models of one seed, one of which computes activations again in its backward pass.

    Raises:
        AssertionError: losses or gradients differ.
    """
    try:
        other.checkpoint_activations()
    except UserError:  # it has no such thing, and says so
        return
    one, two = (_loss_of_seed(m, batch) for m in (model, other))
    close(two, one, "losses", 1e-5)
    one.backward()
    two.backward()
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        if p.grad is not None and q.grad is not None:
            close(q.grad, p.grad, f"gradients of {name}", 1e-5)


def _shares(found: Tensor | None, batch: Batch) -> None:
    """Is (B, T, S), and of each real position a distribution over true source positions?"""
    if found is None:
        return
    wanted = (*batch.target_tokens.shape, batch.source_tokens.shape[1])
    require(found.shape == wanted, f"shape {tuple(found.shape)} instead of {wanted}")
    total = found.sum(-1)[real_positions(batch)]
    close(total, torch.ones_like(total), "sums over the source and 1", LOGITS)
    behind = (batch.source_tokens == PAD)[:, None].expand_as(found)
    require(not bool(found[behind].any()), "padding is looked at")


def decodes_as_a_whole(model: Model, batch: Batch) -> None:
    """Token by token as all at once; to be called in evaluation mode.

    Raises:
        AssertionError: logits differ.
    """
    logits, real = logits_of(model, batch), real_positions(batch)
    state = model.start(batch.source_tokens, batch.source_lengths)
    for position in range(logits.shape[1]):
        step = model.step(state, batch.prev_output_tokens[:, position, None])
        require(step.shape == (len(batch), 1, logits.shape[2]), "`step` does not give (B, K, V)")
        here = real[:, position]
        close(
            step[here, 0],
            logits[here, position],
            f"logits of step {position} and of forward",
            LOGITS,
        )


def reorders(model: Model, batch: Batch) -> None:
    """Two sentences of three go on, each with two hypotheses of which one then dies out.

    Raises:
        AssertionError: logits after a reordering are not those of the hypothesis' own prefix.
    """
    keep, first = [2, 0], batch.prev_output_tokens[:, :1]
    state = model.start(batch.source_tokens, batch.source_lengths)
    model.step(state, first)
    state.reorder(torch.tensor(keep), torch.tensor([[r, r] for r in keep]))
    tokens = torch.tensor([[3, 4], [5, 6]])
    model.step(state, tokens)
    # the second hypothesis of each sentence takes both places; rows are b·K + k
    state.reorder(torch.arange(2), torch.tensor([[1, 1], [3, 3]]))
    step = model.step(state, torch.tensor([[7, 8], [7, 8]]))
    for b, row in enumerate(keep):
        for k, last in enumerate((7, 8)):
            prefix = torch.tensor([[int(first[row, 0]), int(tokens[b, 1]), last]])
            one = rows_of(batch, [row])
            whole = model.project(model(one.source_tokens, one.source_lengths, prefix))[0, -1]
            close(step[b, k], whole, "logits after reordering and of the same prefix", LOGITS)


def loads_again(model: Model, fresh: Callable[[], Model], batch: Batch) -> None:
    """What a checkpoint keeps of `model` makes a `fresh` one equal to it.

    Raises:
        AssertionError: features differ.
        UserError: a value is NaN or infinite, which no checkpoint may hold.
    """
    other = fresh().eval()
    kept = finite({key: tensor.clone() for key, tensor in weights(model).items()}, _NOWHERE)
    load_weights(other, kept, _NOWHERE)
    real = real_positions(batch)
    close(features_of(other, batch)[real], features_of(model, batch)[real], "features", 1e-6)


_NOWHERE: Any = "a checkpoint"


def check_peft_method(
    name: str,
    *settings: str,
    architecture: tuple[str, ...] = ("transformer", *TINY_TRANSFORMER),
    starts_as_model: bool = True,
) -> None:
    """Check a PEFT method against `mtplug-plugins docs peft_method`.

    Args:
        name: of the method.
        settings: such as `rank=2`.
        architecture: name and settings of the model that it is applied to.
        starts_as_model: False for a method that changes the result before any training, as prefix
            tuning does.

    Raises:
        ContractBroken: the first promise that is not kept.
    """
    subject = Subject("peft_methods", name, settings)
    batch = random_batch()

    def build(seed: int = 1) -> Model:
        model = model_of(architecture, seed)
        method = subject.build()
        with subject.promise("factory"):
            return method.apply(model) or model

    model = build()
    with subject.promise("fewer"):
        flags = [p.requires_grad for p in model.parameters()]
        require(any(flags), "no parameter is trained")
        require(not all(flags), "all parameters are trained")
    real = real_positions(batch)
    with subject.promise("determinism"):
        for key, tensor in weights(build()).items():
            equal(tensor, weights(model)[key], f"initial values of {key}")
    if starts_as_model:
        with subject.promise("start"), torch.no_grad():
            before = features_of(model_of(architecture).eval(), batch)
            after = features_of(model.eval(), batch)
            close(after[real], before[real], "features with and without the method", 1e-5)
    with subject.promise("gradients"):
        reached(model, lambda: loss_of(model.train(), batch))
    with subject.promise("frozen"):
        old = {key: p.detach().clone() for key, p in model.named_parameters()}
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            (-logits_of(model, batch)[real].log_softmax(-1)[:, 3].sum()).backward()
            optimizer.step()
        changed = {key for key, p in model.named_parameters() if not torch.equal(p, old[key])}
        frozen = {key for key, p in model.named_parameters() if not p.requires_grad}
        require(not changed & frozen, f"frozen, but changed: {', '.join(sorted(changed & frozen))}")
        require(bool(changed), "training changed nothing")
    with torch.no_grad():
        model.eval()
        with subject.promise("save"):
            loads_again(model, lambda: build(seed=2), batch)
            # Fine-tuning keeps what is new or trained only, and takes the rest from the base.
            adapted = [_adapted(model_of(architecture), subject, seed) for seed in (1, 2)]
            for parameter in adapted[0].parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn_like(parameter))
            loads_again(adapted[0], lambda: adapted[1], batch)
            in_file = [bare(key) for key in weights(adapted[0])]
            twice = sorted({key for key in in_file if in_file.count(key) > 1})
            require(not twice, f"of one name in an adapter's file: {', '.join(twice)}")
        with subject.promise("padding"):
            logits = logits_of(model, batch)
            wide = logits_of(model, padded(batch))[:, : real.shape[1]]
            close(wide[real], logits[real], "logits with and without more padding", LOGITS)
            alone = logits_of(model, rows_of(batch, [0]))[0]
            close(alone, logits[0, real[0]], "logits of a sentence alone", LOGITS)
        with subject.promise("incremental"):
            decodes_as_a_whole(model, batch)


def _adapted(base: Model, subject: Subject, seed: int) -> Model:
    torch.manual_seed(seed)
    return adapt(base, subject.selected, "the check").eval()
