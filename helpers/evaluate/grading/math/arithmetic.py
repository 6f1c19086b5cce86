"""Exact arithmetic on text: its value as a fraction.

Graders compare numbers thousands of times, so this is quick, and it never runs away: numbers, exponents and
nesting are bounded, and whatever is not arithmetic has no value (None) instead of a guess. Roots and pi have
60 digits: enough to tell two of them apart, however small they are or how little they differ.
"""

import math
import re
from decimal import Context, Decimal, DivisionByZero, InvalidOperation, Overflow, Underflow
from fractions import Fraction

from helpers.evaluate.grading.math.plain_text import MAX_LENGTH

Number = Fraction | Decimal

# What is too large or too small for it raises.
_SIXTY_DIGITS = Context(
    prec=60, Emax=10_000, Emin=-10_000, traps=[Overflow, Underflow, InvalidOperation, DivisionByZero]
)
_PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494")

MAX_DIGITS = 400

MAX_BITS = 20_000

MAX_DEPTH = 40

NUMBER = r"(?>(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d{1,4}(?![\w.]))?)"

CURRENCY = "$€£¥₹₩₽"


class _NoValue(ArithmeticError):
    """The text is not arithmetic, or too large to evaluate."""


_TOKEN = re.compile(
    rf"\s*(?:(?P<num>{NUMBER})|(?P<op>\*\*|[-+*/^()%!])|(?P<name>sqrt|pi)(?![A-Za-z])"
    rf"|(?P<money>[{CURRENCY}]))"
)


class _Parser:
    """Recursive descent: sum, product, unary minus, power, atom. `seen` collects the value of every part."""

    def __init__(self, text: str):
        self.tokens: list[tuple[str, str, bool]] = []
        self.position = self.depth = 0
        self.seen: list[Number] = []
        place = 0
        text = text.strip()
        while place < len(text):
            match = _TOKEN.match(text, place)
            if not match or len(self.tokens) > 300:
                raise _NoValue
            kind = match.lastgroup or ""
            if kind != "money":
                self.tokens.append((kind, match[kind], match[0][:1].isspace()))
            place = match.end()

    def peek(self, ahead: int = 0) -> tuple[str, str, bool]:
        index = self.position + ahead
        return self.tokens[index] if index < len(self.tokens) else ("end", "", False)

    def take(self) -> str:
        self.position += 1
        return self.tokens[self.position - 1][1]

    def whole(self) -> Number:
        value = self.sum()
        if self.peek()[0] != "end":
            raise _NoValue
        return value

    def sum(self) -> Number:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _NoValue
        value = self.product()
        while self.peek()[1] in ("+", "-"):
            value = self.keep(
                _add(value, self.product() if self.take() == "+" else _times(self.product(), Fraction(-1)))
            )
        self.depth -= 1
        return value

    def product(self) -> Number:
        value = self.unary()
        while True:
            kind, text, _ = self.peek()
            if text in ("*", "/"):
                self.take()
                other = self.unary()
                value = self.keep(_times(value, other) if text == "*" else _over(value, other))
            elif text == "(" or kind == "name":  # 2(3), 2 sqrt(3)
                value = self.keep(_times(value, self.power()))
            else:
                return value

    def unary(self) -> Number:
        sign = 1
        while self.peek()[1] in ("+", "-"):
            sign = -sign if self.take() == "-" else sign
        value = self.power()
        return value if sign == 1 else self.keep(_times(value, Fraction(-1)))

    def power(self) -> Number:
        base = self.atom()
        if self.peek()[1] in ("^", "**"):
            self.take()
            self.depth += 1
            if self.depth > MAX_DEPTH:
                raise _NoValue
            exponent = self.unary()
            self.depth -= 1
            return self.keep(_raise(base, exponent))
        return base

    def atom(self) -> Number:
        kind, text, _ = self.peek()
        if kind == "num":
            self.take()
            value = self.mixed(self.keep(parse_number(text)))
        elif kind == "name":
            self.take()
            value = _PI if text == "pi" else self.keep(_root(self.atom()))
        elif text == "(":
            self.take()
            value = self.sum()
            if self.peek()[1] != ")":
                raise _NoValue
            self.take()
        else:
            raise _NoValue
        while self.peek()[1] in ("%", "!"):
            value = self.keep(_over(value, Fraction(100)) if self.take() == "%" else _factorial(value))
        return value

    def mixed(self, value: Number) -> Number:
        """`1 1/2` and `1 ((1)/(2))` are one and a half."""
        one, two, three = self.peek(), self.peek(1), self.peek(2)
        if not isinstance(value, Fraction):
            return value
        if one[0] == "num" and one[2] and two[1] == "/" and three[0] == "num":
            top, bottom = parse_number(one[1]), parse_number(three[1])
            self.position += 3
            return self.keep(_add(value, _over(top, bottom)))
        shape = [self.peek(i)[1] for i in (0, 1, 3, 4, 5, 7, 8)]
        if shape == ["(", "(", ")", "/", "(", ")", ")"] and one[2] and value.denominator == 1:
            parts = self.peek(2), self.peek(6)
            if all(kind == "num" for kind, _, _ in parts):
                self.position += 9
                return self.keep(_add(value, _over(*(parse_number(text) for _, text, _ in parts))))
        return value

    def keep(self, value: Number) -> Number:
        self.seen.append(value)
        return value


def parse_number(text: str) -> Fraction:
    """`1,234.5`, `.5` or `1e3` as an exact fraction.

    Raises:
        _NoValue: it has too many digits, or an exponent out of bounds.
    """
    text = text.replace(",", "")
    mantissa, _, exponent = text.lower().partition("e")
    if len(mantissa) > MAX_DIGITS or abs(int(exponent or 0)) > MAX_DIGITS:
        raise _NoValue
    return Fraction(text)


def _bounded(value: Fraction) -> Fraction:
    if value.numerator.bit_length() > MAX_BITS or value.denominator.bit_length() > MAX_BITS:
        raise _NoValue
    return value


def _decimal(a: Number) -> Decimal:
    if isinstance(a, Decimal):
        return a
    return _SIXTY_DIGITS.divide(Decimal(a.numerator), Decimal(a.denominator))


def _add(a: Number, b: Number) -> Number:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return _bounded(a + b)
    if not a or not b:
        return a or b
    a, b = _decimal(a), _decimal(b)
    total = _SIXTY_DIGITS.add(a, b)
    noise = max(a.adjusted(), b.adjusted()) - 50  # sqrt(2)^2 - 2 is 0: what is left is rounding
    return total if total.adjusted() > noise else Fraction(0)


def _times(a: Number, b: Number) -> Number:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return _bounded(a * b)
    return _SIXTY_DIGITS.multiply(_decimal(a), _decimal(b))


def _over(a: Number, b: Number) -> Number:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return _bounded(a / b)
    return _SIXTY_DIGITS.divide(_decimal(a), _decimal(b))


def _raise(a: Number, b: Number) -> Number:
    if isinstance(b, Fraction) and b.denominator == 1 and isinstance(a, Fraction):
        size = max(a.numerator.bit_length(), a.denominator.bit_length())
        if abs(b.numerator) * size > MAX_BITS:
            raise _NoValue
        return a**b.numerator
    return _SIXTY_DIGITS.power(_decimal(a), _decimal(b))


def _root(a: Number) -> Number:
    if isinstance(a, Fraction) and a >= 0:
        top, bottom = math.isqrt(a.numerator), math.isqrt(a.denominator)
        if top * top == a.numerator and bottom * bottom == a.denominator:
            return Fraction(top, bottom)
    return _SIXTY_DIGITS.sqrt(_decimal(a))


def _factorial(a: Number) -> Fraction:
    if not isinstance(a, Fraction) or a.denominator != 1 or not 0 <= a <= 200:
        raise _NoValue
    return Fraction(math.factorial(a.numerator))


def evaluate(text: str) -> tuple[Number, list[Number]] | None:
    """The value of a text that `plain` returned, and the values of its parts; None if it is not arithmetic.

    Returns:
        A `Fraction` where the value is rational, a `Decimal` of 60 digits where a root or pi is in it.
    """
    if not text or len(text) > 2 * MAX_LENGTH:
        return None
    try:
        parser = _Parser(text)
        value = parser.whole()
        return value, [*parser.seen, value]
    except ArithmeticError:
        return None


def value_of(text: str) -> Number | None:
    """The value of a text that `plain` returned; None if it is not arithmetic."""
    result = evaluate(text)
    return result[0] if result else None


def scaled(value: Number, factor: int | Fraction) -> Number:
    """A value times a factor."""
    if isinstance(value, Fraction):
        return value * factor
    wide = Context(prec=60)
    return wide.multiply(value, wide.divide(Decimal(factor.numerator), Decimal(factor.denominator)))


def same_number(a: Number, b: Number) -> bool:
    """Equal: exactly between fractions, to 40 digits between roots, to 9 digits between a root and a decimal.

    Digits are significant ones: no two numbers are equal because both are small.
    """
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a == b
    digits = 40 if isinstance(a, Decimal) and isinstance(b, Decimal) else 9
    a, b = Fraction(a), Fraction(b)
    return abs(a - b) * 10**digits <= max(abs(a), abs(b))


def rounds_to(exact: Number, shown: Fraction, decimals: int) -> bool:
    """Whether `shown`, with that many decimals, is `exact` rounded (either way at a tie) or cut off."""
    difference = abs(Fraction(exact) - shown)
    return difference < Fraction(1, 10**decimals) and (
        difference <= Fraction(1, 2 * 10**decimals) or abs(shown) < abs(Fraction(exact))
    )
