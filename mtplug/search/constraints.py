"""Required phrases: an automaton that follows them, and a beam shared out by progress.

Each sentence's phrases make one automaton (Aho and Corasick 1975), so overlapping phrases may share
tokens, and a false start falls back to the longest start that is left. The beam is divided among
the numbers of tokens met so far (dynamic beam allocation, Post and Vilar 2018), round-robin from
the most progressed. Whoever is furthest always has a continuation that goes further, so that
after as many steps as the phrases have tokens some hypothesis holds them all.

Here N nodes, P phrases, W distinct tokens of a sentence's phrases.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mtplug.data.tokenizers import EOS, PAD
from mtplug.search.base import Request

if TYPE_CHECKING:
    from mtplug.search.beam import Candidates


class Constraints:
    """The automata of a batch, and where in them each of the B·K hypotheses stands."""

    def __init__(self, requests: Sequence[Request], device: torch.device):
        automata = [Automaton(r.required) for r in requests]
        words = max(len(a.words) for a in automata)
        nodes = max(len(a.go) for a in automata)
        phrases = max(len(a.sizes) for a in automata)
        size = len(automata)
        self.words = torch.full((size, words), PAD, device=device)
        self.go = torch.zeros(size, nodes, words + 1, dtype=torch.long, device=device)
        self.ends = torch.zeros(size, nodes, phrases, dtype=torch.bool, device=device)
        self.partial = torch.zeros(size, nodes, phrases, dtype=torch.long, device=device)
        self.sizes = torch.zeros(size, phrases, dtype=torch.long, device=device)
        for row, a in enumerate(automata):
            self.words[row, : len(a.words)] = torch.tensor(a.words, dtype=torch.long)
            for node, targets in enumerate(a.go):
                self.go[row, node, : len(targets) - 1] = torch.tensor(
                    targets[:-1], dtype=torch.long
                )
                self.ends[row, node, list(a.ends[node])] = True
                for phrase, value in a.partial[node].items():
                    self.partial[row, node, phrase] = value
            self.sizes[row, : len(a.sizes)] = torch.tensor(a.sizes, dtype=torch.long)
        inside = next((r.word_inside for r in requests if r.word_inside is not None), None)
        self.word_inside = inside if inside is None else inside.to(device)
        self.node = torch.zeros(size, 1, dtype=torch.long, device=device)
        # Phrases met, and those of them that no next token can make longer words any more.
        self.met = self.sure = (self.sizes == 0)[:, None]

    @classmethod
    def of(cls, requests: Sequence[Request] | None, device: torch.device) -> Constraints | None:
        """None if nothing is required of any sentence."""
        if not requests or not any(r.required for r in requests):
            return None
        return cls(requests, device)

    def needs(self) -> list[bool]:
        """Of each sentence: is something required?"""
        return self.sizes.any(-1).tolist()

    def begin_step(self, at_limit: Tensor, forced: Tensor | None) -> None:
        """Find what `apply` is to forbid.

        Args:
            at_limit: (B,) bool, sentences that have to end.
            forced: (R,) bool, rows whose next token a prefix says; None: none.
        """
        width = self.node.shape[1]
        self._waits = (~self.met.all(-1) & ~at_limit[:, None]).flatten()
        self._words_R = self.words[:, None].expand(-1, width, -1).flatten(0, 1)
        self._ended: Tensor | None = None
        if self.word_inside is not None:
            sentences = torch.arange(len(self.node), device=self.node.device)[:, None]
            ended = self.ends[sentences, self.node].any(-1).flatten()
            ended = ended if forced is None else ended & ~forced
            self._ended = ended if ended.any() else None

    def apply(self, scores_RV: Tensor, part: slice) -> None:
        """Forbid, in rows `part`, the end, before the length limit, while a phrase is missing, and after a
        phrase what would make its last word longer, but where a prefix goes on like that."""
        scores_RV[self._waits[part], EOS] = -torch.inf
        if self._ended is not None and self.word_inside is not None:
            ended = self._ended[part].nonzero()[:, 0]
            barred = scores_RV.new_zeros(len(ended), len(self.word_inside))
            barred.masked_fill_(self.word_inside, -torch.inf)
            scores_RV.index_add_(0, ended, barred)  # six times as fast as to fill what is indexed

    def wanted(self, scores_RV: Tensor, part: slice) -> Tensor:
        """(rows, W) scores of the tokens of each row's phrases."""
        return scores_RV.gather(1, self._words_R[part])

    def order(
        self,
        candidates: Candidates,
        steps_RW: Tensor,
        totals: Tensor,
        beam: int,
    ) -> Candidates:
        """All candidates and those that meet more of the phrases; round-robin over progress.

        Args:
            candidates: C of each sentence.
            steps_RW: what `wanted` gave.
            totals: (B, K) log-probabilities of the prefixes.
            beam: prefixes kept of each sentence.
        """
        sentences, width = totals.shape
        words = self.words.shape[1]
        parents = torch.arange(width, device=totals.device).repeat_interleave(words)
        parents = parents.expand(sentences, -1)
        wanted = self.words.repeat(1, width)
        steps = steps_RW.view(sentences, -1)
        sums = totals.repeat_interleave(words, 1) + steps
        both = type(candidates)(
            torch.cat([candidates.totals, sums], 1),
            torch.cat([candidates.parents, parents], 1),
            torch.cat([candidates.tokens, wanted], 1),
            torch.cat([candidates.steps, steps], 1),
        )
        node, met, _ = self._move(both.parents, both.tokens)
        bank = self._progress(node, met)
        few = candidates.tokens.shape[1]
        further = bank[:, few:] > self._progress(self.node, self.met).gather(1, parents)
        known = (
            (wanted[..., None] == candidates.tokens[:, None])
            & (parents[..., None] == candidates.parents[:, None])
        ).any(-1)
        both.totals[:, few:] = sums.masked_fill(~further | known, -torch.inf)
        # Rank within the bank: its place less that of the bank's first, sorted by bank and score.
        both_order = both.totals.sort(dim=1, descending=True, stable=True).indices
        both, bank = both.pick(both_order), bank.gather(1, both_order)
        by_bank = bank.sort(dim=1, stable=True)
        place = torch.arange(bank.shape[1], device=bank.device)
        new = by_bank.values.diff(dim=1, prepend=by_bank.values[:, :1] - 1) > 0
        first = torch.where(new, place, 0).cummax(1).values
        rank = torch.empty_like(bank).scatter_(1, by_bank.indices, place - first)
        most = int(self.sizes.sum(1).max())
        key = rank * (most + 1) + (most - bank)
        key = key + both.totals.isinf() * key.new_tensor(1 << 40)
        return both.pick(key.sort(dim=1, stable=True).indices[:, : max(2 * beam, beam + 1)])

    def advance(self, keep: Tensor, rows: Tensor, tokens: Tensor) -> None:
        """Follow `reorder`: sentences `keep` go on, each hypothesis from row `rows` by a token."""
        width = self.node.shape[1]
        parents = rows - keep[:, None] * width
        for name in ("words", "go", "ends", "partial", "sizes", "node", "met", "sure"):
            setattr(self, name, getattr(self, name)[keep])
        self.node, self.met, self.sure = self._move(parents, tokens)

    def _move(self, parents: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, C) parents and tokens to the node and the (B, C, P) phrases `met` and `sure` after them."""
        sentences = torch.arange(len(tokens), device=tokens.device)[:, None]
        matches = tokens[..., None] == self.words[:, None]  # (B, C, W)
        place = torch.where(matches.any(-1), matches.int().argmax(-1), self.words.shape[1])
        parent = self.node.gather(1, parents)
        ended = self.ends[sentences, parent]
        if self.word_inside is not None:  # a prefix may make a phrase's last word another one
            ended = ended & ~self.word_inside[tokens][..., None]
        sure = self.sure[sentences, parents] | ended
        node = self.go[sentences, parent, place]
        return node, sure | self.ends[sentences, node], sure

    def _progress(self, node: Tensor, met: Tensor) -> Tensor:
        """(B, C) tokens met: those of whole phrases and of the phrase that is under way."""
        sentences = torch.arange(len(node), device=node.device)[:, None]
        whole = (met * self.sizes[:, None]).sum(-1)
        return whole + (self.partial[sentences, node] * ~met).amax(-1)


class Automaton:
    """Aho-Corasick over the spellings of all phrases of a sentence.

    Attributes:
        words: the distinct tokens; column `len(words)` of `go` stands for every other token.
        go: for each node the next node for each word; node 0 is the start.
        ends: for each node the phrases that end there.
        partial: for each node and phrase under way how many of its tokens are met.
        sizes: of each phrase, in tokens of its longest spelling.
    """

    def __init__(self, phrases: list[list[list[int]]]):
        self.words = sorted({t for spellings in phrases for ids in spellings for t in ids})
        self.sizes = [max(map(len, spellings)) for spellings in phrases]
        children: list[dict[int, int]] = [{}]
        self.ends: list[set[int]] = [set()]
        self.partial: list[dict[int, int]] = [{}]
        for phrase, spellings in enumerate(phrases):
            for ids in spellings:
                node = 0
                for depth, token in enumerate(ids, 1):
                    if token not in children[node]:
                        children[node][token] = len(children)
                        children.append({})
                        self.ends.append(set())
                        self.partial.append({})
                    node = children[node][token]
                    # What is left of a short spelling counts from the end of the longest.
                    value = self.sizes[phrase] - (len(ids) - depth)
                    if depth < len(ids):
                        self.partial[node][phrase] = max(self.partial[node].get(phrase, 0), value)
                self.ends[node].add(phrase)
        self.go: list[list[int]] = [[] for _ in children]
        fail = [0] * len(children)
        queue = [0]
        for node in queue:  # breadth first, so that a suffix is complete before it is needed
            back = fail[node]
            if node:
                self.ends[node] |= self.ends[back]
                for phrase, value in self.partial[back].items():
                    self.partial[node][phrase] = max(self.partial[node].get(phrase, 0), value)
            for column, token in enumerate(self.words):
                suffix = self.go[back][column] if node else 0
                if token in children[node]:
                    child = children[node][token]
                    fail[child] = suffix
                    queue.append(child)
                    self.go[node].append(child)
                else:
                    self.go[node].append(suffix)
            self.go[node].append(0)
