"""WikiText as lm-evaluation-harness measures it (task `wikitext`, version 2.0).

The blanks that WikiText's own tokenisation put into a page are taken out. The page then follows an
end-of-text and is scored in windows of T tokens, each token once. Words and bytes are those of the
page as it is in the file, so models with different tokenizers compare.

The data are the published ones: `wiki.test.raw` of wikitext-2-raw-v1, whose pages begin at headings
of the first level, or records with a field `page` (EleutherAI/wikitext_document_level) as JSON
lines, a JSON array, Parquet or a data set of the hub.

Reference, word perplexity on WikiText-2's raw test set: 37.37 for GPT-2 124M (transformers#13761)
and 17.48 for 1558M (README of gpt-neo), both by lm-evaluation-harness. The raw test sets of
WikiText-2 and WikiText-103 are one text, and Radford et al. (2019) give for WikiText-103 37.50,
26.37, 22.05 and 17.48 for their four sizes.
"""

import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from gptjax.base.errors import UserError
from gptjax.base.files import require_fetched
from gptjax.evaluation.estimates import Figures, bounded_exp, ratio_estimate, text_figures, times
from gptjax.evaluation.records import read_records, text_field
from gptjax.evaluation.scoring import Request
from gptjax.evaluation.setting import Setting
from gptjax.preparation.sources import Input, unpack
from gptjax.tokenizers.plain import utf8

FIELD = "page"
RECORDS = (b"{", b"[", b"PAR1")  # how a file of records begins; headings begin with " = "
_BLANKS = re.compile(r"\s+")
# in this order: a rule sees what those before it have left
_RULES: list[tuple[str, str]] = [
    (r"s '", "s'"),
    (r"/' [0-9]/", "/'[0-9]/"),
    *((f" @{mark}@ ", mark) for mark in "-,"),
    (r" @\.@ ", "."),
    *((f" {re.escape(mark)} ", f"{mark} ") for mark in ":;.!?,"),
    (r"\(\s*([^\)]*?)\s*\)", r"(\1)"),
    (r"\[\s*([^\]]*?)\s*\]", r"[\1]"),
    (r"{\s*([^}]*?)\s*}", r"{\1}"),
    (r'"\s*([^"]*?)\s*"', r'"\1"'),
    (r"'\s*([^']*?)\s*'", r"'\1'"),
    *((" ".join("=" * n), "=" * n) for n in (4, 3, 2)),
    (" ° ", "°"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
]
RULES = [(re.compile(pattern), text) for pattern, text in _RULES]


def detokenised(page: str) -> str:
    """A page of WikiText as people write it, by the rules of lm-evaluation-harness.

    >>> detokenised("a ( b ) , 1 @,@ 000 @-@ fold : it 's")
    "a (b), 1,000-fold: it's"
    """
    for pattern, text in RULES:
        page = pattern.sub(text, page)
    return page


def rolling_requests(tokens: Sequence[int] | np.ndarray, first: int, context: int) -> list[Request]:
    """Requests that score every token of a text once, the first one after the token `first`.

    Scored tokens see those before them in their window, and the one before the window. The last
    window is filled from the left, so its tokens see more. These are the disjoint windows of
    `get_rolling_token_windows` in lm-evaluation-harness with a context of 1.

    >>> [(a.tolist(), b.tolist()) for a, b in rolling_requests([5, 6, 7], first=0, context=2)]
    [([0], [5, 6]), ([5, 6], [7])]
    """
    line, requests = np.concatenate([[first], tokens]).astype(np.int32), []
    for start in range(0, len(tokens), context):
        end = min(start + context, len(tokens))
        requests.append(Request(line[max(0, end - context) : start + 1], line[start + 1 : end + 1]))
    return requests


def measure_wikitext(setting: Setting) -> Figures:
    """Score pages; standard errors come from the spread between pages.

    Raises `UserError` if the file holds no pages.
    """
    tokenizer, scorer = setting.run.tokenizer, setting.scorer
    pages = read_pages(setting.data, setting.limit)
    losses, tokens, requests, owners = np.zeros(len(pages)), np.zeros(len(pages), int), [], []
    for number, page in enumerate(pages):
        ids = tokenizer.encode(detokenised(page))
        rolled = rolling_requests(ids, tokenizer.eot_id, scorer.context)
        requests += rolled
        owners += [number] * len(rolled)
        tokens[number] = len(ids)
    if not requests:
        raise UserError(f"{setting.data} holds no page: all of them are empty")
    with setting.bar(len(requests), "windows") as advance:
        scores = scorer.score(requests, advance)
    np.subtract.at(losses, owners, [score.logprob for score in scores])
    words = [len(_BLANKS.split(page)) for page in pages]
    sizes = [len(utf8(page)) for page in pages]
    per_word, word_error = ratio_estimate(losses, words)
    per_byte, byte_error = ratio_estimate(losses, sizes)
    word_perplexity, byte_perplexity = bounded_exp(per_word), bounded_exp(per_byte)
    return {
        "word_perplexity": word_perplexity,
        "word_perplexity_stderr": times(word_error, word_perplexity),
        "byte_perplexity": byte_perplexity,
        "byte_perplexity_stderr": times(byte_error, byte_perplexity),
        **text_figures(losses, tokens, sizes),
        "words": sum(words),
        "pages": len(pages),
    }


def read_pages(data: str, limit: int | None = None) -> list[str]:
    """The pages of a file, compressed or not, or of a data set of the hub, or the first `limit`.

    Raises `UserError` if there are none, or if a record has no page.
    """
    path = Path(data)
    if path.is_file():
        require_fetched(path)
        with tempfile.TemporaryDirectory(prefix="gptjax-evaluate-") as directory:
            source = unpack(Input(path, name=data), Path(directory))
            with source.path.open("rb") as file:
                head = file.read(2**12).lstrip()
            if not head.startswith(RECORDS):
                try:
                    text = source.path.read_text("utf-8-sig")
                except UnicodeDecodeError as error:
                    raise UserError(f"{data} is not UTF-8 text: {error}") from error
                pages = list(split_pages(text))[:limit]
                if not any(map(str.strip, pages)):
                    raise UserError(f"{data} holds no page: it is empty")
                return pages
    return read_records(data, lambda row, place: text_field(row, FIELD), limit)


def split_pages(text: str) -> Iterator[str]:
    """Cut the joined text of WikiText before every heading of the first level.

    >>> list(split_pages(" = A = \\nx\\n = = B = = \\ny\\n = C = \\nz"))
    [' = A = \\nx\\n = = B = = \\ny', ' = C = \\nz']
    """
    lines: list[str] = []
    for line in text.split("\n"):
        short = line.replace("= = =", "===").replace("= =", "==").strip()
        if short.startswith("= ") and short.endswith(" ="):
            if (page := "\n".join(lines)).strip():
                yield page
            lines = []
        lines.append(line)
    yield "\n".join(lines)
