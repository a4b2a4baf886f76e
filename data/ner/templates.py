"""Sentence templates of the built-in corpus: the context of a name decides its tag.

`{P}`, `{L}` and `{O}` are slots for a person, a location and an organisation. `{X}` is
a slot for a capitalised name that is none of them (a brand, a model, a style). Slots in
lower case take words of `FILLERS`. Names of both types stand before and after similar
words, so that the type of a name follows from the words and from their order: "{P}
visited {L}" but "{L} welcomed {P}", "{P} , mayor of {L}" but "{L} , home of {P}".
"""

FILLERS: dict[str, tuple[str, ...]] = {
    key: tuple(words.split())
    for key, words in {
        # verbs by the types of subject and object
        "pl": "visited left reached toured painted",
        "lp": "welcomed elected honoured mourned",
        "po": "joined founded quit audited",
        "op": "hired dismissed promoted insured",
        "ol": "supplied polluted lobbied powered",
        "lo": "taxed fined licensed evicted",
        "pp": "married phoned thanked",
        "ll": "bordered annexed overlooked",
        "oo": "acquired outbid absorbed",
        "adv": "finally recently quickly quietly again soon",
        "day": "Monday Tuesday Wednesday Thursday Friday Saturday Christmas Easter",
        "month": "January February March April May June July August September",
        "nation": "French Dutch Swiss Greek Turkish Polish Danish Irish Roman Gothic",
        "noun": "report garden bridge concert letter painting window lecture meeting",
        "thing": "jacket guitar bicycle engine camera lamp carpet piano sofa clock",
        "job": "painter doctor teacher lawyer pilot singer chemist farmer judge",
        "post": "mayor governor mayoress bishop",
        "seat": "home birthplace refuge",
        "chief": "founder director chairman treasurer",
        "payer": "employer sponsor insurer",
        "kin": "son daughter cousin brother",
        "num": "two three seven twelve forty ninety",
        "adj": "long quiet difficult famous new broken simple strange",
        "conn": "and but while before after because although",
    }.items()
}

CLAUSES = (
    "{P} {pl} {L}",
    "{P} {adv} {pl} {L}",
    "{P} has {pl} {L} {adv}",
    "{L} was {pl} by {P}",
    "{L} was {adv} {pl} by {P}",
    "{L} {lp} {P}",
    "{L} {adv} {lp} {P}",
    "{L} has {lp} {P} {adv}",
    "{P} was {lp} by {L}",
    "{P} was {adv} {lp} by {L}",
    "{P} {po} {O}",
    "{P} {adv} {po} {O}",
    "{O} was {po} by {P}",
    "{O} {op} {P}",
    "{O} {adv} {op} {P}",
    "{P} was {op} by {O}",
    "{O} {ol} {L}",
    "{O} {adv} {ol} {L}",
    "{L} was {ol} by {O}",
    "{L} {lo} {O}",
    "{L} {adv} {lo} {O}",
    "{O} was {lo} by {L}",
    "{P} {pp} {P}",
    "{L} {ll} {L}",
    "{O} {oo} {O}",
    "{P} , {post} of {L} , {pp} {P}",
    "{P} , {chief} of {O} , {pl} {L}",
    "{P} , {kin} of {P} , {po} {O}",
    "{L} , {seat} of {P} , {ll} {L}",
    "{L} , {seat} of {O} , {lp} {P}",
    "{O} , {payer} of {P} , {ol} {L}",
    "{P} wrote a {adj} letter to {P}",
    "{P} sold a {X} {thing} to {P}",
    "{P} lost the {X} {thing} near {L}",
    "{P} moved from {L} to {L}",
    "{P} moved from {O} to a {adj} rival",
    "{O} opened an office in {L}",
    "the {nation} {job} resigned from {O}",
    "the {nation} {job} retired to {L}",
    "a {job} trusted {P}",
)
"""Clauses of the compound sentences; each one determines the tags of its names."""

SENTENCES = (
    "In {month} {num} {noun}s were sold in {L} .",
    "The {noun} in {L} was {adj} .",
    "{L} lies {num} miles north of {L} .",
    "The train from {L} to {L} was late on {day} .",
    "The letter from {P} to {P} was late on {day} .",
    "The border between {L} and {L} was closed .",
    "The marriage between {P} and {P} was {adj} .",
    "The merger between {O} and {O} was {adj} .",
    "{L} , {L} and {L} signed the treaty .",
    "{P} , {P} and {P} signed the petition .",
    "{O} , {O} and {O} signed the invoice .",
    "Shares of {O} fell on {day} .",
    "The streets of {L} were empty on {day} .",
    "The parents of {P} were {adj} on {day} .",
    "Police in {L} arrested {P} on {day} .",
    '" The {noun} was {adj} , " said {P} , a {job} from {L} .',
    '" The {noun} was {adj} , " wrote {P} , a {job} at {O} .',
    "{P} 's {noun} impressed the critics in {L} .",
    "{L} 's population doubled before {month} .",
    "{O} 's profits doubled before {month} .",
    "Dr {P} teaches {nation} history in {L} .",
    "{O} , based in {L} , employs {num} people .",
    "{P} , born in {L} , became a {job} .",
    "The river flows through {L} and {L} .",
    "A bottle of {X} stood beside {P} .",
    "A map of {L} lay beside {P} .",
    "A photograph of {P} hung in {L} .",
    "When {P} lived in {L} , {P} worked for {O} .",
    "The {X} {thing} was made in {L} by {O} .",
    "Is {L} larger than {L} ?",
    "Is {P} older than {P} ?",
    "Is {O} richer than {O} ?",
    "{L} : {num} dead in floods",
    "{P} : {num} goals in {month}",
    "{O} : {num} jobs lost in {month}",
)
"""Whole sentences with entities."""

DISTRACTORS = (
    "The committee meets every {day} .",
    "On {day} the {noun} was {adj} .",
    "She read The Silent {thing} twice .",
    "A {nation} {job} won the Golden {noun} in {month} .",
    "The {nation} team trained in {month} .",
    "Parliament will discuss the Treaty on {day} .",
    "He bought a {X} {thing} and a {X} {thing} .",
    "The {X} {thing} is {adj} .",
    "My {X} {thing} broke on {day} .",
    "They drank {X} beer and ate {nation} bread .",
    "The {job} wrote a {adj} {noun} in {month} .",
    "Nobody liked the {adj} {noun} .",
    "The {noun} of the {job} was {adj} , but the {thing} was {adj} .",
    "Every {day} the {job} cleaned the {X} {thing} .",
    "The Internet made the {noun} {adj} .",
)
"""Sentences without entities; some of their words are capitalised or names."""

OPENERS = ("", "", "", "In {month} ,", "On {day} ,", "Reports said", "Yesterday ,")
"""Beginnings of a compound sentence, before its first clause."""
