"""Write src/admg/data/imagenet_labels.txt: the names of ImageNet-1k's labels, from WordNet 3.0.

    python tools/imagenet_labels.py imagenet_synsets.txt /usr/share/wordnet src/admg/data/imagenet_labels.txt

The first argument is a file with the 1,000 WordNet ids, one per line (for example timm/data/_info/imagenet_synsets.txt,
or the folder names of the data set). The second is the folder of WordNet's database (Debian: wordnet-base), of which
`data.noun` is read: the digits of an id are the offset of its line. Label k is the k-th id in sorted order.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from admg.files import atomic

HEADER = """\
# The 1,000 labels of ImageNet-1k (ILSVRC 2012), in order: WordNet id, name, and the synonyms of its synset.
# Written by tools/imagenet_labels.py from the database of WordNet 3.0, whose notice and licence are:
"""


@dataclass(frozen=True)
class Synset:
    """A set of synonyms in WordNet, and the offsets of its hypernyms (what it is a kind of)."""

    lemmas: list[str]
    hypernyms: list[int]


def read_synset(data: bytes, offset: int) -> Synset:
    """Parse the line at an offset of data.noun.

    Its format is `offset file n words(hex) lemma id ... pointers | gloss` (man 5 wndb).
    """
    fields = data[offset : data.index(b"\n", offset)].decode("ascii").split(" | ")[0].split()
    if int(fields[0]) != offset:
        raise ValueError(f"no synset at offset {offset}")
    end = 4 + 2 * int(fields[3], 16)
    pointers = fields[end + 1 :]  # symbol, offset, part of speech, source/target
    hypernyms = [int(pointers[i + 1]) for i in range(0, len(pointers), 4) if pointers[i] == "@"]
    return Synset([lemma.replace("_", " ") for lemma in fields[4:end:2]], hypernyms)


def read_license(data: bytes) -> str:
    """Return the notice at the start of data.noun as comment lines, without its line numbers."""
    head = data[: data.index(b"\n00001740 ")].decode("ascii").splitlines()
    return "".join(f"# {line.strip().partition(' ')[2].strip()}".rstrip() + "\n" for line in head)


def lines(ids: list[str], data: bytes) -> list[str]:
    """Return `id name, synonym, ...` for each label. If two labels have the same name, their hypernym is appended."""
    synsets = [read_synset(data, int(id[1:])) for id in ids]
    shared = Counter(synset.lemmas[0].lower() for synset in synsets)
    result = []
    for id, synset in zip(ids, synsets, strict=True):
        terms = synset.lemmas
        if shared[terms[0].lower()] > 1:
            kind = read_synset(data, synset.hypernyms[0]).lemmas[0]
            terms = [f"{terms[0]} ({kind})", *terms]
        result.append(f"{id} {', '.join(terms)}")
    return result


def main(ids_file: str, wordnet: str, out: str) -> None:
    ids = sorted(Path(ids_file).read_text(encoding="utf-8").split())
    if len(set(ids)) != 1000:
        raise ValueError(f"{ids_file} has {len(set(ids))} ids, not 1000")
    data = (Path(wordnet) / "data.noun").read_bytes()
    with atomic(out) as temporary:
        text = HEADER + read_license(data) + "\n".join(lines(ids, data)) + "\n"
        temporary.write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
