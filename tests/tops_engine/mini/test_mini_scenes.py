"""Test scenes: deterministic, separate for training and testing, with an oracle and correct questions."""

import random
from collections import Counter

import pytest

from tops_engine.errors import MissingDependency
from tops_engine.mini import scenes
from tops_engine.mini.questions import COLOURS, KINDS, SHAPES, Question, SceneObject, ask, location, phrase
from tops_engine.mini.scenes import Scene, generate, is_correct

pytest.importorskip("skimage")
pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def some() -> list[Scene]:
    return [generate(seed, "test") for seed in range(120)]


def test_a_seed_and_split_give_the_same_scene_again() -> None:
    for split in ("train", "test"):
        first, second = generate(7, split), generate(7, split)
        assert first.objects == second.objects
        assert first.questions == second.questions
        assert first.image.tobytes() == second.image.tobytes()
    assert generate(7, "train").objects != generate(7, "test").objects
    assert generate(7, "test").objects != generate(8, "test").objects


def test_train_and_test_share_no_photographs_words_or_digit_samples() -> None:
    assert not set(scenes.PHOTOS["train"]) & set(scenes.PHOTOS["test"])
    assert not set(scenes.WORDS["train"]) & set(scenes.WORDS["test"])
    samples = {
        split: {glyph.tobytes() for glyphs in scenes._digit_samples(split) for glyph in glyphs}
        for split in ("train", "test")
    }
    assert not samples["train"] & samples["test"]
    assert all(len(glyphs) > 20 for glyphs in scenes._digit_samples("test"))


def test_training_never_shows_a_test_word_but_shows_letters_at_random() -> None:
    rng = random.Random(0)
    drawn = [scenes._word(rng, "train") for _ in range(4000)]
    assert not set(drawn) & set(scenes.WORDS["test"])
    assert 0.4 < sum(word in scenes.WORDS["train"] for word in drawn) / len(drawn) < 0.6
    assert {scenes._word(rng, "test") for _ in range(200)} <= set(scenes.WORDS["test"])


def test_a_scene_has_five_to_twelve_small_objects_that_do_not_overlap(some: list[Scene]) -> None:
    for scene in some:
        assert 5 <= len(scene.objects) <= 12
        assert scene.image.size == (scenes.SIDE, scenes.SIDE)
        boxes = [item.box for item in scene.objects]
        for index, (left, top, right, bottom) in enumerate(boxes):
            assert 0 <= left < right <= scenes.SIDE
            assert 0 <= top < bottom <= scenes.SIDE
            for a, b, c, d in boxes[:index]:
                assert right <= a or c <= left or bottom <= b or d <= top
        assert all(1 <= len(patches) <= 10 for patches in scene.patches_of_objects(12))
    assert sum(len(scene.object_patches(12)) for scene in some) / len(some) < 0.25 * 144


@pytest.mark.parametrize("grid", [12, 24])
def test_the_oracle_holds_every_objects_centre_and_most_of_its_area(some: list[Scene], grid: int) -> None:
    cell = scenes.SIDE / grid
    for scene in some:
        oracle = scene.object_patches(grid)
        assert oracle == sorted(set(oracle))
        assert oracle[0] >= 0
        assert oracle[-1] < grid * grid
        for item, patches in zip(scene.objects, scene.patches_of_objects(grid), strict=True):
            assert set(patches) <= set(oracle)
            left, top, right, bottom = item.box
            covered = sum(
                (min(right, (p % grid + 1) * cell) - max(left, p % grid * cell))
                * (min(bottom, (p // grid + 1) * cell) - max(top, p // grid * cell))
                for p in patches
            )
            assert covered / ((right - left) * (bottom - top)) > 0.5
            middle = int((top + bottom) / 2 / cell) * grid + int((left + right) / 2 / cell)
            assert middle in patches


def test_a_box_smaller_than_a_fifth_of_a_patch_still_gets_one() -> None:
    assert scenes.patches_of_box((26, 26, 30, 29), 336, 12) == [0]


def test_answers_follow_from_the_objects_and_are_unique(some: list[Scene]) -> None:
    for scene in some:
        shapes = [item for item in scene.objects if item.kind == "shape"]
        for question in scene.questions:
            subject = [scene.objects[i] for i in question.subject]
            if question.kind == "colour":
                assert [item.name for item in shapes].count(subject[0].name) == 1
                assert is_correct(question, subject[0].colour)
            elif question.kind == "shape":
                assert [item.colour for item in shapes].count(subject[0].colour) == 1
                assert is_correct(question, subject[0].name)
            elif question.kind in ("digit", "word"):
                assert [item.kind for item in scene.objects].count(subject[0].kind) == 1
                assert is_correct(question, subject[0].name)
            elif question.kind == "count":
                assert is_correct(question, str(len(subject)))
            elif question.kind == "where":
                assert is_correct(question, location(subject[0], scenes.SIDE) or "")
            elif question.kind == "exists":
                assert is_correct(question, "yes" if subject else "no")
            else:
                assert is_correct(question, ", ".join(phrase(item) for item in reversed(scene.objects)))


def test_every_kind_is_asked_and_yes_and_no_are_balanced() -> None:
    rng = random.Random(1)
    counts: Counter[str] = Counter()
    truth: Counter[bool] = Counter()
    for seed in range(1500):
        objects = scenes.place_objects(random.Random(seed), "test")
        for question in ask(objects, scenes.SIDE, rng):
            counts[question.kind] += 1
            if question.kind == "exists":
                truth[bool(question.subject)] += 1
    assert set(counts) == set(KINDS)
    assert min(counts.values()) > 700
    assert 0.45 < truth[True] / sum(truth.values()) < 0.55


@pytest.mark.parametrize(
    ("kind", "answer", "right", "wrong"),
    [
        ("colour", "red", ["Red.", "The circle is red."], ["blue", "red or blue", "", "I see a circle"]),
        ("shape", "star", ["a star", "The red object is a star."], ["circle", "star circle"]),
        ("count", "2", ["two", "There are 2 stars."], ["3", "2 or 3", "many"]),
        ("exists", "yes", ["Yes.", "Yes, there is a red star."], ["no", "maybe yes"]),
        ("digit", "7", ["The number is 7.", "seven"], ["1", "17"]),
        ("word", "KITE", ["kite", "The word is KITE."], ["KIT", "The word is KITES.", "word"]),
        ("where", "top left", ["at the top left", "left, top"], ["top", "bottom left"]),
        ("where", "centre", ["In the center.", "middle"], ["top", "centre left"]),
        ("describe", "red star, digit 7, word KITE", ["word KITE, red star and digit 7"], ["red star, digit 7", "x"]),
    ],
)
def test_an_answer_is_right_by_its_content(kind: str, answer: str, right: list[str], wrong: list[str]) -> None:
    question = Question(kind, "?", answer, (0,))  # type: ignore[arg-type]
    assert [text for text in [answer, *right] if not is_correct(question, text)] == []
    assert [text for text in wrong if is_correct(question, text)] == []


def test_no_question_about_a_place_near_a_border() -> None:
    near = SceneObject("shape", COLOURS[0], SHAPES[0], (92, 20, 132, 60))  # its centre lies on the third's edge
    far = SceneObject("shape", COLOURS[0], SHAPES[0], (20, 20, 60, 60))
    assert location(near, scenes.SIDE) is None
    assert location(far, scenes.SIDE) == "top left"


def test_a_missing_package_names_the_extra() -> None:
    with pytest.raises(MissingDependency, match=r"pip install 'tops-engine\[bench\]'"):
        scenes._folder("no_such_package_at_all", "data")


def test_the_sample_picture_is_larger_than_the_models_input() -> None:
    assert scenes.sample_picture().size == (504, 504)
