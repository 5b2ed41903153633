"""What llama.cpp computes from a GGUF: run by an interpreter that has llama-cpp-python.

Arguments: the GGUF, a JSON file of tokens, a JSON file to write. It gets the logits of every
position, in float32 throughout, and the ids of a text.
"""

import json
import sys
from pathlib import Path

TEXT = "She sells  sea-shells;\n\nwe'll see 1234 déjà vu 🙂"

if __name__ == "__main__":
    import llama_cpp

    model, tokens, out = sys.argv[1:]
    llama = llama_cpp.Llama(
        model, n_ctx=64, logits_all=True, verbose=False, type_k=0, type_v=0, n_threads=2
    )
    llama.eval(json.loads(Path(tokens).read_text()))
    found = {
        "logits": llama.scores[: llama.n_tokens].tolist(),
        "ids": llama.tokenize(TEXT.encode(), add_bos=False, special=False),
    }
    Path(out).write_text(json.dumps(found))
