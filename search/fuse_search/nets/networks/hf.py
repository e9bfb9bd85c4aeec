"""Text encoders of Hugging Face, from a local folder or by their name on the hub.

Those of the BERT family are read: `FAMILIES`. Only their shape and tensors are taken, from
config.json and model.safetensors; code that a folder brings is never run.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from functools import cache, partial
from importlib.util import find_spec
from itertools import pairwise
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...data.readers import Text
from ...data.record import Shape
from ...errors import InputError, nearest
from ..checkpoints import Report, load_tensors, read
from ..shapes import Form, Pool, apart, together
from .kinds import need_kind
from .layers import First
from .network import Network

PREFIX = "hf:"
FAMILIES = {
    "bert": "encoder.layer",
    "camembert": "encoder.layer",
    "distilbert": "transformer.layer",
    "electra": "encoder.layer",
    "mpnet": "encoder.layer",
    "roberta": "encoder.layer",
    "xlm-roberta": "encoder.layer",
}
"""Where the layers of each kind of text encoder are."""
GROUPS = 4  # of layers: as many stages, besides that of the embeddings
CONFIG, TENSORS = "config.json", "model.safetensors"
HIDDEN = -1e4  # added to attention's score for what isn't there: nothing is left of it, in bf16 too


@cache
def hugging_face(name: str) -> Network:
    """The network of this name or folder, with its weights `pretrained` and its tokenizer.

    Raises InputError when there is none, or it is no text encoder.
    """
    _config(name)
    reader = partial(Text, tokenizer=f"{PREFIX}{name}")
    return Network(partial(hf, name), {"pretrained": partial(_load, name)}, reader)


def hf(name: str, shape: tuple[int, ...], *, pool: Literal["mean", "class"] = "mean") -> nn.Module:
    """A text encoder of Hugging Face, `hf:NAME_OR_FOLDER`: BERT and its family.

    Maps tokens [B, T] of its tokenizer to features [B, D]: their mean, or the first one's.
    Raises InputError when there is no such network, or it can't read `shape`.
    """
    shape = need_kind(f"{PREFIX}{name}", shape, "tokens")
    about = _config(name)
    if find_spec("transformers") is None:
        rule = 'needs the package transformers: pip install "fuse-search[hf]"'
        raise InputError(f"{PREFIX}{name} {rule}")
    from transformers import AutoConfig, AutoModel

    try:
        model = AutoModel.from_config(  # eager: its sdpa can't be written as ONNX
            AutoConfig.for_model(**about), attn_implementation="eager", dtype=torch.float32
        )
    except Exception as error:  # whatever its library makes of a setting
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        rule = f"no network can be made of {_file(name, CONFIG)}"
        raise InputError(f"{PREFIX}{name}: {rule}: {type(error).__name__}: {reason}") from error
    model.pooler = None  # of the token that stands for all, made for another task
    _refuse(f"{PREFIX}{name}", model, shape)
    layers = attrgetter(FAMILIES[about["model_type"]])(model)
    return TextEncoder(model, layers, First() if pool == "class" else None)


def network_files(name: str) -> dict[str, Path]:
    """The files that a network is made of, as far as they are here, by their names."""
    found = {}
    for file in (CONFIG, TENSORS):
        try:
            found[file] = _file(name, file, here=True)
        except InputError:
            continue
    return found


class TextEncoder(nn.Module):
    """A text encoder as stages: the embeddings, and groups of layers; between them masked tokens.

    Maps tokens [B, T], PADDING where there is none, to [B, D]; a row without any gives finite
    numbers. Its weights have the names that they have in `model`.
    """

    def __init__(self, model: nn.Module, layers: nn.ModuleList, pool: nn.Module | None) -> None:
        """pool: makes [B, D] of masked tokens; None: the mean of those that are there."""
        super().__init__()
        self.model, self._layers, self._pool = model, [*layers], pool

    def stages(self) -> list[tuple[str, nn.Module]]:
        names = {module: name for name, module in self.named_modules()}
        bias = getattr(getattr(self.model, "encoder", None), "relative_attention_bias", None)
        model: Any = self.model
        embed = Embed(model.embeddings, getattr(model, "embeddings_project", None))
        stages: list[tuple[str, nn.Module]] = [("model.embeddings", embed)]
        layers = self._layers
        edges = [i * len(layers) // GROUPS for i in range(GROUPS + 1)]
        for start, end in pairwise(edges):
            if start < end:
                # each has its own, or a frozen stage would change with a trained one
                own = None if bias is None else RelativeBias(copy.deepcopy(bias))
                stages.append((names[layers[end - 1]], Layers(layers[start:end], own)))
        width = model.config.hidden_size + 1
        return [*stages, ("pool", self._pool or Pool(Form((0, width), masked=True)))]

    def forward(self, x: Tensor) -> Tensor:
        for _, stage in self.stages():
            x = stage(x)
        return x


class Embed(nn.Module):
    """Tokens [B, T] as masked vectors."""

    masked = True

    def __init__(self, embeddings: Any, project: nn.Module | None) -> None:
        super().__init__()
        self.embeddings, self.project = embeddings, project or nn.Identity()
        self.padding = embeddings.word_embeddings.padding_idx or 0

    def forward(self, x: Tensor) -> Tensor:
        there = x >= 0
        values = self.project(self.embeddings(input_ids=torch.where(there, x, self.padding)))
        return together(values, there[..., None].to(values.dtype))


class Layers(nn.Module):
    """Some layers of an encoder, from masked tokens to masked tokens."""

    masked = True

    def __init__(self, layers: list[nn.Module], bias: nn.Module | None) -> None:
        super().__init__()
        self.layers, self.bias = nn.ModuleList(layers), bias

    def forward(self, x: Tensor) -> Tensor:
        values, there = apart(x)
        scores = (1 - there.transpose(1, 2)[:, None]) * HIDDEN  # [B, 1, 1, T]
        if self.bias is not None:
            scores = scores + self.bias(x.shape[1])
        for layer in self.layers:
            found = layer(values, attention_mask=scores)
            values = found[0] if isinstance(found, tuple) else found
        return together(values, there)


class RelativeBias(nn.Module):
    """What MPNet adds to attention's scores, by how far two of T tokens are apart: [1, H, T, T]."""

    def __init__(self, encoder_bias: nn.Embedding) -> None:
        super().__init__()
        self.table = encoder_bias

    def forward(self, size: int) -> Tensor:
        from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

        places = torch.arange(size, device=self.table.weight.device)
        buckets = MPNetEncoder.relative_position_bucket(places[None] - places[:, None])
        return self.table(buckets).permute(2, 0, 1)[None]


def _refuse(name: str, model: Any, shape: Shape) -> None:
    """Raises InputError when the model can't read tokens [B, *shape]."""
    positions = model.embeddings.position_embeddings
    padding = positions.padding_idx  # where there is one, counting begins behind it
    most = positions.num_embeddings - (0 if padding is None else padding + 1)
    if shape[0] > most:
        rule = f"reads at most {most} tokens, found {shape[0]}: give its text a length"
        raise InputError(f"{name} {rule}")
    if shape.vocabulary > model.config.vocab_size:
        rule = f"knows {model.config.vocab_size} tokens, found {shape.vocabulary}"
        raise InputError(f"{name} {rule}: its text must be read by its own tokenizer")


def _config(name: str) -> Mapping[str, Any]:
    file = _file(name, CONFIG)
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
        kind = str(about.get("model_type"))
    except (ValueError, AttributeError) as error:
        raise InputError(f"{PREFIX}{name}: {file} can't be read: {error}") from None
    if kind not in FAMILIES or about.get("is_decoder"):
        found = f"{kind} as a decoder" if kind in FAMILIES else repr(kind)
        rule = "of Hugging Face's networks the text encoders are read, found"
        hint = nearest(kind, FAMILIES)
        raise InputError(f"{PREFIX}{name}: {rule} {found}{hint}; many image networks are timm:NAME")
    return about


def _load(name: str, network: nn.Module) -> Report:
    return load_tensors(network, read(_file(name, TENSORS)), f"{PREFIX}{name}")


def _file(name: str, file: str, *, here: bool = False) -> Path:
    """A file of a folder, or of the hub's cache; unless it must be `here`, it is downloaded.

    Raises InputError where it isn't there.
    """
    if Path(name).is_dir():
        if (path := Path(name, file)).is_file():
            return path
        raise InputError(f"{PREFIX}{name}: the folder has no {file}")
    if find_spec("huggingface_hub") is None:
        rule = 'there is no such folder, and the hub needs `pip install "fuse-search[hf]"`'
        raise InputError(f"{PREFIX}{name}: {rule}")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        try:
            return Path(hf_hub_download(name, file, local_files_only=True))
        except LocalEntryNotFoundError:
            return Path(hf_hub_download(name, file, local_files_only=here))
    except Exception as error:  # of its network library, too
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        rule = (
            f"put it, with its {CONFIG}, {TENSORS} and tokenizer.json, into a folder of that name"
        )
        raise InputError(f"{PREFIX}{name}: can't load {file} ({reason}): {rule}") from error
