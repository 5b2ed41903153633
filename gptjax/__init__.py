"""gptjax: train, resume and sample GPT-1, GPT-2 and GPT-3-class language models in JAX.

Verbs are run (`python -m gptjax.train`), nouns are imported (`from gptjax.model.gpt import GPT`).
Importing any of them touches no device and no network.
"""

__version__ = "0.1.0"
