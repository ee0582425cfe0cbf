"""Every metric, against values worked out by hand from its definition."""

from math import exp, log, sqrt
from typing import get_args

import pytest

from worker.contract.graders import Metric
from worker.graders import similarity
from worker.graders.faults import GraderFault

TEXT, REFERENCE = "the cat sat on the mat", "the cat is on the mat"
# Words: 5 of 6 are common. Pairs: "the cat", "on the", "the mat", 3 of 5. Triples: "on the mat", 1 of 4.
# BLEU: precisions 5/6, 3/5, 1/4 and, of no match among 3, smoothed to 1/2 of one: 1/6.
# GLEU: 5 + 3 + 1 + 0 matches among 6 + 5 + 4 + 3 n-grams.
# METEOR: precision and recall 5/6, two chunks ("the cat", "on the mat") of 5 matches: 5/6 * (1 - (2/5)^3 / 2).
# fuzzy_match: of 43 characters, 40 stay ("sat" against "is": only the s is common).
BY_HAND = {
    "cosine": 7 / sqrt(8 * 8),
    "fuzzy_match": 40 / 43,
    "bleu": exp((log(5 / 6) + log(3 / 5) + log(1 / 4) + log(1 / 6)) / 4),
    "gleu": 9 / 18,
    "meteor": 5 / 6 * (1 - 0.5 * (2 / 5) ** 3),
    "rouge_1": 5 / 6,
    "rouge_2": 3 / 5,
    "rouge_3": 1 / 4,
    "rouge_4": 0.0,
    "rouge_5": 0.0,
    "rouge_l": 5 / 6,
}


def test_all_metrics_are_here() -> None:
    assert set(BY_HAND) == set(get_args(Metric))


@pytest.mark.parametrize("metric", get_args(Metric))
def test_by_hand(metric: Metric) -> None:
    assert similarity.score(metric, TEXT, REFERENCE) == pytest.approx(BY_HAND[metric], abs=1e-9)


@pytest.mark.parametrize("metric", get_args(Metric))
def test_bounds(metric: Metric) -> None:
    text = "a quick brown fox jumps over it"
    assert similarity.score(metric, text, text) == pytest.approx(1.0, abs=0.01)
    assert similarity.score(metric, text, "0 1 2") < 0.3
    for one, other in (("", ""), ("", text), (text, "")):
        assert 0 <= similarity.score(metric, one, other) <= 1


@pytest.mark.parametrize("metric", ["cosine", "rouge_1", "rouge_l"])
def test_words_of_other_scripts_count(metric: Metric) -> None:
    assert similarity.score(metric, "Привет, мир", "привет мир") == pytest.approx(1.0)
    assert similarity.score(metric, "你好世界", "你好天地") == pytest.approx(0.5)


def test_meteor_matches_stems() -> None:
    assert similarity.score("meteor", "cats sleeping here now", "cat sleeps here now") == pytest.approx(1 - 0.5 / 4**3)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("metric", get_args(Metric))
def test_long_texts_end(metric: Metric) -> None:
    with pytest.raises(GraderFault, match="too long"):
        similarity.score(metric, "x" * 65_537, "")
    longest = ("ab c" * 20_000)[:65_536]
    if metric in ("meteor", "rouge_l"):
        with pytest.raises(GraderFault, match="too long"):
            similarity.score(metric, longest, longest[::-1])
    else:
        assert 0 <= similarity.score(metric, longest, longest[::-1]) <= 1
