"""Words of the generated indirect-object corpus: names, templates, plain sentences.

A name is never the first word of a sentence. Tokenizers that mark the space before a
word therefore give the name the same token everywhere.
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
Yesterday {X} and {Y} met. {Z} gave the {object} to
At the {place} {X} and {Y} talked. {Z} passed the {object} to
When {X} and {Y} left the {place}, {Z} handed the {object} to
After {X} and {Y} saw the {place}, {Z} sent the {object} to
Because {X} and {Y} were late, {Z} threw the {object} to
Inside the {place} {X} sat with {Y}. {Z} showed the {object} to
Today {X} met {Y} at the {place}. {Z} offered the {object} to
While {X} and {Y} waited, {Z} brought the {object} to
Before {X} and {Y} went home, {Z} sold the {object} to
Near the {place} {X} and {Y} rested. {Z} lent the {object} to
Although {X} and {Y} argued, {Z} returned the {object} to
Once {X} saw {Y}, {Z} wanted to give the {object} to
As {X} and {Y} cleaned the {place}, {Z} carried the {object} to
Later {X} and {Y} found the {object}. {Z} left it to
There {X} and {Y} opened the {place}. {Z} promised the {object} to
Since {X} and {Y} own the {place}, {Z} mailed the {object} to
Behind the {place} {X} and {Y} rested. {Z} rolled the {object} to
Now {X} and {Y} share the {place}, but {Z} leaves the {object} to
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
_COPY_TEMPLATES = """
The list is {A}, {B}, {C}. Again: {A}, {B}, {C}.
In order: {A} {B} {C} {D}. Again: {A} {B} {C} {D}.
First {A}, then {B}. Once more: first {A}, then {B}.
Here {A} comes before {B}. And there {A} comes before {B}.
The pairs are {A} {B} and {C} {D}, so {A} {B} and {C} {D}.
The ball went from {A} to {B} and from {B} to {A}.
In spring {A} wrote to {B} and {B} wrote to {A}.
In winter {A} called {B}, and a day later {B} called {A}.
When {A} helped {B}, then {B} helped {A}.
The letter went from {A} to {B} and back from {B} to {A}.
The two were {A} and {B}: one was {A} and the other was {B}.
The two were {A} and {B}: one was {B} and the other was {A}.
"""
COPY_TEMPLATES = tuple(_COPY_TEMPLATES.strip().splitlines())

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
