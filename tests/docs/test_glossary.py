"""The glossary is in order, and each word stands in the module that is said to own it."""

import re

from tests.docs.blocks import ROOT

LINE = re.compile(r"^\| (.+?) \| `([\w./]+)` \| (.+) \|$", re.MULTILINE)
ENTRIES = LINE.findall((ROOT / "docs" / "glossary.md").read_text())


def test_words_are_in_alphabetical_order():
    words = [word.strip("`").lower() for word, _, _ in ENTRIES]
    assert len(words) > 40
    assert words == sorted(words)
    assert len(set(words)) == len(words)


def test_owners_exist_and_define_the_names_they_own():
    wrong = []
    for word, owner, _ in ENTRIES:
        place = ROOT / "src" / "plait" / owner
        if not place.exists():
            wrong.append(f"{word}: no {owner}")
        elif word.startswith("`"):
            name = word.strip("`")
            if not re.search(rf"\b(class|def) {name}\b|^\s*{name}\b[^(]", place.read_text(), re.MULTILINE):
                wrong.append(f"{word}: not defined in {owner}")
    assert wrong == []
