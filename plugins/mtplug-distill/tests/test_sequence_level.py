"""The corpus that a teacher's translations make, and what becomes of it when it is cut off."""

import pytest
from mtplug_distill.__main__ import main

import mtplug


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
