"""What is shown to everybody holds no place on a machine, no name of its user, no key."""

import getpass
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivedit.exporting.scrub import leaks, public_config, scrub

names = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,12}", fullmatch=True)
roots = st.sampled_from(["/home/", "/", "~/", "~anna/", "C:\\Users\\", "file:///srv/", "\\\\server\\share\\", "/mnt//"])
before = st.sampled_from(["", "see ", "path=", "(", "'", "from:", "a, "])


@given(before, roots, st.lists(names, min_size=1, max_size=4), st.sampled_from(["", ", and more", ")", "' x"]))
def test_an_absolute_path_becomes_its_last_name_wherever_it_stands(start, root, parts, end):
    path = root + ("\\" if "\\" in root else "/").join(parts)
    text = start + path + end
    shown = scrub(text)
    assert not list(leaks(shown))
    assert shown.startswith(start) and not re.search(r"(?<![.])[\\/]", shown)
    places = re.findall(r"[A-Za-z]{3,}", root)
    assert not any(place in shown for place in places if not any(place in part for part in parts))


@given(st.lists(names, min_size=1, max_size=3).map("/".join), st.integers(0, 5), st.floats(allow_nan=False))
def test_relative_paths_hub_names_and_numbers_stay(path, count, number):
    value = {"path": path, "count": count, "list": [number, None, True], "url": "https://arxiv.org/abs/2604.07958"}
    assert scrub(value) == value and not list(leaks(path))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/data/my films/all of them", ".../all_of_them"),
        ("n/N, 1/2 and s/clip", "n/N, 1/2 and s/clip"),
        ("../shared/pairs.csv", "../shared/pairs.csv"),
        ("postgresql://anna:secret@db/x", "postgresql://anna:***@db/x"),
        ("key hf_abcdefghijklmnopqrstuvwxyz123456", "key ***"),
    ],
)
def test_examples(text, shown):
    assert scrub(text) == shown


def test_the_users_name_is_taken_out_but_not_out_of_other_words(monkeypatch):
    monkeypatch.setattr(getpass, "getuser", lambda: "annabel")
    assert scrub({"summary": "annabel's pairs; annabella", "x": "/srv/annabel"}) == {
        "summary": "USER's pairs; annabella", "x": "...",
    }  # fmt: skip
    monkeypatch.setattr(getpass, "getuser", lambda: "root")
    assert scrub("the root of the mean") == "the root of the mean"


def test_a_configuration_keeps_what_made_the_editor_and_nothing_else():
    config = {
        "name": "blue", "seed": 3, "output_dir": "/x/runs", "resume": "/x/old", "train": {"lr": 0.1},
        "data": {"path": "/data/films", "cache_dir": "/scratch/c", "height": 16},
        "tracking": {"uri": "http://secret"}, "judge": {"base_url": "http://10.0.0.1"}, "evaluation": {"editors": {}},
    }  # fmt: skip
    assert public_config(config) == {
        "name": "blue", "seed": 3, "data": {"path": ".../films", "height": 16}, "train": {"lr": 0.1},
    }  # fmt: skip


def test_a_leak_is_found_and_a_key_is_not_repeated():
    assert list(leaks("see /home/anna/x")) == ["/home/anna/x"]
    assert list(leaks("x hf_abcdefghijklmnopqrstuvwxyz y")) == ["a key or password"]
    assert list(leaks('print(*notes, sep="\\n")')) == []
