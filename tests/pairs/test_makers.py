"""Every maker on the shelf keeps the contract of pairs/make/makers: a new file is tested on the day it is born."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from bad_server import BadServer
from PIL import Image

from minipovid.common import shelf
from minipovid.common.errors import MinipovidError
from minipovid.inference.remote import Stopped, Usage
from minipovid.inference.remote.client import Teacher
from minipovid.inference.remote.server import Server
from minipovid.pairs import make as making
from minipovid.pairs.make.makers import Maker, MakerInputs, Outcome
from minipovid.pairs.pair import Seed
from minipovid.recipe.read import settings
from minipovid.recipe.strict import validated

SHELF = "pairs.make.makers"
EVERY_MAKER = pytest.mark.parametrize("name", shelf.names(SHELF))
SEEDS = [
    Seed(str(n), "a.png", f"Describe row {n}.", f"Two red boats lie on the left of pier {n}, near a dog.", "person")
    for n in range(6)
]


@pytest.fixture
def server() -> Iterator[BadServer]:
    """A teacher that answers every question of every maker with the same good words."""
    with BadServer() as running:
        yield running


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def built(name: str, server: BadServer, **options: Any) -> Maker:
    teacher = Teacher("bad", Server(server.url, "sk-0123456789"), timeout_s=5)
    return making.maker(name, MakerInputs(lambda: SEEDS, lambda: teacher), options)


def test_the_shelf_holds_makers_and_nothing_else() -> None:
    names = shelf.names(SHELF)
    assert len(names) >= 2
    for name in names:
        module = shelf.load(SHELF, name)
        assert callable(module.maker) and is_dataclass(module.Options), name


@EVERY_MAKER
def test_options_have_defaults_and_can_be_said_on_the_command_line(name: str) -> None:
    options = shelf.load(SHELF, name).Options
    assert options.__dataclass_params__.frozen
    defaults = asdict(options())  # none is required
    told = settings([f"{key}={json.dumps(default)}" for key, default in defaults.items()], "--option")
    assert asdict(validated(options, told, name)) == defaults


@EVERY_MAKER
def test_what_is_no_option_is_refused_in_one_sentence(name: str, server: BadServer) -> None:
    known = [field.name for field in fields(shelf.load(SHELF, name).Options)]
    with pytest.raises(MinipovidError) as caught:
        built(name, server, no_such=3)
    assert str(caught.value) == f"The maker {name} has no option no_such (--no-such); it has {', '.join(known)}."
    for key in known:
        with pytest.raises(MinipovidError, match=rf"^--maker {name}: {key} is \['x'\], but it must be .*\.$"):
            built(name, server, **{key: ["x"]})
    assert not server.seen


@EVERY_MAKER
def test_the_identity_is_json_stays_and_tells_options_apart(name: str, server: BadServer, picture: Path) -> None:
    maker = built(name, server)
    before = json.dumps(maker.identity())
    assert json.loads(before) == maker.identity()
    maker.make(SEEDS[0], picture)
    assert json.dumps(maker.identity()) == json.dumps(built(name, server).identity()) == before
    defaults = asdict(shelf.load(SHELF, name).Options())
    for key, default in defaults.items():
        if isinstance(default, (bool, int, float)):
            other = built(name, server, **{key: not default if isinstance(default, bool) else default + 1})
            assert json.dumps(other.identity()) != before, f"{key} decides outcomes and is not in the identity"


@EVERY_MAKER
def test_a_pair_is_the_seed_and_a_worse_answer(name: str, server: BadServer, picture: Path) -> None:
    maker = built(name, server)
    outcomes = [maker.make(seed, picture) for seed in SEEDS]
    assert any(outcome.pair for outcome in outcomes)
    for seed, outcome in zip(SEEDS, outcomes, strict=True):
        pair = outcome.pair
        if pair is None:
            assert outcome.reasons, "no pair and no reason"
            continue
        assert (pair.id, pair.image, pair.prompt, pair.chosen) == (seed.id, seed.image, seed.prompt, seed.answer)
        assert pair.rejected.strip() and pair.rejected.strip() != pair.chosen
        assert all(0 <= span.start < span.end <= len(pair.rejected) and span.kind for span in pair.spans)
        assert pair.source["chosen"] == "person" and pair.source["rejected"]
    assert maker.spent().requests == len(server.seen) == sum(outcome.usage.requests for outcome in outcomes)
    assert maker.cost(Usage()) in (None, 0)


@EVERY_MAKER
def test_threads_make_what_one_makes_alone(name: str, server: BadServer, picture: Path) -> None:
    alone, shared = built(name, server), built(name, server)
    assert shared.workers >= 1
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda seed: shared.make(seed, picture), SEEDS * 3))
    assert together == [alone.make(seed, picture) for seed in SEEDS] * 3


@EVERY_MAKER
def test_an_estimate_sends_nothing_and_who_is_stopped_sends_nothing_more(
    name: str, server: BadServer, picture: Path
) -> None:
    maker = built(name, server)
    estimated = [maker.estimate(seed, picture) for seed in SEEDS]
    assert not server.seen and maker.spent() == Usage()
    outcome = maker.make(SEEDS[0], picture)
    assert bool(outcome.usage.requests) == bool(estimated[0].requests)
    sent = len(server.seen)
    maker.stop()
    after: Outcome | None = None
    try:
        after = maker.make(SEEDS[1], picture)
    except Stopped:
        assert estimated[1].requests
    assert len(server.seen) == sent and (after is None or not after.usage.requests)
