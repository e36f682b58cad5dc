"""What the documentation shows works as shown."""

import os
import re
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file

from mtplug.config import load_config, to_plain
from mtplug.scaffold import TEMPLATES, USAGE
from tests import tiny

ROOT = Path(__file__).parents[1]


def test_configuration_reference_is_what_the_code_says():
    script = ROOT / "docs" / "build_configuration.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert "### peft_method: lora\n" in page


def test_part_on_kinds_is_what_contracts_and_templates_say():
    script = ROOT / "docs" / "build_kinds.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_configurations_of_the_readme_are_those_that_they_name(tmp_path):
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, text in re.findall(r"```yaml\n# (\w+)\.yaml\n(.*?)```", page, re.S):
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    for name, named in (("my", "demo"), ("large", "wmt_en_de_big")):
        shown, _ = load_config(tmp_path / f"{name}.yaml")
        other, _ = load_config(ROOT / "configs" / f"{named}.yaml")
        assert to_plain(shown.architecture) == to_plain(other.architecture)
        assert shown.optimizer.config.lr == other.optimizer.config.lr
        assert to_plain(shown.lr_scheduler) == to_plain(other.lr_scheduler)
        assert shown.training.max_tokens == other.training.max_tokens
        assert shown.training.accumulate == other.training.accumulate


def _headings(page):
    """The anchors that GitHub gives to a page's headings."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    titles = re.findall(r"^#+ (.*)", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text), re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_links_between_pages_lead_somewhere():
    folders = ("docs", "plugins/*", "benchmarks", "benchmarks/results", "kernels")
    pages = [ROOT / "README.md", *(p for f in folders for p in sorted(ROOT.glob(f"{f}/*.md")))]
    followed = 0
    for page in pages:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
        for file, heading in re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)", text):
            target = page.parent / file if file else page
            assert target.exists(), f"{page}: {file}"
            assert not heading or heading in _headings(target), f"{page}: {file}#{heading}"
            followed += 1
    assert followed > 100


def test_trainings_shown_end_after_their_warm_up(tmp_path):
    """The example of tagging once had the default of 4,000 updates of warm-up for 1,000 updates."""
    shown = 0
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for text in re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
            if "max_updates" in text and "extends:" not in text:
                (tmp_path / "run.yaml").write_text(
                    re.sub(r"(finetune|init)_from: [^,}]+, ", "", text), encoding="utf-8"
                )
                run, _ = load_config(tmp_path / "run.yaml")
                assert run.lr_scheduler.config.warmup_updates < run.training.max_updates, text
                shown += 1
    assert shown >= 3  # README.md, peft.md, transfer.md


def test_example_of_every_kind_keeps_its_contract(tmp_path):
    page = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    blocks = re.findall(r"<!-- executed: (\w+) -->\n```python\n(.*?)```", page, re.S)
    files = []
    for kind, code in blocks:
        if kind == "tests":
            (tmp_path / "test_page.py").write_text(code)
            continue
        file = tmp_path / f"{kind}.py"
        file.write_text(code)
        files.append(str(file))
        test = (TEMPLATES / f"test_{kind}.py").read_text().replace("NAME", "myidea")
        (tmp_path / f"test_{kind}.py").write_text(test)
    assert {kind for kind, _ in blocks} == {"tests", *USAGE}
    env = {**os.environ, "MTPLUG_PLUGIN_FILES": os.pathsep.join(files)}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-k", "contract or resume or page",
         str(tmp_path)],
        capture_output=True, text=True, env=env, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= len(USAGE) + 3


def test_worked_example_trains_with_every_component_that_it_adds(tmp_path):
    page = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    code = re.search(r"<!-- executed by.*?-->\n```python\n(.*?)```", page, re.S).group(1)
    plugin = tmp_path / "myidea.py"
    plugin.write_text(code)
    words = ["Haus Hund Katze", "der Hund rennt", "die Katze", "ein Haus", "Hund"] * 20
    for side, lines in (("de", words), ("en", [w.upper() for w in words])):
        (tmp_path / f"text.{side}").write_text("\n".join(lines) + "\n")
    corpus = f"{{source: {tmp_path}/text.de, target: {tmp_path}/text.en}}"
    for architecture in ("gated", "mean_words"):
        run = tmp_path / architecture
        config = tmp_path / f"{architecture}.yaml"
        size = "dim: 32, ffn_dim: 32, heads: 2, encoder_layers: 1, decoder_layers: 1, "
        config.write_text(
            f"run_dir: {run}\n"
            "task: {name: lowercased, source_lang: de, target_lang: en}\n"
            f"data: {{train: {corpus}, valid: {corpus}, workers: 1}}\n"
            "tokenizer: {vocab_size: 40, joint: false}\n"
            f"architecture: {{name: {architecture}, "
            + (f"{size}tie_embeddings: none, gate_bias: 2" if architecture == "gated" else "")
            + "}\ncriterion: {name: confident, scale: 0.7}\n"
            "lr_scheduler: {name: triangle, peak: 5}\n"
            "training: {max_updates: 12, threads: 1}\nlogging: {trackers: [{name: jsonl}]}\n"
            "validation: {every_updates: 6, max_sentences: 3}\n"
        )
        done = tiny.called("train", config, "--plugin", plugin)
        assert done.returncode == 0, done.stderr
        assert (run / "checkpoints" / "best" / "model.safetensors").is_file()
        assert (run / "plugins" / "myidea.py").is_file()

        refused = tiny.called("translate", run, input="Hund\n")
        assert refused.returncode == 2
        assert f"--plugin {run}/plugins/myidea.py" in refused.stderr
        given = ("--plugin", f"{run}/plugins/myidea.py")
        done = tiny.called("translate", run, *given, input="Hund\n")
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("\n") == 1
        assert done.stdout == done.stdout.lower()


def test_position_encoding_of_the_page_trains_and_translates(tmp_path):
    page = (ROOT / "docs" / "positions.md").read_text(encoding="utf-8")
    code = re.search(r"<!-- executed.*?-->\n```python\n(.*?)```", page, re.S).group(1)
    (tmp_path / "fading.py").write_text(code)
    for side in ("de", "en"):
        (tmp_path / f"text.{side}").write_text("der Hund rennt\ndie Katze\n" * 30)
    corpus = f"{{source: {tmp_path}/text.de, target: {tmp_path}/text.en}}"
    (tmp_path / "run.yaml").write_text(
        f"run_dir: {tmp_path}/run\ntask: {{source_lang: de, target_lang: en}}\n"
        f"data: {{train: {corpus}, valid: {corpus}, workers: 1}}\n"
        "tokenizer: {model_type: char, vocab_size: 20}\n"
        "architecture: {dim: 16, ffn_dim: 16, heads: 2, encoder_layers: 1, decoder_layers: 1}\n"
        "training: {max_updates: 4, packing: true, threads: 1}\nvalidation: {every_updates: 2}\n"
        "logging: {trackers: [{name: jsonl}, {name: console}]}\n"
    )
    given = ("--plugin", tmp_path / "fading.py", "architecture.position.name=fading")
    done = tiny.called("train", tmp_path / "run.yaml", *given)
    assert done.returncode == 0, done.stderr
    assert "attention: sdpa (positions: fading)" in done.stderr
    weights = load_file(tmp_path / "run" / "checkpoints" / "last" / "model.safetensors")
    assert (weights["encoder_position.strength"] != 1).all()  # the gradient arrived
