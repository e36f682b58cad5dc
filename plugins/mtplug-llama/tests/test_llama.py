"""Folders of transformers' models against `transformers` itself: the same ids, the same logits, the same translations."""

import json
import shutil

import pytest
import tokenizers
import torch
from mtplug_llama.tokenizer import PromptTokenizer

import mtplug
from mtplug import testing
from mtplug.cli import export, import_run
from mtplug.exporting.hugging_face import read_weights

TEXTS = ["ka lo mi", "ti", "nu", "ka ka ti mi lo"]
TARGETS = ["one two three four", "ten", "six", "two two nine four"]
SIZES = {
    "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
CHAT = "<|begin|>user\\nen: {source}\\nde:<|end|>\\n"
KINDS = {
    # kind: (class, settings, whether its tokenizer is that of bytes, the prompt)
    "llama": ("Llama", {}, False, "ka: {source} mi:"),
    "llama tied": ("Llama", {"tie_word_embeddings": True, "attention_bias": True}, False, "{source}"),
    "mistral": ("Mistral", {"sliding_window": None, "head_dim": 10}, False, "ka {source}\\n"),
    "qwen2": ("Qwen2", {"rms_norm_eps": 1e-5}, True, CHAT),
    "qwen3": ("Qwen3", {"head_dim": 8, "tie_word_embeddings": True}, True, CHAT),
}  # fmt: skip


@pytest.fixture(scope="session")
def transformers():
    return pytest.importorskip("transformers")


def subwords(of_bytes):
    """A tokenizer as Qwen has it, or as Llama 2 and Mistral have it."""
    texts = [text for pair in testing.pairs(300, seed=1) for text in pair]
    if of_bytes:
        made = tokenizers.Tokenizer(tokenizers.models.BPE())
        made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = tokenizers.decoders.ByteLevel()
        alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
        symbols = ["<|end|>", "<|begin|>"]
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=300, special_tokens=symbols, initial_alphabet=alphabet, show_progress=False
        )
        made.train_from_iterator(texts, trainer)
        return made
    made = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    made.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Split("▁", "merged_with_next")
    steps = tokenizers.decoders
    made.decoder = steps.Sequence([steps.Replace("▁", " "), steps.Fuse(), steps.Strip(" ", 1, 0)])
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=60, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
    )
    made.train_from_iterator([*texts, ": mi:"], trainer)
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return made


def original(kind, transformers, folder):
    """A random model in the files that the published ones have, and its tokenizer."""
    family, settings, of_bytes, _ = KINDS[kind]
    tokenizer = subwords(of_bytes)
    end = tokenizer.token_to_id("<|end|>" if of_bytes else "</s>")
    # Qwen's table has rows that no token has; Llama 2 has a token for each, and none for padding.
    size = tokenizer.get_vocab_size() + 4 * of_bytes
    config = getattr(transformers, f"{family}Config")(
        vocab_size=size, eos_token_id=end, bos_token_id=1, pad_token_id=None, **SIZES, **settings
    )
    torch.manual_seed(5)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    told = {"eos_token": "<|end|>" if of_bytes else "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    return model, tokenizer


@pytest.fixture(scope="module", params=KINDS)
def made(request, transformers, tmp_path_factory):
    """(the kind, its folder, the original model and its tokenizer, the run)."""
    there = tmp_path_factory.mktemp("llama")
    model, tokenizer = original(request.param, transformers, there / "original")
    prompt = f"prompt='{KINDS[request.param][3]}'"
    run = str(there / "run")
    assert (
        import_run.main(["llama", str(there / "original"), prompt, "--output", run, "--debug"]) == 0
    )
    return request.param, there / "original", model, tokenizer, there / "run"


def asked(kind, tokenizer, text):
    """Ids of the whole prompt, as transformers makes them."""
    prompt = KINDS[kind][3].replace("\\n", "\n").replace("{source}", text)
    return tokenizer.encode(prompt).ids


def test_ids_and_log_probabilities_are_those_of_the_original(made):
    kind, _, model, tokenizer, run = made
    ours = mtplug.load(run, device="cpu")
    source, target = ours.task.source_tokenizer, ours.task.target_tokenizer
    for text, wanted, scored in zip(TEXTS, TARGETS, ours.score(TEXTS, TARGETS), strict=True):
        prompt = asked(kind, tokenizer, text)
        answer = tokenizer.encode(wanted, add_special_tokens=False).ids
        answer.append(model.config.eos_token_id)
        assert [source.theirs[i] for i in source.encode([text])[0]] == prompt
        assert [target.theirs[i] for i in target.encode([wanted])[0]] == answer[:-1]
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
        found = logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None])[:, 0]
        assert scored.token_scores == pytest.approx(found.tolist(), abs=1e-4)


def test_translations_are_those_of_the_original(made):
    kind, _, model, tokenizer, run = made
    ours = mtplug.load(run, device="cpu")
    theirs = ours.task.target_tokenizer.theirs
    found = ours.nbest(TEXTS, beam=1, max_ratio=0, max_extra=13)
    for text, (best,) in zip(TEXTS, found, strict=True):
        prompt = asked(kind, tokenizer, text)
        end = model.config.eos_token_id
        answer = model.generate(
            torch.tensor([prompt]), do_sample=False, num_beams=1, max_new_tokens=12,
            pad_token_id=end, eos_token_id=end,
        )[0, len(prompt) :].tolist()  # fmt: skip
        written = answer[: answer.index(end)] if end in answer else answer
        assert [theirs[i] for i in best.parts[0]] == written[: len(best.parts[0])]
        assert best.finished or len(best.parts[0]) == 12
        assert best.text == tokenizer.decode(written[: len(best.parts[0])]).strip()


def test_what_was_read_is_written_as_it_was(made, tmp_path):
    kind, folder, model, _, run = made
    arguments = ["--format", "llama", "--output", str(tmp_path / "out"), "--debug"]
    assert export.main([str(run), *arguments, f"like={folder}"]) == 0
    theirs, mine = read_weights(folder), read_weights(tmp_path / "out")
    assert theirs.keys() == mine.keys()
    for name, tensor in theirs.items():
        assert torch.equal(mine[name], tensor), name
    again = type(model).from_pretrained(tmp_path / "out").eval()
    ids = torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, model(ids).logits)
    prompt = f"prompt='{KINDS[kind][3]}'"
    testing.check_exporter("llama", f"like={folder}", prompt, run=run)


def test_it_is_fine_tuned_whole_packed_and_by_lora(made, tmp_path):
    *_, base = made
    common = ("optimizer.lr=0.003", "data.max_length=64", "criterion.smoothing=0.1")
    for name, settings in (("whole", ("training.packing=true",)), ("lora", ("peft.name=lora",))):
        texts = testing.pairs(100, seed=3)
        run, losses = testing.finetune(base, tmp_path / name, texts, *common, *settings)
        assert losses[-1] < losses[0]
        assert mtplug.load(run, device="cpu").translate(TEXTS)


def test_pieces_of_a_long_text_each_have_the_prompt(made):
    """A text that is cut at its end would lose what asks for the translation."""
    kind, *_, run = made
    ours = mtplug.load(run, device="cpu", overrides=["data.max_length=40", "data.on_long=split"])
    text = " ".join(["ka lo mi ti nu"] * 8)
    source = ours.task.source_tokenizer
    pieces = ours._pieces([text])[0]
    assert len(pieces) > 1 and max(map(len, pieces)) <= 40
    (whole,) = source.encode([text])
    front, behind = source.frame(whole)
    for piece in pieces:
        assert piece[:front] == whole[:front]
        assert piece[len(piece) - behind :] == whole[len(whole) - behind :]
    assert " ".join(source.decode(pieces)).split() == text.split()
    cut = mtplug.load(run, device="cpu", overrides=["data.max_length=40", "data.on_long=truncate"])
    ((one,),) = cut._pieces([text])
    assert len(one) == 40 and one[len(one) - behind :] == whole[len(whole) - behind :]
    assert kind == "llama tied" or front + behind


def test_what_it_cannot_be_is_told_in_one_line(made, tmp_path, capsys):
    _, folder, *_, run = made
    broken, out = tmp_path / "broken", ["--output", str(tmp_path / "run")]
    shutil.copytree(folder, broken)
    config = json.loads((broken / "config.json").read_text())
    scaled = {"rope_type": "llama3", "factor": 8.0, "rope_theta": 10000.0}
    for key, value, said in (
        ("model_type", "gemma", "none of llama, mistral, qwen2, qwen3"),
        ("hidden_act", "gelu", "not silu"),
        ("num_hidden_layers", 3, "its weights have no"),
        ("num_hidden_layers", 1, "which ours do not have"),
        ("rope_parameters", scaled, "its rotations are scaled (llama3)"),
    ):
        (broken / "config.json").write_text(json.dumps({**config, key: value}))
        assert import_run.main(["llama", str(broken), "prompt='{source}'", *out]) == 2
        told = capsys.readouterr().err
        assert said in told and len(told.splitlines()) == 1
    (broken / "config.json").write_text(json.dumps(config))
    for settings, said in (
        ([], "prompt is missing"),
        (["prompt='{source} {source}'"], "has to stand in it once"),
        (["prompt='{source}'", "end='<eot>'"], "no token <eot>"),
    ):
        assert import_run.main(["llama", str(broken), *settings, *out]) == 2
        told = capsys.readouterr().err
        assert said in told and len(told.splitlines()) == 1
    (broken / "tokenizer.json").unlink()
    assert import_run.main(["llama", str(broken), "prompt='{source}'", *out]) == 2
    assert "has no tokenizer.json" in capsys.readouterr().err
    assert export.main([str(run), "--format", "llama", "--output", str(tmp_path / "x")]) == 2
    assert "like=FOLDER is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    "settings", [(), ("qk_norm=true", "kv_heads=1"), ("absent=[0, 2]", "bias=qkv")]
)
def test_architecture_keeps_the_contract(settings):
    sizes = ("dim=16", "ffn_dim=16", "heads=2", "layers=2")
    testing.check_architecture("llama", *sizes, *settings)


def test_a_prompt_that_writes_the_first_symbol_out_has_it_once():
    tokenizer = subwords(of_bytes=False)
    ids = list(range(tokenizer.get_vocab_size()))
    file = tokenizer.to_str()
    plain, written = (PromptTokenizer(file, ids, p) for p in ("{source}", "<s>{source}"))
    first = tokenizer.token_to_id("<s>")
    for made in (plain, written):
        assert made.encode(["ka lo"])[0].count(first) == 1
        assert made.decode(made.encode(["ka lo"])) == ["ka lo"]
