"""Context decides what one and the same sound says: sessions with other hot words, on the shipped model."""

from pathlib import Path

import pytest

from asr import Recognizer
from asr.audio import load_audio
from asr.checkpoint import models_folder
from asr.recognizer import feed_many, finish_many

CLIPS = Path(__file__).parent / "clips" / "context"
BEACH, SPEECH = "wreck a nice beach", "recognise speech"
BOOST = 6.0  # nats a word; docs/context.md has the smallest ones that suffice


@pytest.fixture(scope="module")
def shipped() -> Recognizer:
    if not (models_folder() / "en" / "config.json").is_file():
        pytest.skip("the shipped model is not there")
    return Recognizer.load("en", threads=1)


@pytest.mark.parametrize("clip", ["wreck-awb.wav", "wreck-rms.wav"])
def test_the_hot_words_of_a_session_decide_what_a_clip_says(clip: str, shipped: Recognizer) -> None:
    """Three sessions side by side hear the same: each gives the text of its own context and of no other."""
    audio = load_audio(CLIPS / clip)
    contexts = [[(BEACH, BOOST)], [(SPEECH, BOOST)], None]
    streams = [shipped.stream(partials=False, hotwords=hot) for hot in contexts]
    texts = ["", "", ""]
    pieces = [audio[i : i + 1600] for i in range(0, len(audio), 1600)]
    found = [feed_many([(s, piece) for s in streams]) for piece in pieces]
    for results in [*found, finish_many(streams)]:
        texts = [" ".join([text, *(r.text for r in new)]).strip() for text, new in zip(texts, results, strict=True)]
    assert texts == [
        f"it is not easy to {BEACH}",
        f"it is not easy to {SPEECH}",
        shipped.transcribe(audio, sample_rate=16000).text,
    ]


def test_hot_words_do_not_appear_where_nobody_says_them(shipped: Recognizer) -> None:
    """Clips of other sentences keep their text."""
    clips = sorted(CLIPS.parent.glob("*.wav"))
    assert clips
    for clip in clips:
        audio = load_audio(clip)
        stream = shipped.stream(partials=False, hotwords=[(BEACH, BOOST), (SPEECH, BOOST)])
        text = " ".join(r.text for r in [*stream.feed(audio), *stream.finish()])
        assert text == shipped.transcribe(audio, sample_rate=16000).text, clip.name
