"""What is done to a finished ranking before anybody sees it: who stands in a list, and why somebody does not.

A :class:`PolicyChain` takes a recommender's best candidates of a batch of users and gives back lists after each of its
policies, so that the cost of each can be measured and each change explained.
"""

from __future__ import annotations

from llmrec_core.policies.chain import Applied, Candidates, PolicyChain, Stage, check_data
from llmrec_core.policies.reasons import Change, changes_of
from llmrec_core.policies.target import build_chain

__all__ = ["Applied", "Candidates", "Change", "PolicyChain", "Stage", "build_chain", "changes_of", "check_data"]
