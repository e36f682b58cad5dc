"""Other formats: the kind `exporters`.

An exporter has `export(translator, path)`, unless its format is only read, and as many of these as that allows:

- `why_not(model, task) -> str`: what keeps such a model from being exported; empty if nothing does. `task`
  has the tokenizers, or before a training starts something that only has their sizes.
- `engine(path, device) -> Engine`: translates with what `export` wrote (`mtplug-translate --backend`).
- `read(source) -> Imported`: makes a run of a model in this format (`mtplug-import`).
"""

from mtplug.exporting.base import Engine, Imported, build_exporter, reason_against, write_run

__all__ = ["Engine", "Imported", "build_exporter", "reason_against", "write_run"]
