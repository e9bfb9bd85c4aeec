"""How messages are worded."""

from fuse_search.errors import InputError, headline, nearest


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
