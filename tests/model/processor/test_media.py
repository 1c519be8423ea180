# SPDX-License-Identifier: Apache-2.0
"""Pictures and recordings of every kind are read, and those that cannot be are refused in words of use."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from model.errors import InputError
from model.processor import source
from model.processor.audio import AudioProcessor
from model.processor.image_file import opened_image
from model.processor.media import Picture, Recording
from tests.tiny_processor import RECORDINGS, ROOT, file_bytes, noise, photographs

RATE = 8000
MODES = ("1", "L", "LA", "La", "P", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV", "LAB", "I", "F", "I;16")
WAVE = (np.sin(np.arange(RATE) * 0.3) * 0.4).astype(np.float32)


def sound_bytes(samples: np.ndarray, kind: str = "WAV", subtype: str | None = None, rate: int = RATE) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def png_claiming(width: int, height: int) -> bytes:
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(b""))
    packed = (struct.pack(">I", len(it) - 4) + it + struct.pack(">I", zlib.crc32(it)) for it in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def oriented(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return file_bytes(Image.fromarray(np.array([[0, 255]], dtype=np.uint8)), "PNG", exif=exif.tobytes())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(23, 17), (1, 1), (1, 700)])
def test_an_image_of_any_mode_and_size_becomes_rgb(mode: str, size: tuple[int, int]) -> None:
    picture = Picture(noise(mode, size))
    picture.check()
    decoded = picture.decode()
    assert (decoded.mode, decoded.size) == ("RGB", size)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_files_and_their_bytes_give_the_same_picture(kind: str, tmp_path: Path) -> None:
    content = file_bytes(noise("RGB"), kind)
    path = tmp_path / "picture"
    path.write_bytes(content)
    pixels = [np.asarray(Picture(source).decode()) for source in (path, str(path), content)]
    assert (pixels[0] == pixels[1]).all()
    assert (pixels[0] == pixels[2]).all()


def test_arrays_and_images_give_the_same_picture() -> None:
    pixels = np.asarray(noise("RGB"))
    for array in (pixels, pixels / 255, pixels.astype(np.uint16) * 257):
        assert (np.asarray(Picture(array).decode()) == pixels).all()
    grey = np.asarray(noise("L"))
    assert (np.asarray(Picture(grey[:, :, None]).decode()) == np.asarray(Picture(grey).decode())).all()
    assert (np.asarray(Picture(grey > 99).decode())[:, :, 0] == (grey > 99) * 255).all()


def test_sixteen_bits_of_grey_keep_their_shades() -> None:
    image = Image.fromarray(np.array([[0, 128 << 8, 65535]], dtype=np.uint16))
    for picture in (Picture(image), Picture(file_bytes(image))):
        assert np.asarray(picture.decode())[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("white", [4095, 65535])
def test_a_grey_ppm_of_more_than_eight_bits_keeps_its_shades(white: int) -> None:
    values = np.array([[0, white // 2, white]], dtype=">u2")
    pixels = np.asarray(Picture(b"P5 3 1 %d\n" % white + values.tobytes()).decode())
    assert pixels[0, :, 0].tolist() == [0, 127, 255]


def test_what_shows_through_is_white() -> None:
    clear = Image.new("RGBA", (2, 2), (200, 0, 0, 0))
    assert Picture(clear).decode().getpixel((0, 0)) == (255, 255, 255)
    palette = noise("P")
    palette.info["transparency"] = palette.getpixel((0, 0))
    assert Picture(file_bytes(palette, "GIF", transparency=palette.info["transparency"])).decode().mode == "RGB"


@pytest.mark.parametrize(("orientation", "size", "first"), [(1, (2, 1), 0), (3, (2, 1), 255), (6, (1, 2), 0)])
def test_a_picture_stands_upright(orientation: int, size: tuple[int, int], first: int) -> None:
    content = oriented(orientation)
    with Image.open(io.BytesIO(content)) as image:
        for picture in (Picture(content), Picture(image)):
            decoded = picture.decode()
            assert decoded.size == size
            assert decoded.getpixel((0, 0)) == (first,) * 3


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    content = file_bytes(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert Picture(content).decode().getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"no image", "damaged, or no image of a kind that is read"),
        (file_bytes(noise("RGB"))[:40], "damaged"),
        (file_bytes(noise("RGB", (200, 200)))[:3000], "damaged or cut short"),
        (file_bytes(noise("RGB", (200, 200)), "JPEG")[:3000], "damaged or cut short"),
        (png_claiming(10_000, 10_001), r"10000 x 10001 pixels; at most 100,000,000"),
        (png_claiming(2**30, 2**30), "at most 100,000,000 are read; make it smaller"),
        (png_claiming(0, 5), "damaged|at least one"),
    ],
)
def test_a_file_without_a_whole_picture_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "cat.png"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as found:
        Picture(path).decode()
    assert "cat.png" in str(found.value)


def test_reading_an_image_leaves_the_warnings_of_the_process_alone() -> None:
    filters = list(warnings.filters)
    with opened_image(file_bytes(noise("RGB")), "image"):
        assert warnings.filters == filters  # which are those of every thread


@pytest.mark.parametrize("size", [(10_000, 10_001), (2**30, 2**30)])
def test_a_decompression_bomb_is_known_by_its_header(size: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="make it smaller"):
        Picture(png_claiming(*size)).check()


def test_checking_decodes_no_pixels_of_a_whole_file() -> None:
    content = file_bytes(noise("RGB", (200, 200)))
    damaged = Picture(content[:9000] + bytes(9000) + content[18_000:])
    damaged.check()
    with pytest.raises(InputError, match="damaged"):
        damaged.decode()


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_checking_notices_a_file_that_was_cut_short(kind: str) -> None:
    content = file_bytes(noise("RGB", (300, 300)), kind)
    with pytest.raises(InputError, match="damaged or cut short"):
        Picture(content[: len(content) // 2]).check()
    Picture(content + bytes(1000)).check()


def test_a_file_that_lacks_only_its_closing_mark_is_no_worse() -> None:
    content = file_bytes(noise("RGB"), "PNG")
    Picture(content[: content.index(b"IEND") - 4]).check()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no/such/file.png", "no such file"),
        (".", "is a directory; give a file"),
        ("https://example.org/a.png", "is an address; download it"),
        ("data:image/png;base64," + "A" * 5000, "…': is an address; download it"),
        ("A" * 5000, r"A…': cannot be read \(File name too long\)"),
        (np.zeros((3, 8, 8), np.uint8), r"shape \(3, 8, 8\); it must be \(height, width\)"),
        (np.zeros((0, 4, 3), np.uint8), "shape"),
        (np.full((2, 2, 3), 7.0), r"values of float64 \(7.0 to 7.0\)"),
        (np.full((2, 2, 3), np.nan), "nan to nan"),
        (np.zeros((2, 2), np.int64), "values of int64"),
        (Image.fromarray(np.full((2, 2), 70_000, np.int32)), "32-bit values from 70000 to 70000"),
        (Image.new("RGB", (0, 3)), "0 x 3 pixels"),
    ],
)
def test_what_is_no_picture_is_refused(source: str | np.ndarray | Image.Image, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Picture(source).decode()


def test_references_are_equal_where_their_sources_are() -> None:
    image = noise("L")
    assert Picture("a.png") == Picture(Path("a.png")) != Picture("b.png")
    assert Picture(image) == Picture(image) != Picture(noise("L"))
    assert len({Picture(b"x"), Picture(b"x"), Picture(image), Recording(WAVE, RATE)}) == 3
    assert Recording("a.wav") != Recording("a.wav", stop=3)
    assert Picture("a.wav") != Recording("a.wav")


def test_the_digest_is_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert Picture(tmp_path / "a").digest() == Picture(b"abc").digest() != Picture(b"abd").digest()
    assert Recording(b"abc").digest() != Recording(b"abc", start=1).digest()
    assert Picture(noise("L")).digest() == Picture(noise("L")).digest() != Picture(noise("L", seed=1)).digest()
    recoloured = noise("P")
    recoloured.putpalette(bytes(reversed(noise("P").getpalette() or [])))
    assert Picture(noise("P")).digest() != Picture(recoloured).digest()
    assert Picture(np.zeros((2, 3), np.uint8)).digest() != Picture(np.zeros((3, 2), np.uint8)).digest()


@pytest.mark.parametrize(
    ("kind", "subtype"),
    [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"),
     ("MP3", "MPEG_LAYER_III")],
)  # fmt: skip
@pytest.mark.parametrize("channels", [1, 2])
def test_every_kind_of_file_is_read(kind: str, subtype: str, channels: int, tmp_path: Path) -> None:
    content = sound_bytes(np.stack([WAVE] * channels, axis=1), kind, subtype)
    path = tmp_path / "sound"
    path.write_bytes(content)
    for recording in (Recording(path), Recording(content)):
        wave = recording.decode()
        assert recording.header().seconds == len(wave.samples) / wave.sample_rate_hz == pytest.approx(1, abs=0.1)
        if len(wave.samples) == len(WAVE):
            assert np.corrcoef(wave.samples, WAVE)[0, 1] > 0.95  # lossy kinds shift and blur a little


def test_channels_become_their_mean() -> None:
    stereo = np.stack([WAVE, -WAVE / 2], axis=1)
    for recording in (Recording(stereo, RATE), Recording(sound_bytes(stereo, "WAV", "FLOAT"))):
        np.testing.assert_allclose(recording.decode().samples, WAVE / 4, atol=1e-7)


def test_whole_numbers_are_fractions_of_full_scale() -> None:
    whole = (WAVE * 2**15).astype(np.int16)
    expected = Recording(sound_bytes(whole)).decode().samples
    np.testing.assert_array_equal(Recording(whole, RATE).decode().samples, expected)
    np.testing.assert_array_equal(Recording(whole.astype(np.int32) * 2**16, RATE).decode().samples, expected)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
def test_a_part_is_the_same_samples(kind: str) -> None:
    content = sound_bytes(WAVE, kind)
    part = Recording(content, start=2000, stop=4500)
    assert part.header().num_samples == 2500
    np.testing.assert_allclose(part.decode().samples, Recording(content).decode().samples[2000:4500], atol=1e-6)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"no sound at all", r"no sound of a kind that is read \(WAV, FLAC, OGG, MP3\)"),
        (sound_bytes(WAVE)[:3000], r"cut short; 2956 of 16000 bytes of sound are there"),
        (sound_bytes(WAVE, "FLAC")[:3000], "damaged"),
        (sound_bytes(WAVE, "OGG")[:300], "damaged"),
        (sound_bytes(WAVE[:0]), "no samples"),
        (sound_bytes(np.where(np.arange(RATE) == 7, np.nan, WAVE), "WAV", "FLOAT"), "sample 7 is nan"),
    ],
)
def test_a_file_without_whole_sound_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "talk.wav"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as found:
        Recording(path).decode()
    assert "talk.wav" in str(found.value)


@pytest.mark.parametrize("name", ["talk.raw", "talk.RAW", "talk.mp3"])
def test_the_name_of_a_file_says_nothing_of_its_kind(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(sound_bytes(WAVE))
    assert Recording(path).header().num_samples == RATE
    path.write_bytes(b"no sound at all")
    with pytest.raises(InputError, match="no sound of a kind that is read"):
        Recording(path).header()


def test_a_flac_written_into_a_pipe_is_refused_for_its_unknown_length() -> None:
    content = bytearray(sound_bytes(WAVE, "FLAC"))
    content[21] &= 0xF0  # 36 bits of the number of samples, of the first block
    content[22:26] = bytes(4)
    with pytest.raises(InputError, match="does not say how long it is; write it again"):
        Recording(bytes(content)).header()


def test_a_file_is_opened_once_to_be_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "talk.wav"
    path.write_bytes(sound_bytes(WAVE))
    opened: list[Path] = []
    monkeypatch.setattr(source.os, "open", lambda *given, real=os.open: (opened.append(given[0]), real(*given))[1])
    AudioProcessor()(Recording(path))
    assert opened.count(path) == 1


def test_a_wave_file_of_unknown_size_is_read() -> None:
    content = sound_bytes(WAVE)
    piped = content[:4] + b"\xff" * 4 + content[8:40] + b"\xff" * 4 + content[44:]
    assert Recording(piped).header().num_samples == RATE


@pytest.mark.parametrize(
    ("samples", "rate", "message"),
    [
        (WAVE, None, "an array does not say its sample rate; give sample_rate_hz"),
        (WAVE, 0, "sample_rate_hz is 0"),
        (np.zeros((2, 8000)), RATE, r"shape \(2, 8000\).*turn it with .T"),
        (np.zeros((5, 8)), RATE, "more channels than samples"),
        (np.zeros((2, 8, 1)), RATE, r"\(samples, channels\)"),
        (np.zeros(9, np.int64), RATE, "samples of int64"),
        (np.zeros(0), RATE, "no samples"),
        (np.array([0, np.inf]), RATE, "sample 1 is inf"),
        (np.array([np.nan, 0]), RATE, "sample 0 is nan"),
        (WAVE * 2**15, RATE, r"samples up to 13\d+.*; fractions of full scale lie within -1 and 1"),
        (-np.eye(2)[0] * 99, RATE, "samples up to 99"),
        (sound_bytes(WAVE), 44_100, "sample_rate_hz is 44100, but the file says 8000"),
        ("no/such/file.wav", None, "no such file"),
        ("http://example.org/a.wav", None, "is an address"),
    ],
)
def test_what_is_no_recording_is_refused(samples: np.ndarray | bytes | str, rate: int | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Recording(samples, rate).decode()


def test_sound_mixed_too_hot_is_read() -> None:
    assert Recording(WAVE * 10, RATE).decode().samples.max() > 3


def test_what_is_of_another_type_is_refused_in_words() -> None:
    # In a process of its own: under pytest the annotations are checked, and nothing wrong gets further than that.
    program = """
import io
import numpy as np
from model.errors import InputError
from model.processor.media import Picture, Recording
for refer in (Picture, Recording):
    for source in (None, 3, io.BytesIO(b"x"), ["a.png"]):
        try: refer(source)
        except InputError as error: print(error)
for name, value in (("sample_rate_hz", "16000"), ("sample_rate_hz", float("nan")), ("start", 1.5), ("stop", True)):
    try: Recording(np.zeros(9), **{"sample_rate_hz": 8000, name: value})
    except InputError as error: print(error)
assert Picture(bytearray(b"x")) == Picture(memoryview(b"x")) == Picture(b"x")
assert Recording(bytearray(b"x")) == Recording(b"x")
"""
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert finished.returncode == 0, finished.stderr
    told = finished.stdout.splitlines()
    assert len(told) == 12
    assert told[0] == ("image: is of type NoneType; it must be a path, a file's bytes, a Pillow image or a NumPy array")
    assert told[6] == "recording: is of type BytesIO; it must be a path, a file's bytes or a NumPy array"
    assert told[8:] == [
        f"recording in memory: {found}; it must be a whole number"
        for found in ("sample_rate_hz is '16000'", "sample_rate_hz is nan", "start is 1.5", "stop is True")
    ]


def test_a_part_lies_inside() -> None:
    with pytest.raises(InputError, match="stop more than start"):
        Recording(WAVE, RATE, start=5, stop=5)
    with pytest.raises(InputError, match="no samples"):
        Recording(WAVE, RATE, start=RATE).header()


def test_the_photographs_and_recordings_of_the_tests_are_real() -> None:
    assert all(Picture(path).decode().size == (640, 427) for path in photographs())
    lengths = {Recording(path).header().num_samples for path in RECORDINGS}
    assert len(lengths) >= 16
