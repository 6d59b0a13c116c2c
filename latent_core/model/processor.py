"""The processor: images and a question → the model's inputs; ids → text. Works without torchvision.

Follows transformers' Qwen2.5-VL chat template and image processor (equal in tests), with one difference:
text from users is encoded by a copy of the tokenizer that knows no control tokens, so that a question containing
`<|im_end|>` or `<|image_pad|>` stays text.

Shapes: T prompt tokens, P patches before merging, C = 3 · temporal · patch · patch, I images.
"""

import codecs
import contextlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, normalizers
from transformers import PreTrainedTokenizerFast

from latent_core.model.backbone import Chat
from latent_core.model.fitting import Fit
from latent_core.model.images import load_image
from latent_core.model.qwen2_5_vl import ImageProcessor, Qwen2_5_VL
from latent_core.settings import check

MOST_LEAST = 1 << 24
"""Pixels that a small image may be enlarged to; the published checkpoints ask for 200,704."""
MOST_ID = 1 << 22
"""Above the ids of all vocabularies: Qwen's ends at 151,665."""
_FORMS = (normalizers.NFC, normalizers.NFD, normalizers.NFKC, normalizers.NFKD)


@dataclass(frozen=True, kw_only=True, eq=False)
class Prompt:
    """Model inputs of one question, up to and including the assistant's header."""

    input_ids: torch.Tensor
    """(T,) int64; every merged image token is `image_token_id`."""
    pixel_values: torch.Tensor
    """(P, C) float32, all images one after the other; (0, C) without images."""
    grid_thw: torch.Tensor
    """(I, 3) int64: frames (1), rows and columns of patches before merging."""
    images: tuple[torch.Tensor, ...]
    """What the model sees, one uint8 (H, W, 3) per image."""


class Processor:
    """A byte-level BPE tokenizer with a backbone's chat layout, and Qwen2-VL's cut of images.

    Raises ValueError where the tokenizer lacks a control token or lets user text become one.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, image_processor: ImageProcessor, chat: Chat = Qwen2_5_VL.chat
    ) -> None:
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.chat = chat
        backend = tokenizer.backend_tokenizer
        if not isinstance(backend.decoder, decoders.ByteLevel):
            raise ValueError(f"The tokenizer decodes with {backend.decoder}; a byte-level BPE tokenizer is needed.")
        if backend.normalizer is not None and not isinstance(backend.normalizer, _FORMS):
            raise ValueError(
                f"The tokenizer changes text by {type(backend.normalizer).__name__}; only Unicode's forms, such as "
                "NFC, can be used."
            )
        self._added = dict(tokenizer.added_tokens_decoder)
        self._plain = _without_added_tokens(backend)
        for token in self._added.values():
            if not self._added.keys().isdisjoint(self.encode(token.content)):
                raise ValueError(f"The tokenizer's vocabulary lets user text become {token.content}.")
        self._silent: dict[int, list[int]] = {}
        self.image_token_id = self.token_id(chat.image)
        self.vision_start_id = self.token_id(chat.image_start)
        self.vision_end_id = self.token_id(chat.image_end)
        self.turn_start_id = self.token_id(chat.turn_start)
        self.eos_id = self.token_id(chat.turn_end)

        self.merge_size: int = image_processor.merge_size
        mean, std = np.array(image_processor.image_mean), np.array(image_processor.image_std)
        self._scale = torch.tensor(image_processor.rescale_factor / std, dtype=torch.float32)
        self._shift = torch.tensor(-mean / std, dtype=torch.float32)
        if not all(bool(values.isfinite().all()) for values in (self._scale, self._shift)):
            raise ValueError("The image processor's rescale_factor, image_mean and image_std make pixels infinite.")

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        chat: Chat = Qwen2_5_VL.chat,
        *,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
    ) -> "Processor":
        """Reads tokenizer and image processor as transformers saves them; pixel limits per image override the file.

        Raises ValueError that names a missing or corrupt file.
        """
        name = Path(folder).name  # the rest of the path tells strangers too much
        if not Path(folder, "tokenizer.json").is_file():
            raise ValueError(f"{name} has no tokenizer.json.")
        with _named(ValueError, f"The tokenizer in {name} cannot be read"):
            _check_ids(json.loads(Path(folder, "tokenizer.json").read_text(encoding="utf-8")))
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        return cls(tokenizer, _image_processor(Path(folder), min_pixels, max_pixels), chat)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes tokenizer, chat template and preprocessor_config.json into an existing folder."""
        with _named(OSError, "The tokenizer could not be written"):
            self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)

    def __call__(self, images: Sequence[Image.Image], question: str, system: str | None = None) -> Prompt:
        """One chat turn: the system prompt, the images, the question, the assistant's header.

        `images` may be of any Pillow mode. Raises ImageProblem for an image that cannot be used.
        """
        patches, grids, shown = [], [], []
        for image in images:
            pixels = self._pixels(image, self.fit)
            shown.append(pixels)
            patches.append(self._patchify(pixels))
            grids.append((1, pixels.shape[0] // self._patch, pixels.shape[1] // self._patch))
        ids = self._turn("system", self.system(system))
        ids += [self.turn_start_id]
        if grids:
            ids += self.encode("user\n")
            for _, rows, columns in grids:
                count = rows * columns // self.merge_size**2
                ids += [self.vision_start_id, *[self.image_token_id] * count, self.vision_end_id]
            ids += self.encode(question)
        else:
            ids += self.encode(f"user\n{question}")
        ids += [self.eos_id, *self.encode("\n"), self.turn_start_id, *self.encode("assistant\n")]
        return Prompt(
            input_ids=torch.tensor(ids),
            pixel_values=torch.cat(patches) if patches else torch.empty(0, 3 * self._temporal * self._patch**2),
            grid_thw=torch.tensor(grids, dtype=torch.int64).reshape(-1, 3),
            images=tuple(shown),
        )

    def patches(self, image: Image.Image) -> tuple[torch.Tensor, torch.Tensor]:
        """One auxiliary image inside a response: patches (P, C) and grid (1, 3).

        Auxiliary images may be smaller than questions' images: down to 2 × 2 merged tokens.
        """
        pixels = self._pixels(image, replace(self.fit, min_pixels=4 * self.token_side**2))
        rows, columns = pixels.shape[0] // self._patch, pixels.shape[1] // self._patch
        return self._patchify(pixels), torch.tensor([[1, rows, columns]])

    def system(self, prompt: str | None) -> str:
        """The system prompt, for None the chat template's own."""
        return self.chat.default_system if prompt is None else prompt

    @property
    def control_tokens(self) -> list[str]:
        """All tokens that the tokenizer has beside its text."""
        return [token.content for token in self._added.values()]

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; whatever looks like a control token is spelled out in letters."""
        return self._plain.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Text of `ids`; bytes that are no UTF-8 become U+FFFD."""
        decoder = self.decoder(skip_special=skip_special)
        return "".join([decoder.push(int(id)) for id in ids]) + decoder.flush()

    def decoder(self, *, skip_special: bool = True) -> "Detokenizer":
        """A fresh incremental detokenizer for one stream."""
        return Detokenizer(self, skip_special=skip_special)

    def token_id(self, token: str) -> int:
        """Id of a control token such as `<abs_vis_token>`."""
        for id, added in self._added.items():
            if added.content == token:
                return id
        raise ValueError(f"The tokenizer has no control token {token}; it has {', '.join(self.control_tokens)}.")

    def is_special(self, id: int) -> bool:
        """Whether `id` is a control token, which is not shown as text."""
        return id in self._added and self._added[id].special

    def silent_ids(self, vocabulary: int) -> list[int]:
        """The ids below `vocabulary` that are no text by themselves: control tokens and characters, parts of a
        multi-byte character, and rows of the embedding without a token."""
        if vocabulary not in self._silent:
            num_tokens = len(self.tokenizer)
            self._silent[vocabulary] = [
                id
                for id in range(vocabulary)
                if id >= num_tokens or self.is_special(id) or not _readable(self.decode([id], skip_special=False))
            ]
        return self._silent[vocabulary]

    def grid(self, image: torch.Tensor) -> tuple[int, int]:
        """(rows, columns) of merged image tokens of a shown image (H, W, 3)."""
        side = self._patch * self.merge_size
        return image.shape[0] // side, image.shape[1] // side

    @property
    def fit(self) -> Fit:
        """The size at which the model sees an image."""
        return _fit(self.image_processor)

    @property
    def _patch(self) -> int:
        return self.image_processor.patch_size

    @property
    def token_side(self) -> int:
        """Side in pixels of the square that one merged image token covers."""
        return self._patch * self.image_processor.merge_size

    @property
    def _temporal(self) -> int:
        return self.image_processor.temporal_patch_size

    def _turn(self, role: str, text: str) -> list[int]:
        return [self.turn_start_id, *self.encode(f"{role}\n{text}"), self.eos_id, *self.encode("\n")]

    def _pixels(self, image: Image.Image, fit: Fit) -> torch.Tensor:
        """uint8 (H, W, 3): the image, of any mode, as the model sees it."""
        return torch.from_numpy(np.array(image if fit.has_fitted(image) else fit(load_image(image))))

    def _patchify(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 (H, W, 3) → float32 (P, C) in merge order: the patches of one merged token are neighbours."""
        patch, merge, temporal = self._patch, self.merge_size, self._temporal
        height, width, _ = pixels.shape
        values = pixels.float() * self._scale + self._shift
        tiles = values.reshape(height // (patch * merge), merge, patch, width // (patch * merge), merge, patch, 3)
        tiles = tiles.permute(0, 3, 1, 4, 6, 2, 5)  # (rows, columns, merge, merge, 3, patch, patch)
        repeated = tiles.unsqueeze(5).expand(-1, -1, -1, -1, -1, temporal, -1, -1)
        return repeated.reshape(-1, 3 * temporal * patch * patch)


class Detokenizer:
    """Ids one by one → the characters that each completes; a character split over tokens appears with its last one.

    The tokenizers library's `DecodeStream` would not do, for it cannot be flushed: an unfinished character is lost at
    the end of a stream, and before a control token it becomes part of the text behind that.
    """

    def __init__(self, processor: Processor, *, skip_special: bool) -> None:
        self._processor = processor
        self._skip_special = skip_special
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, id: int) -> str:
        """Text completed by this token. A control token ends a character left incomplete, as U+FFFD."""
        if self._processor.is_special(id):
            return self.flush() + ("" if self._skip_special else self._processor.tokenizer.convert_ids_to_tokens(id))
        token = self._processor.tokenizer.convert_ids_to_tokens(id)
        if token is None:  # embedding tables have more rows than the vocabulary has tokens
            return ""
        return self._utf8.decode(_token_bytes(token))

    def flush(self) -> str:
        """The text of a character left incomplete at the end of the stream: U+FFFD, or nothing."""
        return self._utf8.decode(b"", final=True)


def _fit(images: ImageProcessor) -> Fit:
    return Fit(
        side=images.patch_size * images.merge_size,
        min_pixels=images.size["shortest_edge"],
        max_pixels=images.size["longest_edge"],
        resample=int(images.resample),
    )


def _image_processor(folder: Path, min_pixels: int | None, max_pixels: int | None) -> ImageProcessor:
    """A checkpoint's image processor, with the limits that are given in place of its own."""
    limits = {"min_pixels": min_pixels, "max_pixels": max_pixels}
    overrides = {name: value for name, value in limits.items() if value is not None}
    file, settings = _image_settings(folder)
    with _named(ValueError, f"{file} in {folder.name} cannot be read"):
        images = ImageProcessor.from_dict(settings, **overrides)
    _check_images(images, f"{file} in {folder.name}")
    return images


def _image_settings(folder: Path) -> tuple[str, dict[str, object]]:
    """The image processor's file and its fields, as transformers 5 saves them (inside processor_config.json) or as
    earlier versions did."""
    for file, key in (("processor_config.json", "image_processor"), ("preprocessor_config.json", None)):
        if not (folder / file).is_file():
            continue
        with _named(ValueError, f"{file} in {folder.name} cannot be read"):
            settings = json.loads((folder / file).read_text(encoding="utf-8"))
        check(isinstance(settings, dict), f"{file} in {folder.name} is not a JSON object of named fields.")
        if key is None:
            return file, settings
        if key in settings:  # older ones have a chat template alone
            nested = settings[key]
            check(isinstance(nested, dict), f"{key} of {file} in {folder.name} is not an object of named fields.")
            return file, nested
    raise ValueError(f"{folder.name} has no preprocessor_config.json, and no processor_config.json in its place.")


def _check_ids(tokenizer: dict[str, dict]) -> None:
    """Raises ValueError for a token's id for which tables of gigabytes would be laid out."""
    ids = [*tokenizer["model"]["vocab"].values(), *(added["id"] for added in tokenizer.get("added_tokens") or ())]
    check(all(0 <= id <= MOST_ID for id in ids), f"a token has an id below 0 or above {MOST_ID:,}.")


def _check_images(images: ImageProcessor, where: str) -> None:
    """Raises ValueError for settings with which no image can be cut into patches."""

    def number(value: object) -> bool:
        return type(value) in (int, float) and math.isfinite(value)

    for name in ("patch_size", "merge_size", "temporal_patch_size"):
        value = getattr(images, name)
        check(type(value) is int and value > 0, f"{where}: {name} is {value!r}; it must be a whole number above 0.")
    for name in ("image_mean", "image_std"):
        value = getattr(images, name)
        fits = isinstance(value, (list, tuple)) and len(value) == 3 and all(map(number, value))
        check(
            fits and (name == "image_mean" or all(value)), f"{where}: {name} is {value!r}; three numbers are needed."
        )
    check(number(images.rescale_factor), f"{where}: rescale_factor is {images.rescale_factor!r}; it must be a number.")
    least, most = (images.size[edge] for edge in ("shortest_edge", "longest_edge"))
    fits = type(least) is int and type(most) is int and 0 < least <= most
    check(fits, f"{where}: size is {least!r} to {most!r} pixels; 0 < shortest_edge ≤ longest_edge must hold.")
    check(
        least <= MOST_LEAST, f"{where}: images would be enlarged to {least:,} pixels; at most {MOST_LEAST:,} can be."
    )
    check(
        images.resample in range(6), f"{where}: resample is {images.resample!r}; it must be one of Pillow's, 0 to 5."
    )


_OF_FILES = (OSError, ValueError, RecursionError, AttributeError, LookupError, TypeError)
"""What transformers raises where a file has a list in place of an object, or a number in place of a text."""


@contextlib.contextmanager
def _named(kind: type[Exception], what: str) -> Iterator[None]:
    """Turns problems with a file into `kind`. The tokenizers library raises bare Exceptions, a full disk included."""
    try:
        yield
    except Exception as error:
        if type(error) is Exception or isinstance(error, _OF_FILES):
            raise kind(f"{what}: {error}") from error
        raise


def _without_added_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """A copy that splits control tokens into letters, whether or not they are flagged as special.

    A copy, because `encode_special_tokens` is state on the shared tokenizer and every encode call resets it.
    """
    description = json.loads(tokenizer.to_str())
    return Tokenizer.from_str(json.dumps({**description, "added_tokens": [], "post_processor": None}))


@lru_cache(maxsize=1)
def _bytes_of_letters() -> dict[str, int]:
    """GPT-2's byte alphabet: the letter that stands for each byte in a byte-level vocabulary."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


def _token_bytes(token: str) -> bytes:
    alphabet = _bytes_of_letters()
    if all(letter in alphabet for letter in token):
        return bytes(alphabet[letter] for letter in token)
    return token.encode()  # an added token with letters outside the alphabet is stored as it reads


def _readable(text: str) -> bool:
    """Whether text can be shown: whole characters, none of them a control character other than white space."""
    return "\ufffd" not in text and text.strip().isprintable()
