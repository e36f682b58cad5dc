"""The corpus."""

import pytest

from mtplug import UserError, testing


@pytest.fixture
def file(tmp_path):
    text = "".join(f"{source} ||| {target}\n" for source, target in testing.pairs(50, seed=1))
    (tmp_path / "pairs.txt").write_text(text)
    return tmp_path / "pairs.txt"


def test_it_keeps_its_contract(file):
    testing.check_corpus("NAME", f"path={file}")


def test_a_tiny_run_trains_with_it(tmp_path, file):
    run = testing.train(tmp_path, "data.train={name: NAME, path: pairs.txt}")
    assert (run / "checkpoints/last/model.safetensors").is_file()


def test_line_without_bars_is_named(tmp_path, file):
    with file.open("a") as more:
        more.write("a line of another kind\n")
    with pytest.raises(UserError, match=r"pairs.txt:51: no \|\|\|"):
        testing.train(tmp_path, "data.train={name: NAME, path: pairs.txt}")
