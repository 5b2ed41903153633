"""PEFT loads our adapters and ours reads PEFT's, with the same logits; what differs is refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapted_runs import CFG, adapted_run, logits_of
from prepared_models import write_huggingface_model
from safetensors.numpy import load_file, save_file

from gptjax.base.errors import UserError
from gptjax.base.tree import named_leaves
from gptjax.config import ModelConfig
from gptjax.conversion.adapters import export_peft, import_peft, merge_run
from gptjax.conversion.classifier_file import CLASSIFIER
from gptjax.conversion.exporting import export_huggingface
from gptjax.conversion.finding import find_model
from gptjax.conversion.opening import load_adapted, load_run
from gptjax.conversion.peft import ARRAYS, SETTINGS, read_peft
from gptjax.convert import convert
from gptjax.runs.directory import RunDir

TOKENS_BT = np.random.default_rng(3).integers(0, 257, (2, 20))


def torch_logits(base: Path, adapter: Path | None) -> np.ndarray:
    """What transformers computes on a directory, with an adapter by PEFT if there is one."""
    torch = pytest.importorskip("torch")
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(base)
    if adapter is not None:
        model = peft.PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        return model.eval()(torch.tensor(TOKENS_BT)).logits.numpy()


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_peft_loads_our_adapter_on_the_exported_base(tmp_path, norm):
    cfg = dataclasses.replace(CFG, norm=norm, final_norm=norm == "pre")
    run = adapted_run(tmp_path, cfg)
    export_huggingface(str(tmp_path / "base"), tmp_path / "exported")
    export_peft(str(run), tmp_path / "adapter")
    theirs = torch_logits(tmp_path / "exported", tmp_path / "adapter")
    np.testing.assert_allclose(logits_of(run, TOKENS_BT)[..., :257], theirs, atol=1e-4)
    assert np.abs(theirs - torch_logits(tmp_path / "exported", None)).max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"layers_to_transform": [1]}])
def test_ours_reads_an_adapter_that_peft_made(tmp_path, settings):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    base = write_huggingface_model(tmp_path / "hf")
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    targets = ["c_attn", "mlp.c_proj"]
    lora = peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=targets, fan_in_fan_out=True, **settings
    )
    model = peft.get_peft_model(model, lora)
    torch.manual_seed(0)
    for name, x in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(x, std=0.5)
    model.save_pretrained(tmp_path / "theirs")
    assert convert(["--from", str(tmp_path / "theirs"), "--out", str(tmp_path / "run")]) == 0
    theirs = torch_logits(base, tmp_path / "theirs")
    np.testing.assert_allclose(logits_of(tmp_path / "run", TOKENS_BT)[..., :257], theirs, atol=1e-4)
    assert np.abs(theirs - torch_logits(base, None)).max() > 0.01


def test_an_adapter_goes_out_and_comes_back_bit_for_bit(tmp_path):
    run = adapted_run(tmp_path)
    export_peft(str(run), tmp_path / "adapter")
    import_peft(tmp_path / "adapter", str(tmp_path / "base"), tmp_path / "back")
    one, other = load_adapted(run), load_adapted(tmp_path / "back")
    assert dataclasses.replace(other.cfg, lora_targets=one.cfg.lora_targets) == one.cfg
    ours, theirs = named_leaves(one.adapters), named_leaves(other.adapters)
    assert ours.keys() == theirs.keys()
    for name, x in ours.items():
        np.testing.assert_array_equal(theirs[name], x, err_msg=name)
    stored = load_file(tmp_path / "adapter" / ARRAYS)
    name = "base_model.model.transformer.h.1.mlp.c_fc.lora_A.weight"
    np.testing.assert_array_equal(stored[name], ours["h/mlp/c_fc/lora_A"][1].T)
    settings = json.loads((tmp_path / "adapter" / SETTINGS).read_text())
    assert settings["fan_in_fan_out"] is True
    assert settings["target_modules"] == ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]


def test_an_exported_adapter_knows_its_base_and_says_how_to_load_it(tmp_path):
    run = adapted_run(tmp_path)
    export_peft(str(run), tmp_path / "adapter")
    settings = json.loads((tmp_path / "adapter" / SETTINGS).read_text())
    assert settings["base_model_name_or_path"] == f"{tmp_path / 'base'}@0"
    import_peft(tmp_path / "adapter", None, tmp_path / "back")
    assert (tmp_path / "base" / "pinned" / "0").read_text().splitlines() == [
        str(run), str(tmp_path / "back"),
    ]  # fmt: skip
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "convert --run base@0 --to huggingface --out base-hf" in card
    assert "convert --from adapter --base base@0 --out RUN" in card
    assert str(tmp_path) not in card
    with pytest.raises(UserError, match=r"without their model: .* --base MODEL --out RUN"):
        find_model(tmp_path / "adapter")


def test_a_head_that_classifies_has_a_file_of_its_own(tmp_path):
    cfg = dataclasses.replace(CFG, n_classes=2)
    run = adapted_run(tmp_path, cfg)
    notes = export_peft(str(run), tmp_path / "adapter")
    assert CLASSIFIER in " ".join(notes)
    merge_run(str(run), tmp_path / "whole")
    export_huggingface(str(tmp_path / "whole"), tmp_path / "exported")
    kernel = np.asarray(load_run(run).params["clf"]["kernel"])
    for directory in ("adapter", "exported"):
        np.testing.assert_array_equal(
            load_file(tmp_path / directory / CLASSIFIER)["weight"].T, kernel
        )


@pytest.mark.slow
def test_special_tokens_are_refused_in_peft_and_kept_in_an_export(tmp_path):
    cfg = dataclasses.replace(CFG, n_classes=2, n_special=3)
    run = adapted_run(tmp_path, cfg)
    with pytest.raises(UserError, match="--merge, and then --to huggingface"):
        export_peft(str(run), tmp_path / "adapter")
    merge_run(str(run), tmp_path / "whole")
    export_huggingface(str(tmp_path / "whole"), tmp_path / "exported")
    rows = load_file(tmp_path / "exported" / "model.safetensors")["transformer.wte.weight"]
    assert len(rows) == 260
    np.testing.assert_array_equal(rows, load_run(run).params["wte"]["embedding"][:260])


@pytest.mark.slow
def test_a_merged_run_computes_the_same_and_needs_no_base(tmp_path):
    run = adapted_run(tmp_path)
    before = logits_of(run, TOKENS_BT)
    assert convert(["--run", str(run), "--merge", "--out", str(tmp_path / "whole")]) == 0
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    np.testing.assert_array_equal(logits_of(tmp_path / "whole", TOKENS_BT), before)
    assert load_run(tmp_path / "whole").config.task == RunDir(run).read_config().task
    with pytest.raises(UserError, match="no adapters to merge"):
        merge_run(str(tmp_path / "whole"), tmp_path / "again")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"use_dora": True}, "use_dora is True, expected false"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"c_attn": 2}}, "rank_pattern"),
        ({"r": 0}, "r is 0, expected a whole number"),
    ],
)
def test_adapters_of_another_arithmetic_are_refused(tmp_path, settings, words):
    export_peft(str(adapted_run(tmp_path)), tmp_path / "adapter")
    file = tmp_path / "adapter" / SETTINGS
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    with pytest.raises(UserError, match=words):
        import_peft(tmp_path / "adapter", str(tmp_path / "base"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("how", ["another width", "a layer too many", "another module", "nothing"])
def test_adapters_that_do_not_fit_the_base_are_refused(tmp_path, how):
    export_peft(str(adapted_run(tmp_path)), tmp_path / "adapter")
    file = tmp_path / "adapter" / ARRAYS
    arrays, first = load_file(file), "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"
    one = arrays.pop(first)
    changed: dict[str, dict[str, np.ndarray]] = {
        "another width": {**arrays, first: one[:, :-1].copy()},
        "a layer too many": {**arrays, first.replace("h.0", "h.7"): one},
        "another module": {**arrays, "base_model.model.lm_head.lora_A.weight": one},
        "nothing": {},
    }
    save_file(changed[how], file)
    with pytest.raises(UserError, match="do not fit the model beneath"):
        read_peft(tmp_path / "adapter", ModelConfig(**{**dataclasses.asdict(CFG), "lora_rank": 0}))


def test_an_adapter_without_its_base_asks_for_it(tmp_path):
    export_peft(str(adapted_run(tmp_path)), tmp_path / "adapter")
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="--base, a run or a Hugging Face directory"):
        convert(["--from", str(tmp_path / "adapter"), "--out", str(tmp_path / "run")])


def test_a_run_without_adapters_has_none_to_export(tmp_path):
    hf = write_huggingface_model(tmp_path / "hf")
    with pytest.raises(UserError, match="has no adapters"):
        export_peft(str(hf), tmp_path / "adapter")
