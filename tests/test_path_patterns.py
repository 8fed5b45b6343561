import pytest

from vidpress.model.files.path_patterns import alternatives, is_magic, literal_prefix, matches


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a", ["a"]),
        ("{a}", ["{a}"]),
        ("{a,b}", ["a", "b"]),
        ("x{a,b}y{c,d}", ["xayc", "xayd", "xbyc", "xbyd"]),
        ("{a,{b,c}}", ["a", "b", "c"]),
        ("{a,a}", ["a"]),
        ("x{,.gz}", ["x", "x.gz"]),
        ("{a/b,c}/*", ["a/b/*", "c/*"]),
        ("{}", ["{}"]),
        ("}a,b{", ["}a,b{"]),
    ],
)
def test_braces_stand_for_either(pattern, expected):
    assert sorted(alternatives(pattern, lambda name: False)) == sorted(expected)


def test_braces_in_a_name_that_there_is_are_meant_as_they_are():
    assert alternatives("d/x{a,b}/{c,d}", {"d/x{a,b}"}.__contains__) == ["d/x{a,b}/c", "d/x{a,b}/d"]


def test_too_many_alternatives_are_refused():
    with pytest.raises(ValueError, match="more than 10,000 patterns"):
        alternatives("{a,b}" * 40, lambda name: False)


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("a/*", "a/b", True),
        ("a/*", "a/b/c", False),
        ("a/*", "a/.b", False),
        ("a/.*", "a/.b", True),
        ("a/?[0-2]", "a/x1", True),
        ("a/?[!0-2]", "a/x1", False),
        ("a/?[^0-2]", "a/x1", False),
        ("a/?[^0-2]", "a/x3", True),
        ("a/**", "a/b", True),
        ("a/**", "a/b/c", True),
        ("a/**", "a/.b/c", False),
        ("a/**", "ab", False),
        ("a/**/c", "a/c", True),
        ("a/**/c", "a/b/b/c", True),
        ("a/**/**/c", "a/b/c", True),
        ("**/*.x", "a/b.x", True),
        ("**/*.x", "b.x", True),
        ("a**", "ab", True),
        ("a**", "ab/c", False),
        ("a", "a", True),
        ("a\nb*", "a\nbc", True),
        ("A*", "a", False),
    ],
)
def test_names_match_as_in_a_shell(pattern, name, expected):
    assert matches(pattern, name) is expected


def test_what_matches_begin_with():
    assert literal_prefix("a/b*c/d") == "a/b"
    assert not is_magic("a{b,c}")
    assert is_magic("[a]")
