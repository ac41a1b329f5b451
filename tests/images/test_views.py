"""Every view on the shelf keeps what the shelf's page promises, in all of its settings; and how a recipe sets them."""

from __future__ import annotations

import multiprocessing
import re
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
from PIL import Image

from minipovid.common import shelf
from minipovid.common.errors import MinipovidError
from minipovid.images.load import load
from minipovid.images.transform import ImageTransform
from minipovid.images.views import OpenView, check_views, is_fresh_each_epoch, open_view, view_settings
from minipovid.recipe import strict
from minipovid.recipe.schema import Recipe

VIEWS = shelf.names("images.views")
TRANSFORM = ImageTransform(16, (0.5, 0.4, 0.3), (0.3, 0.2, 0.1))
SPAWN = multiprocessing.get_context("spawn")


def a_recipe(seed: int = 1, **sections: Any) -> Recipe:
    tree = {"name": "r", "model": {"path": "m"}, "data": {"path": "d"}, "stages": [{"loss": {"name": "dpo"}}]}
    return strict.validated(Recipe, {**tree, "seed": seed, **sections}, "r.yaml")


def every_setting(name: str) -> list[dict[str, Any]]:
    """The defaults, and every combination of what can be chosen by name; nothing is kept on disk."""
    fields = get_type_hints(shelf.load("images.views", name).Settings)
    choices = {key: get_args(kind) for key, kind in fields.items() if get_origin(kind) is Literal}
    uncached = {"cache_gib": 0.0} if "cache_gib" in fields else {}
    return [{**uncached, **dict(zip(choices, each, strict=True))} for each in product(*choices.values())]


CASES = [(name, settings) for name in VIEWS for settings in every_setting(name)]
EVERY_CASE = pytest.mark.parametrize(
    ("name", "settings"), CASES, ids=["-".join([name, *map(str, given.values())]) for name, given in CASES]
)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Something that looks otherwise in every corner, in no square."""
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    y, x = np.mgrid[:60, :90]
    Image.fromarray(np.stack([x * 2, y * 4, 255 - x - y], axis=2).astype(np.uint8)).save(path)
    return path


def opened(name: str, settings: dict[str, Any], seed: int = 1) -> OpenView:
    return open_view(name, a_recipe(seed, views={name: settings}), TRANSFORM)


def look(view: OpenView, photo: Path, pair: str = "a", epoch: int = 0) -> Any:
    return view(photo, pair, epoch)


def pixels(name: str, settings: dict[str, Any], photo: Path, pair: str = "a", epoch: int = 0, seed: int = 1) -> Any:
    return look(opened(name, settings, seed), photo, pair, epoch)


def test_the_shelf_is_seen_whole() -> None:
    assert {"cropped", "noised"} <= set(VIEWS)
    assert len(CASES) >= 7  # noised: three domains, fresh or not


@pytest.mark.parametrize("name", VIEWS)
def test_the_defaults_build_and_the_paper_is_named(name: str) -> None:
    module = shelf.load("images.views", name)
    assert view_settings(name, a_recipe()) == module.Settings()
    assert re.search(r"arXiv \d{4}\.\d{5}", module.__doc__ or "")


@EVERY_CASE
def test_the_pixels_are_those_of_a_tower_s_input(name: str, settings: dict[str, Any], photo: Path) -> None:
    view = pixels(name, settings, photo)
    assert view.shape == (3, 16, 16) and view.dtype in (np.float16, np.float32) and np.isfinite(view).all()
    assert (view != TRANSFORM(load(photo)).astype(view.dtype)).any()  # or it would be no other picture


@EVERY_CASE
def test_what_is_drawn_is_the_pair_s_the_seed_s_and_if_it_says_so_the_epoch_s(
    name: str, settings: dict[str, Any], photo: Path
) -> None:
    """Where another pair of the same picture gets another view, the view draws; if not, nothing may."""

    def differs(**other: Any) -> bool:
        return bool((pixels(name, settings, photo, **other) != pixels(name, settings, photo)).any())

    assert not differs()
    draws, fresh = differs(pair="b"), is_fresh_each_epoch(name, a_recipe(views={name: settings}))
    assert differs(seed=2) is draws and differs(epoch=1) is fresh
    assert draws or not fresh
    if name in ("cropped", "noised"):
        assert draws


def test_another_process_sees_the_same(photo: Path) -> None:
    """Whether it opens the view or is handed the open one, and whatever it has looked at before."""
    asked = [(name, settings, photo, pair, epoch) for name, settings in CASES for pair in "ab" for epoch in (0, 3)]
    with SPAWN.Pool(1) as pool:
        opened_there = pool.starmap(pixels, reversed(asked))[::-1]
        opened_here = pool.starmap(look, [(opened(*each[:2]), *each[2:]) for each in asked])
    assert len(asked) >= 4 * len(VIEWS)
    for each, *theirs in zip(asked, opened_there, opened_here, strict=True):
        for found in theirs:
            np.testing.assert_array_equal(found, pixels(*each), err_msg=str(each))


@pytest.mark.parametrize("name", ["clean", *VIEWS])
def test_a_picture_that_is_gone_is_said(name: str, tmp_path: Path) -> None:
    with pytest.raises(MinipovidError, match="There is no picture .*gone.png; check the name"):
        look(open_view(name, a_recipe(), TRANSFORM), tmp_path / "gone.png")


def test_the_clean_view_is_the_picture(photo: Path) -> None:
    view = open_view("clean", a_recipe(), TRANSFORM)
    np.testing.assert_array_equal(view(photo, "a", 1), TRANSFORM(load(photo)))
    assert not is_fresh_each_epoch("clean", a_recipe())


@pytest.mark.parametrize(
    ("views", "sentence"),
    [
        (
            {"croped": {}},
            "views.croped: There is no 'croped' among the views. Did you mean 'cropped'? Known: cropped, ",
        ),
        ({"clean": {}}, "views.clean: There is no 'clean' among the views."),
        ({"cropped": {"area": 0.5}}, "views.cropped: area is not a key of a recipe; allowed here: nothing."),
        ({"cropped": 0.5}, "r.yaml: views.cropped is 0.5, but it must be a group of keys."),
        ({"noised": {"step": 1000}}, "r.yaml: views.noised.step is 1000, but it must be at most 999."),
        ({"noised": {"stepp": 1}}, "r.yaml: views.noised.stepp is not a key of a recipe; did you mean views.noised.st"),
        (["noised"], "r.yaml: views is ['noised'], but it must be a group of keys."),
    ],
)
def test_a_mistake_in_the_recipe_is_one_sentence(views: Any, sentence: str) -> None:
    with pytest.raises(MinipovidError) as caught:
        check_views(a_recipe(views=views))
    assert str(caught.value).startswith(sentence) and "\n" not in str(caught.value)


def test_the_recipe_s_keys_are_the_view_s() -> None:
    check_views(a_recipe(views={name: settings for name, settings in CASES}))
    assert view_settings("noised", a_recipe(noise={"step": 3})).step == 3
    assert view_settings("noised", a_recipe(views={"noised": {"step": 3}})).step == 3
