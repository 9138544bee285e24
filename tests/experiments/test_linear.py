"""The linear baseline: it sees its own words and its neighbours', and whose they are."""

import numpy as np
import pytest

from experiments import linear
from experiments.data.dialogues import Conversation

RNG = np.random.default_rng(0)


def conversations(count, tag):
    """Of random words by random speakers; `tag(texts, speakers, i)` labels utterance i."""
    found = []
    for number in range(count):
        size = RNG.integers(1, 9)
        texts, speakers = (tuple(map(str, RNG.choice(of, size))) for of in (("yes", "no", "well well"), ("A", "B")))
        found.append(Conversation(str(number), speakers, texts, tuple(tag(texts, speakers, i) for i in range(size))))
    return found


def before(texts, speakers, i):
    del speakers
    return texts[i - 1] if i else "none"


def after(texts, speakers, i):
    del speakers
    return texts[i + 1] if i + 1 < len(texts) else "none"


def answered(texts, speakers, i):
    """What the other speaker said just before."""
    return texts[i - 1] if i and speakers[i] != speakers[i - 1] else "none"


def itself(texts, speakers, i):
    del speakers
    return texts[i]


@pytest.mark.parametrize("tag", [itself, before, after, answered])
def test_what_the_neighbourhood_decides_is_learned(tag):
    train, test = conversations(80, tag), conversations(20, tag)
    truth = [tag for conversation in test for tag in conversation.tags]
    assert linear.predicted(train, test).tolist() == truth
    figures = linear.baselines(train, test)
    assert figures["linear, words and pairs"]["accuracy"] == 1
    counts = [sum(c.tags.count(kind) for c in train) for kind in sorted({*truth})]
    commonest = sorted({*truth})[int(np.argmax(counts))]
    assert figures["commonest tag"]["accuracy"] == pytest.approx(np.mean([t == commonest for t in truth]))


def test_a_single_tag_is_all_there_is_to_say():
    train, test = conversations(3, lambda *_: "s"), conversations(2, lambda *_: "s")
    assert linear.baselines(train, test) == {"commonest tag": {"accuracy": 1.0}}


def test_grams_are_words_and_pairs_with_both_ends():
    assert linear.grams(["oh", "well"]) == ["oh", "well", "< oh", "oh well", "well >"]
    assert linear.grams([]) == ["< >"]


@pytest.mark.parametrize("speakers", ["A", "AB", "AABAAB", "AAAA"])
@pytest.mark.parametrize("offset", [-1, 1])
def test_neighbours_found_one_by_one(speakers, offset):
    same, other = (matrix.toarray() for matrix in linear.neighbours(speakers, offset))
    for i, speaker in enumerate(speakers):
        for j, neighbour in enumerate(speakers):
            assert same[i, j] == (j == i + offset and speaker == neighbour)
            assert other[i, j] == (j == i + offset and speaker != neighbour)


@pytest.mark.slow
def test_commonest_tag_of_the_real_corpus_if_it_is_here(switchboard):
    splits = switchboard
    assert linear.commonest(splits["train"]) == "sd"
    tags = [tag for conversation in splits["test"] for tag in conversation.tags]
    assert round(np.mean([tag == "sd" for tag in tags]), 3) == 0.323
