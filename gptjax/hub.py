"""Names of data sets on the Hugging Face hub: OWNER/NAME@REVISION:SUBSET:SPLIT.

Only the name is read here; whether there is such a data set is found out when it is fetched.
"""

import re
from typing import NamedTuple

FORM = "OWNER/NAME, OWNER/NAME:SUBSET or OWNER/NAME:SUBSET:SPLIT, with @REVISION after NAME or not"
_NAME = re.compile(
    r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[^:@\s]+))?"
    r"(:(?P<subset>[^:/\s]*))?(:(?P<split>\w[\w.-]*))?",
    re.ASCII,
)


class HubName(NamedTuple):
    """A data set on the hub; without a subset or a revision it is the one the hub shows first."""

    repository: str
    revision: str | None
    subset: str | None
    split: str


def read_hub_name(text: str) -> HubName | None:
    """Read `FORM`; None where the text is something else."""
    found = _NAME.fullmatch(text)
    if found is None:
        return None
    repository, revision, subset, split = found.group("repository", "revision", "subset", "split")
    return HubName(repository, revision, subset or None, split or "train")
