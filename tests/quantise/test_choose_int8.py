"""Int8 choice: which groups of matrices have 8 bits, and what a version's page says of it."""

from slmpack.quantise.mixed_precision.choose_int8 import choose_int8, describe_int8
from slmpack.quantise.mixed_precision.groups import Group


def group(name: str, weights: int, loss: float) -> Group:
    return Group(tensors=(f"model.layers.{name}.weight",), weights=weights, loss=loss)


def test_8_bits_go_where_they_save_most_for_their_bytes_as_long_as_there_is_room() -> None:
    large, small = group("0.mlp.up_proj", 1000, 0.5), group("1.mlp.down_proj", 100, 0.1)
    tiny, idle = group("1.mlp.up_proj", 10, 0.0001), group("0.mlp.down_proj", 10, 0.0)
    every = (large, small, tiny, idle)
    assert choose_int8(every, 600, 0.5) == (small, large, tiny)
    assert choose_int8(every, 554, 0.5) == (small, large)  # a byte less than the tiny one needs
    assert choose_int8(every, 60, 0.5) == (small, tiny)  # the large one is passed over
    assert choose_int8(every, 4.9, 0.5) == ()
    assert choose_int8(every, -100, 0.5) == ()


def test_no_choice_is_above_its_budget_and_equal_ones_are_taken_in_order() -> None:
    every = tuple(group(f"{at}.x", 1 + at * 7 % 11, (at * 5 % 13) / 100) for at in range(50))
    for budget in range(0, 150, 7):
        chosen = choose_int8(every, budget, 0.484375)
        assert sum(each.weights for each in chosen) * 0.484375 <= budget
        assert chosen == choose_int8(every, budget, 0.484375)
        left = budget - sum(each.weights for each in chosen) * 0.484375
        assert all(each.weights * 0.484375 > left for each in every if each.loss and each not in chosen)
    same = tuple(group(f"{at}.x", 10, 0.1) for at in range(4))
    assert choose_int8(same, 15, 0.5) == same[:3]


def test_a_page_is_told_what_has_8_bits_and_why() -> None:
    chosen = [group(f"{at}.mlp.down_proj", 10, 0.0312 / (1 + at)) for at in range(8)]
    joined = Group(tensors=("layers.0.q_proj.weight", "layers.0.k_proj.weight"), weights=9, loss=0.05)
    what, why = describe_int8([joined, *chosen], measured=True)
    assert what.startswith(
        "8 bits: the head, layers.0.q_proj, k_proj (KL 0.05), model.layers.0.mlp.down_proj (KL 0.031)"
    )
    assert what.endswith("model.layers.4.mlp.down_proj (KL 0.0062), 3 more")
    assert "was measured" in why
    what, why = describe_int8(chosen[:1], measured=False)
    assert what == "8 bits: the head, model.layers.0.mlp.down_proj"
    assert "was estimated" in why
    assert describe_int8([], measured=True) == ("8 bits: the head",)
