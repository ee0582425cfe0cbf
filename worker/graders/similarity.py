"""How alike two texts are, from 0 to 1, each metric by the library that people compare with.

- `fuzzy_match`: RapidFuzz' `ratio`, which is 1 - (insertions and deletions) / (characters of both).
- `bleu`: sacreBLEU's sentence BLEU, with its 13a tokens, exponential smoothing and effective order.
- `gleu`: NLTK's sentence GLEU on 13a tokens.
- `meteor`: NLTK's METEOR on 13a tokens, which matches words and stems. Synonyms are not matched: WordNet is a
  data set of its own, and is not asked for.
- `rouge_1` to `rouge_5`, `rouge_l`: F1 by rouge-score without stemming, on words of any script.
- `cosine`: of the counts of both texts' words. At OpenAI it compares embeddings, which needs a model; these
  scores know nothing of meaning.
"""

import re
from collections import Counter
from collections.abc import Sequence
from math import sqrt

from worker.contract.graders import Metric
from worker.graders.faults import GraderFault

MAX_CHARACTERS = 65_536
MAX_WORD_PAIRS = 4_000_000  # for the metrics that look at all pairs, in Python: about a second
# Letters of scripts that are written without spaces count as words.
_WORD = re.compile(
    r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W\u0e00-\u0eff\u3040-\u9fff\uf900-\ufaff]+"
)


def score(metric: Metric, text: str, reference: str) -> float:
    """Blocks, for about a second at most. Raises GraderFault for texts that are too long for the metric."""
    if max(len(text), len(reference)) > MAX_CHARACTERS:
        raise _too_long(metric, f"{MAX_CHARACTERS} characters each")
    value = _measure(metric, text, reference)
    return min(1.0, max(0.0, float(value)))


def _measure(metric: Metric, text: str, reference: str) -> float:
    if metric == "fuzzy_match":
        from rapidfuzz import fuzz

        return fuzz.ratio(text, reference) / 100
    if metric == "cosine":
        return _cosine(Counter(_words(text)), Counter(_words(reference)))
    if metric == "bleu":
        from sacrebleu import sentence_bleu

        return sentence_bleu(text, [reference]).score / 100
    if metric == "gleu":
        from nltk.translate.gleu_score import sentence_gleu

        return sentence_gleu([_tokens_13a(reference)], _tokens_13a(text))
    if metric == "meteor":
        return _meteor(_tokens_13a(text), _tokens_13a(reference))
    return _rouge(metric, text, reference)


def _cosine(one: Counter[str], other: Counter[str]) -> float:
    dot = sum(count * other[word] for word, count in one.items())
    norms = sqrt(sum(c * c for c in one.values())) * sqrt(sum(c * c for c in other.values()))
    return dot / norms if norms else 0.0


def _meteor(words: Sequence[str], reference: Sequence[str]) -> float:
    from nltk.translate.meteor_score import single_meteor_score

    _check_pairs("meteor", words, reference)
    if not words or not reference:
        return 0.0
    return single_meteor_score(reference, words, wordnet=_NoSynonyms())  # pyright: ignore[reportArgumentType]


class _NoSynonyms:
    """A WordNet that knows no word."""

    def synsets(self, _word: str) -> tuple[()]:
        return ()


def _rouge(metric: Metric, text: str, reference: str) -> float:
    from rouge_score.rouge_scorer import RougeScorer

    if metric == "rouge_l":
        _check_pairs(metric, _words(text), _words(reference))
    name = metric.replace("_l", "L").replace("_", "")
    return RougeScorer([name], tokenizer=_Tokenizer()).score(reference, text)[name].fmeasure


class _Tokenizer:
    """rouge-score's own knows only a to z."""

    def tokenize(self, text: str) -> list[str]:
        return _words(text)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _tokens_13a(text: str) -> list[str]:
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    return Tokenizer13a()(text).split()


def _check_pairs(metric: Metric, words: Sequence[str], reference: Sequence[str]) -> None:
    if len(words) * len(reference) > MAX_WORD_PAIRS:
        raise _too_long(metric, f"{MAX_WORD_PAIRS} pairs of words")


def _too_long(metric: Metric, limit: str) -> GraderFault:
    return GraderFault(f"The texts are too long for {metric}, which takes at most {limit}.", "other_error")
