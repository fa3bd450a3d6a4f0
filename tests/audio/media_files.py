"""Media files for the tests, made with PyAV."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

# name -> (codec, rate, channels); lossless and uncompressed ones come first
KINDS = {
    "a.wav": ("pcm_s16le", 8000, 1),
    "stereo.flac": ("flac", 44100, 2),
    "flac.ogg": ("flac", 16000, 1),
    "a.mp3": ("libmp3lame", 44100, 2),
    "a.m4a": ("aac", 44100, 2),
    "a.aac": ("aac", 44100, 1),
    "a.opus": ("libopus", 48000, 1),
    "a.webm": ("libopus", 48000, 2),
    "a.mp4": ("aac", 48000, 1),
    "vorbis.oga": ("vorbis", 44100, 2),
    "vorbis.mka": ("vorbis", 44100, 2),
    "flac.mka": ("flac", 44100, 1),
    "adpcm.wav": ("adpcm_ima_wav", 16000, 1),
}


def sweep(samples: int, rate: int, channels: int = 1) -> np.ndarray:
    """(channels, samples) float32: a rising tone; each channel is half as loud as the one before."""
    t = np.arange(samples) / rate
    x = 0.5 * np.sin(2 * np.pi * (200 + 20 * t) * t)
    return np.stack([x * 0.5**c for c in range(channels)]).astype(np.float32)


def write(path: Path, samples: np.ndarray, rate: int, codec: str, video: bool = False) -> Path:
    """Encode (channels, samples) float32 into the container that the name's ending asks for."""
    layout = "stereo" if samples.shape[0] == 2 else "mono"
    with av.open(str(path), "w") as container:
        options = {"strict": "experimental"} if codec == "vorbis" else None
        stream = container.add_stream(codec, rate=rate, layout=layout, options=options)
        if codec in ("libopus", "aac", "libmp3lame"):
            stream.bit_rate = 96000
        picture = container.add_stream("mpeg4", rate=5) if video else None
        if picture is not None:
            picture.width, picture.height, picture.pix_fmt = 64, 48, "yuv420p"
            for _ in range(round(5 * samples.shape[1] / rate)):
                container.mux(picture.encode(av.VideoFrame(64, 48, "yuv420p")))
            container.mux(picture.encode(None))
        context = stream.codec_context
        to_codec = av.AudioResampler(format=context.format, layout=layout, rate=rate)
        for start in range(0, samples.shape[1], 4096):
            block = np.ascontiguousarray(samples[:, start : start + 4096])
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
            for converted in to_codec.resample(frame):
                container.mux(stream.encode(converted))
        container.mux(stream.encode(None))
    return path


def make(folder: Path, name: str, seconds: float = 6.0) -> Path:
    """The file ``name`` of :data:`KINDS`, holding :func:`sweep`."""
    codec, rate, channels = KINDS[name]
    samples = sweep(round(seconds * rate), rate, channels)
    return write(folder / name, samples, rate, codec, video=name.endswith("mp4"))
