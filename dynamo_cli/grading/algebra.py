"""Formulas compared by math-verify. Runs in a worker process, which alone imports it.

math-verify's own deadlines are off: they are signals, which work in main threads only and do not
interrupt a long multiplication. The grader kills the worker instead.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import isfinite
from typing import Any

from latex2sympy2_extended import NormalizationConfig
from math_verify import LatexExtractionConfig, parse, verify
from math_verify.errors import TimeoutException
from sympy import Expr, Rational

from dynamo_cli.grading.equality import close, equal
from dynamo_cli.grading.normal_form import Number, number
from dynamo_cli.records import Verdict

# Units are off: the normal form has taken them away, and here `\frac{37}{4} m` would lose its m.
_CLEANING = NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="last"
)
_LATEX = (LatexExtractionConfig(boxed_match_priority=0, normalization_config=_CLEANING),)

_UNTOUCHED = r"\\mathbb\s*\{?[A-Z]\}?|\\(?:begin|end)\{\w+\}|\{d[A-Z]\}|\\log_"
_SUBSCRIPT = r"_(?:\w|\\[a-zA-Z]+|\{[^{}]*\})"
_SYMBOL = re.compile(
    rf"{_UNTOUCHED}|(?P<symbol>(?:\\[a-zA-Z]+|[a-zA-Z]){_SUBSCRIPT}|(?<!\\)[A-Z])"
    r"|\\[a-zA-Z]+"
)


class BrokenVerifier(Exception):
    """The verifier cannot handle the reference itself, so it can judge no answer."""


def judge(reference: str, answer: str) -> Verdict:
    """The verdict on an answer, as written. ERROR where the verifier is at fault."""
    unreadable = False

    def atom(left: str, right: str) -> bool:
        nonlocal unreadable
        gold, target = parse_formula(left), parse_formula(right)
        if gold is None:
            raise BrokenVerifier(left)
        if target is None:
            unreadable = True
            return False
        return _verify(Formula(left, gold), Formula(right, target))

    try:
        if equal(reference, answer, atom=atom):
            return Verdict.OK
    except BrokenVerifier:
        return Verdict.ERROR
    except TimeoutException:  # derives from BaseException; its timers are off, so never raised
        return Verdict.TIMEOUT
    return Verdict.UNPARSABLE if unreadable else Verdict.WRONG


@dataclass(frozen=True, slots=True)
class Formula:
    """A normal form and sympy's reading of it."""

    text: str
    value: Any

    def constant(self) -> Number | None:
        """What a formula without symbols is worth; None for any other."""
        if plain := number(self.text):
            return plain
        if not isinstance(self.value, Expr) or self.value.free_symbols:
            return None
        found = self.value.evalf(30)
        return Number(Fraction(str(found)), False, False) if found.is_Float else None


def _differ_at_a_point(gold: Any, target: Any) -> bool:
    """Whether two formulas take clearly different values somewhere: wrong, without any algebra."""
    if not (isinstance(gold, Expr) and isinstance(target, Expr)):
        return False
    names = sorted(gold.free_symbols | target.free_symbols, key=str)
    point = {name: Rational(7 + 4 * k, 11 + 2 * k) for k, name in enumerate(names)}
    try:
        left, right = (complex(formula.evalf(20, subs=point)) for formula in (gold, target))
    except Exception:  # undefined there, or nothing that has a value
        return False
    gap = abs(left - right)
    return isfinite(gap) and gap > 1e-6 * max(abs(left), abs(right))


def _verify(gold: Formula, target: Formula) -> bool:
    # sympy may raise anything on a model's text. If the reference survives a comparison with
    # itself, the answer is at fault, and it is not the reference; else the verifier is.
    try:
        return _compare(gold, target)
    except Exception:
        try:
            _compare(gold, gold)
        except Exception as error:
            raise BrokenVerifier from error
        return False


def _compare(gold: Formula, target: Formula) -> bool:
    left, right = gold.constant(), target.constant()
    if left and right and (left.decimal or right.decimal):
        return close(left, right)
    if _differ_at_a_point(gold.value, target.value):
        return False
    return verify(
        gold.value,
        target.value,
        allow_set_relation_comp=True,
        timeout_seconds=None,
        raise_on_error=True,
    )


@lru_cache(maxsize=4096)
def parse_formula(text: str) -> Any | None:
    """sympy's reading of a normal form; None where it cannot be read."""
    if plain := number(text):
        return Rational(plain.value.numerator, plain.value.denominator)
    try:
        found = parse(
            f"\\boxed{{{distinct_symbols(text)}}}",
            extraction_config=_LATEX,
            fallback_mode="no_fallback",
            parsing_timeout=None,
            raise_on_error=True,
        )
    except Exception:  # on a model's text the parser may raise anything
        return None
    return found[0] if found else None


def distinct_symbols(text: str) -> str:
    r"""The formula with capitals and subscripted symbols under names that the parser keeps apart.

    It reads `M` as `m`, `I_1` and `I_2` both as the imaginary unit, and refuses `E_1`.
    """

    def rename(found: re.Match[str]) -> str:
        symbol = found["symbol"]
        if symbol is None:
            return found[0]
        bare = re.sub(r"[{}\s]", "", symbol)
        return f" x_{{{''.join(f'{ord(character):03d}' for character in bare)}}}"

    return _SYMBOL.sub(rename, text)
