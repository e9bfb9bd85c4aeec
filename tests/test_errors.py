"""The hint at the end of a message."""

from fuse_search.errors import nearest


def test_nearest_names_the_closest_or_lists_what_there_is():
    assert nearest("epoch", ["lr", "epochs"]) == "; did you mean 'epochs'?"
    assert nearest("cifar10", ["MNIST", "CIFAR10"]) == "; did you mean 'CIFAR10'?"
    assert nearest("zzz", ["lr", "epochs"]) == "; there is epochs, lr"
    assert nearest("zzz", map(str, range(20))).endswith("… (20 in all)")
    assert nearest(None, []) == ""
