"""How messages are worded, and secrets in them."""

import pytest

from fuse_search.errors import InputError, headline, masked, nearest


def test_a_heading_is_told_with_what_stands_below_it():
    assert headline(RuntimeError("It broke:\n\tMissing.\n\tMore.")) == "It broke: Missing."
    assert headline(RuntimeError("It broke.\n\tMissing.")) == "It broke."
    assert headline(RuntimeError("Keys:\n" + "key, " * 99)).endswith("key, key, …")
    assert headline(InputError("2 rows:\n  one\n  two")) == "2 rows:"  # all of it is told
    assert headline(KeyError()) == ""


def test_nearest_names_the_closest_or_lists_what_there_is():
    assert nearest("epoch", ["lr", "epochs"]) == "; did you mean 'epochs'?"
    assert nearest("cifar10", ["MNIST", "CIFAR10"]) == "; did you mean 'CIFAR10'?"
    assert nearest("zzz", ["lr", "epochs"]) == "; there is epochs, lr"
    assert nearest("zzz", map(str, range(20))).endswith("… (20 in all)")
    assert nearest(None, []) == ""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://bob:hunter2@host/db", "postgresql://***@host/db"),
        ("postgresql://bob:my hunter2@host/db", "postgresql://***@host/db"),
        ("postgresql://bob:my @hunter2@host/db", "postgresql://***@host/db"),
        ("http://hunter2@host", "http://***@host"),
        ("bob:hunter2@host/db", "***@host/db"),
        ("bob:my hunter2@host/db", "***@host/db"),
        ("'bob:a/hunter2@host' is away", "'***@host' is away"),
        ("mysql://host/db?sslpassword=hunter2&x=1", "mysql://host/db?sslpassword=***&x=1"),
        ("http://host/?a=1&api_key=hunter2 is away", "http://host/?a=1&api_key=*** is away"),
        ("http://host/?X-Amz-Security-Token=hunter2", "http://host/?X-Amz-Security-Token=***"),
    ],
)
def test_secrets_are_masked(text, shown):
    assert masked(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "own.py:12: ValueError: write to bob@host",
        "http://host:80/db?epochs=3 is away",
        "ratio 3:4 @ 2 of a @decorator: x@y",
        "mail: bob@host, at 10:15",
    ],
)
def test_other_text_is_not(text):
    assert masked(text) == text
