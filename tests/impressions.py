"""Slates that were shown, for tests of who keeps them."""

from service.domain import Impression, Slate, SlateItem


def an_impression(user_id: str, number: int, *item_ids: str, continues: int | None = None) -> Impression:
    """Of the recommendation id `number`."""
    return Impression(
        user_id=user_id,
        recommendation_id=f"{number:032x}",
        continued_from=None if continues is None else f"{continues:032x}",
        timestamp_ms=1_790_000_000_000 + number % 1000,
        slate=Slate(
            items=tuple(SlateItem(item_id, -0.5 * place) for place, item_id in enumerate(item_ids)),
            source="model",
            model_version="m1",
            catalog_version="c1",
        ),
    )
