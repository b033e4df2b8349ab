from hashlib import sha256

from wanspec_kernels.wire.vocabulary import fingerprint, format_fingerprint, vocabulary_size


class Fixed:
    def __init__(self, vocabulary: dict[str, int]) -> None:
        self.vocabulary = vocabulary

    def get_vocab(self) -> dict[str, int]:
        return self.vocabulary


def test_fingerprint_is_the_documented_hash() -> None:
    expected = sha256(b"\0\0\0\0\1\0\0\0a" + b"\2\0\0\0\2\0\0\0\xc3\xa9").digest()
    assert fingerprint(Fixed({"é": 2, "a": 0})) == expected


def test_the_order_of_the_mapping_does_not_matter() -> None:
    pairs = [(f"token{i}", i) for i in range(1000)]
    assert fingerprint(Fixed(dict(pairs))) == fingerprint(Fixed(dict(reversed(pairs))))


def test_any_difference_in_ids_or_tokens_shows() -> None:
    vocabularies = [
        {},
        {"a": 0},
        {"a": 1},
        {"a": 0, "b": 1},
        {"a": 1, "b": 0},
        {"ab": 0},
        {"a": 0, "": 1},
        {"a": 0, "\ud800": 1},
        {"a": 0, "\ud801": 1},
    ]
    assert len({fingerprint(Fixed(v)) for v in vocabularies}) == len(vocabularies)


def test_ids_left_out_below_the_highest_count() -> None:
    assert vocabulary_size(Fixed({"a": 0, "<added>": 9, "b": 1})) == 10
    assert vocabulary_size(Fixed({})) == 0


def test_short_form() -> None:
    print_of = fingerprint(Fixed({"a": 0}))
    assert print_of.hex().startswith(format_fingerprint(print_of))
    assert len(format_fingerprint(print_of)) == 16
