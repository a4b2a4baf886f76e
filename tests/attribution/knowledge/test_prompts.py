"""Facts become prompts: every token of a masked object, the first of a causal one."""

from circuitcut.attribution.knowledge.prompts import asked_for, prompts_of
from circuitcut.data.facts.records import Fact
from circuitcut.models.tokenizer_training import train_tokenizer
from circuitcut.tasks.facts.asked import asked_facts

TEXTS = ["The capital of France is Paris.", "The river is in Rome."] * 3
FACTS = [
    Fact("France", "capital", "Paris", ("The capital of France is [MASK].",)),
    Fact("river", "place", "capital river", ("The river is in [MASK].",)),
]


def test_prompts_have_positions_and_tokens_of_their_objects():
    for masked in (True, False):
        tokenizer = train_tokenizer(
            TEXTS, "word", is_decoder=not masked, vocab_size=300, max_length=64
        )
        asked = asked_facts(FACTS, tokenizer, masked=masked).prompts
        one, two = prompts_of(asked)
        assert tokenizer.convert_ids_to_tokens(list(one.answer)) == ["Paris"]
        if masked:
            mask = tokenizer.mask_token_id
            assert [two.ids[p] for p in two.positions] == [mask, mask]
            assert len(two.answer) == 2
        else:
            assert two.positions == (len(two.ids) - 1,)
            assert tokenizer.convert_ids_to_tokens(list(two.answer)) == ["capital"]
        assert asked_for(two, two.answer[::-1]).answer == two.answer[::-1]
