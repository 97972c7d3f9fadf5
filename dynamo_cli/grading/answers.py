r"""The final answer in a response: the last `\boxed{}`, else an announced answer at the end.

Every scan is linear in the response, which may be hundreds of kilobytes of anything.
"""

import re

LONGEST = 2000  # characters; what is longer is working, not an answer

_BRACES = re.compile(r"(?P<box>\\f?box(?:ed)?\s*\{)|\\.|(?P<open>\{)|(?P<close>\})", re.DOTALL)
# Only such text may stand between two boxes that form one answer: \boxed{1} and \boxed{2}.
_BETWEEN = re.compile(r"(?:[\s$,;]|\\[(),;]|\\text\{ ?(?:and|or) ?\}|and|or)*")
_ANNOUNCED = (
    re.compile(r"^[ \t*_#>]*(?:final[ \t]+)?answer[ \t*_]*:[ \t*_]*", re.IGNORECASE | re.MULTILINE),
    re.compile(r"\b(?:the|my)\s(?:\w+\s)?answer\s(?:is|=)[:\s*]*", re.IGNORECASE),
    re.compile(r"^####[ \t]*", re.MULTILINE),
)
_SENTENCE_END = re.compile(r"\.(?=\s|\*|$)|\n\s*\n|\n(?!\s*(?:\\\[|\$\$|\\begin))")


def final_answer(text: str, finished: bool) -> str | None:
    r"""The answer that a response settles on, as written; None where it gives none.

    Boxes that follow each other with nothing but `and`, `or` or commas between them are one
    answer of several parts. A response that was cut off answers by a box or not at all: numbers
    in unfinished working are no answer.
    """
    spans = boxes(text)
    if spans:
        parts = [spans[-1]]
        for span in reversed(spans[:-1]):
            between = text[span[1] + 1 : parts[0][0]][: LONGEST + 1]
            if not _BETWEEN.fullmatch(_after_open(between)):
                break
            parts.insert(0, span)
        answer = ", ".join(text[start:end].strip() for start, end in parts)
    else:
        answer = _announced(text) if finished else ""
    return answer if 0 < len(answer) <= LONGEST else None


def _after_open(between: str) -> str:
    """Text between a box's closing brace and the next box's content, without `\\boxed{`."""
    return re.sub(r"\\f?box(?:ed)?\s*\{\Z", "", between)


def last_box(text: str) -> str | None:
    r"""What the last complete `\boxed{...}` or `\fbox{...}` holds; None where there is none."""
    spans = boxes(text)
    return text[slice(*spans[-1])].strip() if spans else None


def boxes(text: str) -> list[tuple[int, int]]:
    """Where the contents of complete, outermost boxes stand: (start, end), in order.

    Braces are balanced and escaped braces are text. A box that is never closed is no box, but
    the ones inside it are.
    """
    opened: list[tuple[bool, int]] = []  # of each open brace: is it a box's, and where it ends
    spans: list[tuple[int, int]] = []
    for found in _BRACES.finditer(text):
        if found["box"] or found["open"]:
            opened.append((found["box"] is not None, found.end()))
        elif found["close"] and opened:
            is_box, start = opened.pop()
            if is_box:
                while spans and spans[-1][0] >= start:
                    spans.pop()  # it stands inside this one
                spans.append((start, found.start()))
    return spans


def _announced(text: str) -> str:
    """The rest of the sentence after the last `Answer:`, `the answer is` or `####`."""
    ends = [found.end() for pattern in _ANNOUNCED for found in pattern.finditer(text)]
    if not ends:
        return ""
    rest = text[max(ends) :][: LONGEST + 1]
    end = _SENTENCE_END.search(rest)
    answer = rest[: end.start()] if end else rest
    return answer.strip().strip("*").strip()
