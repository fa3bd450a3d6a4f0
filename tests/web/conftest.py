"""The page needs a browser: without one, these tests are skipped."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import find
from tiny_model import babble
from web_house import Web, houses, write_wav

HERE = Path(__file__).parent
SOUND_S = 5.0  # of sound in the fake microphone, then silence


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if find() is None:
        for item in items:
            if HERE in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="needs Chromium: install it, or name one in ASR_TEST_BROWSER"))


@pytest.fixture(scope="session")
def web(tmp_path_factory: pytest.TempPathFactory, tiny_path: Path) -> Iterator[Web]:
    """With the tiny model."""
    folder = tmp_path_factory.mktemp("web")
    with houses(folder, tiny_path, write_wav(folder / "sound.wav", babble(SOUND_S, 2), 16000)) as web:
        yield web
