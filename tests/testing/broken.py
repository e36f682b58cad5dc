"""A plugin file of components of which each breaks one promise, which it is named after."""

import dataclasses
import random
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from mtplug_kernels import positions
from torch import nn

import mtplug
from mtplug.architectures.base import _PrefixState
from mtplug.criteria import LabelSmoothedCrossEntropy, LabelSmoothedCrossEntropyConfig
from mtplug.data.corpora import Corpus, CorpusConfig
from mtplug.evaluation import Metric, Score
from mtplug.nn.attention import AttentionBackend
from mtplug.nn.backends import ReferenceAttention
from mtplug.nn.positions import PositionEncoding
from mtplug.optim.schedules import Plateau, PlateauConfig
from mtplug.registry import NoConfig
from mtplug.search import BeamConfig, BeamSearch, Request
from mtplug.tasks import Translation, TranslationConfig
from mtplug.testing.material import MeanWords, PackedMeanWords, Words
from mtplug.training import Tracker


@dataclass
class Forgets:
    """Breaks `config` of any kind: what is written is not what is read."""

    size: int = 1

    def __post_init__(self):
        self.size += 1


# --- architectures ----------------------------------------------------------------------------


class Sound(MeanWords):
    """Keeps every promise."""

    def __init__(self, config, task):
        super().__init__(seed=torch.initial_seed())


class Shapes(Sound):
    def project(self, features):
        return super().project(features)[..., :-1]


class OutputWeight(Sound):
    def project(self, features):
        return super().project(features) + 0.1


class Gradients(Sound):
    def __init__(self, config, task):
        super().__init__(config, task)
        self.unused = nn.Parameter(torch.ones(3))


class Zeroed(Sound):
    def __init__(self, config, task):
        super().__init__(config, task)
        self.dead = nn.Parameter(torch.ones(()))

    def forward(self, *inputs):
        return super().forward(*inputs) + 0 * self.dead


class Determinism(Sound):
    def __init__(self, config, task):
        super().__init__(config, task)
        self.dropout = nn.Identity()

    def forward(self, *args):
        return super().forward(*args) * (1 + 0.1 * random.random())


class Padding(Sound):
    def forward(self, source_tokens, source_lengths, prev):
        return super().forward(source_tokens, source_lengths, prev) * (1 + source_tokens.shape[1])


class BatchDependent(Sound):
    def forward(self, source_tokens, source_lengths, prev):
        return super().forward(source_tokens, source_lengths, prev) * source_lengths.sum()


class Packed(PackedMeanWords):
    """Takes all sentences of a row for one."""

    def __init__(self, config, task):
        super().__init__(seed=torch.initial_seed())

    def forward(self, source_tokens, source_lengths, prev, target_lengths=None):
        if target_lengths is not None:
            source_lengths = source_lengths.sum()[None]
        return super().forward(source_tokens, source_lengths, prev)


class Activations(Sound):
    def checkpoint_activations(self):
        self.dropout.p = 0.0


class CrossAttention(Sound):
    """Looks at padding."""

    def cross_attention(self, source_tokens, source_lengths, prev):
        found = torch.ones(*prev.shape, source_tokens.shape[1])
        return found / found.shape[2]


class TrainingDeterminism(Sound):
    def forward(self, *args):
        return super().forward(*args) * (1 + 0.1 * self.training * random.random())


class Causality(Sound):
    def forward(self, *args):
        features = super().forward(*args)
        real = (args[2] != 0)[..., None]
        return features + (features * real).sum(1, keepdim=True)


class SeesAll(Causality):
    """Tells no next token, and says so."""

    autoregressive = False

    def start(self, source_tokens, source_lengths):
        raise NotImplementedError


class Incremental(Sound):
    def step(self, state, tokens):
        return super().step(state, tokens) * 1.01


class Reorder(Sound):
    def start(self, *args):
        state = _PrefixState(*args)

        def reorder(sentences, parents):
            first = parents[:, :1].expand_as(parents)
            _PrefixState.reorder(state, sentences, first - first % parents.shape[1])

        state.reorder = reorder
        return state


class Save(Sound):
    def __init__(self, config, task):
        super().__init__(config, task)
        self.hidden = 1 + torch.rand(())  # neither a parameter nor a buffer

    def forward(self, *args):
        return super().forward(*args) * self.hidden


class InfiniteMask(Sound):
    def __init__(self, config, task):
        super().__init__(config, task)
        self.register_buffer("mask", torch.full((9, 9), -torch.inf).triu(1))


class Roles(Sound):
    def roles(self):
        return {"encoder.0": "encoder.layer"}


class Compile(Sound):
    def forward(self, *args):
        features = super().forward(*args)
        return features * 1.01 if torch.compiler.is_compiling() else features


@mtplug.hookimpl
def register_architectures(register):
    for cls in (Sound, Shapes, OutputWeight, Gradients, Zeroed, Determinism, Padding, Causality,
                Incremental, Reorder, Save, Roles, Compile, Packed, Activations, CrossAttention,
                TrainingDeterminism, SeesAll, InfiniteMask):  # fmt: skip
        register(_snake(cls), cls)
    register("batch", BatchDependent)
    register("config", Sound, Forgets)


# --- criteria ---------------------------------------------------------------------------------


def criterion(change):
    """Cross-entropy, with its Loss changed."""

    class Criterion(LabelSmoothedCrossEntropy):
        def __call__(self, model, batch):
            return change(super().__call__(model, batch), model, batch)

    return Criterion


def with_sum(factor):
    return lambda loss, model, batch: dataclasses.replace(
        loss, sum=loss.sum * factor(loss, model, batch)
    )


@mtplug.hookimpl
def register_criteria(register):
    changes = {
        "loss": lambda loss, model, batch: dataclasses.replace(loss, nll=loss.sum),
        "nll": lambda loss, model, batch: dataclasses.replace(loss, nll=loss.nll * 2),
        "direction": with_sum(lambda loss, model, batch: -1),
        "output_weight": with_sum(lambda loss, model, batch: 1 + (model.output_weight is None)),
        "gradients": lambda loss, model, batch: dataclasses.replace(
            loss, sum=model.output.weight.sum() + 0 * loss.nll
        ),
        "determinism": with_sum(lambda loss, model, batch: 1 + random.random()),
        "padding": with_sum(lambda loss, model, batch: batch.target_tokens.shape[1]),
        "batch": lambda loss, model, batch: dataclasses.replace(loss, count=len(batch) ** 2),
        "tokens": lambda loss, model, batch: dataclasses.replace(loss, tokens=len(batch)),
        "part_with_gradient": lambda loss, model, batch: dataclasses.replace(
            loss, parts={"all": loss.sum}
        ),
        "without_gradient": lambda loss, model, batch: dataclasses.replace(
            loss, sum=loss.sum.detach() + 0 * loss.sum
        ),
    }
    for name, change in changes.items():
        register(name, criterion(change), LabelSmoothedCrossEntropyConfig)
    register("packed", PaddedOnly, LabelSmoothedCrossEntropyConfig)
    for cls in (Remembers, Untrained, Late, LoadsNothing):
        name = "state" if cls is Remembers else _snake(cls)
        register(name, cls, LabelSmoothedCrossEntropyConfig)


class Remembers(LabelSmoothedCrossEntropy):
    """Its loss depends on how often it was called, which no checkpoint knows."""

    calls = 0

    def __call__(self, model, batch):
        loss = super().__call__(model, batch)
        self.calls += model.training
        return (
            dataclasses.replace(loss, sum=loss.sum * (1 + self.calls)) if model.training else loss
        )


class LoadsNothing(Remembers):
    """Keeps what was loaded until its first call, and has nothing to save before that."""

    def state_dict(self):
        return {"calls": self.calls} if self.calls else {}

    def load_state_dict(self, state):
        self.later = state


class Untrained(LabelSmoothedCrossEntropy):
    """No nn.Module, so that nobody finds its parameter."""

    def __init__(self, config, task):
        super().__init__(config, task)
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def __call__(self, model, batch):
        loss = super().__call__(model, batch)
        return dataclasses.replace(loss, sum=loss.sum * self.weight.exp())


class Late(torch.nn.Module):
    """Makes its parameter at its first call, when the optimizer has been made."""

    def __init__(self, config, task):
        super().__init__()
        self.cross_entropy, self.weight = LabelSmoothedCrossEntropy(config, task), None

    def forward(self, model, batch):
        loss = self.cross_entropy(model, batch)
        if self.weight is None:
            self.weight = torch.nn.Parameter(torch.zeros(()))
        return dataclasses.replace(loss, sum=loss.sum * self.weight.exp())


class PaddedOnly(LabelSmoothedCrossEntropy):
    """Leaves out what says where packed sentences end."""

    def __call__(self, model, batch):
        return super().__call__(model, dataclasses.replace(batch, packed=False))


# --- tasks ------------------------------------------------------------------------------------


class Prepare(Translation):
    def prepare(self, run, run_dir, report):
        pass


class TaskData(Translation):
    """Changes what `training_data` gives."""

    def training_data(self, run):
        data = super().training_data(run)
        self.spoil(data)
        return data


class Batches(TaskData):
    def spoil(self, data):
        made = data.batch

        def batch(ids):
            wrong = made(ids)
            wrong.prev_output_tokens = wrong.target_tokens
            return wrong

        data.batch = batch


class Negative(TaskData):
    def spoil(self, data):
        made = data.batch

        def batch(ids):
            wrong = made(ids)
            wrong.source_tokens[0, 0] = -3
            return wrong

        data.batch = batch


class NoStart(TaskData):
    def spoil(self, data):
        made = data.batch

        def batch(ids):
            wrong = made(ids)
            wrong.prev_output_tokens[:, 0] = 0
            return wrong

        data.batch = batch


class Unnamed(Translation):
    """Leaves the targets' files out."""

    def checksums(self, run):
        return {k: v for k, v in super().checksums(run).items() if Path(k).suffix == ".xx"}


class TaskDeterminism(Translation):
    def prepare(self, run, run_dir, report):
        super().prepare(run, run_dir, report)
        self.where = run_dir

    def training_data(self, run):
        data = super().training_data(run)
        data.seed = sum(map(ord, self.where.name))
        return data


class Reuse(Translation):
    def prepare(self, run, run_dir, report):
        super().prepare(run, run_dir, report)
        self.times = run_dir / "times"
        self.times.write_text(self.times.read_text() + "x" if self.times.exists() else "x")

    def training_data(self, run):
        data = super().training_data(run)
        data.seed = len(self.times.read_text())
        return data


class Position(TaskData):
    def spoil(self, data):
        data.restore = lambda state: None


class Load(Translation):
    def load(self, run, run_dir):
        super().load(run, run_dir)
        self.source_tokenizer = Words()

    def prepare(self, run, run_dir, report):
        super().prepare(run, run_dir, report)
        super().load(run, run_dir)


class Pairs(Translation):
    def pairs(self, run, split):
        return [(label, []) for label, _ in super().pairs(run, split)]


class Checksums(Translation):
    def checksums(self, run):
        return dict.fromkeys(super().checksums(run), "0")


@mtplug.hookimpl
def register_tasks(register):
    for cls in (
        Prepare,
        Batches,
        Reuse,
        Position,
        Load,
        Pairs,
        Checksums,
        Negative,
        NoStart,
        Unnamed,
    ):
        register(_snake(cls), cls, TranslationConfig)
    register("determinism", TaskDeterminism, TranslationConfig)


# --- PEFT methods -----------------------------------------------------------------------------


class Fewer:
    def __init__(self, config):
        pass

    def apply(self, model):
        return model


class Biases(Fewer):
    """Keeps every promise."""

    def apply(self, model):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.endswith("bias"))
        return model


class Start(Biases):
    def apply(self, model):
        nn.init.normal_(model.decoder[0].ffn.body.outer.bias)
        return super().apply(model)


class PeftGradients(Biases):
    def apply(self, model):
        model.unused_bias = nn.Parameter(torch.ones(3))
        return super().apply(model)


class PeftZeroed(Biases):
    def apply(self, model):
        super().apply(model)
        model.dead = nn.Parameter(torch.ones(()))
        model.register_forward_hook(lambda module, args, out: out + 0 * model.dead)
        return model


class PeftDeterminism(Biases):
    def apply(self, model):
        nn.init.constant_(model.decoder[0].ffn.body.outer.bias, random.random())
        return super().apply(model)


class NewBase(Biases):
    """Draws frozen weights anew, which an adapter then does not hold."""

    def apply(self, model):
        nn.init.normal_(model.decoder[0].ffn.body.outer.weight)
        return super().apply(model)


class PeftPadding(Biases):
    """Once it is trained, every state depends on all positions, those of padding too."""

    def apply(self, model):
        super().apply(model)
        model.share_bias = nn.Parameter(torch.zeros(()))
        layer = model.encoder[0]
        layer.register_forward_hook(
            lambda module, args, out: out + 50 * model.share_bias * out.mean(1, keepdim=True)
        )
        return model


class Frozen(Biases):
    def apply(self, model):
        super().apply(model)

        def disturb(module, *_):
            if module.training:
                with torch.no_grad():
                    module.decoder[0].ffn.body.outer.weight.mul_(1.01)

        model.register_forward_pre_hook(disturb)
        return model


class PeftSave(Biases):
    def apply(self, model):
        super().apply(model)
        scale = [1.0]

        def scaled(module, args, out):
            scale[0] += 0.1 * module.training
            return out * scale[0]

        model.register_forward_hook(scaled)
        return model


class PeftIncremental(Biases):
    """Changes `forward`, but not `step`."""

    def apply(self, model):
        super().apply(model)
        model.shift_bias = nn.Parameter(torch.zeros(()))
        model.register_forward_hook(lambda module, args, out: out + 50 * model.shift_bias)
        return model


@mtplug.hookimpl
def register_peft_methods(register):
    for cls in (Fewer, Start, Frozen):
        register(_snake(cls), cls)
    register("gradients", PeftGradients)
    register("determinism", PeftDeterminism)
    register("padding", PeftPadding)
    register("zeroed", PeftZeroed)
    register("new_base", NewBase)
    register("save", PeftSave)
    register("incremental", PeftIncremental)


# --- position encodings -----------------------------------------------------------------------


class Ramp(PositionEncoding):
    def __init__(self, config, stack):
        super().__init__()
        self.direction = nn.Parameter(torch.randn(stack.dim))

    def embed(self, start, length):
        return torch.arange(start, start + length)[:, None] * self.direction


class Embed(Ramp):
    def embed(self, start, length):
        return super().embed(start, length) / 0


class Absolute(Ramp):
    def embed(self, start, length):
        return super().embed(0, length)


class Schemes(Ramp):
    def schemes(self, layer):
        return (positions.Linear(torch.ones(1)),)  # of one head, where there are two


class RampDeterminism(Ramp):
    def __init__(self, config, stack):
        super().__init__(config, stack)
        nn.init.constant_(self.direction, random.random())


class RampSave(Ramp):
    def __init__(self, config, stack):
        super().__init__(config, stack)
        self.hidden = torch.rand(())

    def embed(self, start, length):
        return super().embed(start, length) * self.hidden


class RampGradients(Ramp):
    def __init__(self, config, stack):
        super().__init__(config, stack)
        self.unused = nn.Parameter(torch.ones(3))


class RampZeroed(RampGradients):
    def embed(self, start, length):
        return super().embed(start, length) + 0 * self.unused.sum()


class RampIncremental(Ramp):
    """Is absolute as far as a check of `embed` alone can see."""

    def embed(self, start, length):
        found = super().embed(start, length)
        return found + 1 if (start, length) == (2, 1) else found


@mtplug.hookimpl
def register_position_encodings(register):
    register("embed", Embed)
    register("absolute", Absolute)
    register("schemes", Schemes)
    register("determinism", RampDeterminism)
    register("save", RampSave)
    register("gradients", RampGradients)
    register("zeroed", RampZeroed)
    register("incremental", RampIncremental)


# --- attention backends -----------------------------------------------------------------------


def backend(call):
    class Broken(AttentionBackend):
        def __init__(self, config):
            self.whole = ReferenceAttention()

        def __call__(self, q, k, v, **where):
            return call(self.whole, q, k, v, **where)

    return Broken


class WhyNot(ReferenceAttention):
    def why_not(self, call):
        return None


def without_schemes(reference, q, k, v, position=(), **where):
    return reference(q, k, v, **where)


def as_one_sentence(reference, q, k, v, cu_seqlens=None, **where):
    return reference(q, k, v, **where)


def leaky(reference, q, k, v, **where):
    out = reference(q, k, v, **where)
    return out + 1e-6 * v.mean(2, keepdim=True)


def straight_through(reference, q, k, v, **where):
    out = reference(q, k, v, **where)
    return out.detach() + 2 * out - 2 * out.detach()


def without(*keys, unless=lambda where: False):
    """Attention that takes no notice of what is said by these names."""

    def call(reference, q, k, v, **where):
        told = where if unless(where) else {n: x for n, x in where.items() if n not in keys}
        return reference(q, k, v, **told)

    return call


class PackedAlone(backend(as_one_sentence)):
    def why_not(self, call):
        return "there are no schemes" if call.schemes else ""


def first_scheme(reference, q, k, v, position=(), **where):
    return reference(q, k, v, position=position[:1], **where)


def keys_of_queries(reference, q, k, v, cu_seqlens=None, **where):
    cu_seqlens = cu_seqlens and (cu_seqlens[0], cu_seqlens[0])
    return reference(q, k, v, cu_seqlens=cu_seqlens, **where)


def other_backward(reference, q, k, v, **where):
    """Draws again in the backward pass what is dropped."""
    out, again = reference(q, k, v, **where), reference(q, k, v, **where)
    return out.detach() + again - again.detach()


@mtplug.hookimpl
def register_attention_backends(register):
    register("no_scale", backend(without("scale")))
    register("no_lengths", backend(without("key_lengths")))
    offset = backend(without("key_lengths", unless=lambda where: not where.get("query_offset")))
    register("no_lengths_with_offset", offset)
    register("first_scheme", backend(first_scheme))
    register("packed_alone", PackedAlone)
    both = backend(without("cu_seqlens", unless=lambda where: where.get("causal")))
    register("packed_causal_only", both)
    register("keys_of_queries", backend(keys_of_queries))
    register("other_backward", backend(other_backward))
    register("shape", backend(lambda f, q, k, v, **w: f(q, k, v, **w)[..., :-1]))
    register("definition", backend(lambda f, q, k, v, **w: f(2 * q, k, v, **w)))
    register("gradients", backend(straight_through))
    register("padding", backend(leaky))
    register("why_not", WhyNot)
    register("schemes", backend(without_schemes))
    register("packed", backend(as_one_sentence))
    register("dropout", backend(lambda f, q, k, v, dropout_p=0.0, **w: f(q, k, v, **w)))


# --- tokenizers -------------------------------------------------------------------------------


def tokenizers(cls, joint=True):
    class Factory:
        def __init__(self, config):
            self.joint = joint

        def train(self, texts, side):
            return cls()

        def load(self, folder, side):
            return cls.load(folder, side)

    return Factory


class Ids(Words):
    def encode(self, texts):
        return [[1, *row] for row in super().encode(texts)]


class Text(Words):
    def decode(self, ids):
        return [text.upper() for text in super().decode(ids)]


class Special(Words):
    def decode(self, ids):
        return [" ".join(self.words[i] for i in row) for row in ids]


class Tokens(Words):
    def tokens(self, ids):
        return super().tokens(ids)[1:]


class TokenBatch(Words):
    def encode(self, texts):
        return super().encode(texts)[::-1][::-1] if len(texts) > 1 else [[2] for _ in texts]


class Foreign(Words):
    def encode(self, texts):
        return [[self.words.index(word) for word in text.split()] for text in texts]


class TokenDeterminism(Words):
    def __init__(self):
        self.words = [*Words.words[:3], *random.sample(Words.words[3:], len(Words.words) - 3)]


class TokenSave(Words):
    @classmethod
    def load(cls, folder, side):
        loaded = cls()
        loaded.words = [*cls.words[:3], *cls.words[:2:-1]]
        return loaded


class OneFile(Words):
    """Saves both sides under one name."""

    def __init__(self, words):
        self.words = words

    @classmethod
    def train(cls, texts, side):
        return cls([*Words.words[:3], *sorted({word for text in texts for word in text.split()})])

    def save(self, folder, side):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "words.txt").write_text(" ".join(self.words))

    @classmethod
    def load(cls, folder, side):
        return cls((folder / "words.txt").read_text().split())


class Separate:
    joint = False
    train, load = OneFile.train, OneFile.load

    def __init__(self, config):
        pass


class Frame(Words):
    def frame(self, ids):
        return 1, len(ids)


class Plain(Words):
    def plain(self, text):
        return f"{text} ka"


class Processes(Words):
    def __init__(self):
        self.call = lambda: None


class Languages(Words):
    """Whose tags are text."""

    languages = ("de", "fr")

    def directed(self):
        return self


@mtplug.hookimpl
def register_tokenizers(register):
    for cls in (Ids, Text, Special, Tokens, Foreign, Frame, Plain, Processes, Languages):
        register(_snake(cls), tokenizers(cls))
    register("factory", tokenizers(Words, joint="yes"))
    register("batch", tokenizers(TokenBatch))
    register("determinism", tokenizers(TokenDeterminism))
    register("save", tokenizers(TokenSave))
    register("one_file", Separate)


# --- corpora ----------------------------------------------------------------------------------


class Two(Corpus):
    times = 0

    def files(self):
        return [Path(__file__)]

    def __iter__(self):
        yield from [("ka", "one"), ("lo", "two")]


class Files(Two):
    def files(self):
        return [Path("/nowhere")]


class CorpusPairs(Two):
    def __iter__(self):
        yield "ka\n", "one\n"


class Order(Two):
    def __iter__(self):
        self.times += 1
        yield from [("ka", "one"), ("lo", "two")][:: 1 if self.times % 2 else -1]


class Counts(Two):
    def __iter__(self):
        self.bad_lines += 1
        yield "ka", "one"


@mtplug.hookimpl
def register_corpora(register):
    register("files", Files, CorpusConfig)
    register("pairs", CorpusPairs, CorpusConfig)
    register("order", Order, CorpusConfig)
    register("counts", Counts, CorpusConfig)


# --- optimizers and schedules -----------------------------------------------------------------


@dataclass
class Rate:
    """Only a rate."""

    lr: float = 0.01


def descent(cls=torch.optim.SGD, change=lambda parameters: parameters):
    return lambda config, parameters: cls(change(list(parameters)), lr=config.lr)


class Climbs(torch.optim.SGD):
    def __init__(self, parameters, lr):
        super().__init__(parameters, lr=lr, maximize=True)


class Stubborn(torch.optim.SGD):
    def step(self):
        for group in self.param_groups:
            group["lr"] = 0.01
        super().step()


class Switch(torch.optim.SGD):
    """Takes a learning rate for no more than on or off."""

    def step(self):
        for group in self.param_groups:
            group["lr"] = 0.01 if group["lr"] else 0.0
        super().step()


class Alone(torch.optim.SGD):
    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad.clamp_(-1, 1)
        super().step()


class Jumps(torch.optim.SGD):
    def step(self):
        for group in self.param_groups:
            group["lr"] = 0.01 * random.random() if group["lr"] else 0.0
        super().step()


class Unsaved(torch.optim.SGD):
    velocity = 0

    def step(self):
        self.velocity += 1
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad.mul_(1 + 1 / self.velocity)
        super().step()


class Average(torch.optim.SGD):
    """Leaves its average in the weights."""

    def averaged_weights(self):
        parameters = self.param_groups[0]["params"]
        for parameter in parameters:
            parameter.mul_(0.5)
        return [parameter.clone() for parameter in parameters]


@mtplug.hookimpl
def register_optimizers(register):
    register("average", lambda config, ps: Average(list(ps), lr=config.lr), Rate)
    register("optimizer", descent(change=lambda parameters: parameters[1:]), Rate)
    register("descends", descent(Climbs), Rate)
    register("rate", descent(Stubborn), Rate)
    register("switch", descent(Switch), Rate)
    register("deaf", lambda config, ps: torch.optim.SGD(list(ps), lr=0.123), Rate)
    register("alone", descent(Alone), Rate)
    register("determinism", descent(Jumps), Rate)
    register("save", descent(Unsaved), Rate)


@mtplug.hookimpl
def register_lr_schedulers(register):
    def memory(config, max_updates):
        seen = []
        return lambda update: 1 / (1 + len(seen.append(0) or seen))

    class Forgetful(Plateau):
        def state(self):
            return {"falls": self.falls, "waited": 0}

    register("range", lambda config, max_updates: lambda update: 2.0)
    register("state", Forgetful, PlateauConfig)
    register("memory", memory)
    register("beyond", lambda config, max_updates: ([0.5] * (max_updates + 1)).__getitem__)
    register("rises", lambda config, max_updates: lambda update: update / max_updates)
    register("tensor", lambda config, max_updates: lambda update: torch.tensor(0.5))


# --- search strategies ------------------------------------------------------------------------


def search(change):
    class Search(BeamSearch):
        def __call__(self, model, source_tokens, source_lengths):
            return change(super().__call__(model, source_tokens, source_lengths))

    return Search


def each(change):
    return lambda found: [[change(h) for h in row] for row in found]


class NoSettings(BeamSearch):
    def __init__(self, config):
        super().__init__(config)
        self.config = None


class Nothing(BeamSearch):
    """Has no translation where ending is next to impossible."""

    def __call__(self, *args):
        found = super().__call__(*args)
        return [[h for h in row if h.score > -1e6] for row in found]


def deaf(*names):
    """Beam search with the defaults of some settings, whatever is set."""

    class Deaf(BeamSearch):
        def __call__(self, model, source_tokens, source_lengths):
            plain = {name: getattr(BeamConfig(), name) for name in names}
            search = BeamSearch(dataclasses.replace(self.config, **plain))
            return search(model, source_tokens, source_lengths)

    return Deaf


def heedless(change):
    """Beam search that changes what is wished of a sentence."""

    class Heedless(BeamSearch):
        def __call__(self, model, source_tokens, source_lengths, requests=None):
            heard = None if requests is None else [change(r) for r in requests]
            found = super().__call__(model, source_tokens, source_lengths, heard)
            return [[dataclasses.replace(h, met=True) for h in row] for row in found]

    return Heedless


@mtplug.hookimpl
def register_search_strategies(register):
    register("settings", deaf("max_ratio", "max_extra"), BeamConfig)
    for name in ("max_extra", "max_ratio", "min_length", "allow_unknown", "no_repeat_ngram"):
        register(f"no_{name}", deaf(name), BeamConfig)
    register("requests", heedless(lambda request: Request()), BeamConfig)
    nothing = {"prefix": [], "closed": False, "forbidden": [], "required": []}
    for name, value in nothing.items():
        without = {name: value}
        register(
            f"no_{name}", heedless(lambda r, w=without: dataclasses.replace(r, **w)), BeamConfig
        )
    register("config", NoSettings, BeamConfig)
    register("hypotheses", search(lambda found: [row[::-1] for row in found]), BeamConfig)
    register(
        "scores",
        search(each(lambda h: dataclasses.replace(h, token_scores=[0.0] * len(h.token_scores)))),
        BeamConfig,
    )
    register("ends", Nothing, BeamConfig)
    no_number = search(each(lambda h: dataclasses.replace(h, score=float("nan"))))
    register("no_number", no_number, BeamConfig)
    register("determinism", Coin, BeamConfig)
    register("batch", LongestFirst, BeamConfig)


class Coin(BeamSearch):
    times = 0

    def __call__(self, model, tokens, lengths):
        Coin.times += 1
        found = super().__call__(model, tokens, lengths)
        return [row[:1] if Coin.times % 2 else row for row in found]


class LongestFirst(BeamSearch):
    def __call__(self, model, tokens, lengths):
        found = super().__call__(model, tokens, lengths)
        return [row[:1] for row in found] if len(found) > 2 else found


# --- metrics ----------------------------------------------------------------------------------


class Exact(Metric):
    label = "exact"

    def __init__(self, config, target_lang):
        self.seen = 0

    def value(self, hypotheses, references):
        rows = zip(hypotheses, *references, strict=True)
        return sum(row[0] in row[1:] for row in rows) / len(hypotheses)

    def score(self, hypotheses, references):
        return Score(self.label, self.value(hypotheses, references), "exact", "exact")


class WrongLabel(Exact):
    def score(self, hypotheses, references):
        return dataclasses.replace(super().score(hypotheses, references), label="other")


class Direction(Exact):
    higher_is_better = False


class Memory(Exact):
    def value(self, *args):
        self.seen += 1
        return super().value(*args) + self.seen / 1000


class MetricOrder(Exact):
    def value(self, hypotheses, references):
        return super().value(hypotheses, references) + (hypotheses[0] == references[0][0])


class References(Exact):
    def value(self, hypotheses, references):
        return super().value(hypotheses, references) - len(references)


class FirstReference(Exact):
    def value(self, hypotheses, references):
        return super().value(hypotheses, references[:1])


class LastReference(Exact):
    def value(self, hypotheses, references):
        return super().value(hypotheses, references[-1:])


class Empty(Exact):
    def value(self, hypotheses, references):
        return super().value(hypotheses, references) / all(hypotheses)


class Statistics(Exact):
    def statistics(self, hypotheses, references):
        return np.ones((len(hypotheses), 1)), lambda total: float(total[0])


class StatisticsOfSources(Exact):
    takes_sources = True

    def score(self, hypotheses, references, sources=None):
        return super().score(hypotheses, references)

    def statistics(self, hypotheses, references, sources=None):
        rows = np.array([[h in r] for h, r in zip(hypotheses, references[0], strict=True)], float)
        return rows, lambda total: 1 - self.value(hypotheses, [sources])


@mtplug.hookimpl
def register_metrics(register):
    register("score", WrongLabel)
    register("direction", Direction)
    register("memory", Memory)
    register("order", MetricOrder)
    register("references", References)
    register("first_reference", FirstReference)
    register("last_reference", LastReference)
    register("empty", Empty)
    register("statistics", Statistics)
    register("statistics_of_sources", StatisticsOfSources)


# --- trackers, exporters, benchmarks ----------------------------------------------------------


class Events(Tracker):
    def event(self, kind, values):
        {"train": 1, "validation": 1, "checkpoint": 1, "note": 1, "test": 1, "end": 1}[kind]


class Values(Tracker):
    def event(self, kind, values):
        values.pop("update")


class Resume(Tracker):
    def start(self, update, max_updates):
        (self.run_dir / "file").touch(exist_ok=False)


class Exporter:
    def __init__(self, config):
        pass

    def export(self, translator, path):
        path.mkdir(exist_ok=True)
        (path / "model").write_text("weights")


class Methods:
    def __init__(self, config):
        pass

    def read(self, source):
        raise AssertionError

    def engine(self, path, device):
        raise AssertionError


class Writes(Exporter):
    def export(self, translator, path):
        pass


class Untouched(Exporter):
    def export(self, translator, path):
        super().export(translator, path)
        translator.model.output.weight.data.zero_()


class Again(Exporter):
    def export(self, translator, path):
        path.mkdir()
        (path / "model").write_text("weights")


class ExporterWhyNot(Exporter):
    def why_not(self, model, task):
        return None  # for "nothing"


class Engine(Exporter):
    def engine(self, path, device):
        return Boasting()


class Boasting(mtplug.exporting.Engine):
    def strategy(self, search, token_scores):
        class Better(type(search)):
            def finish(self, *args):
                found = super().finish(*args)
                for h in (h for row in found for h in row):
                    h.token_scores = [s / 2 for s in h.token_scores]
                return found

        return Better(search.config)


class Read(Exporter):
    def read(self, source):
        return mtplug.exporting.Imported({}, {}, {})


class Suite:
    def __init__(self, config):
        pass

    def run(self):
        return [{"tensor": torch.ones(1)}]


class Told(Suite):
    left_out = "all of it"

    def run(self):
        return [{"numpy": np.int64(1)}]


@dataclass
class Undescribed:
    size: int = field(default=1)


@mtplug.hookimpl
def register_trackers(register):
    for cls in (Events, Values, Resume):
        register(_snake(cls), cls)


@mtplug.hookimpl
def register_exporters(register):
    for cls in (Methods, Writes, Untouched, Again, Engine, Read):
        register(_snake(cls), cls)
    register("why_not", ExporterWhyNot)


@mtplug.hookimpl
def register_benchmarks(register):
    register("rows", Suite, NoConfig)
    register("told", Told, NoConfig)
    register("described", Suite, Undescribed)


def _snake(cls):
    return "".join("_" + c.lower() if c.isupper() else c for c in cls.__name__).lstrip("_")
