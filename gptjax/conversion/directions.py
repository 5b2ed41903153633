"""What `convert` does, by direction: any model in as a run, a run out in any form."""

from pathlib import Path

from gptjax.conversion.adapters import export_peft, import_peft, merge_run
from gptjax.conversion.exporting import export_huggingface, export_llmc
from gptjax.conversion.kinds import Kind, read_model
from gptjax.conversion.new_directory import require_free
from gptjax.conversion.peft import is_peft
from gptjax.conversion.reader_limits import Reader
from gptjax.conversion.run_directory import write_run
from gptjax.conversion.safetensors_files import FileType
from gptjax.conversion.weights import description

Notes = list[str]


def bring_in(
    source: str, out: Path, kind: Kind | None, tokenizer: str | None, base: str | None
) -> tuple[list[str], Notes]:
    """Write a model, or adapters on their `base`, as a run; returns lines about it, and notes.

    Raises `UserError`, with nothing written, for what cannot be read or does not fit.
    """
    require_free(out)
    if base is not None or is_peft(Path(source)):
        return import_peft(Path(source), base, out), []
    weights = read_model(source, kind, tokenizer)
    write_run(weights, out)
    return description(weights), list(weights.notes)


def take_out(
    run: str, out: Path, to: str | None, dtype: FileType, averaged: bool, reader: Reader
) -> Notes:
    """Write a run in the form `to`; None merges its adapters into a run. Returns notes.

    Raises `UserError`, with nothing written, for what the form cannot hold.
    """
    if to is None:
        return merge_run(run, out, averaged)
    if to == "peft":
        return export_peft(run, out, averaged)
    if to == "llmc":
        return export_llmc(run, out, dtype, averaged)
    return export_huggingface(run, out, dtype, averaged, reader)
