"""A search strategy: samples each token from the most probable ones (Fan et al. 2018)."""

from dataclasses import dataclass

import torch

import mtplug
from mtplug.search import Hypothesis, SearchStrategy

MTPLUG_API = {"search_strategies": 1}


@dataclass
class SamplingConfig:
    """Top-k sampling."""

    top_k: int = 10
    """tokens to draw from"""
    max_ratio: float = 2.0
    """longest translation: so many times the source's tokens, plus 20"""
    seed: int = 1
    """the same for every sentence, so that its translation depends on it alone"""


class Sampling(SearchStrategy):
    def __init__(self, config: SamplingConfig):
        self.config = config

    @torch.inference_mode()
    def __call__(self, model, source_tokens, source_lengths):
        # One sentence at a time: slow, and easy to read.
        rows = zip(source_tokens, source_lengths.tolist(), strict=True)
        return [[self._sample(model, tokens[:length])] for tokens, length in rows]

    def _sample(self, model, source):  # (S,)
        random = torch.Generator().manual_seed(self.config.seed)
        state = model.start(source[None], torch.tensor([len(source)], device=source.device))
        found, token = Hypothesis([], 0.0, finished=False), 1  # 1 is `</s>`
        for _ in range(int(self.config.max_ratio * len(source)) + 20):
            logits = model.step(state, torch.tensor([[token]], device=source.device))[0, 0]
            log_probs = logits.float().cpu().log_softmax(-1)
            log_probs[0] = -torch.inf  # padding
            best, ids = log_probs.topk(min(self.config.top_k, len(log_probs)))
            drawn = int(torch.multinomial(best.exp(), 1, generator=random))
            token = int(ids[drawn])
            found.token_scores.append(float(best[drawn]))
            if token == 1:
                found.finished = True
                break
            found.tokens.append(token)
        found.score = sum(found.token_scores) / len(found.token_scores)
        return found


@mtplug.hookimpl
def register_search_strategies(register):
    register("NAME", Sampling, SamplingConfig)
