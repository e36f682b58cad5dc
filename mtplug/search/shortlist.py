"""A shortlist: only target tokens that go with the source's tokens are scored (Jean et al. 2015, section 3.3).

A lexicon of IBM Model 1 (Brown et al. 1993, section 4.1) says which. Those of all sentences of a batch together are
projected to and normalised over, so that a translation may depend, a little, on what it is translated with.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mtplug.architectures.base import DecodingState, Model, why_unfit
from mtplug.config.base import base_folder
from mtplug.config.build import load_resolved
from mtplug.config.schema import RunConfig
from mtplug.data.separated import Separated
from mtplug.data.tokenizers import EOS, PAD, UNK, Tokenizer, pieces_of
from mtplug.errors import UserError
from mtplug.files import damaged, read_environment, read_tensors, save_tensors
from mtplug.peft.base import UnfusedOutput
from mtplug.search.base import Hypothesis, Request, SearchStrategy
from mtplug.tasks.base import Task, concatenated

FILE = "shortlist.safetensors"
MOST = 100  # target tokens kept for each source token
LINKS = 20_000_000  # pairs of tokens that a lexicon is learnt from, about, at most


class Lexicon:
    """For each source token the target tokens it may become, and those that are frequent anyway.

    Attributes:
        targets: (V_source, MOST) int32 ids, the most probable first; padded with `</s>`.
        frequent: (n,) int32 ids, the most frequent first.
    """

    def __init__(self, targets: Tensor, frequent: Tensor):
        self.targets, self.frequent = targets, frequent

    def candidates(
        self, source_tokens: Tensor, count: int, requests: Sequence[Request] | None
    ) -> Tensor:
        """(n,) sorted ids for a batch: `count` of each source token, as many frequent ones, and what is requested.

        Args:
            source_tokens: (B, S).
        """
        asked = [PAD, EOS, UNK]
        for request in requests or ():
            asked += request.prefix
            asked += [t for spellings in request.required for ids in spellings for t in ids]
        sources = source_tokens.unique().cpu()
        found = [
            self.targets[sources, :count].flatten(),
            self.frequent[:count],
            torch.tensor(asked, dtype=torch.int32),
        ]
        return torch.cat(found).unique().long().to(source_tokens.device)

    def with_base(self, base: Lexicon) -> Lexicon:
        """Both, each token's targets in turns, those of this lexicon first."""
        return Lexicon(
            _in_turns(self.targets, base.targets),
            _in_turns(self.frequent[None], base.frequent[None])[0],
        )

    @classmethod
    def of_run(cls, run: RunConfig, run_dir: Path, task: Task) -> Lexicon:
        """That of a run: shortlist.safetensors in its folder, at first learnt from its training data.

        A fine-tuned run translates what its base does, of which its own data may have few words: it takes the base's, too,
        where that has one or can learn it.

        Raises:
            UserError: the training data is not where the run found it.
        """
        file, source, target = run_dir / FILE, task.source_tokenizer, task.target_tokenizer
        digest = _digest(source, target)
        if file.is_file():
            advice = "remove it, and it is learnt anew"
            found = read_tensors(file, advice)
            with safe_open(file, "pt") as opened:
                made_for = (opened.metadata() or {}).get("vocabularies", digest)
            if not _fits(found, len(source), len(target)) or made_for != digest:
                raise damaged(file, "it does not fit the vocabularies", advice)
            return cls(**found)
        try:
            pairs = concatenated(task.pairs(run, "train"))
        except UserError as e:
            raise UserError(
                f"search.shortlist: it is learnt from the training data once, but {e}"
            ) from None
        ids = [
            tokenizer.encode([pair[side] for pair in pairs])
            for side, tokenizer in enumerate((source, target))
        ]
        made = learn(list(zip(*ids, strict=True)), len(source), len(target))
        if isinstance(source, Separated) and isinstance(target, Separated):
            made.targets[source.separator] = target.separator  # sentences alone have none
        base = cls._of_base(run, run_dir)
        if base is not None and base.targets.shape == made.targets.shape:
            made = made.with_base(base)
        aside = run_dir / f".{FILE}.{os.getpid()}.partial"
        # A folder that cannot be written to, or a full disk, serves, too.
        with contextlib.suppress(OSError, SafetensorError):
            tensors = {"targets": made.targets, "frequent": made.frequent}
            save_tensors(tensors, aside, {"format": "pt", "vocabularies": digest})
            aside.replace(file)
        return made

    @classmethod
    def _of_base(cls, run: RunConfig, run_dir: Path) -> Lexicon | None:
        """That of the run that this one fine-tuned, or of the adapter's that was merged into it; None where there is none, as
        for an imported run."""
        made_of = [run.training.finetune_from, *read_environment(run_dir).get("merged", [])]
        folders = [base_folder(Path(path)) for path in made_of if path]
        folder = next(filter(None, folders), None)
        return cls.of_folder(folder) if folder else None

    @classmethod
    def of_folder(cls, folder: Path) -> Lexicon | None:
        """That of the run in a folder; None where it has none and can learn none."""
        with contextlib.suppress(UserError):
            run = load_resolved(folder / "config.yaml")
            task = run.task.build()
            task.load(run, folder)
            return cls.of_run(run, folder, task)
        return None


class Shortlisted(Model):
    """A model over few target tokens, which it numbers anew; the others have probability 0.

    Args:
        model: whose `project` is its `output_map`.
        candidates: (n,) sorted ids, the special ones among them, which thus keep their numbers.

    Raises:
        UserError: the model makes logits of something else.
    """

    def __init__(self, model: Model, candidates: Tensor):
        super().__init__()
        output = model.output_map
        if output is None or type(model).step is not Model.step:
            why = f"{type(model).__name__} has no output weights to choose from;"
            if isinstance(model, UnfusedOutput):
                why = "the adapter changes the output; merge it (mtplug-peft merge RUN --output FOLDER), or"
            raise UserError(f"search.shortlist: {why} set it to 0")
        self.autoregressive = model.autoregressive
        self.model, self.candidates = model, candidates
        weight, bias = output
        self.weight, self.bias = weight[candidates], None if bias is None else bias[candidates]

    def search(
        self,
        strategy: SearchStrategy,
        source_tokens: Tensor,
        source_lengths: Tensor,
        requests: Sequence[Request] | None,
    ) -> list[list[Hypothesis]]:
        """What a strategy finds over the shortlist, in ids of the whole vocabulary.

        Raises:
            UserError: the strategy is for other models.
        """
        if reason := why_unfit(type(strategy), strategy.config, self):
            raise UserError(
                f"search.shortlist: {type(strategy).__name__} cannot search with one: {reason}; set it to 0"
            )
        args: list[Any] = [self, source_tokens, source_lengths]
        if requests is not None:
            args.append([self.request(r) for r in requests])
        found = strategy(*args)
        ids = self.candidates.tolist()
        for hypothesis in (h for row in found for h in row):
            hypothesis.tokens = [ids[token] for token in hypothesis.tokens]
        return found

    def request(self, asked: Request) -> Request:
        """The same in the shortlist's numbers; what it cannot spell need not be forbidden."""
        number = {token: n for n, token in enumerate(self.candidates.tolist())}
        inside = asked.word_inside
        return Request(
            [number[t] for t in asked.prefix],
            [[[number[t] for t in ids] for ids in spellings] for spellings in asked.required],
            [[number[t] for t in ids] for ids in asked.forbidden if all(t in number for t in ids)],
            None if inside is None else inside[self.candidates.to(inside.device)],
            asked.closed,
        )

    def forward(
        self, source_tokens: Tensor, source_lengths: Tensor, prev_output_tokens: Tensor
    ) -> Tensor:
        return self.model(source_tokens, source_lengths, self.candidates[prev_output_tokens])

    def project(self, features: Tensor) -> Tensor:
        return F.linear(features, self.weight, self.bias)

    def cross_attention(
        self, source_tokens: Tensor, source_lengths: Tensor, prev_output_tokens: Tensor
    ) -> Tensor | None:
        tokens = self.candidates[prev_output_tokens]
        return self.model.cross_attention(source_tokens, source_lengths, tokens)

    def start(self, source_tokens: Tensor, source_lengths: Tensor) -> DecodingState:
        return self.model.start(source_tokens, source_lengths)

    def extend(self, state: DecodingState, tokens: Tensor) -> Tensor:
        return self.model.extend(state, self.candidates[tokens])


def _digest(source: Tokenizer, target: Tokenizer) -> str:
    """What stands for two vocabularies: one of the same size may be another."""
    whole = hashlib.sha256()
    for tokenizer in (source, target):
        whole.update("\0".join([*pieces_of(tokenizer), ""]).encode("utf-8", "surrogatepass"))
    return whole.hexdigest()


def _in_turns(one: Tensor, other: Tensor) -> Tensor:
    """(n, a) and (n, b) ids: the first of each row of `one`, the first of `other`, the second …, each once, in the longer
    length; padded with `</s>`."""
    length = max(one.shape[1], other.shape[1])
    padded = [F.pad(ids, (0, length - ids.shape[1]), value=EOS) for ids in (one, other)]
    ids = torch.stack(padded, 2).flatten(1)
    order = ids.argsort(dim=1, stable=True)
    in_order = ids.gather(1, order)
    again = torch.zeros_like(ids, dtype=torch.bool)
    again[:, 1:] = in_order[:, 1:] == in_order[:, :-1]
    again = again.scatter(1, order, again) | (ids == EOS)
    first = again.int().argsort(dim=1, stable=True)[:, :length]
    return ids.gather(1, first).masked_fill(again.gather(1, first), EOS)


def _fits(found: dict[str, Tensor], source_size: int, target_size: int) -> bool:
    """Whether a file's tensors are a lexicon's, of vocabularies of these sizes."""
    if found.keys() != {"targets", "frequent"}:
        return False
    targets, frequent = found["targets"], found["frequent"]
    ids = torch.cat([targets.flatten(), frequent.flatten()])
    shaped = targets.ndim == 2 and len(targets) == source_size and frequent.ndim == 1
    return shaped and bool(((ids >= 0) & (ids < target_size)).all())


def learn(
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    source_size: int,
    target_size: int,
    iterations: int = 5,
) -> Lexicon:
    """The lexicon of IBM Model 1.

    Args:
        pairs: ids of sentences and their translations; each token counts once in a sentence. Of more than `LINKS` pairs of
            tokens allow, sentences from everywhere are taken, since corpora differ.
        source_size, target_size: of the vocabularies.
        iterations: of expectation-maximisation.
    """
    links, groups, frequency, sentences = [], [], np.zeros(target_size, np.int64), 0
    # By lengths: to count distinct tokens of every sentence would take some fifty times as long.
    step = max(sum(len(s) * len(t) for s, t in pairs) / LINKS, 1.0)
    for number in np.arange(0, len(pairs), step).astype(int).tolist():
        source, target = pairs[number]
        s, t = np.unique(np.asarray(source, np.int64)), np.unique(np.asarray(target, np.int64))
        links.append((s[None, :] * target_size + t[:, None]).ravel())
        # the target tokens of all sentences, each shared out over its source tokens
        groups.append(np.repeat(np.arange(sentences, sentences + len(t)), len(s)))
        frequency[t] += 1
        sentences += len(t)
    if not links:
        raise UserError(
            "search.shortlist: the run has no training pairs to learn it from; name some by data.train={source: …, "
            "target: …}, or set it to 0"
        )
    keys, link = np.unique(np.concatenate(links), return_inverse=True)
    group = np.concatenate(groups)
    source_of = keys // target_size
    p = np.ones(len(keys))
    for _ in range(iterations):
        share = p[link]
        share /= np.bincount(group, share)[group]
        counts = np.bincount(link, share)
        p = counts / np.bincount(source_of, counts, minlength=source_size)[source_of]
    order = np.lexsort((keys, -p, source_of))
    first = np.searchsorted(source_of[order], np.arange(source_size))
    rank = np.arange(len(order)) - first[source_of[order]]
    kept = order[rank < MOST]
    targets = np.full((source_size, MOST), EOS, np.int32)
    targets[source_of[kept], rank[rank < MOST]] = keys[kept] % target_size
    frequent = np.argsort(-frequency, kind="stable")[: min(10 * MOST, target_size)]
    return Lexicon(torch.from_numpy(targets), torch.from_numpy(frequent.astype(np.int32)))
