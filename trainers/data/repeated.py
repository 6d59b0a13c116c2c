"""A data set whose batches come several times in a row, for stages that learn from one more than once."""

from torch.utils.data import Dataset


class Repeated(Dataset):
    """Batches of a data set, each `times` times in a row."""

    def __init__(self, data: Dataset, batch: int, times: int) -> None:
        self.data, self.batch, self.times = data, batch, times

    def __len__(self) -> int:
        return len(self.data) * self.times

    def __getitem__(self, index: int) -> object:
        if not 0 <= index < len(self):
            raise IndexError(index)
        step, place = divmod(index, self.batch)
        return self.data[step // self.times * self.batch + place]
