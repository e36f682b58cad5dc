"""What a component of each kind promises: printed by `mtplug-plugins docs`, checked by `mtplug.testing`.

A promise has a short name, which a failed check gives, and one sentence.
"""

from __future__ import annotations

import inspect
import textwrap
from dataclasses import dataclass

from mtplug import hookspecs
from mtplug.errors import UserError, did_you_mean
from mtplug.registry import KINDS, plural, singular

CONFIG = "its settings, written as YAML and read again, are the same settings"
SAME = "the same seed gives the same numbers"


@dataclass(frozen=True)
class Contract:
    """One kind's place in a configuration, how its factory is called, and its promises."""

    group: str
    factory: str
    returns: str
    where: str
    """the module whose docstrings say more"""
    promises: dict[str, str]


CONTRACTS: dict[str, Contract] = {
    "architectures": Contract(
        "architecture",
        "(config, task)",
        "a `mtplug.architectures.Model`",
        "mtplug.architectures.base",
        {
            "config": CONFIG,
            "shapes": "`forward` gives finite features (B, T, C), of an aligned model (B, S, C), `project` makes logits (…, V) of them, "
            "V being the size of the target vocabulary",
            "output_weight": "`project(x)` is `x @ output_weight.T` where output_weight is not None, and by weights and bias of "
            "output_map where that is not None",
            "gradients": "a loss of the logits reaches every trainable parameter with a finite gradient that "
            "is not zero throughout",
            "determinism": SAME
            + ", in training too, and in evaluation mode the same input the same features",
            "activations": "after `checkpoint_activations`, where it does not refuse, loss and gradients are the same",
            "padding": "padding behind the true lengths changes nothing before them",
            "batch": "features of a sentence do not depend on the others in its batch",
            "packed": "a model that `takes_packed` gives sentences in one row the logits that they have apart",
            "cross_attention": "`cross_attention`, where it is not None, is (B, T, S), sums to 1 over the source and is 0 "
            "at its padding",
            "causality": "features at a position do not depend on later positions of prev_output_tokens, unless "
            "`autoregressive` is False",
            "incremental": "`start` and `step` give the logits that `forward` and `project` give",
            "reorder": "after `DecodingState.reorder` each hypothesis goes on from its parent, and "
            "sentences that were left out are gone",
            "save": "weights loaded into a fresh model give the same features; they, and buffers that are saved, are finite",
            "roles": "each path in `roles` leads to a module of the model, and its role is names joined by dots",
            "compile": "torch.compile changes no result",
        },
    ),
    "criteria": Contract(
        "criterion",
        "(config, task)",
        "a callable `(model, batch) -> mtplug.criteria.Loss`",
        "mtplug.criteria.cross_entropy",
        {
            "config": CONFIG,
            "loss": "it returns a Loss: a finite scalar `sum` with a gradient, a positive `count`, and a "
            "scalar `nll` and `parts` without one",
            "nll": "`nll` is the negative log-likelihood of the target tokens in nats and `tokens` their number, so that the "
            "perplexities of all criteria can be compared; for models that are not autoregressive, what comes closest to it",
            "direction": "updates along its gradient make the references of their batch more probable",
            "output_weight": "a model that has an output_weight and one that only projects get the same loss",
            "gradients": "the loss reaches every parameter of the model, and of a criterion that is an nn.Module, with a "
            "finite gradient that is not zero throughout",
            "determinism": SAME,
            "padding": "padding behind the true lengths changes nothing",
            "packed": "sentences packed in one row get the loss that they have apart, or are refused by a UserError",
            "batch": "`count`, `tokens` and `nll` (and `sum`, unless sentences of a batch are compared) of two "
            "batches add up to those of both together",
            "state": "what it learns or remembers from call to call is in its `state_dict`, from which `load_state_dict` "
            "makes a fresh one go on alike; what is to be trained is a parameter of an nn.Module from the start",
        },
    ),
    "tasks": Contract(
        "task",
        "(config)",
        "a `mtplug.tasks.Task`",
        "mtplug.tasks.base",
        {
            "config": CONFIG,
            "prepare": "`prepare` leaves tokenizers and training data below the run's folder",
            "batches": "batches are int64, right-padded with 0, end with `</s>` (1), hold ids of the "
            "vocabulary only, and prev_output_tokens is `</s>` or a language tag, then the target shifted right; of an aligned task, labels stand "
            "for true source positions",
            "determinism": "prepared in another folder, the batches are the same",
            "reuse": "`prepare` called again gives the same batches",
            "position": "`state` and `restore` of the training data go on with the same batches",
            "load": "`load` alone gives a fresh task tokenizers that encode as the prepared ones",
            "pairs": "`pairs` gives (label, [(source, reference), …]) of text for each corpus of a split",
            "checksums": "`checksums` names every training and validation file, and changes with it",
        },
    ),
    "peft_methods": Contract(
        "peft",
        "(config)",
        "an object with `apply(model)`, which adds parameters, freezes others, and returns the model",
        "mtplug.hookspecs",
        {
            "config": CONFIG,
            "fewer": "some parameters are trained and some are not",
            "determinism": SAME,
            "start": "before training, the model computes what it computed without the method",
            "gradients": "a loss reaches every trained parameter with a finite gradient that is not zero throughout",
            "frozen": "training changes trained parameters and no others",
            "save": "weights loaded into a fresh model, to which the method was applied, give the same features; so "
            "do those that are new or trained, loaded where it was applied to the same base",
            "padding": "padding and the other sentences of a batch change nothing",
            "incremental": "`start` and `step` give the logits that `forward` and `project` give",
        },
    ),
    "position_encodings": Contract(
        "architecture.position",
        "(config, stack), where `stack` has `dim`, `heads`, `head_size`, `layers` and `causal`",
        "a `mtplug.nn.positions.PositionEncoding`",
        "mtplug.nn.positions",
        {
            "config": CONFIG,
            "embed": "`embed(start, length)` gives finite numbers (length, C), or None for nothing",
            "absolute": "`embed` is about absolute positions: it gives the same rows wherever it starts",
            "schemes": "`schemes(layer)` gives a tuple of schemes of `mtplug_kernels.positions`, at most one of each class, that fit the heads",
            "determinism": SAME,
            "save": "weights loaded into a fresh encoding give the same numbers",
            "gradients": "a model's loss reaches every parameter of the encoding with a finite gradient that is not "
            "zero throughout",
            "incremental": "a Transformer that decodes with it token by token gives the logits of a whole pass",
        },
    ),
    "attention_backends": Contract(
        "architecture.attention.backend",
        "(config)",
        "a `mtplug.nn.attention.AttentionBackend`",
        "mtplug.nn.attention",
        {
            "config": CONFIG,
            "why_not": "`why_not(call)` gives a reason, or an empty text for what the backend can do; `rank(call)` a number",
            "shape": "the result has the queries' shape and type",
            "definition": "the result is softmax(q·k / √D) v, or with `scale` in place of 1 / √D, over the keys that a query may look at",
            "gradients": "the gradients of q, k and v are those of the definition",
            "padding": "keys and values behind `key_lengths` change nothing",
            "schemes": "with each scheme that `why_not` does not exclude, the result is that of `mtplug_kernels.reference`",
            "packed": "with `cu_seqlens`, each sentence attends to itself alone, positions counted from its start",
            "dropout": "dropout_p changes the weights, keeps their expectation, and gradients are those of the weights "
            "that are left",
        },
    ),
    "tokenizers": Contract(
        "tokenizer",
        "(config)",
        "an object with `joint`, `train(texts, side)` and `load(folder, side)`, both returning a "
        "`mtplug.data.tokenizers.Tokenizer`",
        "mtplug.data.tokenizers",
        {
            "config": CONFIG,
            "factory": "the factory says by `joint` whether both languages share one, and trains a Tokenizer, "
            "no larger than its `size(side)` says, where it has one that is not 0",
            "ids": "ids are below len(tokenizer), and neither padding (0) nor `</s>` (1)",
            "text": "decoding what was encoded gives the text back",
            "special": "decoding leaves padding and `</s>` out",
            "tokens": "`tokens` gives one written form for each id",
            "batch": "a text's ids do not depend on the other texts",
            "foreign": "text that training never saw, and empty text, can be encoded",
            "frame": "`frame` counts no more ids than a text has",
            "plain": "`plain` changes nothing in what it gave, and that can be encoded",
            "determinism": "training twice on the same text gives the same ids",
            "save": "`load` gives a tokenizer like the one that `save` wrote, also where both sides are in one folder",
            "processes": "it survives pickling, since worker processes tokenise too",
            "languages": "where it has `languages`, `language` knows each, and `directed` puts some of its `prefixes` in front of "
            "a text for the tag of a direction, others for that of another, and leaves the rest",
        },
    ),
    "corpora": Contract(
        "data.train, data.valid and data.test",
        "(config, (source_lang, target_lang))",
        "a `mtplug.data.corpora.Corpus`",
        "mtplug.data.corpora",
        {
            "config": CONFIG,
            "files": "`files` gives the files that are read, and all are there",
            "pairs": "iterating gives pairs of text without line ends",
            "order": "iterating again gives the same pairs in the same order",
            "counts": "`bad_lines` is how many lines the last iteration skipped",
        },
    ),
    "optimizers": Contract(
        "optimizer",
        "(config, parameters)",
        "a `torch.optim.Optimizer` whose groups have the peak learning rate as `lr`",
        "mtplug.optim.adam",
        {
            "config": CONFIG,
            "optimizer": "it is a torch.optim.Optimizer over all of the parameters, each group with `lr`",
            "descends": "following the gradient of a bowl it gets lower",
            "alone": "a parameter that has no gradient stays as it is",
            "rate": "with a smaller learning rate it moves less, and with one of zero it changes nothing",
            "determinism": "the same gradients give the same weights",
            "save": "its state, stored as tensors and JSON and loaded again, goes on to the same weights, bit for bit",
            "average": "if it has `averaged_weights()`, that gives one tensor for each parameter, which is what "
            "validates, translates and is saved in its place; asking changes nothing",
        },
    ),
    "lr_schedulers": Contract(
        "lr_scheduler",
        "(config, max_updates)",
        "a callable `(update) -> factor`, updates counting from 1",
        "mtplug.optim.schedules",
        {
            "config": CONFIG,
            "range": "the factor of the peak rate is a finite number from 0 to 1, and not 0 throughout",
            "memory": "the factor depends on the update, and on validations where it has `validated(better)`, and on "
            "nothing else",
            "state": "if it has `validated(better)`, called after each validation, then `restore(state())` of what JSON "
            "kept makes a fresh one that goes on alike",
            "beyond": "it has a factor from 0 to 1 for updates beyond max_updates, which a longer run asks for",
        },
    ),
    "search_strategies": Contract(
        "search, validation.search",
        "(config)",
        "a callable `(model, source_tokens, source_lengths) -> list[list[Hypothesis]]` that keeps its "
        "settings as `config`",
        "mtplug.search.beam",
        {
            "config": CONFIG + ", and the strategy keeps them as `config`",
            "hypotheses": "each sentence gets Hypotheses, best score first, of ids without padding and `</s>`",
            "scores": "`token_scores` are the log-probabilities of the tokens, `</s>` last, by the model that "
            "`searched_model` makes of the run's",
            "determinism": "searching twice gives the same",
            "batch": "a translation does not depend on the other sentences, nor on their order or padding",
            "ends": "it ends even if the model never does",
            "settings": "of the settings of `SearchConfig`, those that its config has are kept (max_ratio and max_extra, "
            "min_length, allow_unknown, no_repeat_ngram) or refused by a UserError",
            "requests": "a strategy that takes `requests` keeps them (prefix, required with `met`, forbidden) or refuses them "
            "by a UserError",
        },
    ),
    "metrics": Contract(
        "validation.metrics",
        "(config, target_lang)",
        "a `mtplug.evaluation.Metric`; one with `takes_sources` is also given the source text, in "
        "`statistics` too if that has a parameter `sources`",
        "mtplug.evaluation.metrics",
        {
            "config": CONFIG,
            "score": "`score` gives a Score with the metric's label, a finite value, a signature and a text",
            "direction": "references score better than wrong text, in the sense of `higher_is_better` "
            "(None: neither is better)",
            "memory": "a score does not depend on what was scored before",
            "order": "the order of the sentences does not matter",
            "references": "several sets of references are accepted and all are used: a set that fits the hypotheses "
            "better improves the score, whatever its position",
            "empty": "an empty hypothesis can be scored",
            "statistics": "where `statistics` gives numbers by sentence, the score of their sum is the score",
        },
    ),
    "trackers": Contract(
        "logging.trackers",
        "(config, run_dir)",
        "a `mtplug.training.Tracker`",
        "mtplug.training.trackers",
        {
            "config": CONFIG,
            "events": "it takes every kind of event, and kinds that it does not know",
            "values": "it leaves the values that it is given as they are",
            "resume": "it can be started again in the same folder after `close`, and after a crash without it",
        },
    ),
    "exporters": Contract(
        "mtplug-export --format, mtplug-translate --backend, checkpoint.export_check",
        "(config)",
        "an object with `export(translator, path)` or `read(source)`, or both, and beside `export`, as far as its "
        "format allows, `why_not(model, task)` and `engine(path, device)`",
        "mtplug.exporting",
        {
            "config": CONFIG,
            "methods": "it can `export` or `read`, and has `why_not` and `engine` only beside `export`",
            "why_not": "`why_not(model, task)`, if there is one, gives a reason, or an empty text for what "
            "can be exported; `task` may have no more than the sizes of its tokenizers",
            "writes": "something is there at `path` afterwards",
            "untouched": "the translator translates as before",
            "again": "it can export again to the same path",
            "engine": "`engine(path, device)`, if there is one, gives a `mtplug.exporting.Engine`: with its "
            "default settings it finds hypotheses, best first, whose `token_scores` and `score` are the model's",
            "read": "`read(path)`, if there is one, gives a `mtplug.exporting.Imported`: the run made of it "
            "translates as the one that was exported, if that can be",
        },
    ),
    "benchmarks": Contract(
        "mtplug-bench run NAME",
        "(config)",
        "an object with `run() -> list[dict]`",
        "mtplug.hookspecs",
        {
            "config": CONFIG,
            "described": "its dataclass has a docstring, whose first line `mtplug-bench list` shows",
            "rows": "`run` gives at least one row, each a mapping of names to numbers or text",
            "told": "where it has them, `conditions()` gives a mapping and `left_out` is a list of lines",
        },
    ),
}


def contract_text(kind: str) -> str:
    """The contract of a kind in words, with an example; `hooks` stands for the life of a run.

    Raises:
        UserError: there is no such kind.
    """
    from mtplug.plugins import LIFECYCLE

    if kind in ("hook", "hooks"):
        lines = ["hooks: the life of a run", ""]
        for name in LIFECYCLE:
            hook = getattr(hookspecs, name)
            lines += [f"{name}{inspect.signature(hook)}", _filled(inspect.getdoc(hook) or "", 4, 4)]
        lines += ["", LIFECYCLE_RULES]
        return _with_example(lines, "hooks")
    many = plural(kind)
    if many not in CONTRACTS:
        known = {"hooks", *map(singular, CONTRACTS)}
        raise UserError(f"no contract of a kind '{kind}'{did_you_mean(kind, known)}")
    contract, one = CONTRACTS[many], singular(many)
    lines = [
        f"{many}: {inspect.getdoc(getattr(hookspecs, f'register_{many}'))}",
        "",
        f"hook         register_{many}(register), which calls register(name, factory, config=None)",
        f"factory      is called with {contract.factory}",
        _filled(f"returns      {contract.returns}", 0, 13),
        f"chosen by    {contract.group}",
        f'version      {KINDS[many]}: MTPLUG_API = {{"{many}": {KINDS[many]}}} in the plugin\'s module',
        f"more in      {contract.where}",
        "",
        f"It promises, and mtplug.testing.check_{one}(name, *settings) checks:",
        *(_filled(f"{key:13} {text}", 2, 16) for key, text in contract.promises.items()),
    ]
    return _with_example(lines, one)


LIFECYCLE_RULES = """\
An implementation names only the arguments that it uses. An installed plugin with such a hook takes part in
every run; MTPLUG_BLOCK=name or --block name leaves it out.

One that raises is reported with its name, once for each hook, and the run goes on. To end the run a plugin sets
trainer.should_stop = "why" (after the update, as if training were complete), or raises mtplug.StopRun("why")
(at once, with exit status 1; the last checkpoint stays)."""


def _with_example(lines: list[str], one: str) -> str:
    from mtplug.scaffold import TEMPLATES

    example = (TEMPLATES / f"{one}.py").read_text(encoding="utf-8").strip()
    lines += ["", f"Example, as `mtplug-plugins new NAME --with {one}` writes it:", ""]
    return "\n".join([*lines, textwrap.indent(example, " " * 4)])


def _filled(text: str, by: int, hanging: int) -> str:
    return textwrap.fill(text, 100, initial_indent=" " * by, subsequent_indent=" " * hanging)
