"""Documents of token shards as a reader sees them: ids turned back into text and pictures."""

from __future__ import annotations

import io
from collections.abc import Iterator
from html import escape
from pathlib import Path

import torch

from data_pipelines.images import to_image
from data_pipelines.shards import TokenDocument, TokenSegment, open_manifest, read_shard
from tokenizers_vq.bundle_files import Tokenizers
from tokenizers_vq.image_tokenizer import ImageTokenizer
from tokenizers_vq.text import TextTokenizer
from tokenizers_vq.token_space import TokenSpace
from unimodal.report.page import frame, write_page
from unimodal.report.parts import flatten, inline_image, section


def write_documents(folder: Path, path: Path, number: int) -> Path:
    """A page with `number` documents of a folder of shards, spread evenly over all of them.

    Raises ValueError for a number below 1, and where the tokenizers beside the shards are not those of the ids.
    """
    if number < 1:
        raise ValueError(f"the number of documents to show is at least 1, got {number}")
    if not path.parent.is_dir():
        raise ValueError(f"{path.parent} is not a folder: the page cannot be written to {path}")
    manifest = open_manifest(folder)
    space = manifest.space
    tokenizers = Tokenizers.open(folder, space, latents=False)
    cards = [_card(document, space, tokenizers.text, tokenizers.image) for document in _spread(folder, number)]
    total = sum(entry.documents for entry in manifest.shards)
    lead = f"{len(cards)} of {total:,} documents, as the tokenizers give them back."
    body = section(
        str(folder), f'<div class="cards">{"".join(cards)}</div>', flatten(manifest.source.get("tokenize", {}))
    )
    return write_page(path, frame("What the shards hold", lead, body))


def _spread(folder: Path, number: int) -> Iterator[TokenDocument]:
    manifest = open_manifest(folder)
    total = sum(entry.documents for entry in manifest.shards)
    wanted = {index * total // number for index in range(min(number, total))} if number < total else set(range(total))
    before = 0
    for entry in manifest.shards:
        if any(before <= index < before + entry.documents for index in wanted):
            for index, document in enumerate(read_shard(folder, entry, manifest), start=before):
                if index in wanted:
                    yield document
        before += entry.documents


def _card(document: TokenDocument, space: TokenSpace, text: TextTokenizer, image: ImageTokenizer | None) -> str:
    parts = "".join(_part(segment, space, text, image) for segment in document.segments)
    tokens = f"{document.count('text')} text tokens, {document.count('image')} image tokens"
    return f'<div class="card document"><b>{escape(document.key)}</b><small>{tokens}</small>{parts}</div>'


def _part(segment: TokenSegment, space: TokenSpace, text: TextTokenizer, image: ImageTokenizer | None) -> str:
    role = f"<small>{escape(segment.role)}</small>"
    if segment.kind == "text":
        return f"{role}<div>{escape(text.decode(segment.ids.tolist()))}</div>"
    if image is None:
        return f'{role}<div class="left-out">{len(segment.ids)} image ids, no image tokenizer beside the shards</div>'
    span = space.read_image([space.specials.boi, *segment.ids.tolist(), space.specials.eoi], 0)
    assert span is not None, "the reader lets no other through"
    picture = to_image(image.decode(space.to_codes(torch.tensor([span.ids])), span.size)[0])
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return role + inline_image(buffer.getvalue(), "image/png", f"picture of {segment.role}")
