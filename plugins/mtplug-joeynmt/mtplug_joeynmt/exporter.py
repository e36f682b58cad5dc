"""Format `joeynmt`: a model_dir of JoeyNMT 2, read.

Shapes: V vocabulary, C model size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from mtplug.data.merged_words import GLUE, SPECIAL, Words
from mtplug.data.sentencepiece_file import NORMAL, delimited, entry, fields, read_piece
from mtplug.data.tokenizers import Tokenizer
from mtplug.errors import UserError
from mtplug.exporting.base import Imported
from mtplug.exporting.marian_model import MarianTokenizer
from mtplug.files import read_pickled
from mtplug_joeynmt.tokenizer import Characters, JoeyTokenizer, RestrictedWords, Steps

UNK, PAD, BOS, EOS = range(4)  # in every vocabulary of JoeyNMT
OURS = (PAD, EOS, UNK)
"""What stands at our ids 0, 1, 2; `<s>`, which ours lack, comes last."""
NAMES = ("best.ckpt", "latest.ckpt")
UNUSED = 5  # of a piece of SentencePiece
STACKS = ("encoder", "decoder")
SIDES = {"source": "src", "target": "trg"}
SIZES = {"dim": "hidden_size", "ffn_dim": "ff_size", "heads": "num_heads"}

Values = dict[str, Any]


@dataclass
class JoeyFormat:
    """A Transformer that JoeyNMT 2 trained; it is only read. `source` is its model_dir, or a checkpoint there."""

    source_subwords: str = ""
    """what cut the source into subwords: a .model of SentencePiece, or codes of subword-nmt; empty: the file that
    config.yaml names, beside it or where it says"""
    target_subwords: str = ""
    """the same of the target"""


class JoeyImporter:
    def __init__(self, config: JoeyFormat):
        self.config = config

    def read(self, source: Path) -> Imported:
        """A folder with config.yaml, src_vocab.txt, trg_vocab.txt, what cuts subwords, and best.ckpt, or the last checkpoint.

        Raises:
            UserError: a file is missing, or the model has something that ours does not.
        """
        file = _checkpoint(source)
        folder = file.parent
        config = _config(folder / "config.yaml")
        data, model = config["data"], config["model"]
        specials = _specials(data, folder)
        settings, alphas = _architecture(model, folder)
        vocabularies = {
            side: _vocabulary(folder / f"{theirs}_vocab.txt", specials)
            for side, theirs in SIDES.items()
        }
        state = read_pickled(file)
        if not isinstance(state, dict) or not isinstance(state.get("model_state"), dict):
            raise UserError(f"{file} is no checkpoint of JoeyNMT's: it has no model_state")
        theirs = {k: v.float() for k, v in state["model_state"].items() if not k.endswith(".pe.pe")}
        found: dict[str, Tensor] = {}
        for ours, name in _names(settings):
            if name not in theirs:
                raise UserError(f"{file}: the model has no {name}, which config.yaml promises")
            found[ours] = theirs.pop(name)
        for name, tensor in found.items():
            if name.rsplit(".", 1)[0].endswith(("body.out", "body.outer")):
                found[name] = tensor / alphas[name.split(".")[0]]
        self._tables(found, theirs, vocabularies, settings, file)
        if theirs:
            raise UserError(f"{file}: the model has {min(theirs)}, which ours do not have")
        settings["start"] = len(vocabularies["target"]) - 1
        tokenizers = {
            side: self._tokenizer(side, data, folder, vocabularies[side], specials)
            for side in SIDES
        }
        run = {
            "task": {"name": "translation", **{f"{s}_lang": data[t]["lang"] for s, t in SIDES.items()}},
            "tokenizer": {"name": "joeynmt", "joint": False},
            "architecture": settings,
            "search": _search(config.get("testing") or {}),
            "data": {"max_length": 1024},
        }  # fmt: skip
        return Imported(run, tokenizers, found)

    def _tables(
        self, found: dict[str, Tensor], theirs: dict[str, Tensor], vocabularies: dict[str, list[str]],
        settings: Values, file: Path,
    ) -> None:  # fmt: skip
        """Move embeddings and output, in the order of our ids, from `theirs` to `found`."""
        for ours, name, side in (
            ("encoder_embedding", "src_embed.lut", "source"),
            ("decoder_embedding", "trg_embed.lut", "target"),
            ("output", "decoder.output_layer", "target"),
        ):
            table = theirs.pop(f"{name}.weight", None)
            count = len(vocabularies[side])
            if table is None:
                raise UserError(f"{file}: the model has no {name}.weight")
            if len(table) != count:
                raise UserError(
                    f"{file}: the model has {len(table)} symbols of the {side}, {SIDES[side]}_vocab.txt {count}: it "
                    "is another model's"
                )
            tied = settings["tie_embeddings"]
            if (
                tied == "none"
                or ours == "encoder_embedding"
                or (tied, ours) == ("decoder", "decoder_embedding")
            ):
                found[f"{ours}.weight"] = table[[*OURS, *range(EOS + 1, count), BOS]]

    def _tokenizer(
        self, side: str, data: Values, folder: Path, symbols: list[str], specials: list[str]
    ) -> Tokenizer:
        own = data[SIDES[side]]
        where = f"{folder / 'config.yaml'}: data.{SIDES[side]}"
        how = own.get("tokenizer_cfg") or {}
        kind = own.get("level")
        if kind == "bpe":
            kind = own.get("tokenizer_type", own.get("bpe_type", "sentencepiece"))
        if kind not in ("word", "char", "sentencepiece", "subword-nmt"):
            raise UserError(
                f"{where}: level or tokenizer_type is {kind}, which JoeyNMT 2.3 does not have"
            )
        moses = str(how.get("pretokenizer", "none")).lower() == "moses"
        steps = Steps(
            kind, bool(own.get("lowercase")), bool(own.get("normalize")), str(own["lang"]) if moses else "",
            tags=specials[EOS + 1 :], hidden=["<s>"],
        )  # fmt: skip
        pieces = [*SPECIAL, *symbols[EOS + 1 :], "<s>"]
        if kind in ("word", "char"):
            return JoeyTokenizer((Words if kind == "word" else Characters)(pieces), steps)
        path = self._subwords(
            side, how.get("model_file" if kind == "sentencepiece" else "codes"), folder, where
        )
        if kind == "sentencepiece":
            try:
                return JoeyTokenizer(
                    MarianTokenizer(_restricted(path.read_bytes(), symbols), pieces), steps
                )
            except (RuntimeError, IndexError, KeyError, ValueError) as error:
                raise UserError(f"{path} is no SentencePiece model: {error}") from None
        if (mark := how.get("separator", GLUE)) != GLUE:
            raise UserError(f"{where}: separator is {mark}; only {GLUE} is read")
        return JoeyTokenizer(
            RestrictedWords(pieces, path.read_text(encoding="utf-8"), str(path)), steps
        )

    def _subwords(self, side: str, named: Any, folder: Path, where: str) -> Path:
        given = getattr(self.config, f"{side}_subwords")
        places = [Path(given)] if given else [folder / Path(str(named)).name, Path(str(named))]
        for path in places if given or named else []:
            if path.is_file():
                return path
        raise UserError(
            f"{given} is missing" if given
            else f"{where}: {named} is neither in {folder} nor there; {side}_subwords=FILE says where it is"
        )  # fmt: skip


def _checkpoint(source: Path) -> Path:
    if source.is_file():
        return source
    numbered = sorted(
        (f for f in source.glob("*.ckpt") if f.stem.isdecimal()), key=lambda f: int(f.stem)
    )
    found = [source / name for name in NAMES if (source / name).is_file()] + numbered[-1:]
    if not found:
        raise UserError(
            f"{source} has no {', '.join(NAMES)} or NUMBER.ckpt; give the checkpoint itself"
        )
    return found[0]


def _config(file: Path) -> Values:
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(
            f"{file}: no configuration of JoeyNMT's: {str(error).splitlines()[0]}"
        ) from None
    for part in ("data", "model"):
        if not isinstance(config, dict) or not isinstance(config.get(part), dict):
            raise UserError(
                f"{file}: it has no part {part}, so it is no configuration of JoeyNMT's"
            )
    for side in SIDES.values():
        if not isinstance(config["data"].get(side), dict):
            raise UserError(
                f"{file}: data.{side} is of JoeyNMT 1; only models of JoeyNMT 2 are read"
            )
        if "lang" not in config["data"][side]:
            raise UserError(f"{file}: data.{side} has no lang")
    return config


def _specials(data: Values, folder: Path) -> list[str]:
    """The symbols that a vocabulary begins with, in the order of their ids: four, then the language tags.

    Raises:
        UserError: the model takes prompts.
    """
    given = data.get("special_symbols") or {}
    prompts = [side for side in SIDES.values() if data[side].get("has_prompt")]
    if given.get("sep_token") or prompts:
        what = f"data.{prompts[0]}.has_prompt" if prompts else "data.special_symbols.sep_token"
        raise UserError(f"{folder / 'config.yaml'}: {what}: models that take prompts are not read")
    names = {"unk": "<unk>", "pad": "<pad>", "bos": "<s>", "eos": "</s>"}
    specials = [str(given.get(f"{key}_token", name)) for key, name in names.items()]
    return [*specials, *map(str, given.get("lang_tags") or ())]


def _vocabulary(file: Path, specials: list[str]) -> list[str]:
    """The symbols of a file by their ids."""
    if not file.is_file():
        raise UserError(f"{file} is missing: JoeyNMT writes it beside its checkpoints")
    # JoeyNMT reads lines so, too, also where a piece holds a character that splits them.
    return list(dict.fromkeys([*specials, *file.read_text(encoding="utf-8").splitlines()]))


def _architecture(model: Values, folder: Path) -> tuple[Values, dict[str, float]]:
    """Our settings of a Transformer, and what each stack's residual connections are multiplied by.

    Raises:
        UserError: it is one that ours cannot be.
    """
    where = f"{folder / 'config.yaml'}: model"
    kinds = dict(zip(STACKS, ("recurrent", "transformer"), strict=True))
    for stack, default in kinds.items():
        own = model.get(stack) or {}
        if (kind := own.get("type", default)) != "transformer":
            raise UserError(f"{where}.{stack}.type is {kind}; only transformer is read")
    encoder, decoder = (model[stack] for stack in STACKS)
    sizes = {
        "hidden_size": (512, 512),
        "ff_size": (2048, 2048),
        "num_heads": (4, 8),
        "num_layers": (8, 4),
    }
    told = {
        key: [int(own.get(key, default)) for own, default in zip((encoder, decoder), defaults, strict=True)]
        for key, defaults in sizes.items()
    }  # fmt: skip
    for key in SIZES.values():
        if len(set(told[key])) > 1:
            raise UserError(
                f"{where}: encoder and decoder differ in {key}: {told[key][0]} and {told[key][1]}"
            )
    activations = {own.get("activation", "relu") for own in (encoder, decoder)}
    scaled = {bool((own.get("embeddings") or {}).get("scale", False)) for own in (encoder, decoder)}
    if model.get("tied_embeddings"):
        scaled = {bool((encoder.get("embeddings") or {}).get("scale", False))}
    norms = tuple(own.get("layer_norm") for own in (encoder, decoder))
    open_encoder = norms[0] is None
    pre = [norm == "pre" for norm in norms]
    if not open_encoder and pre[0] != pre[1]:
        raise UserError(
            f"{where}: encoder and decoder differ in layer_norm: {norms[0]} and {norms[1] or 'post'}"
        )
    alphas = _alphas(model, told["num_layers"])
    for wrong, what in (
        (len(activations) > 1, "encoder and decoder differ in activation"),
        (not activations <= {"relu", "gelu", "swish"}, f"activation {min(map(str, activations))} is none of ours"),
        (len(scaled) > 1, "encoder and decoder differ in embeddings.scale"),
        ((pre[1] or open_encoder) and set(alphas.values()) != {1.0},
         "residual connections are weighted (alpha, or initializer: xavier_normal) and layer_norm is not post"),
    ):  # fmt: skip
        if wrong:
            raise UserError(f"{where}: {what}")
    tied = "decoder" if model.get("tied_softmax") else "none"
    dropout = float(decoder.get("dropout", 0.1))
    return {
        "name": "joeynmt", **{ours: told[key][0] for ours, key in SIZES.items()},
        "encoder_layers": told["num_layers"][0], "decoder_layers": told["num_layers"][1],
        "norm": "pre" if pre[1] else "post", "open_encoder": open_encoder,
        "activation": activations.pop(), "scale_embeddings": scaled.pop(),
        "tie_embeddings": "all" if model.get("tied_embeddings") and tied == "decoder" else tied,
        "dropout": dropout, "attention_dropout": dropout, "activation_dropout": dropout,
    }, alphas  # fmt: skip


def _alphas(model: Values, layers: list[int]) -> dict[str, float]:
    """By stack; `initializer: xavier_normal` stands for DeepNet's (Wang et al. 2022, figure 2).

    After a sum that is normalised, a weight of one summand is as good as its inverse on the other: so the maps that
    sublayers end with take them over.
    """
    if model.get("initializer") == "xavier_normal":
        encoder, decoder = layers
        values = 0.81 * (encoder**4 * decoder) ** (1 / 16), (3 * decoder) ** (1 / 4)
        return dict(zip(STACKS, values, strict=True))
    return {stack: float(model[stack].get("alpha", 1.0)) for stack in STACKS}


def _names(settings: Values) -> Iterator[tuple[str, str]]:
    """(our name, JoeyNMT's) of each weight but those of embeddings and output."""
    attentions = {
        "encoder": (("attention", "src_src_att", "layer_norm"),),
        "decoder": (("attention", "trg_trg_att", "x_layer_norm"), ("cross", "src_trg_att", "dec_layer_norm")),
    }  # fmt: skip
    pairs = []
    for stack in STACKS:
        for n in range(settings[f"{stack}_layers"]):
            ours, theirs = f"{stack}.{n}", f"{stack}.layers.{n}"
            for sublayer, body, norm in attentions[stack]:
                maps = {"q": "q_layer", "k": "k_layer", "v": "v_layer", "out": "output_layer"}
                pairs += [
                    (f"{ours}.{sublayer}.body.{o}", f"{theirs}.{body}.{t}") for o, t in maps.items()
                ]
                pairs.append((f"{ours}.{sublayer}.norm", f"{theirs}.{norm}"))
            feeding = {
                "norm": "layer_norm",
                "body.inner": "pwff_layer.0",
                "body.outer": "pwff_layer.3",
            }
            pairs += [(f"{ours}.ffn.{o}", f"{theirs}.feed_forward.{t}") for o, t in feeding.items()]
        if settings["norm"] == "pre" and not (stack == "encoder" and settings["open_encoder"]):
            pairs.append((f"{stack}_norm", f"{stack}.layer_norm"))
    for ours, theirs in pairs:
        for kind in ("weight", "bias"):
            yield f"{ours}.{kind}", f"{theirs}.{kind}"


def _restricted(model: bytes, symbols: list[str]) -> bytes:
    """A SentencePiece model that cuts text into `symbols` and single characters only, as JoeyNMT has it do."""
    known, made = set(symbols), []
    for number, value in fields(model):
        if number == 1:
            text, score, kind = read_piece(value)
            if kind in (NORMAL, UNUSED):
                kind = NORMAL if text in known or len(text) == 1 else UNUSED
            made.append(entry(text, score, kind))
        else:
            made.append(delimited(number, value))
    return b"".join(made)


def _search(testing: Values) -> Values:
    """Our settings of the search that `testing` describes."""
    alpha = float(testing["beam_alpha"] if "beam_alpha" in testing else testing.get("alpha", -1))
    longest = int(testing.get("max_output_length", -1))
    least = int(testing.get("min_output_length", 1))
    ngram = int(testing.get("no_repeat_ngram_size", -1))
    return {
        "name": "beam", "beam": int(testing.get("beam_size", 1)), "length_norm": "gnmt",
        "length_penalty": max(alpha, 0.0),
        "max_ratio": 1.5 if longest < 0 else 0.0, "max_extra": max(longest, 0),
        "min_length": least, "allow_unknown": bool(testing.get("generate_unk", True)),
        "no_repeat_ngram": ngram if ngram > 1 else 0,
    }  # fmt: skip
