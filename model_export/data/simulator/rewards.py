"""The exact expected reward of slates.

With S_k the chance that the user reaches item k, v_k the expected reward of an item that is seen and c_k the chance to
go on after it, the reward is the sum of S_k v_k, with S_1 = 1 and S_{k+1} = S_k c_k. v_k and c_k depend on the items
shown before k, never on the reactions to them (see `behaviour`), so nothing has to be averaged over.

Shapes: B users, W slates of each, K slate size, P items shown earlier in the same visit, I items.
"""

import numpy as np

from model_export.data.simulator.behaviour import Behaviour, Pressure
from model_export.data.simulator.items import Float, Int
from model_export.data.simulator.users import Traits


def expected_rewards(behaviour: Behaviour, traits: Traits, resting_BWK: Float, item_BWK: Int, prefix_BP: Int) -> Float:
    """The expected reward `[B, W]` of slates.

    Args:
        behaviour: Configuration and catalog.
        traits: Of B users.
        resting_BWK: Log-odds of a click on each item before anything in this visit: taste less the strain of memory.
        item_BWK: Item rows; at -1 nothing is shown: no reward, no effect, and the user goes on.
        prefix_BP: Items shown before the slate in the same visit, the last at the end, -1 padded in front.
    """
    spacing, num_before = behaviour.config.spacing, prefix_BP.shape[1]
    prefix_BWP = np.broadcast_to(prefix_BP[:, None, :], (*item_BWK.shape[:2], num_before))
    shown_BWX = np.concatenate([prefix_BWP, item_BWK], axis=2)
    position_B1 = (prefix_BP >= 0).sum(axis=1, keepdims=True)
    total_BW, reach_BW = np.zeros(item_BWK.shape[:2]), np.ones(item_BWK.shape[:2])
    for place in range(item_BWK.shape[2]):
        item_BW = item_BWK[:, :, place]
        nearness_X = np.power(spacing, np.arange(num_before + place - 1, -1, -1))
        each = behaviour.pressure(shown_BWX[:, :, : num_before + place], item_BW[:, :, None])
        pressure = Pressure(
            fatigue=(each.fatigue * nearness_X).sum(axis=2), appetite=(each.appetite * nearness_X).sum(axis=2)
        )
        strain_BW = behaviour.strain(traits, item_BW, pressure)
        drop_B1 = behaviour.config.position_drop * (position_B1 + place)
        reaction = behaviour.reaction(resting_BWK[:, :, place] - strain_BW - drop_B1)
        is_shown_BW = item_BW >= 0
        total_BW += np.where(is_shown_BW, reach_BW * behaviour.value(reaction, item_BW), 0.0)
        reach_BW = np.where(is_shown_BW, reach_BW * behaviour.stay(traits, reaction), reach_BW)
    return total_BW
