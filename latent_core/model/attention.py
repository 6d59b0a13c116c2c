"""Attention: rules as data, the mask that follows from them, and the attention function of every backbone.

Every slot has a type, and a rule says which types of slots may attend to which.

`attend` is the only place where a mask comes from; decoding, unrolling, splicing and replay all call it. `attention`
is the attention function of every Backbone: `sdpa`, and when a `Recorder` is passed down as a keyword it also keeps
the weights of the layers asked for.

Shapes: B sequences, Q queries, S slots, H heads, D head width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from latent_core.model.slot_types import (
    AFTER,
    AUX,
    AUX_END,
    CLASSES,
    CLOSE,
    CONTROL,
    LATENT,
    OPEN,
    PAD,
    PROMPT,
    SEALED,
    TEXT,
    slot_class,
)
from latent_core.settings import Rule

_RULES: tuple[Rule, ...] = get_args(Rule)


def _allowed() -> torch.Tensor:
    """(rules, query type, key type) bool: which slots a slot may attend to, causality aside.

    By default everything but padding. A rule narrows what the closing token and the text behind it read; the copies of
    `sealed` read each other alone under every rule, for else they would see what the latents saw.
    """
    table = torch.zeros(len(_RULES), CLASSES, CLASSES, dtype=torch.bool)
    table[:, PROMPT:, PROMPT:] = True
    table[:, PAD, PAD] = True  # a query that sees nothing would be NaN
    reads = {
        "no_image": {PROMPT, OPEN, CONTROL, LATENT, CLOSE, TEXT, AFTER},
        "latents_only": {LATENT, CLOSE, AFTER},
        "sealed": {SEALED, CLOSE, AFTER},
    }
    for rule, slot_types in reads.items():
        for reader in (CLOSE, AFTER):
            table[_RULES.index(rule), reader] = False
            table[_RULES.index(rule), reader, list(slot_types)] = True
    table[:, SEALED] = False
    table[:, SEALED, SEALED] = True
    return table


_ALLOWED = _allowed()


def tables(rules: Sequence[Rule], device: torch.device | str = "cpu") -> torch.Tensor:
    """(B, CLASSES, CLASSES) bool: each sequence's rule as a table from query class and key class to "may attend"."""
    return _ALLOWED[[_RULES.index(rule) for rule in rules]].to(device)


@dataclass(frozen=True, slots=True)
class Flow:
    """The attention to auxiliary images while training: Monet's controlled attention flow (section 3.2).

    The i-th auxiliary image belongs to the i-th block. The default is plain causal attention.
    """

    readers: Literal["all", "latents", "open+latents"] = "all"
    """latents: the image's own block's latents alone, so that whatever later text knows of it came through them.
    open+latents: its opening token too, whose state is latent 1 under `start_fed`; nobody but the block may then see
    that token."""
    within_image: bool = True
    """Whether an auxiliary image's tokens see each other (and themselves)."""
    free_latents: bool = False
    """Whether auxiliary images, opening tokens and latents escape all rules, and an image with the opening token after
    it is fed without gradient, as in the pass of Monet's released code that generates the latents."""


PLAIN = Flow()


def _directed(slot_types: torch.Tensor, queries: torch.Tensor, flow: Flow) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, Q, S) bool where `flow` lets queries (B, Q) see slots (B, S), and (B, Q, 1) bool which escape the rules."""
    keys, queries = slot_types[:, None], queries[..., None]
    key, query = slot_class(keys), slot_class(queries)
    same = keys // CLASSES == queries // CLASSES  # of the block and the image with the same number
    in_block = (query == LATENT) | (query == CONTROL)
    if flow.readers == "open+latents":
        in_block = in_block | (query == OPEN)
    allowed = (key != AUX) | (in_block & same)
    if flow.readers == "all":
        allowed = torch.ones_like(allowed)
    elif flow.readers == "open+latents":
        allowed = allowed & ((key != OPEN) | (in_block & same))
    within = (key == AUX) & (query == AUX) & same
    allowed = allowed | within if flow.within_image else allowed & ~within
    free = (in_block | (query == OPEN) | (query == AUX) | (query == AUX_END)) & flow.free_latents
    return allowed, free


def attend(slot_types: torch.Tensor, rules: torch.Tensor, slots: torch.Tensor, flow: Flow = PLAIN) -> torch.Tensor:
    """(B, Q, S) bool, True where a query may attend: to slots up to its own that its rule and the flow allow.

    `causal`      plain causal.
    `no_image`        text behind the first block, closing tokens included, does not see images.
    `latents_only`    it sees latents, closing tokens and itself; nothing that has seen the prompt or the image.
    `sealed`          as before, but in place of the latents (whose cached keys have seen the image) their sealed
                      copies, which see only sealed copies.
    Opening, control and latent slots see everything before them under every rule. No slot sees padding.

    slot_types (B, S) of all slots, rules from `tables`, slots (B, Q) of the queries.
    """
    classes = slot_class(slot_types)  # rules ask for a slot's type, the flow for its number, too
    sequences = torch.arange(len(slot_types), device=slot_types.device)[:, None]
    allowed_classes = rules[sequences, classes.gather(1, slots)]  # (B, Q, CLASSES)
    allowed = allowed_classes.gather(2, classes[:, None].expand(-1, slots.shape[1], -1))
    if flow != PLAIN:
        directed, free = _directed(slot_types, slot_types.gather(1, slots), flow)
        allowed = allowed & directed | free & (classes != PAD)[:, None]
    return allowed & (torch.arange(slot_types.shape[1], device=slot_types.device) <= slots[..., None])


class Recorder:
    """A recorder of attention weights of the layers asked for, kept by the caller, never by a module.

    `maps[(sequence, position)]` is (layers, H, S) float32 on the CPU: the weights over all slots of the token or
    latent that entered at `position`. Slots and positions differ only under `sealed`.
    """

    def __init__(self, layers: Sequence[int]) -> None:
        """`layers`: decoder layers, 0-based."""
        self.layers = tuple(sorted(layers))
        self.maps: dict[tuple[int, int], torch.Tensor] = {}
        self._queries: list[torch.Tensor] = []
        self._keys: list[torch.Tensor] = []
        self._mask: torch.Tensor | None = None
        self._scaling = 1.0
        self._watch: torch.Tensor | None = None

    def see(
        self, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, scaling: float, watch: torch.Tensor
    ) -> None:
        """Keeps queries (B, H, Q, D), of which watch[b] (W,) are sequence b's, and keys (B, key heads, S, D).

        Nothing is computed before `take`, which does it for all layers at once: this is called for every layer.
        """
        if not self._queries:  # the same in all layers
            self._mask, self._scaling, self._watch = mask, scaling, watch
        self._queries.append(query)
        self._keys.append(key)

    def take(self) -> torch.Tensor:
        """(B, W, layers, H, S) weights since the last call: softmax(q·kᵀ), of all layers at once."""
        batch, heads, fed, width = self._queries[0].shape
        watch, count = self._watch, self._watch.shape[1] if fed > 1 else 1  # a single query is the one
        sequences = torch.arange(batch, device=self._queries[0].device)[:, None] if fed > 1 else None
        scores = []
        for query, key in zip(self._queries, self._keys, strict=True):  # stacked, the keys would be copied
            shared = key.shape[1]  # the heads that share a key are its queries, as are those of all positions
            if fed > 1:
                query = query.transpose(1, 2)[sequences, watch].view(batch, count, shared, -1, width).transpose(1, 2)
            products = query.reshape(batch, shared, -1, width).float() @ key.float().transpose(-1, -2)
            if fed > 1:
                products = products.view(batch, shared, count, -1, products.shape[-1]).transpose(1, 2)
            scores.append(products.reshape(batch, count, heads, -1))
        self._queries, self._keys = [], []
        scores = torch.stack(scores, 2) * self._scaling
        if self._mask is not None:
            allowed = self._mask[sequences, 0, watch] if fed > 1 else self._mask[:, 0]
            scores = scores.masked_fill(~allowed[:, :, None, None], float("-inf"))
        elif fed > 1:  # plain causal: a single query sees every slot
            slots = scores.shape[-1]
            later = torch.arange(slots, device=scores.device) > (watch + slots - fed)[..., None]
            scores = scores.masked_fill(later[:, :, None, None], float("-inf"))
        return scores.softmax(-1)


class AttentionRollout:
    """Attention rollout over one whole feed (Abnar & Zuidema 2020, arXiv 2005.00928, equation 1).

    R_ℓ = (½ Ā_ℓ + ½ I) R_ℓ−1, R_0 = I, Ā_ℓ the mean over the heads of layer ℓ

    A single (S, S) matrix per sequence is kept, whatever the number of layers.
    """

    def __init__(self, layers: int) -> None:
        """`layers`: decoder layers of the model."""
        self.layers = range(layers)
        self._flow: torch.Tensor | None = None

    def see(
        self, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, scaling: float, watch: None
    ) -> None:
        """One more layer; query (B, H, S, D), key (B, key heads, S, D)."""
        batch, heads, slots, width = query.shape
        shared = query.float().view(batch, key.shape[1], -1, slots, width)
        scores = (shared @ key.float().transpose(-1, -2)[:, :, None]).view(batch, heads, slots, slots) * scaling
        allowed = torch.ones(slots, slots, dtype=torch.bool, device=query.device).tril() if mask is None else mask
        mean = scores.masked_fill(~allowed, float("-inf")).softmax(-1).mean(1)
        step = (mean + torch.eye(slots, device=mean.device)) / 2
        self._flow = step if self._flow is None else step @ self._flow

    def take(self) -> torch.Tensor:
        """(B, S, S): what of every slot's state comes from which slot's input, rows of sum 1."""
        assert self._flow is not None
        return self._flow


IMPLEMENTATION = "inscape"
"""Name under which `attention` stands in transformers' register of attention functions."""


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    recorder: Recorder | AttentionRollout | None = None,
    watch: torch.Tensor | None = None,
    **keywords,
) -> tuple[torch.Tensor, None]:
    """transformers' sdpa attention; shows queries and keys to the recorder, if one is passed."""
    if recorder is not None and module.layer_idx in recorder.layers:
        recorder.see(query, key, attention_mask, keywords["scaling"], watch)
    if query.shape[2] > 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **keywords)
    # One query: the heads that share a key are its queries, so that nothing is repeated. The same kernel gets there
    # through transformers' function too, at twice the cost of the whole call on a small model.
    batch, heads, _, width = query.shape
    packed = query.view(batch, key.shape[1], heads // key.shape[1], width)
    out = torch.nn.functional.scaled_dot_product_attention(
        packed, key, value, attn_mask=attention_mask, scale=keywords["scaling"], dropout_p=keywords["dropout"]
    )
    return out.reshape(batch, 1, heads, width), None


AttentionInterface.register(IMPLEMENTATION, attention)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)  # without it transformers drops padding silently
