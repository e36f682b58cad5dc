"""The bridge keeps mtplug's contract, and its files are peft's."""

import json

import pytest
import torch
from safetensors.torch import load_file

import mtplug
from mtplug import testing
from mtplug.errors import UserError
from mtplug.peft import files


@pytest.mark.parametrize("given", [
    ("type=LORA", "options={r: 2}"),
    ("type=LOHA", "targets=[q, v]", "options={r: 2, alpha: 4}"),
    ("type=IA3", "targets=[k, v]", "options={feedforward_modules: []}"),
])  # fmt: skip
def test_keeps_the_contract(given):
    testing.check_peft_method("hf_peft", *given)


def test_the_same_weights_as_our_own_lora_give_the_same_translations(tmp_path):
    base = testing.train(tmp_path, updates=40, name="base")
    here = f"training.finetune_from={base}"
    theirs = testing.train(tmp_path, here, "peft={name: hf_peft, options: {r: 4, lora_alpha: 8}}",
                           "optimizer.lr=1e-2", updates=4, name="theirs")  # fmt: skip
    ours = testing.train(
        tmp_path, here, "peft={name: lora, rank: 4, alpha: 8}", updates=1, name="ours"
    )
    a, b = (r / "checkpoints" / "last" for r in (theirs, ours))
    assert load_file(a / files.WEIGHTS).keys() == load_file(b / files.WEIGHTS).keys()
    texts = ["ka lo mi", "nu pe ra"]
    plain = {k: v for k, v in files.read_config(a).items() if k != "mtplug"}
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / files.CONFIG).write_text(json.dumps(plain))
    (tmp_path / "plain" / files.WEIGHTS).write_bytes((a / files.WEIGHTS).read_bytes())
    translator = mtplug.load(base, adapters={"a": a, "as_ours": tmp_path / "plain"})
    scores = [
        [t.score for t in translator.score(texts, ["one two", "three"], adapters=name)]
        for name in ("a", "as_ours")
    ]
    torch.testing.assert_close(*map(torch.tensor, scores))


@pytest.mark.parametrize(("given", "said"), [
    (("type=LOHAA",), "did you mean 'LOHA'"),
    (("targets=[output]",), "is tied"),
    (("type=PROMPT_TUNING",), "peft refuses"),
    (("options={rnk: 2}",), "peft refuses: .*rnk"),
])  # fmt: skip
def test_what_it_cannot_do_is_said(given, said):
    with pytest.raises(UserError, match=said):
        testing.check_peft_method("hf_peft", *given)
