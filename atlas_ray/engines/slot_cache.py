"""A key-value cache for episodes of unlike length that grow side by side."""

from __future__ import annotations

import torch
from transformers.cache_utils import Cache, CacheLayerMixin


class _Layer(CacheLayerMixin):
    """One layer's keys and values in a buffer ``[slots, heads, capacity, width]`` that is written in place."""

    def __init__(self, owner: SlotCache) -> None:
        super().__init__()
        self.owner = owner

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        _, heads, _, width = key_states.shape
        self.keys = key_states.new_zeros(self.owner.slots, heads, self.owner.capacity, width)
        self.values = value_states.new_zeros(self.owner.slots, heads, self.owner.capacity, value_states.shape[-1])
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        start = self.owner.cursor
        end = start + key_states.shape[-2]
        rows = self.owner.rows
        if rows is None:
            self.keys[:, :, start:end] = key_states
            self.values[:, :, start:end] = value_states
            return self.keys[:, :, :end], self.values[:, :, :end]
        self.keys[rows, :, start:end] = key_states
        self.values[rows, :, start:end] = value_states
        # keys[rows, :, :end] is the same and seven times slower on a CPU
        return self.keys[:, :, :end].index_select(0, rows), self.values[:, :, :end].index_select(0, rows)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.owner.cursor + query_length, 0

    def get_seq_length(self) -> int:
        return self.owner.cursor

    def get_max_length(self) -> int:
        return -1


class SlotCache(Cache):
    """Columns are appended for all slots at once; a slot's own tokens are the columns marked valid for it.

    New tokens of unlike number leave holes, and rewinding a slot leaves holes too; holes are never attended to.
    Rotary positions are baked into the keys, so a token may lie in any column, and :meth:`reserve` can close the holes
    by moving columns.

    Attributes:
        valid: ``[slots, capacity]`` bool, which columns a slot attends to.
        places: ``[slots, capacity]``, of the token in a column in its text.
        columns: for every slot, the column of each of its tokens in order.
        rows: the slots of the forward pass in progress, None for all of them in order.
    """

    def __init__(self, slots: int, layers: int, device: torch.device, capacity: int = 256) -> None:
        self.slots, self.capacity, self.cursor = slots, capacity, 0
        self.rows: torch.Tensor | None = None
        self.valid = torch.zeros(slots, capacity, dtype=torch.bool, device=device)
        self.places = torch.zeros(slots, capacity, dtype=torch.long, device=device)
        self.columns: list[list[int]] = [[] for _ in range(slots)]
        super().__init__(layers=[_Layer(self) for _ in range(layers)])

    def rewind(self, slot: int, length: int) -> None:
        """Keep the first ``length`` tokens of a slot."""
        gone = self.columns[slot][length:]
        if gone:
            self.valid[slot, gone] = False
            del self.columns[slot][length:]

    def reserve(self, room: int) -> None:
        """Make room for more columns: close the holes once they are a quarter, and grow when that is too little.

        Attention reads every column up to the cursor, so holes cost time and closing them early pays.
        """
        longest = max(map(len, self.columns))
        needed = self.cursor + room
        if needed <= self.capacity and self.cursor <= 1.25 * longest + 64:
            return
        capacity = self.capacity
        while longest + room > capacity:
            capacity *= 2
        held = [torch.tensor(c, dtype=torch.long, device=self.valid.device) for c in self.columns]
        for layer in self.layers:
            if layer.is_initialized:
                layer.keys = self._moved(layer.keys, held, capacity)
                layer.values = self._moved(layer.values, held, capacity)
        self.valid = torch.zeros(self.slots, capacity, dtype=torch.bool, device=self.valid.device)
        self.places = torch.arange(capacity, device=self.valid.device).repeat(self.slots, 1)
        for slot, columns in enumerate(self.columns):
            self.valid[slot, : len(columns)] = True
            self.columns[slot] = list(range(len(columns)))
        self.capacity, self.cursor = capacity, longest

    @staticmethod
    def _moved(buffer: torch.Tensor, held: list[torch.Tensor], capacity: int) -> torch.Tensor:
        slots, heads, old, width = buffer.shape
        new = buffer if capacity == old else buffer.new_zeros(slots, heads, capacity, width)
        for slot, columns in enumerate(held):
            new[slot, :, : len(columns)] = buffer[slot].index_select(1, columns)
        return new
