"""Whether an answer equals the reference: numbers, words and lists here, formulas by `Atom`.

Three values: True, False, and None for "only algebra can tell". The grader asks without algebra
first, so that plain answers never leave its process; a worker asks again with math-verify.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from dynamo_cli.grading.normal_form import Number, encloses, normal_form, number

Atom = Callable[[str, str], bool | None]  # (reference, answer), both in normal form

_WORDS = re.compile(r"[A-Za-z][A-Za-z' -]*")
_CHOICE = re.compile(r"\(?([A-H])\)?")
_BASE = re.compile(r"(?P<digits>[0-9A-Za-z]+)_\{?(?P<base>\d+)\}?")
_DEFINITION = re.compile(r"\s*[A-Za-z\\][A-Za-z0-9\\_{}' ]*(?:\([^()=]*\))?\s*")
_ROUND, _SET = ("(", ")"), ("\\{", "\\}")
_BRACKETS = (_ROUND, ("[", "]"), ("(", "]"), ("[", ")"), _SET, ("\\langle", "\\rangle"))
# Beside a plain reference a letter after a number is a unit; beside a formula it is a symbol.
_LETTER_UNIT = r"[kcm]?m|k?g|s|N|J|K|V|W|A|Pa|Hz|eV|k?m/[sh]|m/s\^\{?2\}?"
_WITH_UNIT = re.compile(rf"(.*\d[}})]?)\s*(?:{_LETTER_UNIT})")
_MOST_PARTS = 100
_DEEPEST = 20  # brackets within brackets that are looked into


def undecided(reference: str, answer: str) -> None:
    """The atom that knows no algebra."""


def equal(reference: str, answer: str, *, atom: Atom = undecided) -> bool | None:
    """Whether two answers, as written, are the same; None where `atom` could not tell."""
    return _equal(normal_form(reference), normal_form(answer), atom, _DEEPEST)


def _equal(reference: str, answer: str, atom: Atom, depth: int) -> bool | None:
    if reference.replace(" ", "") == answer.replace(" ", ""):
        return True
    for rule in (_as_numbers, _as_words, _in_base):
        verdict = rule(reference, answer)
        if verdict is not None:
            return verdict
    left, right = _without_definition(reference, answer)
    if (left, right) != (reference, answer):
        return _equal(left, right, atom, depth - 1)
    verdict = _as_lists(reference, answer, atom, depth - 1) if depth > 0 else _NOT_LISTS
    return atom(reference, answer) if verdict is _NOT_LISTS else verdict


def _as_numbers(reference: str, answer: str) -> bool | None:
    left, right = number(reference), number(answer)
    if left is not None and right is None and (bare := _WITH_UNIT.fullmatch(answer)):
        right = number(bare[1])
    if left is None or right is None:
        return None
    if close(left, right):
        return True
    # "1,234" is a number, but "100,200" may be a list.
    return None if "," in reference and "," in answer else False


def close(reference: Number, answer: Number) -> bool:
    """Whether two numbers are the same: exactly, unless one is a decimal and may be rounded.

    Then within six decimals, as math-verify does, but never coarser than 5e-5 of the reference
    (six decimals would make 1e-19 and 2e-9 the same), nor, where the reference itself is a
    decimal, finer than 1e-6 of it. A percentage equals its number with or without the division
    by 100.
    """
    values = {answer.value}
    if reference.percent != answer.percent:
        values.add(answer.value * (Fraction(1, 100) if answer.percent else 100))
    size, slack = abs(reference.value), Fraction(0)
    if reference.decimal or answer.decimal:
        slack = min(Fraction(5, 10**7), size * 5 / 10**5)
    if reference.decimal:
        slack = max(slack, size / 10**6)
    return any(abs(reference.value - value) <= slack for value in values)


def _as_words(reference: str, answer: str) -> bool | None:
    """Letters of a multiple choice, and words. Short "words" may be products of symbols."""
    choice = _CHOICE.fullmatch(reference)
    if choice and (other := _CHOICE.fullmatch(answer.upper())):
        return choice[1] == other[1]
    words = _WORDS.fullmatch(reference), _WORDS.fullmatch(answer)
    if not all(words):
        prose = any(found and _is_prose(found[0]) for found in words)
        return False if prose and (number(reference) or number(answer)) else None
    if min(len(reference), len(answer)) < 2:
        return None
    same = reference.casefold().split() == answer.casefold().split()
    return same if same or _is_prose(reference) else None


def _is_prose(words: str) -> bool:
    return max(map(len, re.split(r"[ '-]", words))) > 3


def _in_base(reference: str, answer: str) -> bool | None:
    """`52_8` asks for the digits in base 8: `52` has them, `52_7` and `42` have not."""
    asked = _BASE.fullmatch(reference.replace(" ", ""))
    if not asked or not asked["digits"][0].isdigit():
        return None
    given = _BASE.fullmatch(answer.replace(" ", ""))
    if given:
        return given["digits"] == asked["digits"] and given["base"] == asked["base"]
    return asked["digits"] == answer if answer.isalnum() else None


def _without_definition(reference: str, answer: str) -> tuple[str, str]:
    """Both without `x =` in front, where one of them has it and the other no `=` at all."""
    left, right = _split_definition(reference), _split_definition(answer)
    if left and "=" not in answer:
        return left, answer
    if right and "=" not in reference:
        return reference, right
    return reference, answer


def _split_definition(text: str) -> str | None:
    name, *rest = re.split(r"(?<![<>!])=", text)
    if len(rest) == 1 and _DEFINITION.fullmatch(name) and rest[0].strip():
        return rest[0].strip()
    return None


@dataclass(frozen=True, slots=True)
class _List:
    """Parts in brackets (a tuple, an interval), in set braces, or in nothing."""

    brackets: tuple[str, str] | None
    parts: tuple[str, ...]

    @property
    def ordered(self) -> bool:
        return self.brackets is not None and self.brackets[0] != "\\{"


_NOT_LISTS = object()


def _as_lists(reference: str, answer: str, atom: Atom, depth: int) -> bool | None | object:
    """Part by part; as multisets where neither side is ordered. _NOT_LISTS for single things."""
    if "\\begin" in reference or "\\begin" in answer:
        return _NOT_LISTS
    # 1,234 is a number; only beside another such number may it be a list.
    numbers = number(reference) is not None, number(answer) is not None
    left = _read_list(reference, whole=numbers == (True, False))
    right = _read_list(answer, whole=numbers == (False, True))
    if len(left.parts) == len(right.parts) == 1:
        inner = (left.parts[0], right.parts[0])
        return _NOT_LISTS if inner == (reference, answer) else _equal(*inner, atom, depth)
    if len(left.parts) != len(right.parts):
        # An interval may be written as one inequality; a list is never one thing.
        many = max(left, right, key=lambda side: len(side.parts))
        is_interval = 1 in (len(left.parts), len(right.parts)) and many.ordered
        return _NOT_LISTS if is_interval else False
    if left.ordered and right.ordered and left.brackets != right.brackets:
        return False
    if left.ordered or right.ordered:
        return _all(_equal(a, b, atom, depth) for a, b in zip(left.parts, right.parts, strict=True))
    return _same_multiset(left.parts, right.parts, atom, depth)


def _read_list(text: str, *, whole: bool = False) -> _List:
    if whole:
        return _List(None, (text,))
    brackets = next((pair for pair in _BRACKETS if encloses_pair(text, pair)), None)
    if brackets is None:
        return _List(None, tuple(_with_both_signs(split_top_level(text))))
    inner = text[len(brackets[0]) : len(text) - len(brackets[1])].strip()
    parts = tuple(split_top_level(inner))
    if len(parts) == 1 and brackets not in (_ROUND, _SET):
        return _List(None, (text,))
    return _List(brackets, parts)


def encloses_pair(text: str, pair: tuple[str, str]) -> bool:
    """Whether the text is one bracketed whole; half-open intervals mix two kinds."""
    if pair[0] in "([" and pair[1] in ")]":
        alike = text.replace("[", "(").replace("]", ")")
        return text.startswith(pair[0]) and text.endswith(pair[1]) and encloses(alike, "(", ")")
    return encloses(text, *pair)


def split_top_level(text: str) -> list[str]:
    """Parts between commas or semicolons that stand in no bracket."""
    parts, depth, start = [], 0, 0
    for position, character in enumerate(text):
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif character in ",;" and depth == 0:
            parts.append(text[start:position].strip())
            start = position + 1
    parts.append(text[start:].strip())
    return [part for part in parts if part] or [text]


def _with_both_signs(parts: Sequence[str]) -> list[str]:
    r"""`1 \pm \sqrt{2}` as two parts."""
    found = []
    for part in parts:
        if "\\pm" in part:
            found += [part.replace("\\pm", "+").replace("\\mp", "-")]
            found += [part.replace("\\pm", "-").replace("\\mp", "+")]
        else:
            found.append(part)
    return [part.removeprefix("+").strip() for part in found]


def _all(verdicts: Sequence[bool | None]) -> bool | None:
    verdicts = list(verdicts)
    if False in verdicts:
        return False
    return None if None in verdicts else True


def _same_multiset(
    left: Sequence[str], right: Sequence[str], atom: Atom, depth: int
) -> bool | None:
    if len(left) > _MOST_PARTS:
        return sorted(left) == sorted(right)
    open_parts, unsure = list(right), False
    for part in left:
        verdicts = [_equal(part, other, atom, depth) for other in open_parts]
        if True in verdicts:
            open_parts.pop(verdicts.index(True))
        elif None in verdicts:
            unsure = True
        else:
            return False
    return None if unsure else True
