"""Other engines compute an export's logits: onnxruntime through torch.onnx, and llama.cpp.

llama.cpp needs an environment of its own: GPTJAX_LLAMA_CPP names a checkout of it, for its
converter, and GPTJAX_LLAMA_CPP_PYTHON an interpreter that has llama-cpp-python.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from llama_cpp_logits import TEXT
from test_huggingface_writing import GPT2, MODELS, logits_of, transformers_model, weights_of

from gptjax.conversion.huggingface_writing import write_huggingface
from gptjax.tokenizers.bpe import gpt2

pytest.importorskip("tokenizers")
CLOSE = 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "gpt1", "untied"])
def test_onnxruntime_computes_the_same_logits(name, tmp_path):
    torch = pytest.importorskip("torch")
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")

    class Logits(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model
            self.eval()

        def forward(self, tokens):
            return self.model(input_ids=tokens).logits

    weights = weights_of(MODELS[name])
    write_huggingface(weights, tmp_path / "out")
    model = transformers_model(tmp_path / "out")
    model.config.use_cache = False
    tokens = np.random.default_rng(1).integers(0, 257, (2, 24))
    path = tmp_path / "model.onnx"
    torch.onnx.export(
        Logits(model), (torch.tensor(tokens),), path, input_names=["tokens"], dynamo=True
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"tokens": tokens})
    np.testing.assert_allclose(found, logits_of(weights, tokens), atol=CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_llama_cpp_s_converter_and_engine_give_the_same_logits_and_ids(
    tied, test_data, tmp_path, monkeypatch
):
    checkout, python = map(os.environ.get, ("GPTJAX_LLAMA_CPP", "GPTJAX_LLAMA_CPP_PYTHON"))
    if not (checkout and python):
        pytest.skip("GPTJAX_LLAMA_CPP and GPTJAX_LLAMA_CPP_PYTHON are not set")
    pytest.importorskip("transformers")
    shape = {"n_embd": 64, "n_head": 4, "n_ctx": 64, "n_vocab": 50257, "tied_head": tied}
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(test_data / "tiktoken_cache"))
    tokenizer = gpt2()
    weights = replace(weights_of(replace(GPT2, **shape)), tokenizer=tokenizer)
    for name in ("wte/embedding", "lm_head"):  # logits of usual size: llama.cpp's GELU is a table
        if name in weights.arrays:  # of float16
            weights.arrays[name] /= 10
    write_huggingface(weights, tmp_path / "out", reader="llama.cpp")
    model, asked, answer = (tmp_path / name for name in ("m.gguf", "tokens.json", "answer.json"))
    converter = Path(checkout) / "convert_hf_to_gguf.py"
    command = [sys.executable, str(converter), str(tmp_path / "out")]
    subprocess.run([*command, "--outtype", "f32", "--outfile", str(model)], check=True)
    tokens = np.random.default_rng(1).integers(0, 50256, 24)
    asked.write_text(json.dumps(tokens.tolist()))
    script = Path(__file__).with_name("llama_cpp_logits.py")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run(
        [python, str(script), str(model), str(asked), str(answer)], check=True, env=environment
    )
    found = json.loads(answer.read_text())
    np.testing.assert_allclose(found["logits"], logits_of(weights, tokens[None])[0], atol=CLOSE)
    assert found["ids"] == tokenizer.encode(TEXT).tolist()
