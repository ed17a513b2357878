"""A recipe is read as it was written, and an error names the setting that is wrong."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path
from typing import Any

import pytest

from zeroi2v.config import (
    ClipConfig,
    DataConfig,
    ModelConfig,
    PixelsConfig,
    Recipe,
    TrainConfig,
    ViewsConfig,
)
from zeroi2v.errors import ConfigError
from zeroi2v.recipes import as_assignment, changed, override, read_recipe, write_recipe

RECIPES = [
    Recipe(),
    Recipe(
        model=ModelConfig(
            heads=((-1,), None, "1*1/2"),
            tower_options={"img_size": 32, "nested": {"é": [1, 2]}, "none": None},
        ),
        clip=ClipConfig(frames=32, sampling="dense", stride=4),
        pixels=PixelsConfig(flip_pairs=(("left", 'ri"ght'),), crop_area=(0.5, 1.0)),
        views=ViewsConfig(clips=2, crops=3),
        train=TrainConfig(
            learning_rate=3e-4, broken="skip", learning_rate_shares={"tower": 0.1, "adapters": 2.0}
        ),
    ),
    Recipe(model=ModelConfig(strategy="evl", decoder_layers=12, classifier_dropout=0.0)),
    Recipe(model=ModelConfig(heads=())),
    Recipe(model=ModelConfig(heads=(-1, 1))),
    Recipe(model=ModelConfig(heads="ssv2")),
    Recipe(data=DataConfig(format="ucf101", split=3, videos="/videos", classes="names.txt")),
]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_that_was_written_is_read_back(recipe: Recipe, tmp_path: Path) -> None:
    write_recipe(recipe, tmp_path / "recipe.toml")
    assert read_recipe(tmp_path / "recipe.toml") == recipe


def test_overrides_reach_their_setting_by_full_or_bare_name() -> None:
    assignments = [
        "train.epochs=3",
        "stride=4",
        "heads=[-1, 1, 2]",
        "tower=vit_tiny_patch16_224",
        "tower_options.img_size=64",
        "crops=3",
    ]
    recipe = override(Recipe(), [*assignments, 'flip_pairs=[["a", "b"]]', "learning_rate=1"])
    assert (recipe.train.epochs, recipe.clip.stride, recipe.views.crops) == (3, 4, 3)
    assert recipe.model == ModelConfig(
        heads=(-1, 1, 2), tower="vit_tiny_patch16_224", tower_options={"img_size": 64}
    )
    assert recipe.pixels.flip_pairs == (("a", "b"),)
    assert recipe.train.learning_rate == 1.0
    assert override(recipe, ["heads=none"]).model.heads is None


ABOVE_0, BELOW_0, BELOW_1, ABOVE_1 = 1e-9, -1e-9, 1 - 1e-9, 1 + 1e-9
# A setting -> values that it may have, up to its limits, and values just beyond its limits.
RANGES: dict[str, tuple[list[Any], list[Any]]] = {
    "model.ratio": ([ABOVE_0, 1.0], [0.0, BELOW_0, ABOVE_1]),
    "model.adapter_ratio": ([ABOVE_0, 4.0], [0.0, BELOW_0, 4 + 1e-9]),
    "model.adapter_scale": ([ABOVE_0, BELOW_0, 100.0], [0.0]),
    "model.adapted_blocks": ([1, 100], [0, -1]),
    "model.adapter_dropout": ([0.0, BELOW_1], [BELOW_0, 1.0]),
    "model.classifier_dropout": ([0.0, BELOW_1], [BELOW_0, 1.0]),
    "model.drop_path": ([0.0, BELOW_1], [BELOW_0, 1.0]),
    "model.decoder_layers": ([1, 100], [0, -1]),
    "model.tubelet": ([1, 2], [0, -1]),
    "clip.frames": ([1, 64], [0, -1]),
    "clip.stride": ([1, 64], [0, -1]),
    "pixels.crop_area": ([(ABOVE_0, 1.0), (0.5, 0.5)], [(0.0, 1.0), (0.5, ABOVE_1), (0.5, 0.4)]),
    "pixels.crop_aspect": ([(ABOVE_0, 9.0), (1.0, 1.0)], [(0.0, 1.0), (BELOW_0, 1.0), (1.0, 0.9)]),
    "pixels.flip": ([0.0, 1.0], [BELOW_0, ABOVE_1]),
    "pixels.flip_pairs": (
        [(), (("a", "b"), ("c", "d"))],
        [(("a", "a"),), (("a", "b"), ("b", "c"))],
    ),
    "pixels.augment_operations": ([0, 14], [-1, 15]),
    "pixels.augment_magnitude": ([0.0, 10.0], [BELOW_0, 10 + 1e-9]),
    "pixels.augment_jitter": ([0.0, 5.0], [BELOW_0]),
    "pixels.augment_probability": ([0.0, 1.0], [BELOW_0, ABOVE_1]),
    "pixels.erase": ([0.0, 1.0], [BELOW_0, ABOVE_1]),
    "pixels.erase_area": ([(ABOVE_0, 1.0), (0.5, 0.5)], [(0.0, 1.0), (0.5, ABOVE_1), (0.5, 0.4)]),
    "pixels.erase_aspect": ([(ABOVE_0, 9.0), (1.0, 1.0)], [(0.0, 1.0), (BELOW_0, 1.0), (1.0, 0.9)]),
    "views.clips": ([1, 10], [0, -1]),
    "train.epochs": ([1, 1000], [0, -1]),
    "train.batch_size": ([1, 1000], [0, -1]),
    "train.accumulate": ([1, 1000], [0, -1]),
    "train.learning_rate": ([ABOVE_0, 10.0], [0.0, BELOW_0]),
    "train.weight_decay": ([0.0, 10.0], [BELOW_0]),
    "train.warmup_epochs": ([0.0, 10.0], [BELOW_0]),
    "train.warmup_start": ([0.0, 1.0], [BELOW_0, ABOVE_1]),
    "train.learning_rate_shares": (
        [{}, {"tower": ABOVE_0, "classifier": 10.0}],
        [{"tower": 0.0}, {"adapters": BELOW_0}, {"classifier": float("inf")}, {"head": 1.0}],
    ),
    "train.label_smoothing": ([0.0, BELOW_1], [BELOW_0, 1.0]),
    "train.gradient_clip": ([0.0, 10.0], [BELOW_0]),
    "train.token_share": ([ABOVE_0, 1.0], [0.0, BELOW_0, ABOVE_1]),
    "train.few_frames": ([0, 64], [-1]),
    "train.few_frames_epochs": ([0, 1000], [-1]),
    "train.workers": ([-1, 0, 64], [-2]),
    "train.seed": ([0, 2**63 - 1], [-1, 2**63]),
    "train.validate_every": ([1, 1000], [0, -1]),
    "train.patience": ([0, 1000], [-1]),
    "train.save_every_minutes": ([0.0, 1000.0], [BELOW_0]),
}


@pytest.mark.parametrize("setting", RANGES)
def test_a_setting_may_have_the_values_of_its_range_and_no_value_beyond(setting: str) -> None:
    table, _, name = setting.partition(".")
    kind = type(getattr(Recipe(), table))
    allowed, refused = RANGES[setting]
    for value in allowed:
        assert getattr(kind(**{name: value}), name) == value
    for value in refused:
        with pytest.raises(ConfigError, match=name) as caught:
            kind(**{name: value})
        assert "\n" not in str(caught.value)


def test_every_number_among_the_settings_has_a_range() -> None:
    numbers = set()
    for table in dataclasses.fields(Recipe):
        for name, hint in typing.get_type_hints(type(getattr(Recipe(), table.name))).items():
            if {int, float} & {hint, *typing.get_args(hint)}:
                numbers.add(f"{table.name}.{name}")
    assert numbers == {*RANGES} - {"pixels.flip_pairs"}


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("epoch=3", "did you mean 'epochs'"),
        ("train.epoch=3", "did you mean 'train.epochs'"),
        ("trian.epochs=3", "did you mean 'train.epochs'"),
        ("model.epochs=3", "did you mean 'train.epochs'?"),
        ("clip.flip=0.5", "did you mean 'pixels.flip'"),
        ("train.crops=3", "did you mean 'views.crops'"),
        ("pixels.multi_label=true", "did you mean 'data.multi_label'"),
        ("epochs", "expected key=value"),
        ("epochs=2.5", "train.epochs must be a whole number, got 2.5"),
        ("epochs=3\nseed=1", "train.epochs must be a whole number, got '3\\nseed=1'"),
        ("epochs=3\n[data]\nsplit=2", "train.epochs must be a whole number"),
        ("epochs=true", "train.epochs must be a whole number, got True"),
        ("epochs=0", "epochs must be at least 1, got 0"),
        (
            "few_frames=4",
            "few_frames and few_frames_epochs must both be above 0 or both be 0, got 4 and 0",
        ),
        ("token_share=0", "token_share must be above 0 and at most 1, got 0"),
        ("adapted_blocks=0", "adapted_blocks must be at least 1, or none for all, got 0"),
        ("epochs.more=1", "has no settings of its own"),
        ("sampling=denser", "did you mean 'dense'"),
        ("crops=2", "views.crops must be one of 1, 3, got 2"),
        ("crop_area=[0.5]", "pixels.crop_area must be a list of 2"),
        ("crop_area=[0.9, 0.5]", "crop_area must be 0 < low <= high <= 1"),
        ("seed=100000000000000000000", "seed must be at least 0"),
        ("adapter_scale=0", "the adapters would do nothing"),
        *(
            (
                f"heads={value}",
                "model.heads must be none, text such as 'ssv2' or '-1*1, 1*1/2', a list of offsets "
                "such as [-1, 1], or a list with such a value for each block, got " + value,
            )
            for value in ("-1", "1.5", "[1.5]", "[[[1]]]", "[-1, 'ssv2', 0.5]")
        ),
        ("sites=3", "model.sites must be a list of texts or none, got 3"),
        ("flip_pairs=3", "pixels.flip_pairs must be a list of lists of 2 values, got 3"),
        ("crop_area=[0.5]", "pixels.crop_area must be a list of 2 values, got [0.5]"),
        ("decoder_layers=[1]", "model.decoder_layers must be a whole number or none, got [1]"),
        ("data.split=4", "data.split must be one of 1, 2, 3, got 4"),
        (
            "learning_rate_shares.adaptors=0.1",
            "learning_rate_shares: a model has the parts tower, adapters, temporal_embedding, "
            "classifier, got 'adaptors', did you mean 'adapters'?",
        ),
        ("learning_rate_shares={backbone=0.1}", "temporal_embedding, classifier, got 'backbone'"),
        ("learning_rate_shares.tower=0", "learning_rate_shares.tower must be above 0"),
        ("learning_rate_shares.tower=slow", "learning_rate_shares.tower must be a number, got"),
        ("learning_rate_shares=0.1", "train.learning_rate_shares must be a table, got 0.1"),
        ("strategy_rules=0.2.0", "strategy_rules must be one of 'authors', '0.1.0', got '0.2.0'"),
        ('data.videos=""', "videos must not be empty"),
    ],
)
def test_a_wrong_override_is_named(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        override(Recipe(), [assignment])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("assignments", "flags", "message"),
    [
        (["epochs=3"], {"train.epochs": 1}, "--set epochs=3 contradicts --epochs 1"),
        (["frames=8", "frames=4"], {}, "--set frames=4 contradicts --set frames=8"),
        (["epochs=3", "train.epochs=4"], {}, "--set train.epochs=4 contradicts --set epochs=3"),
        (
            ["start_from=a"],
            {"train.start_from": "b"},
            "--set start_from=a contradicts --start-from b",
        ),
        (
            ["tower_options.depth=2", "tower_options={img_size=32}"],
            {},
            "--set tower_options={img_size=32} contradicts --set tower_options.depth=2",
        ),
        (
            ["tower_options={depth=2}", "tower_options.depth=3"],
            {},
            "--set tower_options.depth=3 contradicts --set tower_options={depth=2}",
        ),
    ],
)
def test_two_values_of_one_setting_are_refused(
    assignments: list[str], flags: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        override(Recipe(), assignments, flags)
    assert str(caught.value) == f"{message}; give only one of them"


def test_a_value_that_is_given_twice_counts_once() -> None:
    again = ["frames=4", "clip.frames=4", "epochs=3", "tower_options={depth=2}"]
    recipe = override(Recipe(), [*again, "tower_options.img_size=32"], {"train.epochs": 3})
    assert (recipe.clip.frames, recipe.train.epochs) == (4, 3)
    assert recipe.model.tower_options == {"depth": 2, "img_size": 32}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[trian]\nepochs = 1", "unknown setting 'trian', did you mean 'train'"),
        ("[train]\nepochs = 'x'", "train.epochs must be a whole number, got 'x'"),
        ("[train", "not a TOML file"),
        ("train = 3", "train must be a table"),
    ],
)
def test_a_wrong_recipe_is_named_with_its_file(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "wrong.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_recipe(tmp_path / "wrong.toml")
    assert message in str(caught.value)
    assert "wrong.toml" in str(caught.value)


@pytest.mark.parametrize("other", [{"precision": "fp16"}, {"accumulate": 2}])
def test_sharding_refuses_what_it_cannot_do(other: dict[str, Any]) -> None:
    TrainConfig(**other)
    with pytest.raises(ConfigError, match=f"sharding needs {next(iter(other))}"):
        TrainConfig(sharding="full", **other)


def test_the_share_of_a_part_is_set_by_its_name_and_other_parts_stay() -> None:
    recipe = override(Recipe(), ["learning_rate_shares.adapters=0.1"])
    recipe = override(recipe, ["train.learning_rate_shares.tower=1"])
    assert recipe.train.learning_rate_shares == {"adapters": 0.1, "tower": 1.0}
    whole = override(recipe, ["learning_rate_shares={classifier=2}"])
    assert whole.train.learning_rate_shares == {"classifier": 2.0}


def test_few_frames_cover_as_much_of_the_video() -> None:
    recipe = override(Recipe(), ["frames=16", "stride=4", "few_frames=8", "few_frames_epochs=2"])
    clips = [recipe.clip_in_epoch(epoch) for epoch in (1, 2, 3)]
    assert [(clip.frames, clip.stride) for clip in clips] == [(8, 8), (8, 8), (16, 4)]
    with pytest.raises(ConfigError, match=r"few_frames must be at most clip\.frames"):
        override(Recipe(), ["few_frames=9", "few_frames_epochs=1"])


def test_settings_change_by_value_as_they_change_by_text() -> None:
    pairs = (("a", "b"), ('"', "\x7f"))
    values = {
        "model.tower": 'no "such\x7f\n',
        "train.epochs": 3,
        "clip.stride": 4,
        "pixels.flip_pairs": pairs,
        "model.tower_options": {"img_size": 64},
        "model.heads": None,
    }
    recipe = changed(Recipe(), values)
    assert (recipe.model.tower, recipe.train.epochs, recipe.clip.stride) == ('no "such\x7f\n', 3, 4)
    assert recipe.pixels.flip_pairs == pairs
    assert recipe.model.tower_options == {"img_size": 64}
    assert changed(recipe, {}) == recipe
    assert changed(Recipe(), {"train.epochs": 3}) == override(Recipe(), ["train.epochs=3"])
    for wrong, message in (
        ({"train.epoch": 3}, "train.epoch: unknown setting, did you mean 'train.epochs'"),
        ({"train.epochs": "3"}, "train.epochs must be a whole number, got '3'"),
        ({"train.epochs": 0}, "epochs must be at least 1, got 0"),
    ):
        with pytest.raises(ConfigError) as caught:
            changed(Recipe(), wrong)
        assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "text", ["list.txt", "1", "true", "none.txt", "my list.txt", '"a"', "1#a.txt", " a", "[1]", "ü"]
)
def test_a_text_is_set_as_it_is(text: str) -> None:
    assert override(Recipe(), [as_assignment("train.exclude", text)]).train.exclude == text
