"""Labels by name and by number. The expected numbers of ImageNet's labels are its published order."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
import torch

from admg.checkpoints.labels import Labels
from admg.data import imagenet

KNOWN = {
    0: "tench",
    207: "golden retriever",
    281: "tabby",
    388: "giant panda",
    417: "balloon",
    933: "cheeseburger",
    973: "coral reef",
    985: "daisy",
    999: "toilet tissue",
    134: "crane (wading bird)",
    517: "crane (lifting device)",
}
LABELS = Labels.imagenet()


def test_imagenet_has_a_thousand_different_names():
    ids = [wordnet_id for wordnet_id, _ in imagenet.terms()]
    assert len(ids) == 1000 and ids == sorted(set(ids))
    assert (ids[0], ids[207], ids[999]) == ("n01440764", "n02099601", "n15075141")
    assert len({name.lower() for name in imagenet.names()}) == 1000


@pytest.mark.parametrize("number, name", KNOWN.items())
def test_known_numbers(number, name):
    assert imagenet.names()[number] == LABELS.name(number) == name
    assert LABELS.number(name) == LABELS.number(name.upper()) == LABELS.number(number) == LABELS.parse(str(number))


@pytest.mark.thorough
def test_each_label_is_found_by_its_name_and_its_wordnet_id():
    for i, (wordnet_id, _) in enumerate(imagenet.terms()):
        assert LABELS.number(LABELS.name(i)) == LABELS.number(wordnet_id) == i


@pytest.mark.parametrize(
    "name, number",
    [("Tinca tinca", 0), (" toilet paper ", 999), ("Cardigan Welsh corgi", 264), ("tank suit", 639), ("harp", 594)],
)
def test_synonyms_find_a_label_but_its_own_name_comes_first(name, number):
    assert LABELS.number(name) == number  # "harp" is also a synonym of harmonica


@pytest.mark.parametrize(
    "name, candidates",
    [
        ("crane", "'crane (wading bird)' (134) or 'crane (lifting device)' (517)"),
        ("Maillot", "'maillot (tights)' (638) or 'maillot (swimsuit)' (639)"),
        ("panda", "'lesser panda' (387) or 'giant panda' (388)"),
    ],
)
def test_an_ambiguous_name_lists_the_candidates(name, candidates):
    with pytest.raises(ValueError) as error:
        LABELS.number(name)
    assert str(error.value) == f"label {name!r} is ambiguous: {candidates}"


@pytest.mark.parametrize(
    "name, near",
    [
        ("golden retreiver", "'golden retriever' (207)"),
        ("retriever", "'golden retriever' (207)"),
        ("Tinca tinka", "'tench' (0)"),
        ("orgutan", "'orangutan' (365)"),
    ],
)
def test_a_misspelt_name_suggests_similar_ones(name, near):
    with pytest.raises(ValueError, match=r"^unknown label") as error:
        LABELS.number(name)
    assert near in str(error.value) and str(error.value).endswith("? labels are 0 to 999")


@pytest.mark.parametrize("label", ["1000", "-1", 1000, -1, ""])
def test_numbers_out_of_range_suggest_no_names(label):
    for lookup in [LABELS.number] + ([LABELS.parse] if isinstance(label, str) else []):
        with pytest.raises(ValueError) as error:
            lookup(label)
        assert str(error.value) == f"unknown label {str(label)!r}: labels are 0 to 999"


@pytest.mark.parametrize("integer", [int, np.int64, np.uint8, torch.tensor], ids=["int", "int64", "uint8", "tensor"])
def test_an_integer_is_a_number_even_where_names_are_numbers(integer):
    labels = Labels(3, ("1", "2", "3"))
    assert [labels.number(integer(k)) for k in range(3)] == [0, 1, 2]
    assert [labels.number(name) for name in ("1", "2", "3")] == [0, 1, 2]
    with pytest.raises(ValueError, match="unknown label '3': labels are 0 to 2: 1, 2, 3"):
        labels.number(integer(3))


def test_typed_text_is_a_name_first_and_then_a_number():
    labels = Labels(3, ("1", "2", "3"))
    assert [labels.parse(text) for text in ("1", " 3 ", "0")] == [0, 2, 0]
    assert Labels(10).parse("7") == 7


def test_a_string_is_never_taken_for_a_number():
    with pytest.raises(ValueError, match="no label is named '0': a number must be given as an integer, 0"):
        Labels(3, ("1", "2", "3")).number("0")
    with pytest.raises(TypeError):
        Labels(3).number(1.0)


def test_names_that_differ_only_by_case():
    labels = Labels(3, ("A", "a", "b"))
    assert [labels.number(name) for name in ("A", "a", "B")] == [0, 1, 2]
    with pytest.raises(ValueError, match=r"ambiguous: 'x' \(0\) or 'x' \(1\)"):
        Labels(2, ("x", "x")).number("x")


def test_spaces_around_a_name_belong_to_it_if_a_label_has_them():
    labels = Labels(2, ("cat", " cat"))
    assert [labels.number(name) for name in ("cat", " cat", "cat ")] == [0, 1, 0] and labels.parse(" 1 ") == 1


def test_custom_aliases():
    labels = Labels(2, ("cat", "dog"), aliases=(("Felis Catus",), ()))
    assert labels.number("felis catus") == 0
    with pytest.raises(ValueError, match="there must be 2 tuples of aliases, got 1"):
        Labels(2, ("cat", "dog"), aliases=(("x",),))


def test_imagenets_names_bring_their_synonyms():
    assert Labels.of(list(imagenet.names())).number("Tinca tinca") == 0
    assert Labels.of(["cat", "dog"]).names == ("cat", "dog") and Labels.of(["cat", "dog"]).aliases == ()


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_are_looked_up_in_either_spelling_of_unicode(form):
    stored = Labels(2, (unicodedata.normalize("NFD", "Käfer"), "Zebra"), ((unicodedata.normalize("NFD", "bébé"),), ()))
    assert stored.names[0] == unicodedata.normalize("NFC", "Käfer") and len(stored.names[0]) == 5
    for name in ("Käfer", "käfer", "bébé"):
        assert stored.number(unicodedata.normalize(form, name)) == stored.parse(unicodedata.normalize(form, name)) == 0
