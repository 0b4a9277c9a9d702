"""Arithmetic of the host. (Triton's own cdiv and next_power_of_2 take it microseconds.)"""


def cdiv(count, size):
    """How many of a size hold the count."""
    return -(-count // size)


def power_of_2(count):
    """The least power of two that is at least `count`."""
    return 1 << (count - 1).bit_length()


def padded(dim):
    """The power of two that holds `dim`, at least 64: 32 wide is wrong on Hopper (triton-lang/triton#10573, #11366)."""
    return max(64, power_of_2(dim))
