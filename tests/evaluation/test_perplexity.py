"""The validation loss is the mean over tokens, whatever the batches; NumPy says the same."""

import math

import numpy as np
import pytest

from gptjax.evaluation.perplexity import Validation, ValidationPart, evaluate_part, evaluate_parts

B, T = 5, 7


def random_batches(n: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Losses and uneven weights of n batches; each last row weighs nothing."""
    generator = np.random.default_rng(seed)
    batches = []
    for _ in range(n):
        weights_BT = generator.integers(0, 2, (B, T)).astype(np.float64)
        weights_BT[:, 0], weights_BT[-1] = 1.0, 0.0
        losses_BT = generator.gamma(2.0, 1.5, (B, T))
        tokens_BT = generator.integers(0, 10, (B, T + 1))
        batches.append({"losses": losses_BT, "weights": weights_BT, "tokens": tokens_BT})
    return batches


def sums(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the evaluation step gives for a batch, from losses that are known."""
    rows = [(w * loss).sum() / w.sum() for loss, w in zip(batch["losses"], batch["weights"],
            strict=True) if w.sum()]  # fmt: skip
    return {
        "loss": (batch["losses"] * batch["weights"]).sum(),
        "tokens": batch["weights"].sum(),
        "rows": np.float32(len(rows)),
        "mean": np.sum(rows),
        "square": np.sum(np.square(rows)),
    }


@pytest.mark.parametrize("n", [1, 2, 9])
def test_loss_error_and_bits_are_those_of_numpy(n):
    batches = random_batches(n, seed=n)
    losses_BT = np.concatenate([b["losses"] for b in batches])
    weights_BT = np.concatenate([b["weights"] for b in batches])
    counted = weights_BT.sum(1) > 0
    row_means = np.average(losses_BT[counted], axis=1, weights=weights_BT[counted])

    result = evaluate_part(sums, batches, target_bytes=321)
    assert result.loss == pytest.approx(np.average(losses_BT, weights=weights_BT), rel=1e-13)
    assert result.loss != pytest.approx(row_means.mean(), rel=1e-3)
    stderr = row_means.std(ddof=1) / math.sqrt(len(row_means))
    assert result.stderr == pytest.approx(stderr, rel=1e-10)
    bits = np.sum(losses_BT * weights_BT) / math.log(2) / 321
    assert result.bits_per_byte == pytest.approx(bits, rel=1e-13)


def test_the_way_it_is_cut_into_batches_does_not_matter():
    batches = random_batches(4)
    split = [{k: v[rows] for k, v in b.items()} for b in batches for rows in ([0], [1, 2], [3, 4])]
    whole, pieces = evaluate_part(sums, batches, 100), evaluate_part(sums, reversed(split), 100)
    assert pieces.loss == pytest.approx(whole.loss, rel=1e-13)
    assert pieces.stderr == pytest.approx(whole.stderr, rel=1e-10)
    assert pieces.bits_per_byte == pytest.approx(whole.bits_per_byte, rel=1e-13)


def test_a_model_that_knows_nothing_has_the_logarithm_of_the_vocabulary():
    batch = random_batches(1)[0] | {"losses": np.full((B, T), math.log(256))}
    bytes_of_text = int(batch["weights"].sum())
    result = evaluate_part(sums, [batch], bytes_of_text)
    assert result.loss == pytest.approx(math.log(256), rel=1e-13)
    assert result.bits_per_byte == pytest.approx(8.0, rel=1e-13)
    assert result.stderr == pytest.approx(0.0, abs=1e-7)


def test_one_row_gives_numbers_all_the_same_and_no_bytes_no_bits():
    one = {"loss": 6.0, "tokens": 3.0, "rows": 1.0, "mean": 2.0, "square": 4.0}
    assert evaluate_part(lambda _: one, [{}], 0) == Validation(2.0, 0.0, None)


def test_rounding_never_makes_the_variance_negative():
    third = {"loss": 1.0, "tokens": 3.0, "rows": 3.0, "mean": 1.0, "square": 1 / 3 - 1e-9}
    assert evaluate_part(lambda _: third, [{}], 1).stderr == 0.0


@pytest.mark.parametrize("name", ["", "d"])
def test_one_source_is_recorded_by_itself_if_it_has_a_name(name):
    """As those of a mixture do, one of a single directory too."""
    batches = random_batches(2)
    result = evaluate_parts(sums, [ValidationPart(name, 1.0, batches, 9)])
    alone = evaluate_part(sums, batches, 9)
    assert (result.loss, result.stderr) == (alone.loss, alone.stderr)
    assert result.by_source == (((name, alone.loss),) if name else ())
