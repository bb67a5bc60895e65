"""The command `oneslate` of pages under test: whatever it builds is small."""

import sys

import tiny_build

import oneslate

_OF_A_LOG = (
    *tiny_build.SETTINGS,
    "prepare.slate_size=5",
    "prepare.repeat_policy=allow",
    "model.item_vector_width=16",
)
SETTINGS = {"build": _OF_A_LOG, "backfill": _OF_A_LOG, "demo": tiny_build.SETTINGS}


def main() -> None:
    """With the arguments of `oneslate`."""
    sys.argv += tiny_build.set_options(SETTINGS.get(sys.argv[1], ()))
    oneslate.main()


if __name__ == "__main__":
    main()
