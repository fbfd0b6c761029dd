"""The store: images are found by name and digest, and a damaged one is an error that says what to do."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from vm_kernel.errors import ImageError
from vm_kernel.image import store
from vm_kernel.image.store import Image, Manifest


@pytest.fixture(autouse=True)
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store."""
    folder = tmp_path / "images"
    folder.mkdir()
    monkeypatch.setenv("VM_KERNEL_IMAGES", str(folder))
    return folder


def add_image(images: Path, name: str, content: str = "content") -> Image:
    """Put small files into the store, by the builder's last step."""
    made = images / ".made"
    made.mkdir()
    for file in store.FILES:
        (made / file).write_text(f"{file} {content}")
    manifest = Manifest(
        debian_release="bookworm",
        debian_version="12.0",
        kernel_version="6.1.0",
        python_version="3.11.2",
        debian_packages={"bash": "5.2"},
        python_packages={"numpy": "2.0"},
        kernel_info={"protocol_version": "5.3"},
        files={file: store.file_facts(made / file) for file in store.FILES},
        created_at="2026-01-01T00:00:00+00:00",
    )
    return store.admit(made, manifest, name)


def test_an_image_is_found_by_its_name_and_its_digest(images: Path) -> None:
    added = add_image(images, "default")
    for name in ("default", added.digest, added.digest[:12]):
        found = store.open_image(name)
        assert (found.digest, found.folder) == (added.digest, images / added.digest)
    assert added.kernel.read_text().startswith("vmlinux")
    assert added.root.is_file()
    store.verify_image(added)


def test_the_manifest_is_read_back_as_it_was_written(images: Path) -> None:
    manifest = add_image(images, "default").manifest
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_the_digest_is_about_the_content_and_not_the_date(images: Path) -> None:
    manifest = add_image(images, "default").manifest
    later = dataclasses.replace(manifest, created_at="2030-01-01T00:00:00+00:00")
    other = dataclasses.replace(manifest, apt=["git"])
    assert later.digest == manifest.digest != other.digest


@pytest.mark.parametrize("name", ["nothing", "../names", "/etc", "", "0123456789ab", "a b", "x/../default"])
def test_an_unknown_image_is_an_error(images: Path, name: str) -> None:
    add_image(images, "default")
    with pytest.raises(ImageError):
        store.open_image(name)


def test_the_error_for_an_unknown_image_says_how_to_build_it(images: Path) -> None:
    add_image(images, "default")
    with pytest.raises(ImageError) as caught:
        store.open_image("science")
    assert "there: default" in caught.value.message
    assert caught.value.hint.endswith("vm-kernel image build --name science")


@pytest.mark.parametrize("file", store.FILES)
def test_a_truncated_file_is_an_error(images: Path, file: str) -> None:
    image = add_image(images, "default")
    with (image.folder / file).open("r+b") as opened:
        opened.truncate(3)
    with pytest.raises(ImageError, match=f"{file} has 3 bytes") as caught:
        store.open_image()
    assert "vm-kernel image build" in caught.value.hint
    assert store.list_images() == []
    assert len(store.list_damaged()) == 1


def test_a_missing_file_is_an_error(images: Path) -> None:
    (add_image(images, "default").folder / "root.erofs").unlink()
    with pytest.raises(ImageError, match=r"root\.erofs"):
        store.open_image()


def test_changed_bytes_are_found_by_verifying(images: Path) -> None:
    image = add_image(images, "default")
    image.root.write_text("X" * image.root.stat().st_size)
    with pytest.raises(ImageError, match=r"root\.erofs has changed"):
        store.verify_image(store.open_image())


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "Expecting value"),
        ("[]", "not a manifest"),
        ('{"format": 99}', "not a manifest of format 1"),
        ('{"format": 1}', "debian_release is missing"),
    ],
)
def test_a_broken_manifest_is_an_error(images: Path, text: str, why: str) -> None:
    image = add_image(images, "default")
    (image.folder / store.MANIFEST).write_text(text)
    with pytest.raises(ImageError, match=why):
        store.open_image()


def test_a_manifest_that_was_edited_is_an_error(images: Path) -> None:
    image = add_image(images, "default")
    path = image.folder / store.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"python_version": "3.12"}))
    with pytest.raises(ImageError, match="changed after the build"):
        store.open_image()


def test_a_new_build_takes_the_name_and_the_older_image_stays(images: Path) -> None:
    older = add_image(images, "default", "old")
    newer = add_image(images, "default", "new")
    assert store.open_image().digest == newer.digest
    assert [(image.name, image.digest) for image in store.list_images()] == [
        ("default", newer.digest),
        ("", older.digest),
    ]


def test_building_a_damaged_image_again_mends_it(images: Path) -> None:
    image = add_image(images, "default")
    image.root.write_text("")
    assert add_image(images, "default").digest == image.digest
    store.verify_image(store.open_image())


def test_an_image_with_two_names_goes_with_the_second(images: Path) -> None:
    image = add_image(images, "one")
    add_image(images, "two")
    store.remove_image("one")
    assert store.open_image("two").digest == image.digest
    store.remove_image("two")
    assert not image.folder.exists()
    assert store.list_images() == []


def test_removing_by_digest_removes_the_names(images: Path) -> None:
    image = add_image(images, "one")
    image.root.unlink()  # a damaged image can be removed too
    store.remove_image(image.digest[:8])
    assert list(images.glob("names/*")) == []
    assert not image.folder.exists()


def test_removing_what_is_not_there_is_an_error(images: Path) -> None:
    for name in ("nothing", "../images", "0123456789abcdef"):
        with pytest.raises(ImageError):
            store.remove_image(name)


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "-x", "0123456789", "x" * 65, "a\n"])
def test_some_names_are_refused(name: str) -> None:
    with pytest.raises(ImageError, match="cannot be the name"):
        store.check_name(name)
