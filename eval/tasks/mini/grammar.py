"""The grammar of the bundled benchmark: its words, its invented names and its plain sentences.

Nothing here is taken from another text. Names are two syllables of three letters; the pool is cut in two by a hash, so
that a name of the test split never occurs in training. In a sentence the character MARK stands before a word that the
text so far determines (a trade already told, a label whose rule is known): `plain` removes it, training weighs it.
"""

import hashlib
import random
from functools import lru_cache

MARK = "\x01"


def _list(text: str) -> list[str]:
    return text.split()


TRADES = _list("""
miller baker weaver smith sailor hunter singer doctor farmer painter mason tailor potter guard teacher cooper
fisher shepherd brewer carter clerk joiner piper scribe""")
PLACES = _list("""
river hill market mill harbour forest bridge garden tower well field church inn road lake valley castle barn
meadow quarry cave orchard shore gate""")
MOVES = _list("walks runs rides goes returns wanders hurries climbs comes steps")
TIMES = _list("dawn noon night dusk midday sunrise sunset midnight")
ADJECTIVES = _list("""
old young tall small quiet broad narrow bright dark cold warm empty busy wet dry steep flat round heavy light
soft rough plain fine""")
LOOKS = _list("stands lies shines sleeps waits rests")
VALUES = _list("""
amber copper silver iron glass paper marble velvet cotton leather timber ivory coral pearl linen bronze clay
chalk cedar maple walnut wax wool silk salt honey butter flour ginger pepper mustard vinegar candle bottle basket kettle
ladder needle mirror saddle barrel bucket carpet drum flute fiddle hammer helmet jacket lantern marker medal nail oar
pillow pistol plough ribbon ring rope shield spade spoon sword""")
CLASSES = {
    "animal": _list("fox owl crow deer hare wolf bear goat"),
    "fruit": _list("apple plum cherry grape lemon melon peach pear"),
    "weather": _list("rain snow storm fog hail frost wind thunder"),
    "body": _list("hand foot knee elbow shoulder ankle finger thumb"),
    "room": _list("kitchen cellar attic hall pantry stable parlour porch"),
    "kin": _list("uncle aunt cousin brother sister nephew niece mother"),
}
LABELS = _list("vosk trell quim bluth zarn hopple jid wexel")
RELATIONS = _list("keeps wants sells mends")
EVENTS = ["the bell rings", "the dog barks", "the door slams", "the cock crows", "the horn sounds", "the wheel turns"]
OTHER = _list("""
a and at by for from i in is it of on over past saw said serves the then there times to under we with story talk
code list def return print paragraph x =""")
STARTERS = _list("story talk code list def x paragraph")
PARAGRAPHS = 20


@lru_cache
def syllables() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """80 first and 80 second syllables, three letters each, no syllable in both lists."""
    rng = random.Random("syllables")
    every = [a + v + b for a in "bdfgklmnprstvz" for v in "aeiou" for b in "lmnrskt"]
    chosen = rng.sample(every, 160)
    return tuple(chosen[:80]), tuple(chosen[80:])


@lru_cache(maxsize=128)
def names(split: str) -> tuple[str, ...]:
    """The names of a split, "train" or "test" (one in five by its hash); no name is a word of the grammar.

    "train/3": those of 20 first and 20 second syllables, chosen by the number; such names are easily confused.
    """
    first, second = syllables()
    split, _, alike = split.partition("/")
    if alike:
        rng = random.Random(f"alike:{alike}")
        first, second = rng.sample(first, 20), rng.sample(second, 20)
    known = set(words())
    both = (a + b for a in first for b in second if a + b not in known)
    return tuple(n for n in both if (hashlib.sha256(n.encode()).digest()[0] % 5 == 0) == (split == "test"))


@lru_cache
def words() -> tuple[str, ...]:
    """Every word that can follow a space, names excepted; the tokenizer gives each one token."""
    lists = [TRADES, PLACES, MOVES, TIMES, ADJECTIVES, LOOKS, VALUES, LABELS, RELATIONS, OTHER, *CLASSES.values()]
    lists += [event.split() for event in EVENTS]
    lists.append([str(n) for n in range(PARAGRAPHS + 1)])
    return tuple(dict.fromkeys(word for group in lists for word in group))


def plain(text: str) -> str:
    """A text without its marks."""
    return text.replace(MARK, "")


class Cast:
    """People who come back: each keeps one trade and one home for the whole text, told at every mention of the kind."""

    def __init__(self, rng: random.Random, people: list[str]):
        self.rng, self.people = rng, people
        self.trade = {p: rng.choice(TRADES) for p in people}
        self.home = {p: rng.choice(PLACES) for p in people}
        self.told: set[tuple[str, str]] = set()

    def _recall(self, person: str, what: str, word: str) -> str:
        mark = MARK if (person, what) in self.told else ""
        self.told.add((person, what))
        return f"{mark} {word}"

    def sentence(self) -> str:
        """One sentence, with a space before it and a full stop behind it."""
        rng = self.rng
        if rng.random() < 0.2:
            return f" the {rng.choice(ADJECTIVES)} {rng.choice(PLACES)} {rng.choice(LOOKS)} at {rng.choice(TIMES)}."
        return self.about(rng.choice(self.people))

    def about(self, person: str) -> str:
        """A sentence about a person, some of which repeat what was said of it."""
        rng = self.rng
        if rng.random() < 0.2:
            return f" {person} from{self._recall(person, 'home', self.home[person])} {rng.choice(MOVES)} there."
        trade = self._recall(person, "trade", self.trade[person])
        return f" {person} the{trade} {rng.choice(MOVES)} to the {rng.choice(PLACES)}."
