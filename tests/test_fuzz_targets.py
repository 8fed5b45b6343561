"""The fuzzers' targets and mutators, without the fuzzer: `make fuzz` runs them with it."""

import random
import sys

import pytest
from conftest import REPO

sys.path.append(str(REPO / "tests" / "fuzz"))

from targets import TARGETS


def flip(rng):
    """Change bytes as a fuzzer might: some bits, cut, or repeat."""

    def change(data, max_size):
        changed = bytearray(data)
        for _ in range(rng.choice([1, 1, 3])):
            place = rng.randrange(len(changed) + 1)
            choice = rng.randrange(4)
            if choice == 0:
                del changed[place : place + rng.choice([1, 8])]
            elif choice == 1:
                changed[place:place] = rng.randbytes(rng.choice([1, 8]))
            elif place < len(changed):
                changed[place] ^= 1 << rng.randrange(8)
        return bytes(changed[:max_size])

    return change


@pytest.mark.parametrize("name", TARGETS)
def test_targets_take_whole_and_damaged_files(name):
    target = TARGETS[name]
    seeds = list(target.seeds())
    mutated = 0
    for number in range(150):
        rng = random.Random(f"{name}{number}")
        seed = seeds[number % len(seeds)]
        target.run(seed)
        try:
            data = target.mutate(seed, rng, flip(rng), 2**16)
        except (ValueError, KeyError):
            continue
        mutated += data != seed
        target.run(data)
    assert mutated > 75
