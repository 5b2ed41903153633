"""How far the gpt1 tokenizer agrees with the original's words and with Hugging Face's tokenizer.

    python bench/gpt1_tokenizer.py --vocabulary DIR FILE...

Line by line, three comparisons. `merges`: our words through Hugging Face's BPE, which must give our
ids. `spacy`: our words against those of spaCy's English tokenizer, which the original ran (only
where spaCy is installed). `hugging face`: our ids against those of OpenAIGPTTokenizer, which cuts
words as BERT does: it takes every apostrophe, full stop and sign for a word of its own, drops
accents and line ends and has no ftfy; the share of our tokens that it gives too, in order.
"""

import argparse
import importlib.util
from collections import Counter
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from gptjax.tokenizers.english import words_of
from gptjax.tokenizers.gpt1 import GPT1Tokenizer, gpt1, standardise


def compare(tokenizer: GPT1Tokenizer, lines: list[str]) -> dict[str, float]:
    """Counts of one text: words and lines compared, and where they differ."""
    from transformers import OpenAIGPTTokenizer

    ids_of = {token: i for i, token in enumerate(tokenizer.tokens)}
    pairs: Any = [tuple(merge.split(" ")) for merge in tokenizer.merges]
    reference = OpenAIGPTTokenizer(vocab=ids_of, merges=pairs)
    counts: Counter[str] = Counter()
    words_of_spacy = spacy_words()
    for line in lines:
        ours = tokenizer.encode(line).tolist()
        theirs = reference.encode(line, add_special_tokens=False)
        blocks = SequenceMatcher(None, ours, theirs, autojunk=False).get_matching_blocks()
        counts["lines"] += 1
        counts["lines like hugging face's"] += ours == theirs
        counts["tokens"] += len(ours)
        counts["hugging face's tokens"] += len(theirs)
        counts["tokens in both"] += sum(block.size for block in blocks)
        chunks = [chunk for chunk in standardise(line).split(" ") if chunk]
        words = [word for chunk in chunks for word in words_of(chunk)]
        joined = [
            token.id
            for word in words
            for token in reference.backend_tokenizer.model.tokenize(word.lower())
        ]
        counts["lines with other merges"] += joined != ours
        if words_of_spacy is not None:
            counts["words"] += len(words)
            counts["words like spaCy's"] += sum(
                len(words_of(c)) for c in chunks if words_of(c) == words_of_spacy(c)
            )
    return dict(counts)


def spacy_words():
    """SpaCy's English tokenizer as a function of a text without blanks; None where it is not."""
    if importlib.util.find_spec("spacy") is None:
        return None
    import spacy  # pyright: ignore[reportMissingImports]

    known: dict[str, list[str]] = {}
    cut = spacy.blank("en").tokenizer

    def words(chunk: str) -> list[str]:
        if chunk not in known:
            known[chunk] = [token.text for token in cut(chunk)]
        return known[chunk]

    return words


def main() -> None:
    """Print the counts of every file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--vocabulary", type=Path, help="directory with GPT-1's two files")
    parser.add_argument("files", nargs="+", type=Path)
    arguments = parser.parse_args()
    tokenizer = gpt1(arguments.vocabulary)
    for path in arguments.files:
        lines = [line for line in path.read_text("utf-8").split("\n") if line.strip()]
        print(path.name)
        for name, count in compare(tokenizer, lines).items():
            print(f"  {name:28} {count:>10,}")


if __name__ == "__main__":
    main()
