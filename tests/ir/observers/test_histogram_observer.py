"""The observer of distributions remembers the range that it found, as long as nothing changed."""

from __future__ import annotations

import copy
import pickle

import torch
from lowbit.ir.observers import HistogramObserver
from lowbit.ir.observers.histogram import DyadicHistogram


class Counting:
    """A range rule that counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, histogram: DyadicHistogram, levels: int, symmetric: bool) -> tuple[float, float]:
        self.asked += 1
        return histogram.min_val, histogram.max_val


def test_a_range_is_searched_once_for_one_statistic() -> None:
    rule = Counting()
    observer = HistogramObserver(range_rule=rule)
    observer(torch.tensor([-1.0, 1.0]))
    first = observer.calculate_qparams()
    assert observer.calculate_qparams() == first
    assert rule.asked == 1


def test_what_was_found_is_of_no_other_statistic() -> None:
    rule = Counting()
    observer = HistogramObserver(range_rule=rule)
    observer(torch.tensor([0.0, 255.0]))
    assert observer.calculate_qparams()[0].item() == 1.0
    observer(torch.tensor([510.0]))
    assert observer.calculate_qparams()[0].item() == 2.0
    with torch.no_grad():
        observer.max_val.fill_(1020.0)  # as loading a checkpoint does
    assert observer.calculate_qparams()[0].item() == 4.0
    observer.range_rule = lambda histogram, levels, symmetric: (0.0, 25.5)
    assert abs(observer.calculate_qparams()[0].item() - 0.1) < 1e-7
    assert rule.asked == 3


def test_copies_and_pickles_search_again() -> None:
    observer = HistogramObserver()
    observer(torch.tensor([-1.0, 1.0]))
    expected = observer.calculate_qparams()
    for other in (copy.deepcopy(observer), pickle.loads(pickle.dumps(observer))):
        assert "_found" not in vars(other)
        assert other.calculate_qparams() == expected
