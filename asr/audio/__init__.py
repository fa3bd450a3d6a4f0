"""Audio in: encodings of the wire, a streaming resampler, and any media file in chunks of float32 mono."""

from asr.audio.encoding import ENCODINGS, DecoderState, SampleDecoder, SampleFormat, decode, encode
from asr.audio.media import MediaInfo, load_audio, probe, read_media
from asr.audio.resample import MAX_RATE, MIN_RATE, SAMPLE_RATE, Resampler, ResamplerState, resampler

__all__ = [
    "ENCODINGS",
    "MAX_RATE",
    "MIN_RATE",
    "SAMPLE_RATE",
    "DecoderState",
    "MediaInfo",
    "Resampler",
    "ResamplerState",
    "SampleDecoder",
    "SampleFormat",
    "decode",
    "encode",
    "load_audio",
    "probe",
    "read_media",
    "resampler",
]
