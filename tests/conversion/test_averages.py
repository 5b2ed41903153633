"""Adapters leave as their running average only if asked for, and a note says when they do not."""

import dataclasses

import numpy as np
import pytest
from adapted_runs import CFG, adapted_run, drawn_adapters
from prepared_models import random_weights

from gptjax.base.errors import UserError
from gptjax.base.tree import as_tree, named_leaves
from gptjax.conversion.adapters import export_peft, import_peft, merge_run
from gptjax.conversion.opening import load_adapted, load_run
from gptjax.conversion.run_directory import config_for, write_step_0
from gptjax.convert import convert
from gptjax.runs.naming import AVERAGED, PARAMS
from gptjax.tokenizers.plain import ByteTokenizer

LAST, AVERAGE = 1, 2
ASIDE = "these are the last parameters; --averaged takes their running average"


@pytest.mark.parametrize("averaged", [False, True])
def test_a_merged_run_is_the_average_or_says_that_it_is_not(averaged, tmp_path, capsys):
    run = adapted_run(tmp_path, seed=LAST, average=AVERAGE)
    flags = ["--averaged"] if averaged else []
    assert convert(["--run", str(run), "--merge", "--out", str(tmp_path / "whole"), *flags]) == 0
    assert (ASIDE in capsys.readouterr().err) != averaged
    whole, expected = load_run(tmp_path / "whole"), load_run(run, averaged)
    for name, x in named_leaves(expected.params).items():
        np.testing.assert_array_equal(named_leaves(whole.params)[name], x, err_msg=name)


@pytest.mark.parametrize("averaged", [False, True])
def test_peft_gets_the_average_or_a_note_says_that_it_does_not(averaged, tmp_path):
    run = adapted_run(tmp_path, seed=LAST, average=AVERAGE)
    notes = export_peft(str(run), tmp_path / "adapter", averaged)
    assert (ASIDE in " ".join(notes)) != averaged
    import_peft(tmp_path / "adapter", str(tmp_path / "base"), tmp_path / "back")
    arrays = named_leaves(load_adapted(tmp_path / "back").adapters)
    for name, x in drawn_adapters(CFG, AVERAGE if averaged else LAST).items():
        np.testing.assert_array_equal(arrays[name], x, err_msg=name)


@pytest.mark.parametrize("take_out", [merge_run, export_peft])
def test_an_average_that_is_not_there_is_refused(take_out, tmp_path):
    run = adapted_run(tmp_path)
    with pytest.raises(UserError, match="no running average"):
        take_out(str(run), tmp_path / "out", averaged=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("base_has_average", [False, True])
def test_peft_s_base_is_the_average_that_the_adapters_were_trained_on(base_has_average, tmp_path):
    plain = dataclasses.replace(CFG, lora_rank=0)
    items = {PARAMS: as_tree(random_weights(plain).arrays)}
    if base_has_average:
        items[AVERAGED] = items[PARAMS]
    (tmp_path / "base").mkdir()
    tokenizer = ByteTokenizer()
    write_step_0(tmp_path / "base", config_for(plain, tokenizer), tokenizer, items, "a test")
    (note,) = export_peft(str(adapted_run(tmp_path)), tmp_path / "adapter")
    flags = " --averaged" if base_has_average else ""
    assert note.endswith(f"base@0 --to huggingface{flags}")
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert f"convert --run base@0 --to huggingface{flags} --out base-hf\n" in card
