"""The built-in corpus: names by split, decisive contexts, no bag of words solves it."""

import re
from collections import Counter, defaultdict

import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import SGDClassifier

from circuitcut.data.ner import names as ner_names
from circuitcut.data.ner.generated import SIZES, generate_ner
from circuitcut.data.ner.tagged import TaggedSentence, spans
from circuitcut.data.ner.templates import CLAUSES, DISTRACTORS, FILLERS, SENTENCES
from circuitcut.storage.errors import UserError

LISTS = {
    kind: getattr(ner_names, kind)
    for kind in ("PLACES", "FIRST_NAMES", "LAST_NAMES", "ORGANISATIONS", "AMBIGUOUS")
}
SPLITS = tuple(SIZES)
GOLDEN = "The parents of Jackson were famous on Friday ."


@pytest.fixture(scope="module")
def corpus():
    return generate_ner(0)


def names(sentence: TaggedSentence) -> list[tuple[str, str]]:
    return [
        (kind, " ".join(sentence.words[start:stop]))
        for kind, start, stop in spans(sentence.tags)
    ]


def test_no_word_of_a_name_stands_in_two_names_unless_it_is_a_common_one():
    words = Counter(
        word for kind in LISTS.values() for name in kind for word in name.split()
    )
    twice = {word for word, n in words.items() if n > 1}
    assert twice <= ner_names.COMMON_WORDS


def test_there_are_enough_names_and_sentence_shapes():
    least = {"PLACES": 250, "ORGANISATIONS": 150, "AMBIGUOUS": 100}
    assert all(len(found) >= least.get(kind, 200) for kind, found in LISTS.items())
    shapes = [*CLAUSES, *SENTENCES, *DISTRACTORS]
    assert len(set(shapes)) == len(shapes) >= 60
    slots = {slot for shape in shapes for slot in re.findall(r"\{(\w+)\}", shape)}
    assert slots <= {"P", "L", "O", "X"} | FILLERS.keys()


def test_no_word_of_a_name_occurs_in_two_splits(corpus):
    words = {
        split: {
            word
            for sentence in sentences
            for _, name in names(sentence)
            for word in name.split()
        }
        - ner_names.COMMON_WORDS
        for split, sentences in corpus.splits.items()
    }
    for split in SPLITS:
        others = set().union(*(words[other] for other in SPLITS if other != split))
        assert not words[split] & others
        assert all(corpus.unseen(split))


def test_the_same_name_is_a_person_a_place_and_an_organisation(corpus):
    kinds = defaultdict(set)
    for sentence in corpus.splits["heldout"]:
        for kind, name in names(sentence):
            kinds[name].add(kind)
    ambiguous = [name for name in kinds if name in ner_names.AMBIGUOUS]
    assert len(ambiguous) >= 10
    assert all(kinds[name] == {"PER", "LOC", "ORG"} for name in ambiguous)


def test_the_context_without_the_names_decides_the_tags(corpus):
    tags_of: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for sentence in corpus.splits["mask"] + corpus.splits["heldout"]:
        shape, kinds, done = [], [], 0
        for kind, start, stop in spans(sentence.tags):
            shape += [*sentence.words[done:start], "<name>"]
            kinds.append(kind)
            done = stop
        tags_of[" ".join([*shape, *sentence.words[done:]])].add(tuple(kinds))
    assert {len(kinds) for kinds in tags_of.values()} == {1}


def test_names_stand_among_capitals_that_are_none(corpus):
    sentences = corpus.splits["heldout"]
    without = [s for s in sentences if not spans(s.tags)]
    assert 0.1 < len(without) / len(sentences) < 0.3
    capitals = Counter(
        tag == "O"
        for s in sentences
        for word, tag in zip(s.words[1:], s.tags[1:], strict=True)
        if word[0].isupper()
    )
    assert capitals[True] / capitals.total() > 0.1


@pytest.mark.parametrize("window", [1, 3, 99])
def test_a_bag_of_neighbours_does_not_find_the_locations(corpus, window: int):
    def features(sentence: TaggedSentence) -> list[list[str]]:
        words = [word.lower() for word in sentence.words]
        return [
            [f"is {word}", f"capital {sentence.words[i][0].isupper()}"]
            + [f"near {near}" for near in words[max(0, i - window) : i]]
            + [f"near {near}" for near in words[i + 1 : i + 1 + window]]
            for i, word in enumerate(words)
        ]

    train, test = corpus.splits["base"][:2000], corpus.splits["heldout"][:400]
    vectors = CountVectorizer(analyzer=list)
    x = vectors.fit_transform([words for s in train for words in features(s)])
    model = SGDClassifier("log_loss", alpha=1e-5, max_iter=15, tol=None, random_state=0)
    model.fit(x, [tag for s in train for tag in s.tags])
    right = given = wanted = 0
    for sentence in test:
        tags = model.predict(vectors.transform(features(sentence))).tolist()
        found = {span for span in spans(tags) if span[0] == "LOC"}
        gold = {span for span in spans(sentence.tags) if span[0] == "LOC"}
        right, given = right + len(found & gold), given + len(found)
        wanted += len(gold)
    f1 = 2 * right / (given + wanted)
    assert 0.3 < f1 < 0.8


def test_the_seed_decides_names_and_sentences(corpus):
    same, other = generate_ner(0), generate_ner(4)
    assert corpus.fingerprint() == same.fingerprint() != other.fingerprint()


def test_a_sentence_is_the_same_on_every_machine(corpus):
    sentence = corpus.splits["heldout"][0]
    assert " ".join(sentence.words) == GOLDEN


def test_another_concept_can_be_cut_and_an_unknown_one_not():
    assert generate_ner(concept="per").concept_types == ("PER",)
    with pytest.raises(UserError, match="--concept must be an entity type"):
        generate_ner(concept="MISC")
