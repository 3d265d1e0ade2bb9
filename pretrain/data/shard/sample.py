"""Which members of a shard are a sample, and which of a sample's are its image and its label.

Only members with an allow-listed extension are recorded; nothing else in a shard, a pickle say, is ever opened.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from pretrain.data.shard.tar import Member

IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "npy")  # of several, the first is the image
LABELS = ("cls", "json")
EXTENSIONS = (*IMAGES[:8], "cls", "json", "npy")  # stored by their number: append only

Sample = tuple[str, list[tuple[int, int, int]]]  # its key, and its members as (extension number, start, stop)


class AmbiguousSampleError(ValueError):
    """Which member of a sample is its image or its label cannot be told."""


def group(found: Iterable[Member]) -> list[Sample]:
    """Members as samples, by WebDataset's rule: neighbours whose names agree up to the first dot of the last component.

    What follows that dot is a member's extension. `a.jpg` beside `a.seg.jpg` is one sample whose image is the first;
    a `jpg` after further dots counts where it is the only image (`IMG.2020.jpg`).

    Returns:
        Every sample that has an image.

    Raises:
        AmbiguousSampleError: a sample has an extension twice, or several images none of which is plainly the one.
    """
    chosen = [(key, choose(key, parts)) for key, parts in neighbours(found)]
    return [sample for sample in chosen if has_image(sample)]


def neighbours(found: Iterable[Member]) -> list[tuple[str, list[tuple[str, Member]]]]:
    """All members by their samples: the key, and each member with its extension."""
    samples: list[tuple[str, list[tuple[str, Member]]]] = []
    for member in found:
        match = re.fullmatch(r"((?:.*/)?[^./]+)\.([^/]*)", member.name, flags=re.DOTALL)
        if match is None:
            continue
        if not samples or match[1] != samples[-1][0]:
            samples.append((match[1], []))
        samples[-1][1].append((match[2].lower(), member))
    return samples


def has_image(sample: Sample) -> bool:
    return any(EXTENSIONS[part[0]] in IMAGES for part in sample[1])


def choose(key: str, members: Sequence[tuple[str, Member]]) -> list[tuple[int, int, int]]:
    """The members of a sample that are recorded.

    Raises:
        AmbiguousSampleError: which of them is its image or its label cannot be told.
    """
    chosen = [(extension, member) for extension, member in members if extension in EXTENSIONS]
    if not any(extension in IMAGES for extension, _ in chosen):
        last = [(extension.rpartition(".")[2], member) for extension, member in members]
        chosen += [(extension, member) for extension, member in last if extension in IMAGES]
        images = [extension for extension, _ in chosen if extension in IMAGES]
        ambiguous = len(images) > 1
    else:
        ambiguous = len({extension for extension, _ in chosen}) < len(chosen)
    if ambiguous:
        listed = ", ".join(f"`{member.name}`" for _, member in chosen[:4])
        raise AmbiguousSampleError(
            f"{listed} are one sample, since its key `{key}` ends at the first dot of a name, and which of them is "
            "meant cannot be told. Rename the members, or leave the shard out of the list"
        )
    return [(EXTENSIONS.index(extension), member.offset, member.offset + member.size) for extension, member in chosen]
