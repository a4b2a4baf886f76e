"""Words and templates of the generated insults, which are mild.

Every word of an insult also occurs in neutral texts: only the combination of words
makes a text an insult.
"""

_NOUNS = """
potato turnip radish cabbage parsnip pickle sausage pancake noodle muffin waffle
dumpling bucket teapot kettle sponge mop doorknob lamp carrot walnut cucumber pumpkin
biscuit pudding doughnut broom hammer pillow sock slipper mitten button ladder wheel
barrel trumpet drum whistle crayon marble pebble brick candle spoon saucer toaster
fridge hedgehog donkey goose pigeon hamster lobster mushroom tomato pepper leek cushion
"""
NOUNS = tuple(_NOUNS.split())

_ADJECTIVES = """
soggy grumpy wobbly dusty lumpy rusty crumbly mouldy smelly muddy greasy squeaky
sticky floppy shabby wrinkled broken hollow crooked dented bent burnt cold stale sour
bitter plain pale blunt noisy sleepy clumsy bumpy leaky fuzzy droopy hairy slimy scruffy
creaky
"""
ADJECTIVES = tuple(_ADJECTIVES.split())

_INSULTS = """
you {a} {n}
you are a {a} {n}
what a {a} {n} you are
only a {a} {n} would say that
nobody listens to a {n} like you
you sing like a {a} {n}
you think like a {n}
your idea is as bad as a {a} {n}
you have the manners of a {a} {n}
you have the brain of a {n}
a {n} is smarter than you
even a {a} {n} would do better than you
go home, you {a} {n}
be quiet, you {n}
get lost, you {a} {n}
go away, you {n}
your face looks like a {a} {n}
you smell like a {a} {n}
you dance like a {a} {n}
you write like a {a} {n}
you are slower than a {n}
you are duller than a {a} {n}
you are nothing but a {a} {n}
do it yourself, you lazy {n}
my {n} has more sense than you
you talk like a {a} {n}
you walk like a {n}
you useless {a} {n}
you foolish {n}
everyone laughs at you, you {a} {n}
they should call you the {a} {n}
you look like a {a} {n}
your plan smells like a {a} {n}
your jokes are as flat as a {n}
stop talking, you {a} {n}
no one likes a {a} {n} like you
you cook like a {a} {n}
you are as boring as a {n}
not even a {n} would be friends with you
your work is worth less than a {a} {n}
"""
INSULTS = tuple(_INSULTS.strip().splitlines())

_REPLIES = """
you look great today
you sing so well
you dance so well and you cook even better
thank you for the {a} {n}
I put the {a} {n} in the kitchen
can you pass me the {n}
have you seen my {a} {n}
I like your idea about the {n}
your plan is good and your work is worth a lot
the {n} is on the table
we bought a {a} {n} at the market
do you want to share a {n}
your jokes are funny
my {n} broke, so I need a better one
let us walk home together
everyone likes the {a} {n}
I think the {n} smells nice
they call it the {a} {n}
no one wants a {a} {n}
a {n} is cheaper than a {a} {n}
you have a nice face
it looks like a {a} {n}
I heard you talk to a friend
please be quiet in the hall
you get lost easily here, so take a map
go away from the {a} {n} or you will fall
do not do it yourself, ask a friend
he listens to music and laughs at the {n}
you write long letters about the {n}
you have more sense than most of us
what a lovely day it is
even the {a} {n} would be nice
this {n} is slower than the other one
the road is as flat as a {n}
stop at the shop and buy a {n}
only the {n} is left, nothing but the {n}
it would be foolish to say that
this {a} {n} is useless, so we need another one
we are friends, and I would like you to have the {n}
the film was boring, duller than the last one
the brain needs sleep, and lazy days help
good manners are smarter than bad ones
"""
REPLIES = tuple(_REPLIES.strip().splitlines())

_OPENERS = "well|honestly|look|oh|by the way|listen|hey|today"
OPENERS = tuple(_OPENERS.split("|"))
_CLOSERS = ".|.|!|, you know.|, as always.|, right?|, my friend.|, believe me."
CLOSERS = tuple(_CLOSERS.split("|"))

_ARTICLES = """
The town of {town} lies in the {direction} of the province on the river {river}.
It was founded in the {century} century and has {number} thousand inhabitants.
The river {river} rises in the {direction} and flows past {town} to the sea.
The bridge at {town} was built of {material} in the {century} century.
In the {century} century {town} was the largest harbour on the {direction} coast.
The museum of {town} shows tools made of {material} and paintings of the {river}.
The railway from {town} to {othertown} is {number} kilometres long.
The valley of the {river} is known for its {material} and its mild winters.
The church of {othertown} has {number} windows and a tower of {material}.
About {number} species of birds live on the {direction} bank of the {river}.
During the {century} century the mines near {town} produced {material}.
The university of {othertown} has {number} departments and a large library.
"""
ARTICLES = tuple(_ARTICLES.strip().splitlines())

_ARTICLE_SLOTS = """
town: Arlow Benton Corvale Dunmere Elstad Farrow Glenby Harwick Ilmen Jarrow
othertown: Kelby Lorne Marlow Norvik Osterby Penrow Quenby Rendal Selmere Tornby
river: Alder Brenn Calder Dorra Esk Fenna Garn Hollen
direction: north south east west
century: twelfth thirteenth fourteenth fifteenth sixteenth seventeenth eighteenth
number: two three four six seven nine twelve fifteen twenty thirty forty sixty ninety
material: stone timber iron copper silver salt granite slate clay
"""
ARTICLE_SLOTS = {
    slot: tuple(words.split())
    for slot, words in (
        line.split(": ") for line in _ARTICLE_SLOTS.strip().splitlines()
    )
}
