"""What other programs compute from an exported model, and for which models that would be wrong.

`transformers` follows config.json. vLLM and llama.cpp compute GPT-2 and ignore some of its settings
without a word, so a model that they would serve wrongly has to be refused here.
"""

from collections.abc import Iterator
from typing import Literal

from gptjax.base.errors import UserError
from gptjax.config import ModelConfig
from gptjax.tokenizers.bpe import GPT2_VOCAB, BPETokenizer
from gptjax.tokenizers.plain import Tokenizer

Reader = Literal["transformers", "vllm", "llama.cpp"]
READERS: tuple[Reader, ...] = ("transformers", "vllm", "llama.cpp")


def reasons_against(reader: Reader, model: ModelConfig, tokenizer: Tokenizer) -> Iterator[str]:
    """Why a program would compute something else, or other ids, or nothing; nothing if it is right.

    >>> from gptjax.tokenizers.plain import ByteTokenizer
    >>> list(reasons_against("vllm", ModelConfig(tied_head=False), ByteTokenizer()))
    ['it ties the head of a GPT-2 to the embedding, whatever config.json says']
    """
    is_first = model.norm == "post"
    if reader == "transformers":
        if is_first == model.final_norm:
            where, final = ("after", "with") if is_first else ("before", "without")
            yield (
                f"it has no GPT with norms {where} the sub-layers and {final} a final norm: "
                "GPT-2 is pre with, GPT-1 is post without"
            )
        if is_first and model.activation != "gelu_tanh":
            yield "its GPT-1 has the tanh form of GELU only"
        return
    if is_first:
        yield "it has no GPT-1"
    elif reader == "vllm" and not model.tied_head:
        yield "it ties the head of a GPT-2 to the embedding, whatever config.json says"
    elif reader == "llama.cpp":
        if not (isinstance(tokenizer, BPETokenizer) and _is_gpt2(tokenizer)):
            yield f"of GPT-2's tokenizers it knows GPT-2's own only, not {tokenizer.name}"
        if model.activation != "gelu_tanh":
            yield f"it computes the tanh form of GELU, not {model.activation}"


def require_reader(reader: Reader, model: ModelConfig, tokenizer: Tokenizer) -> list[str]:
    """Notes about the readers that would be wrong; raises `UserError` if `reader` is one of them.

    Whatever the reader, the directory is one of transformers', so its limits hold too.
    """
    for needed in dict.fromkeys(("transformers", reader)):
        if reasons := list(reasons_against(needed, model, tokenizer)):
            raise UserError(
                f"{needed} cannot serve this model: {'; '.join(reasons)}. Nothing was written"
            )
    return [
        f"do not serve it with {other}: {'; '.join(reasons)}"
        for other in READERS
        if (reasons := list(reasons_against(other, model, tokenizer)))
    ]


def _is_gpt2(tokenizer: BPETokenizer) -> bool:
    """Whether it is GPT-2's own, by its size and its name."""
    return tokenizer.name == "gpt2" and tokenizer.n_vocab == GPT2_VOCAB
