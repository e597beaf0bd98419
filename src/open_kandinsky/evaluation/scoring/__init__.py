"""How pictures become numbers: the evaluators' networks, their features on a disk, and scores of those."""
