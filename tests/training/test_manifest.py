"""Manifests: what they say, and what is said about those that are wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from asr.errors import ManifestError
from asr.training.manifest import Utterance, read_corpora, read_manifest, read_table


@pytest.fixture
def manifest(tmp_path: Path) -> Iterator[Path]:
    """A path for a manifest; a.wav lies beside it."""
    (tmp_path / "a.wav").write_bytes(b"x")
    yield tmp_path / "some.tsv"


def test_all_columns(manifest: Path) -> None:
    manifest.write_text(
        "id\taudio\tstart_s\tduration_s\tspeaker\tcorpus\ttext\tlicence\n"
        "one\ta.wav\t1.5\t2.25\tme\tmine\tHello, 'World'!\tCC0\n"
    )
    assert read_manifest(manifest) == [
        Utterance("one", manifest.parent.resolve() / "a.wav", 1.5, 2.25, "hello world", "me", "mine")
    ]


def test_what_is_not_given_has_a_default(manifest: Path) -> None:
    manifest.write_text("audio\ttext\n\na.wav\tShe said \"it's café o'clock\"\na.wav\t\n")
    first, second = read_manifest(manifest)
    assert first == Utterance(
        "some-3", manifest.parent.resolve() / "a.wav", 0.0, None, "she said it's cafe o'clock", "", "some"
    )
    assert second.text == ""  # audio without speech is a fair example


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(manifest: Path) -> None:
    manifest.write_bytes("\ufeffaudio\ttext\r\na.wav\tyes\r\n".encode())
    assert [u.text for u in read_manifest(manifest)] == ["yes"]


HEADER = "audio\tstart_s\tduration_s\ttext\n"


@pytest.mark.parametrize(
    ("content", "line", "says"),
    [
        ("audio\twords\na.wav\tyes\n", 1, "no column 'text': the first line must name the columns"),
        ("path\twords\n", 1, "no column 'audio' and 'text'"),
        ("", 1, "no column 'audio' and 'text'"),
        ("audio,text\na.wav,yes\n", 1, "no column"),
        (HEADER, None, "no utterances: the manifest has only its header"),
        (HEADER + "a.wav\t0\t1\n", 2, "number of columns differs from the header's"),
        (HEADER + "a.wav\t0\t1\tyes\tno\n", 2, "number of columns differs from the header's"),
        (HEADER + "a.wav\t0\t1\tyes\n\nb.wav\t0\t1\tyes\n", 4, "audio file b.wav does not exist: paths are relative"),
        (HEADER + "\t0\t1\tyes\n", 2, "no audio file is named"),
        (HEADER + "a.wav\tsoon\t1\tyes\n", 2, "must be numbers of seconds"),
        (HEADER + "a.wav\t-1\t1\tyes\n", 2, "start_s must not be negative"),
        (HEADER + "a.wav\tnan\t1\tyes\n", 2, "start_s must not be negative"),
        (HEADER + "a.wav\t0\t0\tyes\n", 2, "duration_s must be positive"),
        (HEADER + "a.wav\t0\tnan\tyes\n", 2, "duration_s must be positive"),
        (HEADER + "a.wav\t0\tinf\tyes\n", 2, "duration_s must be positive"),
        (HEADER + "a.wav\t0\t1\tyes\na.wav\t0\t1\tдa\n", 3, "character 'д' is outside the units"),
        (HEADER + "a.wav\t0\t1\t日本 means Japan\n", 2, "character '日' is outside the units"),
    ],
)
def test_a_wrong_manifest_gets_one_line_with_file_line_and_remedy(
    content: str, line: int | None, says: str, manifest: Path
) -> None:
    manifest.write_text(content, encoding="utf-8")
    with pytest.raises(ManifestError) as caught:
        read_manifest(manifest)
    text = str(caught.value)
    assert says in text
    assert text.startswith(f"{manifest}, line {line}: " if line else f"{manifest}: ")
    assert "\n" not in text


def test_not_utf8(manifest: Path) -> None:
    manifest.write_bytes("audio\ttext\na.wav\tcafé\n".encode("latin-1"))
    with pytest.raises(ManifestError, match=r"not UTF-8 text .*: save it as UTF-8"):
        read_manifest(manifest)


def test_missing_manifest(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"cannot read the table .*none\.tsv: No such file"):
        read_manifest(tmp_path / "none.tsv")
    with pytest.raises(ManifestError, match="Is a directory"):
        read_manifest(tmp_path)


def test_a_field_beyond_reason_is_an_error_too(manifest: Path) -> None:
    manifest.write_text("audio\ttext\na.wav\t" + "yes " * 40_000 + "\n")
    with pytest.raises(ManifestError, match="not a table of tab-separated columns"):
        list(read_table(manifest, ("audio",)))


def test_corpora_of_one_name_are_told_apart(manifest: Path) -> None:
    manifest.write_text("audio\ttext\na.wav\tyes\n")
    corpora = read_corpora([str(manifest), str(manifest)])
    assert list(corpora) == ["some", "some-2"]


# -- LibriSpeech through torchaudio ------------------------------------------------------------------------------------
@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder of its own."""
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def write_part(archive: Path, part: str) -> None:
    """Two utterances as LibriSpeech lays them out."""
    folder = archive / "LibriSpeech" / part / "1272" / "128104"
    folder.mkdir(parents=True)
    (folder / "1272-128104.trans.txt").write_text(
        "1272-128104-0000 MISTER QUILTER IS THE APOSTLE\n1272-128104-0001 NOR IS MISTER QUILTER'S MANNER\n"
    )
    for number in range(2):
        (folder / f"1272-128104-{number:04d}.flac").write_bytes(b"fLaC")


def test_librispeech_is_downloaded_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchaudio.datasets import librispeech

    asked: list[str] = []

    def download(root: str, part: str) -> None:
        asked.append(part)
        write_part(Path(root), part)

    monkeypatch.setattr(librispeech, "_download_librispeech", download)
    for _ in range(2):
        first, second = read_manifest("librispeech:dev-clean")
    assert asked == ["dev-clean"]
    folder = home / ".cache/asr/LibriSpeech/dev-clean/1272/128104"
    assert first == Utterance(
        "1272-128104-0000",
        folder / "1272-128104-0000.flac",
        0.0,
        None,
        "mister quilter is the apostle",
        "ls_1272",
        "dev-clean",
    )
    assert second.text == "nor is mister quilter's manner"
    assert second.audio.is_file()
    assert list(read_corpora(["librispeech:dev-clean"])) == ["dev-clean"]


def test_librispeech_part_that_does_not_exist(home: Path) -> None:
    with pytest.raises(ManifestError, match=r"librispeech:dev: LibriSpeech has no such part: .*train-clean-100"):
        read_manifest("librispeech:dev")


def test_librispeech_without_a_network(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchaudio.datasets import librispeech

    def download(root: str, part: str) -> None:
        raise OSError("no route\nto host")

    monkeypatch.setattr(librispeech, "_download_librispeech", download)
    with pytest.raises(ManifestError, match=r"cannot be downloaded to .*no route to host.*network is needed") as caught:
        read_manifest("librispeech:dev-clean")
    assert "\n" not in str(caught.value)


def test_librispeech_with_half_an_archive(home: Path) -> None:
    root = home / ".cache" / "asr"
    write_part(root, "dev-clean")
    write_part(root, "dev-other")
    (root / "LibriSpeech/dev-clean/1272/128104/1272-128104.trans.txt").unlink()
    with pytest.raises(ManifestError, match=r"remove .*dev-clean, so that it is fetched again"):
        read_manifest("librispeech:dev-clean")
    for file in root.glob("LibriSpeech/dev-other/*/*/*.flac"):
        file.unlink()
    with pytest.raises(ManifestError, match=r"dev-other is empty: remove it"):
        read_manifest("librispeech:dev-other")
