"""How sure a median is."""

from student_train.measuring import interval


def test_an_interval_holds_the_median_and_narrows_with_more_values():
    few, many = [0.9, 1.0, 1.1], [0.9, 1.0, 1.1] * 20
    for values in (few, many):
        low, high = interval(values)
        assert 0.9 <= low <= 1.0 <= high <= 1.1
    assert interval(many) == (1.0, 1.0)
