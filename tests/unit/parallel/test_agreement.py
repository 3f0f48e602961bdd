from jigsaw_forecast.parallel.agreement import describe_differences


def plan(host: str, **parts: str) -> dict[str, object]:
    return {"host": host, "parts": parts}


def test_equal_plans_have_no_differences() -> None:
    plans = [plan(host, torch="2.13.0", mesh="domain=2") for host in ("n1", "n2")]
    assert describe_differences(plans) == []


def test_the_rank_that_differs_is_named_with_host_part_and_values() -> None:
    plans = [plan(f"n{rank}", torch="2.13.0") for rank in range(4)]
    plans[2] = plan("n2", torch="2.12.0")
    first, advice = describe_differences(plans)
    assert first == "rank 2 on host n2 differs: torch 2.12.0, the others have 2.13.0"
    assert "same installation" in advice


def test_most_ranks_are_right_even_against_rank_0() -> None:
    plans = [plan("n", mesh=mesh) for mesh in ("tensor=3", "domain=3", "domain=3")]
    assert describe_differences(plans)[0].startswith("rank 0 on host n differs: mesh tensor=3")


def test_long_texts_are_told_by_their_digests_and_a_missing_part_is_named() -> None:
    plans = [plan("n", recipe="a" * 500, extra="x"), plan("n", recipe="b" * 500)]
    line = describe_differences(plans)[0]
    assert line.count("...") == 2
    assert "extra nothing, the others have x" in line
    assert "aaaa" not in line
