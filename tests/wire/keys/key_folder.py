"""Keys of a test's own."""

from pathlib import Path

from wanspec_kernels.wire.keys import Secret, generate, load_secret


def new_key(folder: Path, name: str) -> Secret:
    return load_secret(generate(folder, name))


def enroll(folder: Path, name: str, key: Secret) -> None:
    (folder / f"{name}.key").write_text(f'curve\n    public-key = "{key.public.decode()}"\n')
