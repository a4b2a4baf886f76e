"""Repeated words: what is right, and that nothing else tells it."""

from circuitcut.data.behaviours.induction import LEAD, N_WORDS, generate_induction

SPLITS = ("mask", "tune", "relearn", "heldout")


def test_the_answer_follows_the_last_word_where_it_stood_before():
    corpus = generate_induction(0)
    for split in SPLITS:
        for record in corpus.records[split]:
            if not record.answer:
                continue
            lead, *words = record.text.split()
            assert lead == LEAD
            first, again = words[:N_WORDS], words[N_WORDS:]
            assert first[: len(again)] == again
            assert record.answer == first[len(again)]
            assert {record.answer, *record.rivals} == {*first}
            assert len(record.rivals) == N_WORDS - 1
            assert record.counterfactual is not None
            _, *other = record.counterfactual.split()
            assert other[N_WORDS:] == again
            assert not {*other[:N_WORDS]} & {*first}


def test_no_two_splits_share_a_word_and_plain_texts_repeat_none():
    corpus = generate_induction(0)
    words = [
        {word for r in corpus.records[split] if r.answer for word in r.text.split()[1:]}
        for split in SPLITS
    ]
    assert sum(map(len, words)) == len(set.union(*words))
    assert corpus.fingerprint() == generate_induction.__wrapped__(0).fingerprint()
    assert corpus.fingerprint() != generate_induction(1).fingerprint()
