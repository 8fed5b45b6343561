import dataclasses
from typing import Any

import pytest

from vidpress.model.strict_json import JsonError, decode


@dataclasses.dataclass(frozen=True)
class Point:
    x: int
    names: tuple[str, ...] = ()


def test_reads_what_the_type_says_and_passes_over_other_fields():
    assert decode('{"x": 5, "names": ["a"], "z": 1}', Point) == Point(5, ("a",))
    assert decode(b'{"a": [1, null, 2.5]}', dict[str, Any]) == {"a": [1, None, 2.5]}


@pytest.mark.parametrize(
    ("data", "type_", "message"),
    [
        (b"", Point, "truncated"),
        (b"[]", Point, "Expected `object`, got `array`"),
        (b'{"x": "5"}', Point, r"Expected `int`, got `str` - at `\$.x`"),
        (b'{"x": 1.5}', Point, "Expected `int`, got `float`"),
        (b'{"x": true}', Point, "Expected `int`, got `bool`"),
        (b"{}", Point, "missing required field `x`"),
        (b'{"x": ' + b"9" * 5000 + b"}", Point, "out of range"),
        (b'{"x": NaN}', Point, "malformed"),
        (b"\xff", Any, "malformed"),
        (b'"\xff"', Any, "utf-8"),
        ("[" * 100_000, Any, "nested too deeply"),
        ('{"a":' * 100_000, Any, "nested too deeply"),
        (b" " * (2**20 + 1), Any, "1,048,577 bytes of JSON are more than the 1,048,576"),
    ],
)
def test_refuses_anything_else_by_one_kind_of_error(data, type_, message):
    with pytest.raises(JsonError, match=message):
        decode(data, type_)


def test_the_limit_is_the_callers():
    with pytest.raises(JsonError, match="5 bytes"):
        decode("[1,2]", Any, max_bytes=4)
