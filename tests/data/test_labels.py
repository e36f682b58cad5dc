"""Labels as a vocabulary."""

import pytest

from mtplug.data.labels import Labels
from mtplug.errors import UserError


@pytest.mark.parametrize("text", ["", '["A", "B"', '{"A": 1}'])
def test_a_damaged_file_is_told_by_its_name(tmp_path, text):
    """The error was one of JSON's, which named no file."""
    Labels(["A", "B"]).save(tmp_path, "labels")
    assert Labels.load(tmp_path, "labels").pieces[-2:] == ["A", "B"]
    (tmp_path / "labels.json").write_text(text)
    with pytest.raises(UserError, match=r"labels\.json is damaged .*; restore that file"):
        Labels.load(tmp_path, "labels")
