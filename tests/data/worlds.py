"""Synthetic worlds as tests see them: by the files that `write_world` leaves."""

from ans.config.schema import World

ONE_OF_EACH = {"sa1b_images": 1, "sav_pairs": 1, "openimages_images": 1, "describe_images": 1, "reasonseg_images": 4}
SMALLEST = World(seed=3, train_images=1, val_images=1, test_images=1, **ONE_OF_EACH, shift=1.0)


def scene_of_image(world: World) -> dict[int, tuple[str, int]]:
    """COCO's image_id -> split and index of its scene: they are numbered in this order."""
    sizes = {"train": world.train_images, "val": world.val_images}
    sizes |= dict.fromkeys(("testA", "testB", "test"), world.test_images)
    written = [(split, index) for split, size in sizes.items() for index in range(size)]
    return {1009 + 37 * number: scene for number, scene in enumerate(written)}
