"""A baseline of dialogue acts: a linear classifier of words and of pairs of words.

Of an utterance it is told which words and which pairs of neighbouring words are there, of the utterances before and
after it the same, and of these two whether they are the same speaker's, another's, or not there at all. The classifier
is a linear support vector machine for each tag against all others.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse

from experiments.data.dialogues import Conversation, words
from experiments.task import each

C = 0.02  # of the support vector machine, chosen on the validation split of Switchboard
TOLERANCE = 1e-2  # of its fit
RARE = 2  # words and pairs of fewer utterances are left out
START, END = "<", ">"
Sparse = Any  # a matrix in rows; annotations of SciPy and scikit-learn are no more exact


def baselines(train: Sequence[Conversation], test: Sequence[Conversation]) -> Mapping[str, Mapping[str, Any]]:
    """Accuracies over all utterances of `test`: of the commonest tag of `train`, and of the linear classifier.

    Where training knows a single tag there is nothing to classify, and the commonest tag alone is given.
    """
    truth = _tags(test)
    found: dict[str, Callable[[], Mapping[str, float]]] = {
        "commonest tag": lambda: {"accuracy": float(np.mean(truth == commonest(train)))}
    }
    if len({*_tags(train)}) > 1:
        found["linear, words and pairs"] = lambda: {"accuracy": float(np.mean(truth == predicted(train, test)))}
    return each(found)


def commonest(train: Sequence[Conversation]) -> str:
    kinds, counts = np.unique(_tags(train), return_counts=True)
    return str(kinds[counts.argmax()])


def predicted(train: Sequence[Conversation], test: Sequence[Conversation]) -> np.ndarray:
    """The tag of each utterance of `test`, conversation after conversation."""
    from sklearn.feature_extraction.text import CountVectorizer  # takes a second
    from sklearn.svm import LinearSVC

    texts = [text for conversation in train for text in conversation.texts]
    options: Any = {"analyzer": lambda text: grams(words(text)), "min_df": RARE, "binary": True, "dtype": np.float32}
    vectorizer = CountVectorizer(**options).fit(texts)
    classifier = LinearSVC(C=C, tol=TOLERANCE, random_state=0)
    classifier.fit(_features(vectorizer, train), _tags(train))
    return np.asarray(classifier.predict(_features(vectorizer, test)))


def grams(tokens: Sequence[str]) -> list[str]:
    """Each word, and each pair of neighbours, the beginning and the end of the utterance among these."""
    return [*tokens, *map(" ".join, itertools.pairwise((START, *tokens, END)))]


def _tags(conversations: Iterable[Conversation]) -> np.ndarray:
    return np.array([tag for conversation in conversations for tag in conversation.tags])


def _features(vectorizer: Any, conversations: Iterable[Conversation]) -> Sparse:
    return scipy.sparse.vstack([_of_one(vectorizer, conversation) for conversation in conversations], format="csr")


def _of_one(vectorizer: Any, conversation: Conversation) -> Sparse:
    """Rows for utterances; words of a neighbour have columns for the same speaker's and columns for another's."""
    own = vectorizer.transform(conversation.texts)
    parts = [own]
    for who in (*neighbours(conversation.speakers, -1), *neighbours(conversation.speakers, 1)):
        parts += [who @ own, scipy.sparse.csr_matrix(who.sum(axis=1))]
    return scipy.sparse.hstack(parts, format="csr", dtype=np.float32)


def neighbours(speakers: Sequence[str], offset: int) -> list[Sparse]:
    """[utterances, utterances]: a 1 at i, i + offset where both are the same speaker's, and in the second where not.

    Row i is zero in both where there is no such utterance.
    """
    names, count = np.array([*speakers]), len(speakers)
    here = np.arange(max(0, -offset), count - max(0, offset))
    same = names[here] == names[here + offset]
    rows = [here[kind] for kind in (same, ~same)]
    return [scipy.sparse.csr_matrix((np.ones(len(r), np.float32), (r, r + offset)), (count, count)) for r in rows]
