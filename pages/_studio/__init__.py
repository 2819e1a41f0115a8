"""What the screens share: the workspace, words for faults, pickers that live in the address bar, the live run."""
