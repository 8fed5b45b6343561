import numpy as np
from numba import typeof

from vidpress.model.frozen import dense_layers, matrix_units
from vidpress.model.warm_up import numba_variables, warm_up


def test_kinds_of_processors_are_said_as_numba_takes_them():
    assert numba_variables("x86-64-v3") == {"NUMBA_CPU_NAME": "x86-64-v3", "NUMBA_CPU_FEATURES": ""}
    assert numba_variables("x86-64-v4+amx-tile+amx-bf16") == {
        "NUMBA_CPU_NAME": "x86-64-v4",
        "NUMBA_CPU_FEATURES": "+amx-tile,+amx-bf16",
    }


class Loop:
    """Stands for a loop that this processor may have no instructions for, and notes for which types it is wanted."""

    def __init__(self, result):
        self.result = result
        self.ran, self.compiled = set(), set()

    def __call__(self, *arguments):
        self.ran.add(tuple(map(typeof, arguments)))
        return self.result(*arguments)

    def compile(self, types):
        self.compiled.add(types)


def test_what_is_compiled_for_matrix_units_elsewhere_is_what_layers_run_there(monkeypatch):
    loops = {
        "_split_kernel": Loop(lambda *_: None),
        "_multiply": Loop(lambda *_: False),  # so that NumPy multiplies
        "_split_squares": Loop(lambda rows: np.zeros((len(rows), 2))),
        "_add_once": Loop(lambda *_: None),
    }
    for name, loop in loops.items():
        monkeypatch.setattr(matrix_units, name, loop)
    monkeypatch.setattr(dense_layers, "has_matrix_units", lambda: True)
    matrix_units.sums_products_first()
    warm_up()
    matrix_units.compile_ahead()
    for loop in loops.values():
        assert loop.ran == loop.compiled != set()
