"""A run that follows instructions, with the random small model of live_server.py."""

import re

from live_server import SHAPE, TOKENIZER

from gptjax.config import Config, InstructConfig, SampleConfig
from gptjax.data.templates import Message
from gptjax.generation.loaded import LoadedRun

NEW = 6


class Letters:
    """The tokenizer of the small model, for which other characters are no text."""

    eot_id, n_vocab, name = TOKENIZER.eot_id, TOKENIZER.n_vocab, TOKENIZER.name
    decode, token_bytes, to_json = TOKENIZER.decode, TOKENIZER.token_bytes, TOKENIZER.to_json

    def encode(self, text):
        return TOKENIZER.encode(re.sub(r"[^a-zA-Z .,!?]", "", text))


def conversation(text: str, reference: str = "x"):
    return Message("user", text), Message("assistant", reference)


def a_run(params, task: str = "instruct") -> LoadedRun:
    sample = SampleConfig(max_new_tokens=NEW, temperature=0.9, stop=("e",))
    config = Config(model=SHAPE, task=task, sample=sample, instruct=InstructConfig(template="chat"))
    return LoadedRun(config, params, Letters(), 3, "a run")  # pyright: ignore
