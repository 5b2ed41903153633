"""Files of torch.save, opened without running anything in them.

Such a file is a pickle, alone or in a zip archive beside the numbers of its tensors. torch's
unpickler with `weights_only` builds tensors and plain values and refuses all else.
"""

import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.base.errors import UserError
from gptjax.base.files import require_fetched

OLD_FORMAT = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch before 1.6: a number of its own
_LARGEST_PICKLE = 2**24  # bytes: names and shapes of all arrays


def pickled_words(path: Path) -> bytes:
    """The pickle inside a file of torch.save as bytes, to look for words; empty for other files.

    Nothing is unpickled, and torch is not needed.
    """
    try:
        if _is_zip(path):
            with zipfile.ZipFile(path) as archive:
                name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
                with archive.open(name) as file:
                    return file.read(_LARGEST_PICKLE)
        with path.open("rb") as file:
            beginning = file.read(2**16)
        return beginning if beginning.startswith(OLD_FORMAT) else b""
    except Exception:  # whatever a damaged archive raises
        return b""


def load_torch_file(path: Path) -> Any:
    """What a file of torch.save holds; its tensors are mapped from the disk where that is possible.

    Raises `UserError` without torch, for a file that is damaged or not torch's, and for one that
    asks for code.
    """
    require_fetched(path)
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path} is a file of torch.save, and torch is not installed: pip install torch"
        ) from error
    try:
        with path.open("rb") as file:
            beginning = file.read(len(OLD_FORMAT))
        is_zip = _is_zip(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if not is_zip and not beginning.startswith(OLD_FORMAT):
        cut = " or was cut short" if beginning.startswith(b"PK") or not beginning else ""
        raise UserError(f"{path} is not a file of torch.save{cut}: fetch or save it again")
    try:
        with warnings.catch_warnings():  # about the same damage that it then raises
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # a damaged pickle raises whatever it likes
        if asked := re.search(r"GLOBAL (\S+)", str(error)):
            raise UserError(
                f"{path} asks for {asked[1]!r:.80} when it is loaded, which could run anything: "
                "expected tensors and plain values only; save its state_dict and settings alone"
            ) from error
        raise UserError(
            f"{path} is damaged ({type(error).__name__} while it was loaded): fetch or save it "
            "again"
        ) from error


def tensor_to_numpy(tensor: Any) -> np.ndarray | None:
    """A dense tensor of real numbers as a float32 array, without a copy if it is one already.

    None for anything else, such as a number that only claims to be a large array.
    """
    import torch

    if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
        return None
    if tensor.device.type != "cpu" or not tensor.is_floating_point():
        return None
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return None
    return tensor.detach().float().numpy()


def _is_zip(path: Path) -> bool:
    """Whether a file ends as a zip archive does; raises OSError if it cannot be read."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:
        return False
