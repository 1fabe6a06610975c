"""Names, words and numbers that pictures are made from."""

# ruff: noqa: SIM905  (a line of words reads better than a column of quoted strings)
from __future__ import annotations

import functools
import random
import string

FIRST_NAMES = tuple(
    "Anna Ben Clara David Emma Felix Grace Hugo Irene Jack Karen Leo Maria Nora Oscar Paula Quinn Rosa Sam Tina "
    "Victor Wendy Alice Bruno Carl Diana Eric Fiona Henry Julia Kevin Laura Martin Nina Peter Sara Tom Vera".split()
)
LAST_NAMES = tuple(
    "Adams Baker Carter Davis Evans Fisher Grant Harris Keller Lewis Moore Nelson Parker Reed Smith Turner Walker "
    "Young Brown Clark Hall King Lopez Mills Olsen Price Ross Stone Weber".split()
)
CITIES = tuple(
    "Oslo Rome Paris Lima Cairo Tokyo Berlin Madrid Dublin Vienna Athens Boston Delhi Geneva Havana Lagos London "
    "Milan Prague Quito Sydney Turin Warsaw Zurich Denver Naples".split()
)
SHORT_CITIES = tuple(c for c in CITIES if len(c) <= 5)
ITEMS = tuple(
    "Apple Bread Cake Milk Tea Coffee Rice Soup Pizza Salad Juice Water Pasta Cheese Eggs Fish Honey Lemon Butter "
    "Sugar Salt Pear Plum Kiwi Corn Beans Nuts Grapes Melon Lamp Chair Desk Pen Book Paper Box Glue Tape Mug".split()
)
SHORT_ITEMS = tuple(i for i in ITEMS if len(i) <= 5)
MONTHS = tuple("Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split())
DAYS = tuple("Mon Tue Wed Thu Fri Sat Sun".split())
DEPARTMENTS = tuple("Sales Finance Legal Design Support Research Logistics Marketing".split())
CHAIN_WORDS = tuple(
    "Start Plan Draw Build Test Pack Ship End Read Write Sort Check Send Save Load Wash Cut Cook Serve Mix Heat Cool "
    "Fill Seal Sun Grass Rabbit Fox Hawk Leaf Worm Bird Cat Seed Root Flower Fruit Egg Frog Cloud Rain River Sea Ice "
    "Rock Sand Wood Fire Ash Wheat Flour Dough Bread".split()
)
TITLES = tuple("Sales Visitors Rainfall Output Members Votes Exports Orders Points Profit Tickets Energy".split())
HEADS = tuple("Mon Tue Wed 2023 2024 East West Old New Min Max".split())
STATES = tuple("Open Paid Closed Late New Sent".split())
FORM_TITLES = tuple("Invoice Order Ticket Report Memo Visitor Badge Permit Contract Letter".split())
SHOPS = ("Corner Shop", "Cafe Luna", "Market", "Bakery", "Green Store", "Kiosk", "Diner")
FORM_KEYS = tuple(
    "Name Client Owner Teacher City Origin Branch Street Date Deadline Code Order Room Phone Age Seat Item Amount "
    "Price Weight Dept Brand Day Status".split()
)
NUMBER_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def listed(parts: list[str]) -> str:
    """a, b and c"""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def plural(count: int, noun: str) -> str:
    return f"{NUMBER_WORDS[count]} {noun}{'' if count == 1 else 's'}"


def digits(rng: random.Random, low: int, high: int) -> str:
    """A number written with `low` to `high` digits, not starting with 0."""
    length = rng.randint(low, high)
    return str(rng.randint(10 ** (length - 1), 10**length - 1))


def code(rng: random.Random) -> str:
    """A code such as KX-402."""
    letters = "".join(rng.choices(string.ascii_uppercase, k=rng.randint(1, 3)))
    return letters + rng.choice(("-", "", "")) + digits(rng, 2, 4)


def date(rng: random.Random) -> str:
    day, month, year = rng.randint(1, 28), rng.randint(1, 12), rng.randint(1995, 2029)
    form = rng.random()
    if form < 0.4:
        return f"{day} {MONTHS[month - 1]} {year}"
    return f"{day:02d}/{month:02d}/{year}" if form < 0.7 else f"{year}-{month:02d}-{day:02d}"


def price(rng: random.Random) -> str:
    return f"{rng.randint(1, 60)}.{rng.choice(('00', '50', '25', '75', f'{rng.randint(1, 99):02d}'))}"


def name(rng: random.Random) -> str:
    first = rng.choice(FIRST_NAMES)
    return first if rng.random() < 0.4 else f"{first} {rng.choice(LAST_NAMES)}"


def invented(rng: random.Random) -> str:
    """A word that no list holds, so that reading can't be replaced by guessing."""
    syllables = [rng.choice("bcdfghjklmnprstvwz") + rng.choice("aeiou") for _ in range(rng.randint(2, 3))]
    return ("".join(syllables) + rng.choice(("", "n", "r", "s", "l", "x"))).capitalize()


def other_numbers(rng: random.Random, value: int, count: int = 4) -> tuple[str, ...]:
    """Believable wrong counts or values near `value`."""
    near = [n for n in range(max(0, value - 4), value + 6) if n != value]
    return tuple(str(n) for n in rng.sample(near, count))


@functools.cache
def common_words() -> tuple[str, ...]:
    """Every word of the lists above, sorted: the words that training shows often enough to be read as wholes."""
    lists = (FIRST_NAMES, LAST_NAMES, CITIES, ITEMS, MONTHS, DAYS, DEPARTMENTS, CHAIN_WORDS, TITLES, HEADS, STATES)
    listed_words = {
        word for words in (*lists, FORM_TITLES, SHOPS, FORM_KEYS) for text in words for word in text.split()
    }
    return tuple(sorted(word for word in {*listed_words, "Total", "kg"} if word.isalpha()))
