"""The corpus that a teacher's translations make, and what becomes of it when it is cut off."""

import gzip
from types import SimpleNamespace

import pytest
from mtplug_distill.__main__ import _sources, main

import mtplug
from mtplug import testing


def test_targets_are_the_teachers_translations_and_a_cut_run_goes_on(mtplug_run, tmp_path, capsys):
    root = mtplug.translator.load_run(mtplug_run).data.root
    with open(f"{root}/train.xx", encoding="utf-8") as file:
        sources = file.read().splitlines()[:30]
    text = tmp_path / "text"
    text.write_text("\n\n".join(sources) + "\n")
    folder = tmp_path / "made"
    command = [str(mtplug_run), str(folder), "search.beam=2", "--input", str(text), "--chunk", "10"]
    assert main([*command, "--device", "cpu"]) == 0
    expected = mtplug.load(mtplug_run, device="cpu").translate(sources, beam=2)
    assert (folder / "source").read_text().splitlines() == sources
    whole = (folder / "target").read_text()
    assert whole.splitlines() == expected

    # As a kill leaves it, in the middle of the 15th line.
    cut = sum(len(line) + 1 for line in expected[:14]) + 2
    (folder / "target").unlink()
    (folder / ".target.partial").write_text(whole[:cut])
    capsys.readouterr()
    assert main([*command, "--device", "cpu"]) == 0
    assert (folder / "target").read_text() == whole
    assert "24 of 30" in capsys.readouterr().err
    assert main([*command[:2], "search.beam=3", *command[3:]]) == 2
    assert "another teacher, other settings or other text" in capsys.readouterr().err


def test_without_input_it_is_the_training_data(mtplug_run, tmp_path):
    assert main([str(mtplug_run), str(tmp_path / "made"), "search.name=greedy"]) == 0
    made = (tmp_path / "made" / "target").read_text().splitlines()
    with open(f"{mtplug.translator.load_run(mtplug_run).data.root}/train.en") as file:
        references = file.read().splitlines()
    assert len(made) == len(references) == 400
    assert sum(a == b for a, b in zip(made, references, strict=True)) > 200  # it has learnt them


def test_an_adapter_and_an_ensemble_teach(mtplug_run, tmp_path, capsys):
    """An adapter's checkpoint has no model.safetensors; of an ensemble only the first checkpoint was told apart."""
    text = tmp_path / "text"
    text.write_text("ka lo\n")
    base = f"training.finetune_from={mtplug_run}"
    adapter = testing.train(
        tmp_path, base, "peft.name=bitfit", "training.max_updates=2", name="adapter"
    )
    given = [str(adapter), str(tmp_path / "adapted"), "--input", str(text), "--device", "cpu"]
    assert main(given) == 0
    assert len((tmp_path / "adapted" / "target").read_text().splitlines()) == 1
    steps = sorted(p.name for p in (mtplug_run / "checkpoints").glob("step-*"))
    made = [str(mtplug_run), str(tmp_path / "both"), "--input", str(text), "--device", "cpu"]
    assert main([*made, "--checkpoint", f"best,{steps[-1]}"]) == 0
    assert main([*made, "--checkpoint", f"best,{steps[0]}"]) == 2
    assert "was begun with another teacher" in capsys.readouterr().err


def test_a_student_is_told_the_prefixes_of_the_training_data(tmp_path, capsys):
    """Its sources begin with them, and without `user_symbols` its tokenizer cut them."""
    teacher = testing.train(
        tmp_path, "data.train.prefix=<bt>", "training.max_updates=2", name="teacher"
    )
    made = tmp_path / "made"
    assert main([str(teacher), str(made), "search.name=greedy"]) == 0
    assert all(s.startswith("<bt> ") for s in (made / "source").read_text().splitlines())
    assert """tokenizer.user_symbols='["<bt>"]'""" in capsys.readouterr().out
    (tmp_path / "text").write_text("ka lo\n")
    assert main([str(teacher), str(tmp_path / "more"), "--input", str(tmp_path / "text")]) == 0
    assert "<bt>" not in capsys.readouterr().out


def test_its_own_input_is_not_written_over(mtplug_run, tmp_path, capsys):
    (tmp_path / "source").write_text("ein satz\n\nnoch einer\n")
    arguments = [str(mtplug_run), str(tmp_path), "--input", str(tmp_path / "source")]
    assert main(arguments) == 2
    assert "that is --input" in capsys.readouterr().err
    assert (tmp_path / "source").read_text() == "ein satz\n\nnoch einer\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "out"], "nowhere does not exist"),
        (["run", "out", "--input", "x"], "no such file"),
    ],
)
def test_wrong_paths_are_one_line(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_documents_stay_documents(tmp_path):
    task = "task={name: documents, source_lang: xx, target_lang: en, window: 4}"
    config = testing.write_corpus(tmp_path).parent
    run = testing.train(config, task, updates=2)
    text = tmp_path / "text"
    text.write_text("\nka lo\nmi\n\n\nnu\n\n" + "so\n" * 7)
    main(
        [
            str(run),
            str(tmp_path / "made"),
            "--input",
            str(text),
            "--chunk",
            "2",
            "search.min_length=1",
        ]
    )
    sources = (tmp_path / "made" / "source").read_text().split("\n")
    assert sources == ["ka lo", "mi", "", "nu", "", *["so"] * 7, ""]
    targets = (tmp_path / "made" / "target").read_text().split("\n")
    assert [bool(t) for t in targets] == [bool(s) for s in sources]
    # In the windows that a chunk has, which end with documents where these are short.
    teacher = mtplug.load(run)
    assert targets[:5] == teacher.translate(sources[:5], min_length=1)


def test_a_teacher_of_several_languages_is_asked_for_one(tmp_path, capsys):
    testing.write_corpus(tmp_path)
    both = (
        "data.train=[{source: train.xx, target: train.en, target_lang: en},"
        "{source: train.en, target: train.xx, source_lang: en, target_lang: xx}]"
    )
    valid = "data.valid={source: valid.xx, target: valid.en, target_lang: en}"
    tagged = "task={name: translation, source_lang: xx, target_lang: en, language_tags: true}"
    run = testing.train(tmp_path, both, valid, tagged, "data.test=null", updates=2)
    assert main([str(run), str(tmp_path / "made")]) == 2
    assert "--target-lang: the training data is in en and xx" in capsys.readouterr().err
    assert main([str(run), str(tmp_path / "made"), "--target-lang", "de"]) == 2
    assert main([str(run), str(tmp_path / "made"), "--target-lang", "xx"]) == 0
    assert (tmp_path / "made" / "source").read_text() == (tmp_path / "train.en").read_text()
    made = (tmp_path / "made" / "target").read_text().splitlines()
    teacher = mtplug.load(run)
    teacher.target_lang = "xx"
    assert made[:3] == teacher.translate((tmp_path / "train.en").read_text().splitlines()[:3])


def test_input_is_read_as_others_read_it(tmp_path):
    """A byte order mark was a part of the first word, and a lone carriage return ended a line."""
    teacher = SimpleNamespace(task=SimpleNamespace(window=1))
    file = tmp_path / "in.gz"
    file.write_bytes(gzip.compress("\ufeffka lo\r\n\nmi\rnu\n".encode()))
    assert _sources(file, None, teacher) == ["ka lo", "mi nu"]
    file.write_bytes(gzip.compress(b"ka\n\xff\n"))
    with pytest.raises(mtplug.UserError, match=r"in\.gz:2: not valid UTF-8"):
        _sources(file, None, teacher)
