"""Continue a text with a run: `python -m gptjax.generate --run runs/quickstart --prompt "def "`."""

import sys
from collections.abc import Sequence
from typing import Any

from gptjax.cli import joined_values, main, parse
from gptjax.cluster.environment import import_jax
from gptjax.config.origins import flag_of
from gptjax.generation.options import GenerateCommand, check_generate_flags, greedy_idle_flags
from gptjax.generation.prompts import Prompt, read_prompts


def generate(argv: Sequence[str]) -> int:
    """Load a model or two, and show their samples or write them as JSON Lines."""
    argv = joined_values(argv, "--stop")
    command = parse(GenerateCommand, argv, "python -m gptjax.generate")
    check_generate_flags(command)
    prompts = read_prompts(command.prompts) if command.prompts else [Prompt(command.prompt)]
    from gptjax.conversion.finding import find_model  # NumPy comes with it

    for name in command.runs:
        find_model(name)
    if idle := " and ".join(map(flag_of, greedy_idle_flags(command))):
        print(f"note: decoding is greedy, so {idle} has no effect", file=sys.stderr)
    import_jax()

    from gptjax.cluster.compiler import enable_compilation_cache

    enable_compilation_cache()
    if command.classify:
        return _classify(command)
    from gptjax.generation.showing import shown_as

    with shown_as(command, prompts) as show:
        for name in command.runs:
            _draw(command, name, prompts, show)
    return 0


def _classify(command: GenerateCommand) -> int:
    """Print the class of a text, and below it the probability of every class."""
    from gptjax.conversion.opening import load_run
    from gptjax.evaluation.labels import Classifier, class_lines
    from gptjax.evaluation.setting import note_on_stderr

    run = load_run(command.run)
    classifier = Classifier(run, batch_rows=1, dtype=command.dtype)
    print(run.origin, file=sys.stderr)
    (probs_C,) = classifier.of_texts([command.classify], note=note_on_stderr)
    names = command.classify[1:] if classifier.form == "choice" else classifier.labels
    print(*class_lines(probs_C, names), sep="\n")
    return 0


def _draw(command: GenerateCommand, name: str, prompts: Sequence[Prompt], show: Any) -> None:
    """Draw the samples of one model, and say what the context did to them."""
    from gptjax.conversion.opening import load_run
    from gptjax.generation.drawing import draw_samples, fills_context, plan_samples
    from gptjax.generation.text_requests import before_text, follows_instructions

    run = load_run(name, dtype=command.dtype)
    context = run.config.model.n_ctx
    requests, cut = plan_samples(run, command, prompts)  # a prompt that is no text fails here
    print(run.origin, file=sys.stderr)
    if follows_instructions(run.config) and not command.raw:
        print(
            f"note: the run follows instructions, so it reads the prompt in the template "
            f"{run.config.instruct.template}: --raw continues the prompt as it is",
            file=sys.stderr,
        )
    if cut:
        print(
            f"note: too long for the context of {context} tokens, so only the end is read: "
            f"{', '.join(cut)}",
            file=sys.stderr,
        )
    pieces = draw_samples(run, command, requests)
    shown = show(name, run.tokenizer, pieces, before_text(run.config, command.raw))
    full = [fills_context(sample, command.max_new_tokens) for sample in shown]
    if any(full):
        print(
            f"note: {sum(full)} of {len(full)} samples ended because the context of {context} "
            "tokens was full: --slide drops its oldest half and goes on",
            file=sys.stderr,
        )


if __name__ == "__main__":
    main(generate)
