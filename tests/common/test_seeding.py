"""common/seeding.py: streams that never meet and never move."""

from qttdm.common.seeding import derive_seed


def test_golden_values():
    # A change here changes every run of every seed.
    assert derive_seed(0, "episode", 12) == 116321487698022739
    assert derive_seed(1, "replay") == 4036888798459070827


def test_the_same_name_gives_the_same_seed():
    assert derive_seed(3, "a", 1) == derive_seed(3, "a", 1)


def test_streams_and_seeds_are_all_distinct():
    seeds = [
        derive_seed(seed, name, number)
        for seed in range(20)
        for name in ("env", "planner", "replay")
        for number in range(20)
    ]
    assert len(set(seeds)) == len(seeds)


def test_neighbouring_runs_do_not_share_streams():
    assert derive_seed(0, "episode", 1) != derive_seed(1, "episode", 0)
    assert derive_seed(1, "x", 23) != derive_seed(12, "x", 3)
    assert derive_seed(0, "x", "1") != derive_seed(0, "x", 1)
    assert derive_seed(0, "xy") != derive_seed(0, "x", "y")


def test_seeds_fit_every_generator_and_use_all_bits():
    seeds = [derive_seed(seed) for seed in range(500)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    for bit in range(63):
        assert 150 < sum(seed >> bit & 1 for seed in seeds) < 350, bit
