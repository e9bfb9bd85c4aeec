"""What a reader makes of a row's cells, and what it says of bad ones."""

import tracemalloc
from functools import partial
from io import BytesIO

import numpy as np
import pytest
import soundfile
from PIL import Image as Picture

from fuse_search.data.images import open_images
from fuse_search.data.readers import READERS, Reading, frames, open_file, reading
from fuse_search.data.sound import filters, log_mel, mel, read_sound
from fuse_search.errors import InputError
from fuse_search.spec import Choice


def reader(name, **options):
    return READERS[name](**options)


def wav(path, signal, rate):
    soundfile.write(path, signal, rate, subtype="FLOAT" if path.suffix == ".wav" else None)


def png(path, pixels):
    Picture.fromarray(pixels).save(path)


def tone(hertz, rate, seconds=0.5):
    return np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate).astype(np.float32)


class Loud:
    """A reader as a plugin has it."""

    columns, files, vocabulary, learned = (), True, 0, {}

    def __init__(self, *, gain=1):
        self.gain = gain

    def learn(self, rows, folder):
        """Nothing."""

    def read(self, cells, folder):
        with open_file(cells[0], folder) as file:
            return frames(self.gain * read_sound(file, 100)[:, None])


def test_an_image_is_resized_and_has_the_channels_that_are_wanted(tmp_path):
    pixels = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3) * 10
    png(tmp_path / "a.png", pixels)
    png(tmp_path / "grey.png", pixels[..., 0])
    read = reader("image").read(("a.png",), tmp_path)
    assert read.dtype == np.uint8
    assert (read == pixels.transpose(2, 0, 1)).all()
    grey = reader("image", channels="grey").read(("grey.png",), tmp_path)
    assert (grey == pixels[None, ..., 0]).all()
    triple = reader("image").read(("grey.png",), tmp_path)
    assert (triple == pixels[None, ..., 0].repeat(3, 0)).all()
    assert reader("image", size=7).read(("a.png",), tmp_path).shape == (3, 7, 7)
    content = (tmp_path / "a.png").read_bytes()
    assert (reader("image").read((content,), tmp_path) == read).all()
    assert reader("image").read((None,), tmp_path) is None


def test_a_broken_image_is_named(tmp_path):
    png(tmp_path / "a.png", np.random.default_rng(0).integers(0, 255, (16, 16), dtype=np.uint8))
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:100])
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match=r"^cut\.png: can't be read as an image"):
        reader("image").read(("cut.png",), tmp_path)
    with pytest.raises(ValueError, match=r"^text\.png: can't be read as an image"):
        reader("image").read(("text.png",), tmp_path)


def test_only_files_in_the_folder_are_read(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    png(tmp_path / "a.png", np.zeros((2, 2), np.uint8))
    (inside / "link.png").symlink_to(tmp_path / "a.png")
    for cell in ("../a.png", str(tmp_path / "a.png"), "link.png"):
        with pytest.raises(ValueError, match="lies outside the folder"):
            reader("image").read((cell,), inside)
    for cell in ("no.png", ".", "n\0l.png", "x" * 300):
        with pytest.raises(ValueError, match=r"no such file|can't be read|null byte"):
            reader("image").read((cell,), inside)


def test_a_sound_is_mono_at_the_rate_that_is_wanted(tmp_path):
    left, right = tone(440, 8000), tone(100, 8000)
    for name in ("a.wav", "a.flac"):
        wav(tmp_path / name, np.stack([left, right], 1) / 4, 8000)
        with open_file(name, tmp_path) as file:
            signal = read_sound(file, 8000)
        np.testing.assert_allclose(signal, (left + right) / 8, atol=1e-4)
    with open_file("a.wav", tmp_path) as file:
        resampled = read_sound(file, 16000)
    assert resampled.dtype == np.float32
    expected = (tone(440, 16000) + tone(100, 16000)) / 8
    np.testing.assert_allclose(resampled[200:-200], expected[200:-200], atol=2e-3)
    with open_file("a.wav", tmp_path) as file:
        assert len(read_sound(file, 16000, seconds=0.1)) == 1600
    raw = reader("audio", rate=8000, mels=None).read(("a.wav",), tmp_path)
    np.testing.assert_allclose(raw[:, 0], (left + right) / 8, atol=1e-6)
    assert (raw[:, 1] == 1).all()


def test_a_broken_sound_is_named(tmp_path):
    wav(tmp_path / "empty.wav", np.zeros(0, np.float32), 8000)
    wav(tmp_path / "nan.wav", np.full(9, np.nan, np.float32), 8000)
    (tmp_path / "text.wav").write_text("no sound")
    (tmp_path / "none.wav").touch()
    wav(tmp_path / "whole.wav", tone(5, 200), 200)
    whole = (tmp_path / "whole.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(whole[:-300])
    for name, reason in [
        ("cut.wav", "is cut off: 100 of 400 bytes of sound are there"),
        ("empty.wav", "the sound is empty"),
        ("nan.wav", "the sound has a sample that is not finite"),
        ("text.wav", "can't be read as sound (Format not recognised.)"),
        ("none.wav", "can't be read as sound (Format not recognised.)"),
    ]:
        with pytest.raises(ValueError) as caught:
            reader("audio").read((name,), tmp_path)
        assert str(caught.value) == f"{name}: {reason}"


@pytest.mark.parametrize("size", [0, 0x7FFFFFFF, 0xFFFFFFFF])
def test_sound_that_was_written_to_a_pipe_says_no_size(tmp_path, size):
    soundfile.write(tmp_path / "a.wav", tone(5, 100), 100, subtype="PCM_16")
    content = (tmp_path / "a.wav").read_bytes()
    place = content.index(b"data") + 4
    piped = content[:place] + size.to_bytes(4, "little") + content[place + 4 :]
    if size:  # of 0, soundfile reads nothing
        assert np.array_equal(read_sound(BytesIO(piped), 100), read_sound(BytesIO(content), 100))
    else:
        with pytest.raises(ValueError, match="the sound is empty"):
            read_sound(BytesIO(piped), 100)


def test_mel_bands_are_slaney_s():
    # Slaney's scale: 200/3 Hz a mel up to 1000 Hz (15 mel), then 27 mels for each factor of 6.4.
    found = filters(16000, 400, 40)
    top = 15 + np.log(8000 / 1000) / (np.log(6.4) / 27)
    mels = np.linspace(0, top, 42)
    corners = np.where(mels < 15, mels * 200 / 3, 1000 * 6.4 ** ((mels - 15) / 27))
    for band in (0, 7, 39):
        left, middle, right = corners[band : band + 3]
        for place, hertz in enumerate(np.arange(201) * 40.0):
            rising, falling = (hertz - left) / (middle - left), (right - hertz) / (right - middle)
            height = max(0, min(rising, falling)) * 2 / (right - left)
            assert found[band, place] == pytest.approx(height, abs=1e-8)


def test_the_power_in_a_window_is_that_of_its_fourier_transform():
    signal = np.random.default_rng(0).normal(size=150).astype(np.float32)
    found = mel(signal, rate=1000, mels=3, window=0.04, hop=0.01)  # 40 samples, every 10
    assert found.shape == (1 + 150 // 10, 3)
    padded = np.concatenate([np.zeros(20), signal, np.zeros(20)])
    times = np.arange(40)
    hann = np.sin(np.pi * times / 40) ** 2
    for frame in (0, 5, 15):
        part = padded[10 * frame : 10 * frame + 40] * hann
        power = np.array(
            [abs((part * np.exp(-2j * np.pi * k * times / 40)).sum()) ** 2 for k in range(21)]
        )
        np.testing.assert_allclose(found[frame], filters(1000, 40, 3) @ power, rtol=1e-4)
    logarithm = log_mel(signal, rate=1000, mels=3, window=0.04, hop=0.01)
    np.testing.assert_allclose(logarithm, np.log(found + 1e-6), rtol=1e-5)


def test_a_window_stands_in_the_middle_of_a_longer_transform():
    signal = np.zeros(64, np.float32)
    signal[32] = 1  # an impulse has the same power at all frequencies
    found = mel(signal, rate=1000, mels=2, window=0.016, hop=0.032, n_fft=32)
    flat = filters(1000, 32, 2).sum(1)
    np.testing.assert_allclose(found, [flat * 0, flat, flat * 0], atol=1e-6)


def test_a_tone_is_loudest_in_its_band(tmp_path):
    wav(tmp_path / "a.wav", tone(1000, 16000), 16000)
    read = reader("audio", mels=40).read(("a.wav",), tmp_path)
    assert read.shape == (51, 41)  # every 10 ms of half a second, and both ends
    assert (read[:, -1] == 1).all()
    corners = np.linspace(0, 15 + np.log(8) / (np.log(6.4) / 27), 42)
    assert read[25, :-1].argmax() == abs(corners[1:-1] - 15).argmin()
    short = reader("audio", mels=40, seconds=0.1).read(("a.wav",), tmp_path)
    assert short.shape == (11, 41)
    wav(tmp_path / "tiny.wav", tone(1000, 16000)[:3], 16000)
    assert reader("audio", mels=40).read(("tiny.wav",), tmp_path).shape == (1, 41)


def test_an_array_is_what_its_dimensions_say(tmp_path):
    np.save(tmp_path / "vector.npy", np.array([1, 2, 3]))
    np.save(tmp_path / "frames.npy", np.array([[1.0, 2.0], [3.0, 4.0]]))
    np.save(tmp_path / "image.npy", np.zeros((4, 5, 3), np.uint8))
    np.savez(tmp_path / "two.npz", a=np.zeros(2), b=np.ones(2))
    np.savez(tmp_path / "one.npz", a=np.arange(2))
    read = reader("array").read
    vector = read(("vector.npy",), tmp_path)
    assert (vector.dtype, vector.tolist()) == (np.float32, [1, 2, 3])
    assert read(("frames.npy",), tmp_path).tolist() == [[1, 2, 1], [3, 4, 1]]
    assert read(("image.npy",), tmp_path).shape == (3, 4, 5)
    assert read(("one.npz",), tmp_path).tolist() == [0, 1]
    assert reader("array", key="b").read(("two.npz",), tmp_path).tolist() == [1, 1]
    assert read((None,), tmp_path) is None


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.array(["a"]), "numbers are needed, found <U1"),
        (np.zeros((2, 2, 2, 2)), r"1 to 3 dimensions are read, found the shape \(2, 2, 2, 2\)"),
        (np.zeros(0), "found the shape"),
        (np.zeros((4, 5, 3)), "images are of uint8, found float64"),
        (np.zeros((4, 5, 2), np.uint8), "images have 1 or 3 channels"),
        (np.array([{}], dtype=object), "Object arrays cannot be loaded"),
    ],
)
def test_an_array_that_is_no_row_is_named(tmp_path, values, reason):
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(ValueError, match=rf"^a\.npy: .*{reason}"):
        reader("array").read(("a.npy",), tmp_path)


def test_what_is_no_array_is_named(tmp_path):
    np.savez(tmp_path / "two.npz", left=np.zeros(2), right=np.ones(2))
    (tmp_path / "empty.npy").touch()
    with pytest.raises(ValueError, match="no array 'lift'; did you mean 'left'"):
        reader("array", key="lift").read(("two.npz",), tmp_path)
    with pytest.raises(ValueError, match="there is no array None; there is left, right"):
        reader("array").read(("two.npz",), tmp_path)
    with pytest.raises(ValueError, match=r"^empty\.npy: can't be read as an array"):
        reader("array").read(("empty.npy",), tmp_path)


def test_numbers_are_finite_and_named_by_their_column(tmp_path):
    one, two = reader("number"), reader("number", columns=("age", "weight"))
    assert one.read(("1e3",), tmp_path).tolist() == [1000]
    assert two.read(("1", 2.5), tmp_path).tolist() == [1, 2.5]
    assert two.read(("1", None), tmp_path) is None
    with pytest.raises(ValueError, match="weight: 'heavy' is no finite number"):
        two.read(("1", "heavy"), tmp_path)
    for cell in ("nan", "inf", "1e60", ""):
        with pytest.raises(ValueError, match=f"^'{cell}' is no finite number$"):
            one.read((cell,), tmp_path)


def test_categories_are_those_of_the_rows_that_were_learned_from(tmp_path):
    made = reader("category")
    made.learn([("10",), ("2",), (None,), ("red",), ("2",)], tmp_path)
    assert made.vocabulary == 3
    assert [int(made.read((c,), tmp_path)) for c in ("2", "10", "red", "blue")] == [0, 1, 2, -1]
    assert made.read((None,), tmp_path) is None


def test_words_are_learned_by_how_frequent_they_are(tmp_path):
    made = reader("text", vocabulary=3)
    made.learn([("The cat, the dog",), (None,), ("a cat!",)], tmp_path)
    assert made.vocabulary == 4  # and one for all others
    read = made.read(("THE Cat! flew",), tmp_path)
    # cat and the come twice; of those that come once "!" is first
    assert (read.dtype, read.tolist()) == (np.int32, [2, 1, 3, 0])
    assert made.read((" ",), tmp_path).tolist() == []
    assert made.read((None,), tmp_path) is None


def test_characters_and_bytes(tmp_path):
    made = reader("text", tokenizer="characters", length=3)
    made.learn([("abba",)], tmp_path)
    assert made.read(("Abacus",), tmp_path).tolist() == [0, 2, 1]
    assert reader("text", tokenizer="bytes").read(("é!",), tmp_path).tolist() == [195, 169, 33]


def test_a_tokenizer_of_hugging_face_is_kept_whole(tmp_path):
    pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "good": 3, "morning": 4}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    made.save(str(tmp_path / "tokenizer.json"))
    about = '{"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 6}'
    (tmp_path / "tokenizer_config.json").write_text(about)
    first = reader("text", tokenizer=f"hf:{tmp_path}")
    first.learn([], tmp_path)
    assert first.read(("good morning world",), tmp_path).tolist() == [1, 3, 4, 0, 2]
    assert len(first.read(("good " * 9,), tmp_path)) == 6  # what its network reads at most
    # what is cut later ends as what its tokenizer cuts
    for text in ("red", "a red fox", "a red fox sees a hen"):
        other = reader("text", tokenizer="hf:away", length=4)
        other.learned = first.learned
        whole = first.read((text,), tmp_path)
        assert first.cut(whole, 4).tolist() == other.read((text,), tmp_path).tolist()
        assert len(first.cut(whole, 4)) == min(len(whole), 4)
    assert reader("text").cut(np.arange(5), 3).tolist() == [0, 1, 2]
    other = reader("text", tokenizer="hf:away", length=3)
    other.learned = first.learned
    assert other.read(("good morning world",), tmp_path).tolist() == [1, 3, 2]
    assert other.vocabulary == first.vocabulary == 5
    with pytest.raises(InputError, match="tokenizer: hf:/no/where: can't be loaded"):
        reader("text", tokenizer="hf:/no/where").learn([], tmp_path)


def test_a_reader_without_options_is_the_one_that_a_network_brings():
    brought = partial(Loud, gain=2)
    plain = Choice(name="audio", options={"column": "voice"})
    found = reading("sound", plain, brought)
    assert (found.name, found.options) == (f"{__name__}:Loud", {"gain": 2})
    assert (found.columns, found.reader.gain) == (("voice",), 2)
    assert isinstance(reading("sound", plain).reader, READERS["audio"])
    own = reading("sound", Choice(name="audio", options={"mels": 8}), brought)
    assert (own.name, own.columns) == ("audio", ("sound",))
    two = reading("body", Choice(name="number", options={"columns": ("age", "weight")}))
    assert two.columns == ("age", "weight")


def test_options_that_are_left_open_are_those_of_a_network_s_reader_of_the_kind():
    brought = partial(READERS["text"], tokenizer="bytes", length=8)
    # A space that leaves an option out says its default.
    plain = {"tokenizer": "words", "vocabulary": 20_000, "length": None, "column": None}
    found = reading("words", Choice(name="text", options=plain), brought)
    assert found.options == {"tokenizer": "bytes", "length": 8}
    found = reading("words", Choice(name="text", options={**plain, "length": 4}), brought)
    assert found.options == {"tokenizer": "bytes", "length": 4}
    found = reading("words", Choice(name="text", options={**plain, "column": "said"}), brought)
    assert (found.columns, found.reader.length) == (("said",), 8)


def test_images_without_a_size_have_that_of_the_data():
    assert reading("image", Choice(name="image"), image_size=8).reader.size == 8
    own = Choice(name="image", options={"size": 9})
    assert reading("image", own, image_size=8).reader.size == 9
    left = Choice(name="image", options={"size": None, "channels": "colour", "column": None})
    assert reading("image", left, image_size=8).reader.size == 8
    assert reading("image", left, partial(READERS["image"], size=7), 8).reader.size == 7


def test_a_reader_that_could_not_be_made_again_is_refused():
    class Hidden(Loud):
        pass

    for brought in (Hidden, lambda: Loud(), partial(Loud, gain=object())):
        with pytest.raises(InputError, match="the reader that a network brings must be a class"):
            reading("sound", Choice(name="audio"), brought)


def test_a_name_can_make_nothing_but_readers():
    for name in ("subprocess:Popen", "os:system", "no.where:Reader", "audio2", "os:"):
        with pytest.raises(InputError, match=f"there is no reader '{name}'"):
            Reading.of(name, {}, ("a",))
    with pytest.raises(InputError, match="there is no reader 'adio'; did you mean 'audio'"):
        reading("sound", Choice(name="adio"))


def test_bytes_are_read_like_files(tmp_path):
    wav(tmp_path / "a.wav", tone(5, 100), 100)
    content = (tmp_path / "a.wav").read_bytes()
    one, other = Loud().read(("a.wav",), tmp_path), Loud().read((content,), tmp_path)
    assert (one == other).all()
    stored = BytesIO()
    np.save(stored, np.ones(2))
    assert reader("array").read((stored.getvalue(),), tmp_path).tolist() == [1, 1]


def test_a_long_sound_is_transformed_in_parts(monkeypatch):
    signal = np.random.default_rng(0).normal(size=160_000).astype(np.float32)
    monkeypatch.setattr("fuse_search.data.sound.AT_ONCE", 10_000)
    tracemalloc.start()
    whole = mel(signal, 16000, 8)
    most = [tracemalloc.get_traced_memory()[1]]
    monkeypatch.setattr("fuse_search.data.sound.AT_ONCE", 64)
    tracemalloc.reset_peak()
    found = mel(signal, 16000, 8)
    most.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
    np.testing.assert_allclose(found, whole, rtol=1e-5)
    assert most[1] < most[0] / 3


@pytest.mark.parametrize("option", ["window", "hop"])
def test_less_than_a_sample_is_refused_before_any_row(option):
    with pytest.raises(InputError, match=f"'audio' can't be made: {option}: must be a sample at"):
        reading("sound", Choice(name="audio", options={option: 1e-7}))


def test_a_picture_is_turned_as_its_exif_says(tmp_path):
    picture = Picture.fromarray(np.array([[1, 2, 3], [4, 5, 6]], np.uint8))
    exif = picture.getexif()
    exif[274] = 6  # its right side is at the bottom of what is stored
    picture.save(tmp_path / "a.png", exif=exif)
    read = reader("image", channels="grey").read(("a.png",), tmp_path)
    assert read.tolist() == [[[4, 1], [5, 2], [6, 3]]]
    [(_, opened)] = open_images([("a", tmp_path / "a.png")])  # of the source `folder`
    assert opened.size == (2, 3)
