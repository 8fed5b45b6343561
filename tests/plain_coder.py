"""The range coder in plain Python: slow, without tricks, and what the fast one is held against.

A row of symbols narrows an interval [low, low + size) of whole numbers, at first [0, 2^32), each symbol to its share
`cdf[i] / 2^precision` to `cdf[i + 1] / 2^precision`. When the size falls to 2^16 or less, 16 binary places are added.
The code is a number of the last interval, big endian, without the zeros that it ends with. Python's integers have any
length, so that there are no carries to think of.
"""

from __future__ import annotations

BIT = [0, 1, 2]  # a cdf of precision 1
MAX_ZEROS = 30  # of an escape's Elias gamma code


class Interval:
    """The numbers, of `num_bits` bits each, that begin with what was coded so far."""

    def __init__(self):
        self.low, self.size, self.num_bits = 0, 2**32, 32

    def narrow(self, cdf, index, precision):
        lower, upper = (self.size * int(end) >> precision for end in cdf[index : index + 2])
        self.low, self.size = self.low + lower, upper - lower
        if self.size <= 2**16:
            self.low, self.size, self.num_bits = self.low << 16, self.size << 16, self.num_bits + 16

    def code(self):
        """The number with 32 zeros at its end, or else 24, or else 16: the first one that there is."""
        for zeros in (32, 24, 16):
            number = -(-self.low >> zeros)  # rounded up
            if number << zeros < self.low + self.size:
                break
        data = number.to_bytes((self.num_bits - zeros) // 8, "big")
        # A carry may have left more zeros, which go; the words of a number that is `low` itself had left before.
        return data.rstrip(b"\0") if number << zeros != self.low else data


def distributions(tables, num_symbols):
    """Each symbol's cdf and the value of its first interval; the last interval is the escape."""
    for symbol in range(num_symbols):
        dim = symbol % len(tables.cdf_offset)
        yield tables.cdf[tables.cdf_start[dim] : tables.cdf_start[dim + 1]], int(tables.cdf_offset[dim])


def encode(tables, row):
    """The code of one row's values."""
    interval = Interval()
    for value, (cdf, offset) in zip(map(int, row), distributions(tables, len(row)), strict=True):
        index, escape = value - offset, len(cdf) - 2
        interval.narrow(cdf, index if 0 <= index < escape else escape, tables.precision)
        if not 0 <= index < escape:  # the distance from the table as an Elias gamma code, and its sign
            distance = -index if index < 0 else index - escape + 1
            bits = f"{distance:b}"
            for bit in "0" * (len(bits) - 1) + bits + ("1" if index < 0 else "0"):
                interval.narrow(BIT, int(bit), 1)
    return interval.code()


def decode(tables, code, num_symbols):
    """The values of one row; None if the code is seen to be damaged."""
    interval, values = Interval(), []

    def next_index(cdf, precision):
        num_bytes = interval.num_bits // 8
        ahead = int.from_bytes(code[:num_bytes].ljust(num_bytes, b"\0"), "big") - interval.low
        index = max(i for i in range(len(cdf) - 1) if interval.size * int(cdf[i]) >> precision <= ahead)
        interval.narrow(cdf, index, precision)
        return index

    for cdf, offset in distributions(tables, num_symbols):
        index, escape = next_index(cdf, tables.precision), len(cdf) - 2
        if index == escape:
            zeros, distance = 0, 1
            while not next_index(BIT, 1):
                zeros += 1
                if zeros == MAX_ZEROS:
                    return None
            for _ in range(zeros):
                distance = 2 * distance + next_index(BIT, 1)
            index = -distance if next_index(BIT, 1) else escape + distance - 1
        values.append(index + offset)
    whole = len(code) <= interval.num_bits // 8 and code.rstrip(b"\0") == interval.code().rstrip(b"\0")
    return values if whole else None
