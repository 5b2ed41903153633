"""Names of data sets on the hub are read as they are written, and nothing else is."""

import pytest

from gptjax.config.names import HubName, read_hub_name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a/b", HubName("a/b", None, None, "train")),
        ("kjj0/fineweb10B-gpt2", HubName("kjj0/fineweb10B-gpt2", None, None, "train")),
        ("A_1/b.c-d:sample-10BT", HubName("A_1/b.c-d", None, "sample-10BT", "train")),
        ("a/b:en:test", HubName("a/b", None, "en", "test")),
        ("a/b::validation", HubName("a/b", None, None, "validation")),
        ("a/b@v1.0", HubName("a/b", "v1.0", None, "train")),
        ("a/b@refs/convert/parquet:x", HubName("a/b", "refs/convert/parquet", "x", "train")),
    ],
)
def test_a_name_is_read(text: str, name: HubName):
    assert read_hub_name(text) == name


@pytest.mark.parametrize(
    "text",
    ["", "a", "a/", "/b", "a/b/c", "../b", "a/..", "a b/c", "é/b", "a/b@", "a/b@v:@x:y:z",
     "a/b:x:y:z", "a/b:x:", "a/b:x/y", "a/b\n", "https://a/b", "a/b:x:train[:10%]"],
)  # fmt: skip
def test_anything_else_is_no_name(text: str):
    assert read_hub_name(text) is None
