"""The one place where spellings of the same answer are made alike, before anything is compared.

normal_form: text -> text, the same for the reference and the answer, so it must never turn two
different answers into one. number: what a normal form is worth where it is a plain number.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

_CHARACTERS = str.maketrans(
    {
        "\u2212": "-",
        "\u2013": "-",
        "\u00d7": "\\times ",
        "\u22c5": "\\cdot ",
        "\u00b7": "\\cdot ",
        "\u03c0": "\\pi ",
        "\u221e": "\\infty ",
        "\u2264": "\\le ",
        "\u2265": "\\ge ",
        "\u222a": "\\cup ",
        "\u2208": "\\in ",
        "\u00b1": "\\pm ",
        "\u00b0": "^\\circ",
        "\u00b2": "^2",
        "\u00b3": "^3",
        "\u00bd": "\\frac{1}{2}",
        "\u00bc": "\\frac{1}{4}",
        "\u00be": "\\frac{3}{4}",
        "\u00a0": " ",
        "\u202f": " ",
        "\u2009": " ",
    }
)

UNITS = (
    "cm|mm|km|meters?|metres?|ft|feet|foot|inch(?:es)?|miles?|yards?|mph|cents?|dollars?|"
    "bucks|euros?|degrees?|radians?|hours?|hrs?|minutes?|mins?|seconds?|secs?|days?|weeks?|months?|"
    "years?|kg|grams?|pounds?|lbs?|liters?|litres?|gallons?|units?|sq(?:uare)?|cubic|per|"
    "points?|people|students?|ways?|apples?|books?|eggs?"
)
_TEXT = r"\\(?:text(?:bf|it|rm|normal|up)?|mbox|hbox|mathrm|mathbf|mathit|mathsf|operatorname\*?)"

# What may stand in \text{} behind a number as its unit. One letter may be a symbol (2\mathrm{i}
# is not 2), so only letters that are units alone count; and there may be no second answer or
# condition (4\text{ or maybe 5}). Written without nested repetition: it runs on hostile text.
_OTHER = r"(?![^{}]*\b(?:or|and|not|if|for|when|where|mod|even|odd)\b)"
_TWO_LETTERS = r"(?=[^a-zA-Z{}]*[a-zA-Z][^a-zA-Z{}%]*[a-zA-Z%])"
_UNIT = rf"(?:\s*[mgsNJKVAWFL]\s*|{_OTHER}{_TWO_LETTERS}(?:[^{{}}\d^]|\^-?\d?)*)"
_WORTH = r"(?:(?<=[\d})])|(?<=\\pi)|(?<=\\pi ))"  # what a unit stands behind

# In order. Each is (what it is for, pattern, replacement).
RULES: tuple[tuple[str, re.Pattern[str], str], ...] = tuple(
    (purpose, re.compile(pattern), replacement)
    for purpose, pattern, replacement in (
        ("control characters", r"[\x00-\x20\x7f]+", " "),
        ("root sign", r"\u221a\s*(\d+|[a-zA-Z])", r"\\sqrt{\1}"),
        ("root sign", r"\u221a\s*(?=\()", r"\\sqrt"),
        ("box", r"\\f?box(?:ed)?\s*(?=\{)", ""),
        ("display", r"\\(?:displaystyle|textstyle|limits)(?![a-zA-Z])", ""),
        ("thousands, 11,\\!111", r"(?<=\d),\s?\\!\s?(?=\d{3})", ","),
        ("thousands, 11{,}111", r"(?<=\d)\{,\}(?=\d)", ","),
        ("thousands, 11\\,111", r"(?<=\d)\\[,;:] ?(?=\d{3}(?!\d))", ","),
        ("money", r"\\\$|[$\u20ac\u00a3]", ""),
        ("math delimiters", r"(?<!\\)\\[()\[\]]", ""),
        ("size of brackets", r"\\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])\.?", ""),
        ("spaces", r"(?<!\\)\\[,;:! ]|~|\\q?quad(?![a-zA-Z])", " "),
        ("fractions", r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        ("synonyms", r"\\leq(?:slant)?(?![a-zA-Z])", r"\\le"),
        ("synonyms", r"\\geq(?:slant)?(?![a-zA-Z])", r"\\ge"),
        ("synonyms", r"\\(?:varnothing)(?![a-zA-Z])", r"\\emptyset"),
        ("brackets", r"\\lbrack(?![a-zA-Z])", "["),
        ("brackets", r"\\rbrack(?![a-zA-Z])", "]"),
        ("brackets", r"\\lbrace(?![a-zA-Z])", r"\\{"),
        ("brackets", r"\\rbrace(?![a-zA-Z])", r"\\}"),
        ("python", r"\b(?:np|numpy|math)\.(?=[a-z])", ""),
        ("python", r"(?<![\\a-zA-Z])(arcsin|arccos|arctan|sin|cos|tan|ln|log|sqrt|pi)\b", r"\\\1"),
        ("python", r"\*\*", "^"),
        ("exp{...}", r"\\exp\s*(?=\{)", "e^"),
        ("conjunctions", rf",?\s*(?:{_TEXT}\{{\s*(?:and|or)\s*\}}|\b(?:and|or)\b)\s*", ", "),
        ("degrees", r"\^\s*\{?\s*\\circ\s*\}?|\\degree(?![a-zA-Z])", ""),
        ("per cent", rf"\s*(?:{_TEXT}\{{\s*)?\bper\s?cent\b(?:\s*\}})?", r"\\%"),
        # Something must stand in front of a unit: \text{Evelyn} is an answer.
        ("unit in text", rf"{_WORTH}\s*{_TEXT}\{{{_UNIT}\}}\s*(?:\^\s*\{{?-?\d\}}?)?\s*\Z", ""),
        ("unit in words", rf"(?<=\d)\s+(?:(?:{UNITS})\.?(?:\^\{{?\d\}}?)?\s*)+\Z", ""),
        ("text", rf"{_TEXT}\s*\{{([^{{}}]*)\}}", r"\1"),
        ("font", r"\\(?:rm|bf|it)(?![a-zA-Z])", ""),
        ("membership", r"\A\s*[a-zA-Z]\s*\\in(?![a-zA-Z])", ""),
        ("\\frac43", r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
        ("\\frac4{19}", r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{"),
        ("\\frac{19}4", r"\\frac\s*\{([^{}]*)\}\s*(\d)", r"\\frac{\1}{\2}"),
        ("\\sqrt3", r"\\sqrt\s*(\d+)", r"\\sqrt{\1}"),
        ("\\sqrt(3)", r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        ("number sets", r"\\mathbb\s*([A-Z])", r"\\mathbb{\1}"),
        ("subscripts", r"_\s*\{(\w)\}", r"_\1"),
        ("bare point", r"(?<![\d.])\.(?=\d)", "0."),
        ("spaces", r"\s+", " "),
        ("full stop", r"[\s.,;:]+\Z", ""),
    )
)


@lru_cache(maxsize=16384)
def normal_form(text: str) -> str:
    r"""The same answer in one spelling: `\dfrac43\text{ cm}` is `\frac{4}{3}`."""
    text = text.translate(_CHARACTERS)
    for _, pattern, replacement in RULES:
        text = pattern.sub(replacement, text)
    text = text.strip()
    while encloses(text, "{", "}"):
        text = text[1:-1].strip()
    return text


def encloses(text: str, opening: str, closing: str) -> bool:
    """Whether the first character opens what the last one closes, and nothing else does."""
    if not (text.startswith(opening) and text.endswith(closing)):
        return False
    depth = 0
    for position in range(len(text)):
        depth += text.startswith(opening, position) - text.startswith(closing, position)
        if depth == 0:
            return position == len(text) - len(closing)
    return False


@dataclass(frozen=True, slots=True)
class Number:
    """What a plain number is worth."""

    value: Fraction
    decimal: bool  # written with decimals or an exponent, so perhaps rounded
    percent: bool


_DIGITS = r"(?:\d{1,3}(?:[, ]\d{3})+|\d+)"
_DECIMAL = rf"(?P<mantissa>{_DIGITS}(?:\.\d*)?)(?P<percent>\s*\\?%)?"
_POWER = r"10\s*\^\s*\{?\s*(?P<power>[+-]?\d{1,3})\s*\}?"
_FORMS = tuple(
    re.compile(rf"(?P<sign>[+-]?)\s*(?:{form})")
    for form in (
        rf"{_DECIMAL}",
        rf"(?P<mantissa>{_DIGITS}(?:\.\d*)?)\s*[eE]\s*(?P<power>[+-]?\d{{1,3}})",
        rf"(?:(?P<mantissa>{_DIGITS}(?:\.\d*)?)\s*(?:\\times|\\cdot|\*)\s*)?{_POWER}",
        r"(?:(?P<whole>\d+)\s*)?\\frac\s*\{\s*(?P<top>-?\d+\.?\d*)\s*\}\s*\{\s*(?P<under>\d+\.?\d*)\s*\}",
        r"(?:(?P<whole>\d+)\s+)?(?P<top>\d+\.?\d*)\s*/\s*(?P<under>\d+\.?\d*)",
    )
)


def number(text: str) -> Number | None:
    r"""The worth of a normal form that is a plain number, else None.

    Plain: an integer, a decimal, `4.5e33`, `4.5 \times 10^{33}`, a fraction, a mixed number, a
    percentage. `3\frac{1}{2}` is read as a mixed number, as everybody does; `3\frac{5}{2}` is not.
    """
    if len(text) > 400:
        return None
    text = text.removeprefix("(").removesuffix(")") if encloses(text, "(", ")") else text
    for form in _FORMS:
        if found := form.fullmatch(text):
            return _worth(found.groupdict())
    return None


def _worth(part: dict[str, str | None]) -> Number | None:
    sign = -1 if part["sign"] == "-" else 1
    if part.get("top"):
        top, under = Fraction(part["top"].rstrip(".")), Fraction(part["under"].rstrip("."))
        whole = Fraction(part["whole"] or 0)
        if under == 0 or (part["whole"] and not 0 < top < under):
            return None
        decimal = "." in part["top"].rstrip(".") or "." in part["under"].rstrip(".")
        return Number(sign * (whole + top / under), decimal, percent=False)
    mantissa = re.sub(r"[, ]", "", part["mantissa"] or "1")
    power = int(part.get("power") or 0)
    value = sign * Fraction(mantissa.rstrip(".")) * Fraction(10) ** power
    rounded = value.denominator != 1 or (power != 0 and part["mantissa"] is not None)
    return Number(value, rounded, percent=bool(part.get("percent")))
