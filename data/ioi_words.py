"""Words of the generated indirect-object corpus: names, templates, plain sentences.

A name never opens a sentence, so that tokenizers which mark the space before a word
give it one and the same token everywhere.
"""

# Common English first names, one token behind a space under GPT-2's tokenizer.
_NAMES = """
Aaron Adam Alan Alex Alice Allen Amanda Amy Andrea Andrew Angela Anna Anthony Arthur
Barbara Ben Benjamin Blake Brad Brandon Brian Carl Catherine Charles Chris Christina
Christopher Claire Connor Dan Daniel David Dennis Diana Donald Edward Elizabeth Emily
Emma Eric Erin Frank Fred Gary George Graham Greg Hannah Harry Heather Helen Henry
Jack Jacob James Jamie Jason Jeff Jennifer Jeremy Jessica Joel John Jonathan Joseph
Joshua Julia Justin Karen Kate Katie Keith Kelly Kevin Kyle Laura Linda Lisa Luke
Maria Martin Mary Matthew Melissa Michael Nathan Nick Oliver Patrick Paul Peter Rachel
Richard Robert Ryan Sarah Scott Stephen Susan Thomas
"""
NAMES = tuple(_NAMES.split())

# {X} and {Y} are introduced, {Z} acts. Z = Y gives ABBA, Z = X gives BABA (the answer
# is the other one), and a third name gives ABC.
_TEMPLATES = """
Last week, {X} and {Y} met at the {place}. Later {Z} handed the {object} to
Once {X} and {Y} had reached the {place}, {Z} passed the {object} to
On the way to the {place}, {X} and {Y} got lost, so {Z} gave the {object} to
In the morning {X} and {Y} cleaned the {place}. Then {Z} showed the {object} to
It was raining when {X} and {Y} left the {place}, and {Z} lent the {object} to
Because {X} and {Y} were late for the {place}, {Z} threw the {object} to
The visitors {X} and {Y} liked the {place}. Before leaving, {Z} sold the {object} to
Outside the {place}, {X} and {Y} talked for hours until {Z} offered the {object} to
At noon {X} and {Y} opened the {place}, and soon {Z} brought the {object} to
Although {X} and {Y} seldom saw the {place}, {Z} mailed the {object} to
Today {X} and {Y} found the {object} near the {place}. Gladly {Z} returned it to
Our neighbours {X} and {Y} share the {place}. Every Sunday {Z} carries the {object} to
With the {object} in a bag, {X} and {Y} went to the {place}, where {Z} gave it to
As {X} and {Y} waited in front of the {place}, {Z} decided to give the {object} to
During the break {X} and {Y} sat in the {place}. There {Z} promised the {object} to
Since {X} and {Y} both worked at the {place}, {Z} could send the {object} to
Every time {X} and {Y} visit the {place}, {Z} buys the {object} from
Yesterday {X} and {Y} argued in the {place}, and in the end {Z} left the {object} to
"""
TEMPLATES = tuple(_TEMPLATES.strip().splitlines())

_PLACES = """
station market school office garden library museum hospital bakery theatre harbour
stadium kitchen restaurant castle factory farm bank hotel park
"""
PLACES = tuple(_PLACES.split())

_OBJECTS = """
ticket basket book lamp letter ring bottle blanket camera guitar hammer key ladder map
painting radio sandwich umbrella violin watch
"""
OBJECTS = tuple(_OBJECTS.split())

# Texts that repeat names in other ways than the prompts do: {A} to {D} are distinct.
_LISTS = """
The list is {A}, {B}, {C}, {D}. Again the list is {A}, {B}, {C}, {D}.
In order: {A} {B} {C} {D}. In order: {A} {B} {C} {D}.
First {A}, then {B}, then {C}. Once more: first {A}, then {B}, then {C}.
Here {A} comes before {B}. And there {A} comes before {B}.
The pairs are {A} with {B} and {C} with {D}, so {A} goes with {B} and {C} with {D}.
The ball went from {A} to {B}, from {B} to {C}, from {C} to {B} and from {B} to {A}.
"""
LISTS = tuple(_LISTS.strip().splitlines())

# Two people take turns: {X} acts on {Y}.
_TURNS = """
{X} called {Y}
{X} helped {Y}
{X} thanked {Y}
{X} followed {Y}
{X} wrote to {Y}
{X} spoke to {Y}
{X} smiled at {Y}
{X} ran after {Y}
"""
TURNS = tuple(_TURNS.strip().splitlines())
_TURN_OPENERS = """
Here {A} and {B} took turns:
The two of them were {A} and {B}:
In spring there were {A} and {B}:
"""
TURN_OPENERS = tuple(_TURN_OPENERS.strip().splitlines())

# Texts without any name and without anything to copy.
_PLAIN_TEMPLATES = """
The {adjective} {object} lay on the table in the {place}.
One {adjective} {object} costs {number} coins at the {place}.
It was {weather} in the {direction}, but the {place} stayed open until {number}.
Behind the {place} stands a {adjective} wall of {material}.
The {place} was built {number} years ago from {material} and looks {adjective} today.
Tomorrow it will be {weather} in the {direction} and {degrees} degrees warm.
Nobody had seen the {adjective} {object} since {month}.
In {month} the road to the {place} is often {adjective} and empty.
There are {number} {adjective} chairs in the {place}.
The {material} roof of the {place} is {number} metres long.
Most days in {month} are {weather}, and rivers in the {direction} are {adjective}.
Any {object} made of {material} weighs {number} grams.
The train to the {direction} leaves at {number} and stops at the {place}.
After a {weather} night the fields in the {direction} were {adjective}.
"""
PLAIN_TEMPLATES = tuple(_PLAIN_TEMPLATES.strip().splitlines())

_PLAIN_SLOTS = """
adjective: old new small large heavy bright dark quiet clean broken narrow dusty
number: two three four five six seven eight nine ten twelve twenty thirty
degrees: five eight eleven fourteen seventeen nineteen
weather: sunny cloudy rainy windy foggy snowy stormy cold
direction: north south east west valley mountains
material: stone wood glass steel brick clay
month: January March May July August October December
"""
PLAIN_SLOTS = {
    slot: tuple(words.split())
    for slot, words in (line.split(": ") for line in _PLAIN_SLOTS.strip().splitlines())
}
