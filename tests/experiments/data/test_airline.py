"""The series is the published one."""

from experiments.data.airline import PASSENGERS


def test_series_has_the_published_moments():
    # R's AirPassengers: 144 months, 104 to 622, mean 280.2986, standard deviation 119.9663.
    assert (len(PASSENGERS), PASSENGERS.min(), PASSENGERS.max()) == (144, 104, 622)
    assert round(PASSENGERS.mean(), 4) == 280.2986
    assert round(PASSENGERS.std(ddof=1), 4) == 119.9663
